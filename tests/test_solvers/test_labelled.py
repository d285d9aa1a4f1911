"""Results as labelled arrays: names of axes, coordinates on all clocks, and the remedy if xarray is missing."""

import json
import sys

import numpy as np
import pytest

from solvers import Density, Grid, fokker_planck, sde
from solvers.clocks import Clocks
from solvers.labelled import labelled
from solvers.provenance import Provenance
from solvers.sde.observables import MomentsResult

_made = Provenance("by.hand", "Nothing 0", (1, 2), "float64", "cpu", (("jax", "1"),), 0.5, "2026-12-01T00:00:00+00:00")
_grid = Grid.uniform((0, 1, 2), (-1, 1, 3))
_law = Density(_grid, np.full((2, 3), 1 / 6), provenance=_made)
_ensemble = sde.Ensemble(
    final=np.zeros((4, 3)),
    ts=np.array([1.0, 2.0]),
    xs=np.zeros((2, 4, 3)),
    observed={"r": MomentsResult(np.zeros(2), np.eye(2), np.ones(2), 4), "p": _law},
    nonfinite=0,
    method="M",
    engine="",
    dt=0.1,
    steps=20,
    complete=True,
    seconds=1.0,
    clocks=Clocks(0.1, 0.5, 8.0),
    provenance=_made,
)


def _axes(found):
    return {name: axes for name, (axes, _) in found.variables.items()}


def test_paths_have_times_on_all_clocks():
    found = labelled(_ensemble)
    axes = _axes(found)
    assert axes["xs"] == ("time", "path", "component")
    assert axes["final"] == ("path", "component")
    assert axes["r.mean"] == axes["r.sem"] == ("r.k_0",)
    assert axes["p.mass"] == ("p.x1", "p.x2")
    assert {name: axes for name, (axes, _) in found.coordinates.items()} == {
        "time": ("time",),
        "steps": ("time",),
        "epochs": ("time",),
        "p.x1": ("p.x1",),
        "p.x2": ("p.x2",),
    }
    np.testing.assert_array_equal(found.coordinates["steps"][1], [2, 4])
    np.testing.assert_array_equal(found.coordinates["epochs"][1], [0.25, 0.5])
    np.testing.assert_array_equal(found.coordinates["p.x2"][1], _grid.centres[1])


def test_numbers_and_the_record_are_attributes():
    attributes = labelled(_ensemble).attributes
    assert (attributes["method"], attributes["steps"], attributes["complete"]) == ("M", 20, 1)
    assert json.loads(attributes["provenance"])["key"] == [1, 2]


def test_laws_at_successive_times_are_one_array():
    found = labelled(fokker_planck.Evolution(np.array([1.0, 2.0]), (_law, _law), 0.0, 0.0))
    axes, mass = found.variables["densities.mass"]
    assert axes == ("time", "densities.x1", "densities.x2")
    np.testing.assert_array_equal(mass, np.full((2, 2, 3), 1 / 6))


def test_axes_of_a_fixed_or_computed_length_have_no_common_name():
    cut = fokker_planck.CutOff(np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 2)), 1e-9)
    assert _axes(labelled(cut))["mass"] == ("component", "mass_1")
    relaxation = fokker_planck.Relaxation(*[np.ones(3)] * 3, np.ones(2), 1.0, 0.1)
    assert _axes(labelled(relaxation))["decay_rates"] == ("decay_rates_0",)


def test_modes_lie_on_an_axis_of_their_own_without_a_grid():
    spectrum = fokker_planck.Spectrum(*[np.zeros(2)] * 3, np.zeros((2, 5, 6)), np.zeros((5, 6)), True)
    assert _axes(labelled(spectrum))["modes"] == ("mode", "modes_1", "modes_2")


def test_without_xarray_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match=r"needs xarray, which is not installed: pip install xarray"):
        _law.to_xarray()


def test_xarray_takes_them():
    pytest.importorskip("xarray")
    data = _ensemble.to_xarray()
    assert dict(data.sizes) == {
        "path": 4,
        "component": 3,
        "time": 2,
        "r.k_0": 2,
        "r.cov_0": 2,
        "r.cov_1": 2,
        "p.x1": 2,
        "p.x2": 3,
    }
    np.testing.assert_array_equal(data["p.mass"].sum("p.x2"), _law.mass.sum(axis=1))
    assert data["xs"].sel(time=2.0).shape == (4, 3)
