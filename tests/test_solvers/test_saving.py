"""Results in files: what comes back is what was saved, and whatever else there is in a file is refused."""

import hashlib
import importlib
import inspect
import io
import json
import pickle
import pkgutil
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

import sgdsde
import solvers
from solvers import Density, Grid, NotSaved, fokker_planck, saving, sde
from solvers.clocks import Clocks
from solvers.provenance import Provenance
from solvers.result import AbstractResult

_made = Provenance("by.hand", "Nothing 0", (1, 2), "float64", "cpu", (("jax", "1"),), 0.5, "2026-12-01T00:00:00+00:00")
_old = Path(__file__).parent / "data" / "result_v1.npz"


def _law():
    return Density(Grid.uniform((0, 1, 2), (-1, 1, 1)), [[0.25], [0.5]], 0.25, error=[[0.1], [0.2]], provenance=_made)


def _ensemble(**changes):
    given = {
        "final": np.array([[1.0, np.nan], [-0.0, 2.0]], np.float32),
        "ts": None,
        "xs": np.zeros((0, 2, 2), np.float32),
        "observed": {"p/q": _law(), "p_q": sde.Moments().result(_no_moments()), "": (1, [2.5, np.inf], {"k": False})},
        "nonfinite": 1,
        "method": "Euler-Maruyama, η → 0",
        "engine": "by hand",
        "dt": 0.1,
        "steps": 2**40,
        "complete": True,
        "seconds": float("nan"),
        "clocks": Clocks(0.1, None, 3.0),
        "provenance": _made,
    }
    return sde.Ensemble(**(given | changes))


def _no_moments():
    spread = sde.observables._Spread(0.0, np.zeros(1), np.zeros((1, 1)))
    return (1,), spread, spread, 0


