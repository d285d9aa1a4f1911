"""Every experiment, reduced: its claims hold, and its table and figure show its numbers."""

import importlib
import math

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest

from sgdsde import experiments
from sgdsde.__main__ import _writable, main
from sgdsde.experiments.claims import Claim, check, table


@pytest.fixture(autouse=True)
def standard_promotion():
    """Experiments are run by users, who never asked for strict promotion."""
    before = jax.config.jax_numpy_dtype_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_dtype_promotion", before)
    plt.close("all")


@pytest.mark.parametrize("name", experiments.names)
@pytest.mark.slow("flat_minima", "two_minima", "anisotropic_escape", "learning_rate_batch_size")
def test_claims_hold(name):
    module = importlib.import_module(f"sgdsde.experiments.{name}")
    result = module.run(module.Config.fast(), 0)
    assert len(result.claims) > 0
    check(result.claims)
    text = str(result)
    assert all(str(claim) in text for claim in result.claims)
    before = dict(plt.rcParams)
    panels = result.plot()
    assert dict(plt.rcParams) == before
    for ax in np.ravel(panels):
        assert ax.get_xlabel()
        assert ax.lines or ax.collections or ax.patches or ax.images


@pytest.mark.parametrize(
    ("relation", "value", "holds"),
    [
        ("=", 1.09, True),
        ("=", 1.11, False),
        ("=", 0.89, False),
        ("<", 1.09, True),
        ("<", 1.11, False),
        ("<", -9.0, True),
        (">", 0.91, True),
        (">", 0.89, False),
        (">", 9.0, True),
        ("=", math.nan, False),
        ("<", -math.inf, False),
        (">", math.inf, False),
    ],
)
def test_a_claim_holds_within_its_tolerance(relation, value, holds):
    claim = Claim("one", value, 1.0, 0.1, relation)
    assert claim.holds is holds
    assert ("holds" in str(claim)) is holds
    if holds:
        check([claim])
    else:
        with pytest.raises(AssertionError, match="one"):
            check([Claim("other", 0.0, 0.0, 0.0), claim])


def test_a_relation_is_one_of_three():
    with pytest.raises(ValueError, match="`relation` must be"):
        Claim("one", 1.0, 1.0, 0.1, "≤")


def test_a_table_is_aligned():
    assert table(["a", "bb"], [[1.0, "x"], [np.float64(2.5), 3]]) == "a    bb\n-------\n1    x\n2.5  3"


def test_command_line(capsys):
    assert main(["list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(experiments.names)
    assert main(["run", "no_such_experiment"]) == 2
    assert "there is no experiment 'no_such_experiment'" in capsys.readouterr().err


def test_a_figure_is_a_png_unless_named_otherwise_and_leaves_no_empty_file(tmp_path):
    assert _writable(str(tmp_path / "a")) == str(tmp_path / "a.png")
    assert _writable(str(tmp_path / "a.pdf")) == str(tmp_path / "a.pdf")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="No such file"):
        _writable(str(tmp_path / "none" / "a.png"))
