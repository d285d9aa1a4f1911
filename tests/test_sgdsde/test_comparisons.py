"""What the command line saved, verified: the same bits pass, other bits fail, and no code of a file is run."""

import dataclasses

import jax
import numpy as np
import pytest

import sgdsde as sg
from sgdsde import __main__ as command
from sgdsde.comparisons import Comparisons, verify
from sgdsde.distances import compare
from sgdsde.invariant import InvariantComparison, Row
from solvers import Density, Grid, NotSaved
from solvers.provenance import Provenance

_made = Provenance("by.hand", "SGD 0", (1,), "float64", "cpu", (("jax", "1"),), 0.5, "2026-12-01T00:00:00+00:00")
_model = sg.SGD(lambda x: 0.5 * x @ x, sg.noise.Constant(1.0), 0.1)
_arguments = {"loss": "x**2", "noise": "constant", "sigma": 1.0, "learning_rate": 0.1, "floor": 0.1, "dim": None}


def _comparison(mass=0.5, excess=1.0, provenance=_made):
    grid = Grid.uniform((0, 1, 2))
    p = Density(grid, [mass, 1 - mass])
    row = Row("Fokker-Planck", "Gibbs", compare(p, p), excess)
    return InvariantComparison(_model, grid, grid, {"Gibbs": p}, {}, {}, [row], {}, [], provenance)


def _saved(path, **arguments):
    return str(Comparisons(_arguments | arguments, {"constant noise": _comparison()}).save(path / "saved"))


def _verified(path, again):
    lines = []
    return verify(path, lambda given: {"constant noise": again}, lines.append), "\n".join(lines)


def test_the_same_numbers_pass_whatever_time_they_took(tmp_path):
    later = dataclasses.replace(_made, seconds=9.0, created="2027-01-01T00:00:00+00:00")
    passed, text = _verified(_saved(tmp_path), _comparison(provenance=later))
    assert passed
    assert "checksums: ok" in text
    assert "made by: by.hand of SGD 0 in float64, key 1" in text
    assert "computed again: ok, every number is the same to the last bit" in text


def test_one_other_bit_fails_where_nothing_else_is_different(tmp_path):
    passed, text = _verified(_saved(tmp_path), _comparison(mass=np.nextafter(0.5, 1)))
    assert not passed
    assert "constant noise.laws.Gibbs.mass" in text.replace("_", " ")
    assert "FAILED: versions, platform, key and process are the same" in text


@pytest.mark.parametrize(("excess", "passed"), [(1.1, True), (20.0, False)])
def test_with_other_versions_verdicts_decide(tmp_path, excess, passed):
    newer = dataclasses.replace(_made, versions=(("jax", "2"),))
    found, text = _verified(_saved(tmp_path), _comparison(excess=excess, provenance=newer))
    assert found == passed
    assert ("verdicts: ok, the same" in text) == passed


def test_code_of_a_module_is_not_started_by_a_file(tmp_path):
    passed, text = _verified(_saved(tmp_path, loss="os:system"), None)
    assert passed
    assert "whose code a file must not start" in text


def test_the_command_computes_again_with_the_arguments_of_the_file(tmp_path, monkeypatch, capsys):
    seen = []

    def again(arguments):
        seen.append(vars(arguments))
        return {"constant noise": _comparison()}

    monkeypatch.setattr(command, "_comparisons", again)
    assert command.main(["verify", _saved(tmp_path)]) == 0
    assert seen == [_arguments]
    assert "computed again: ok" in capsys.readouterr().out


def test_the_command_refuses_a_damaged_file(tmp_path, capsys):
    path = _saved(tmp_path)
    with open(path, "r+b") as file:
        file.seek(1000)
        file.write(b"?")
    assert command.main(["verify", path]) == 2
    assert "is damaged, or was not written by `save`" in capsys.readouterr().err


def test_other_results_are_checked_as_files_only(tmp_path):
    path = _comparison().laws["Gibbs"].save(tmp_path / "law")
    passed, text = _verified(str(path), None)
    assert passed
    assert "holds a Density" in text
    assert "not computed again" in text


def test_a_loaded_comparison_prints_what_the_saved_one_did(tmp_path):
    back = sg.load(_saved(tmp_path))
    result = back.results["constant noise"]
    assert str(result) == str(_comparison())
    assert isinstance(result.model, NotSaved)
    assert str(back).startswith("sgdsde compare: loss x**2, noise constant")
    assert jax.tree.leaves(result.laws)