def _same(a, b):
    """Equal to the last bit, in type, dtype and sign of zero."""
    assert type(a) is type(b)
    if isinstance(a, np.ndarray):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    elif isinstance(a, dict):
        assert list(a) == list(b)
        [_same(a[key], b[key]) for key in a]
    elif isinstance(a, tuple | list):
        assert len(a) == len(b)
        [_same(x, y) for x, y in zip(a, b, strict=True)]
    elif hasattr(a, "__dataclass_fields__"):
        [_same(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__]
    else:
        assert repr(a) == repr(b)


def _written(path, manifest, members=(), kind=zipfile.ZIP_STORED):
    """A file with any manifest and the right checksum of all its bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        text = manifest if isinstance(manifest, str) else json.dumps(manifest)
        for name, data in [("result.json", text), *members]:
            archive.writestr(name, data)
        archive.comment = b"0" * 64
    body = buffer.getvalue()[:-64]
    path.write_bytes(body + hashlib.sha256(body).hexdigest().encode())
    return path


# What is saved comes back


def test_a_result_comes_back_to_the_last_bit(tmp_path):
    saved = _ensemble()
    path = saved.save(tmp_path / "run")
    assert path == tmp_path / "run.npz"
    _same(solvers.load(path), saved)


def test_names_that_differ_in_signs_only_keep_their_arrays(tmp_path):
    saved = _ensemble(observed={"a/b": np.zeros(1), "a_b": np.ones(1), "a b": np.full(1, 2.0)})
    _same(solvers.load(saved.save(tmp_path / "run")), saved)


def test_numpy_reads_the_arrays_by_name(tmp_path):
    with np.load(_ensemble().save(tmp_path / "run.npz"), allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["final"], _ensemble().final)
        np.testing.assert_array_equal(arrays["observed.p_q.mean"], [np.nan])
        np.testing.assert_array_equal(arrays["observed.p_q.mass"], _law().mass)


def test_equal_results_make_equal_files_and_others_are_told_apart():
    assert saving.packed(_ensemble()) == saving.packed(_ensemble())
    assert saving.differences(_ensemble(), _ensemble(seconds=1.0, provenance=None)) == []
    final = _ensemble().final.copy()
    final[1, 0] = 0.0
    assert saving.differences(_ensemble(), _ensemble(final=final, steps=3)) == ["steps", "final"]


def test_functions_are_not_saved_and_say_so(tmp_path):
    time = fokker_planck.ExitTime(
        Grid.uniform((0, 1, 1)), *np.zeros((3, 1)), lambda x: x[0] < 1, ("no-flux",), np.zeros(1)
    )
    back = solvers.load(time.save(tmp_path / "time"))
    assert isinstance(back.inside, NotSaved)
    with pytest.raises(TypeError, match="<lambda> was not saved with this result"):
        back.inside(np.zeros(1))
    # Saved once more it is the same file.
    assert saving.packed(back) == saving.packed(time)


def test_every_result_can_be_made_from_its_fields_and_has_what_results_have():
    for package in (solvers, sgdsde):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    results = AbstractResult.__subclasses__()
    assert len(results) >= 16
    for result in results:
        assert {f.name for f in saving._saved_fields(result)} <= set(inspect.signature(result).parameters), result
        assert "provenance" in {f.name for f in saving._saved_fields(result)}, result
        assert callable(getattr(result, "plot", None)), result


def test_files_of_version_1_stay_readable():
    # Written once, when this was the version; never again.
    _same(solvers.load(_old), _ensemble())


def test_a_traced_result_is_refused():
    with pytest.raises(TypeError, match="whose numbers JAX traces can't be saved"):
        jax.eval_shape(lambda outside: saving.packed(Density(Grid.uniform((0, 1, 1)), outside * np.ones(1))), 1.0)


# Damage


def test_a_change_of_any_byte_is_refused(tmp_path):
    content = saving.packed(sde.Extrapolation(1.0, 0.1, (1.0, 2.0), (0.1, 0.1), 0.5, 1.0, "EM", 2))
    path = tmp_path / "r.npz"
    for k in range(len(content)):
        damaged = bytearray(content)
        damaged[k] ^= 1 << k % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"`path`: .*r\.npz is (damaged|not the file of a result)"):
            solvers.load(path)


def test_a_file_that_is_cut_off_or_longer_is_refused(tmp_path):
    content = saving.packed(sde.Extrapolation(1.0, 0.1, (1.0, 2.0), (0.1, 0.1), 0.5, 1.0, "EM", 2))
    path = tmp_path / "r.npz"
    for k in range(len(content)):
        path.write_bytes(content[:k])
        with pytest.raises(ValueError, match=r"`path`: .*r\.npz is (damaged|not the file of a result)"):
            solvers.load(path)
    path.write_bytes(content + b"\n")
    with pytest.raises(ValueError, match="do not end with their sha256"):
        solvers.load(path)


def test_archives_of_numpy_are_no_results(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones(2))
    with pytest.raises(ValueError, match="was not written by `save`"):
        solvers.load(tmp_path / "a.npz")


def _tree(name, **fields):
    return {"object": name, "fields": fields}


@pytest.mark.parametrize(
    "result",
    [
        _tree("solvers.clocks.Clocks", step_time=None),
        _tree("solvers.clocks.Clocks", dt=1.0, unknown=2.0),
        _tree("solvers.clocks.clocks_of", process=1, dt=1.0),
        _tree("solvers.clocks.eqx.Module"),
        _tree("solvers.no_such_module.Clocks", dt=1.0),
        _tree("solvers.clocks.NoSuchClass", dt=1.0),
        _tree("solvers.saving.Path", dt=1.0),
        _tree("solvers.grid.Grid", edges={"tuple": [1.0]}),
        {"array": "missing"},
        {"array": "pickled"},
        {"array": "other"},
        {"float": "one"},
        {"dict": [["a"]]},
        {"tuple": 3},
        {"what": 3},
        json.loads("[" * 60 + "]" * 60),
    ],
)
def test_trees_that_make_no_sense_are_refused(tmp_path, result):
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    pickled = buffer.getvalue()
    sums = {"pickled.npy": hashlib.sha256(pickled).hexdigest(), "other.npy": "0" * 64}
    members = [("pickled.npy", pickled), ("other.npy", b"no array")]
    path = _written(tmp_path / "r.npz", {"format": 1, "result": result, "sha256": sums}, members)
    with pytest.raises(ValueError, match="is not in order"):
        solvers.load(path)


@pytest.mark.parametrize("manifest", ["", "{", "[]", "{}", '{"format": "1"}', '{"format": 0}', "[" * 100_000])
def test_manifests_that_make_no_sense_are_refused(tmp_path, manifest):
    with pytest.raises(ValueError, match="is not in order"):
        solvers.load(_written(tmp_path / "r.npz", manifest))


def test_a_newer_version_is_told_from_damage(tmp_path):
    path = _written(tmp_path / "r.npz", {"format": 2, "something": "else"})
    with pytest.raises(ValueError, match=r"has version 2 of the format, and this library reads up to 1\. Update"):
        solvers.load(path)


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.object", "sgdsde.weak_error.Validity", "solvers", "solvers..a"]
)
def test_classes_of_other_packages_are_not_looked_for(tmp_path, name):
    path = _written(tmp_path / "r.npz", {"format": 1, "result": _tree(name), "sha256": {}})
    with pytest.raises(ValueError, match=r"which is not of solvers\."):
        solvers.load(path)


def test_compressed_members_are_refused(tmp_path):
    # They could be any number of times larger than the file.
    path = _written(tmp_path / "r.npz", {"format": 1, "result": 1, "sha256": {}}, kind=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"result\.json is compressed"):
        solvers.load(path)


def test_pickles_are_not_read(tmp_path):
    (tmp_path / "r.npz").write_bytes(pickle.dumps(1))
    with pytest.raises(ValueError, match="it does not begin as one"):
        solvers.load(tmp_path / "r.npz")


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = _law().save(tmp_path / "law")
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving.os, "fsync", full)
    with pytest.raises(OSError, match=r"`path`: a result of [\d,]+ bytes could not be .*No space left.*Free space"):
        _ensemble().save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["law.npz"]
