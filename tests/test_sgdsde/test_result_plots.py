"""Plots of results: the data that they show, the axes that they return, and what they leave alone."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

import sgdsde as sg
from solvers import Density, Grid, axes, fokker_planck, sde

_rng = np.random.default_rng(5)
_line, _plane = Grid.uniform((-1, 1, 4)), Grid.uniform((-1, 1, 4), (0, 1, 2))
_law = Density(_line, [0.1, 0.4, 0.4, 0.1])
_field = np.arange(8.0).reshape(4, 2)


def _passing_lines(ax):
    return [line.get_xydata() for line in ax.lines]


def _ensemble(**changes):
    given = {"final": _rng.normal(size=(50, 2)), "ts": None, "xs": None, "observed": {}, "nonfinite": 0, "method": "M"}
    rest = {"engine": "", "dt": 0.1, "steps": 9, "complete": True, "seconds": 1.0}
    return sde.Ensemble(**(given | rest | changes))


_ts = np.array([0.0, 1.0, 2.0])
_study = sde.OrderStudy(_ts[1:], 3 * _ts[1:] ** 2, 0.1 * _ts[1:], 2.0, (1.9, 2.1), "weak", "M", "exact", 0.0, 64)
_levels = {
    "dts": _ts[1:],
    "paths": np.array([9, 9]),
    "means": np.array([-1.0, -2.0]),
    "variances": np.array([1.0, 4.0]),
}
_relaxing = np.exp(-2 * _ts)

_results = {
    "ensemble": _ensemble(),
    "fan": _ensemble(ts=_ts, xs=_rng.normal(size=(3, 50, 2))),
    "study": _study,
    "levels": sde.Multilevel(
        1.0, 0.1, 0.1, 0.2, alpha=1.0, beta=2.0, gamma=1.0, cost=9, twins=False, method="M", **_levels
    ),
    "extrapolation": sde.Extrapolation(1.0, 0.1, (1.2, 1.1), (0.1, 0.2), 0.5, 1.0, "M", 9),
    "law": _law,
    "histogram": Density.from_samples(_line, _rng.uniform(-1, 1, 100)),
    "plane": Density(_plane, _field / _field.sum()),
    "evolution": fokker_planck.Evolution(_ts, (_law,) * 3, 0.0, 0.0),
    "spectrum": fokker_planck.Spectrum(_ts, _ts, np.full(3, np.nan), None, _law.mass, True),
    "exit": fokker_planck.ExitTime(_line, _law.mass, _law.mass, _law.mass, abs, ("no-flux",), _law.mass),
    "exit on a plane": fokker_planck.ExitTime(_plane, _field, _field, _field, abs, ("no-flux",) * 2, _field),
    "quasi-stationary": fokker_planck.QuasiStationary(1.0, 0.1, _law),
    "committor": fokker_planck.Committor(_law.mass, _law.mass, 1.0, np.zeros((1, 4)), _law.mass, 0.1, _line),
    "current": fokker_planck.Current((), np.stack([_field, _field]), 0.0, _plane),
    "cut off": fokker_planck.CutOff(np.array([[0.1, 0.2]]), np.ones((1, 2)), np.array([[0.0, 1.0]]), 1e-9),
    "radial": fokker_planck.RadialSpectrum(_ts, _ts, np.ones((3, 4)), 0, 1, np.inf),
    "stein": fokker_planck.Stein(("a", "b", "c"), _ts, np.ones(3), np.ones(3)),
    "comparison": sg.compare(_law, Density.from_samples(_line, _rng.uniform(-1, 1, 100))),
    "relaxation": fokker_planck.Relaxation(_ts, _relaxing, _relaxing, np.ones(2), 1.0, 0.1),
}


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


@pytest.mark.parametrize("name", _results)
def test_a_result_draws_on_the_axes_that_it_is_given_and_nothing_else(ax, name):
    settings, figures = dict(mpl.rcParams), plt.get_fignums()
    assert _results[name].plot(ax) is ax
    assert dict(mpl.rcParams) == settings
    assert plt.get_fignums() == figures
    assert ax.has_data()
    assert ax.get_ylabel()
    ax.figure.canvas.draw()


def test_new_axes_are_in_the_style_of_the_figures():
    settings = dict(mpl.rcParams)
    _ = sg.plots
    ax = _study.plot()
    assert dict(mpl.rcParams) == settings
    assert ax.xaxis.label.get_size() == 8
    plt.close(ax.figure)


def test_solvers_alone_say_where_axes_come_from(monkeypatch):
    monkeypatch.setattr(axes, "_suppliers", [])
    with pytest.raises(ValueError, match=r"`ax` must be matplotlib axes .* After `import sgdsde\.plots` it may"):
        _study.plot()


# What is drawn is what there is


def test_a_study_shows_errors_and_the_fitted_slope(ax):
    _study.plot(ax)
    shown, guide = _passing_lines(ax)
    np.testing.assert_array_equal(shown, np.stack([_study.dts, _study.errors], axis=1))
    np.testing.assert_allclose(guide[:, 1], 3 * guide[:, 0] ** 2)
    (bars,) = ax.collections
    half = [np.ptp(segment[:, 1]) / 2 for segment in bars.get_segments()]
    np.testing.assert_allclose(half, 1.96 * _study.sem)


def test_a_density_shows_its_pdf(ax):
    _law.plot(ax)
    (stairs,) = ax.patches
    np.testing.assert_array_equal(stairs.get_data().values, _law.mass / 0.5)
    np.testing.assert_array_equal(stairs.get_data().edges, _line.edges[0])


def test_a_box_that_reaches_far_into_the_tails_does_not_hide_the_law(ax):
    grid = Grid.stretched((1e6, 400, 1.0))
    law = Density.from_function(grid, lambda x: (1 + x @ x) ** -2.0)
    low, high = law.plot(ax).get_xlim()
    # All but 5e-4 at either end, P(x > 7.5) = 5e-4, and a margin of 15 % of what is between.
    assert 7.5 * 1.3 < high < 1.2 * 7.5 * 1.3
    assert low == pytest.approx(-high, rel=0.1)


def test_paths_at_the_end_are_a_density_without_the_few_that_are_far_out(ax):
    final = np.append(np.linspace(-1, 1, 10_000), 1e9)[:, None]
    _ensemble(final=final).plot(ax)
    (stairs,) = ax.patches
    values, edges, _ = stairs.get_data()
    assert edges[-1] < 2
    assert np.sum(values * np.diff(edges)) == pytest.approx(1, abs=2e-4)


def test_a_histogram_shows_two_standard_errors(ax):
    p = _results["histogram"]
    p.plot(ax)
    band, curve = ax.patches
    np.testing.assert_array_equal(curve.get_data().values, p.pdf)
    np.testing.assert_allclose(band.get_data().values, p.pdf + 2 * p.standard_error / 0.5)


def test_a_plane_has_the_first_axis_across(ax):
    _results["exit on a plane"].plot(ax)
    (mesh,) = ax.collections
    np.testing.assert_array_equal(mesh.get_array(), _field.T)


def test_a_fan_shows_the_median(ax):
    out = _results["fan"]
    out.plot(ax)
    np.testing.assert_allclose(_passing_lines(ax)[0], np.stack([_ts, np.median(out.xs[:, :, 0], axis=1)], axis=1))


def test_a_relaxation_shows_its_distance_and_the_gap(ax):
    _results["relaxation"].plot(ax)
    shown, guide = _passing_lines(ax)
    np.testing.assert_allclose(shown[:, 1], np.exp(-_ts))
    np.testing.assert_allclose(guide[:, 1], np.exp(-_ts))


def test_vectors_in_space_are_refused():
    grid = Grid.uniform((0, 1, 2), (0, 1, 2), (0, 1, 2))
    with pytest.raises(ValueError, match="on one and two axes, but this grid has 3"):
        fokker_planck.Current((), np.zeros((3, 2, 2, 2)), 0.0, grid).plot()
