"""Multilevel Monte Carlo: errors below the tolerance, error bars that hold, and the rates that theory gives."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr
from test_solvers.sde_problems import levy_area

from solvers import Diffusion, sde
from solvers.sde import coupling
from solvers.sde.levy import MatrixArea

_rate, _volatility, _start, _strike = 0.05, 0.2, 100.0, 100.0
_geometric = Diffusion(lambda t, x: _rate * x, lambda t, x: _volatility * x)
_decaying = Diffusion(lambda t, x: -x, lambda t, x: 0.3 * x)


def _call(x):
    return jnp.exp(-_rate) * jnp.maximum(x[0] - _strike, 0)


def _call_exact():
    d1 = (np.log(_start / _strike) + _rate + _volatility**2 / 2) / _volatility
    return _start * ndtr(d1) - _strike * np.exp(-_rate) * ndtr(d1 - _volatility)


def _first(x):
    return x[0]


def _square(x):
    return x @ x


def _run(method, functional, tolerance, key, process=_geometric, x0=(_start,), **options):
    return sde.multilevel(
        process, method, jnp.array(x0), 1.0, functional=functional, tolerance=tolerance, key=key, **options
    )


@pytest.mark.parametrize("method", [sde.EulerMaruyama(), sde.Milstein()])
@pytest.mark.slow("method1")
def test_root_mean_square_error_is_the_tolerance(method):
    """Half its square is for the standard error, which is used up, and half for the bias, which is not all of it."""
    tolerance = 0.05
    errors = np.array([_run(method, _call, tolerance, key).estimate - _call_exact() for key in range(12)])
    assert 0.5 * tolerance < np.sqrt(np.mean(errors**2)) < tolerance
    assert np.std(errors) < tolerance / np.sqrt(2) * 1.4


@pytest.mark.slow
def test_estimates_scatter_about_the_mean_of_the_finest_level_as_their_error_bars_say():
    scores = []
    for key in range(40):
        run = _run(sde.EulerMaruyama(), _first, 0.2, key)
        finest = _start * (1 + _rate * run.dts[-1]) ** round(1 / run.dts[-1])
        scores.append((run.estimate - finest) / run.sem)
        assert run.sem < 0.2 / np.sqrt(2)
    assert abs(np.mean(scores)) < 3 / np.sqrt(len(scores))
    assert 0.75 < np.sqrt(np.mean(np.square(scores))) < 1.25


@pytest.mark.parametrize(("method", "beta"), [(sde.EulerMaruyama(), 1), (sde.Milstein(), 2)])
@pytest.mark.slow("method1-2")
def test_rates_in_one_dimension(method, beta):
    run = _run(method, _square, 5e-4, 1, _decaying, (1.0,), dt=1 / 4)
    assert len(run.dts) >= 4
    assert abs(run.beta - beta) < 0.35, str(run)
    assert abs(run.alpha - 1) < 0.3, str(run)
    assert run.gamma == pytest.approx(1)
    assert not run.twins
    assert abs(run.estimate - np.exp(-2 + 0.09)) < 4 * run.sem + 2 * run.bias


class _WithoutAreas(sde.AbstractMethod):
    """Milstein with its Lévy areas left out, and nothing in their place."""

    strong_order = 0.5
    weak_order = 1.0
    calculus = "ito"

    def needs(self, process, x):
        return "increment"

    def step(self, process, t, x, dt, increment):
        dw = sde.Increment(increment.dw, MatrixArea(jnp.zeros((2, 2), x.dtype)))
        return sde.Milstein().step(process, t, x, dt, dw)


_isotropic = Diffusion(lambda t, x: -x, lambda t, x: jnp.sqrt(0.2 * (1 + x @ x)))

# E|X(1)|² from (1, 1/2): f = (1 + |x|²)/2 with D = f/5 relaxes to 1/4 at the rate 1.6.
_isotropic_exact = 0.25 + np.exp(-1.6)


def _area_square(x):
    return x[2] ** 2


@pytest.mark.parametrize(("method", "beta"), [(sde.Milstein(), 2), (_WithoutAreas(), 1)])
@pytest.mark.slow("method0-2")
def test_antithetic_twins_replace_levy_areas(method, beta):
    """X_3 is twice a Lévy area, E X_3² = 1, and 1 - dt without the areas of the steps."""
    run = _run(method, _area_square, 0.01, 1, levy_area, (0.0, 0.0, 0.0), dt=1 / 8)
    assert run.twins == (beta == 2)
    assert ("antithetic twins" in str(run)) == run.twins
    assert abs(run.beta - beta) < 0.3, str(run)
    # Twins change variances and no means.
    sems = np.sqrt(run.variances / run.paths)
    assert np.all(np.abs(run.means - [1 - run.dts[0], *run.dts[1:]]) < 4 * sems)
    assert abs(run.estimate - 1) < 0.01
    if run.twins:
        assert run.cost == round(np.sum(run.paths * np.array([8, *(2.5 / run.dts[1:])])))


def test_isotropic_noise_has_twins_in_the_place_of_levy_areas():
    arguments = {"functional": _square, "tolerance": 0.01, "x0": (1.0, 0.5), "dt": 1 / 4, "process": _isotropic}
    runs = [_run(sde.Milstein(), key=key, **arguments) for key in range(12)]
    errors = np.array([run.estimate - _isotropic_exact for run in runs])
    assert 0.004 < np.sqrt(np.mean(errors**2)) < 0.01
    assert abs(np.mean([run.beta for run in runs]) - 2) < 0.3
    assert all(run.twins for run in runs)


@pytest.mark.slow
def test_a_method_that_takes_time_integrals():
    run = _run(sde.WeakRK2(), _square, 0.01, 1, _isotropic, (1.0, 0.5), dt=1 / 4)
    assert abs(run.estimate - _isotropic_exact) < 0.02
    # Of weak order 2: no more than the three levels that there are at least.
    assert len(run.dts) == 3
    assert not run.twins


def test_cost_grows_as_the_square_of_the_accuracy():
    """Steps are not paid for: a halved tolerance needs another level and costs four times as much."""
    tolerances = np.array([5e-4, 2.5e-4, 1.25e-4])
    costs = [_run(sde.Milstein(), _square, tolerance, 1, _decaying, (1.0,), dt=1 / 4).cost for tolerance in tolerances]
    slope = np.polyfit(np.log(tolerances), np.log(costs), 1)[0]
    assert -2.2 < slope < -1.75, costs


@pytest.mark.slow
def test_samples_do_not_depend_on_how_many_are_computed_at_a_time(monkeypatch):
    whole = _run(sde.Milstein(), _call, 0.2, 3)
    monkeypatch.setattr(coupling, "_block_numbers", 192)
    parts = _run(sde.Milstein(), _call, 0.2, 3)
    np.testing.assert_array_equal(parts.paths, whole.paths)
    np.testing.assert_allclose(parts.means, whole.means, rtol=1e-11)
    np.testing.assert_allclose(parts.variances, whole.variances, rtol=1e-11)


def test_without_randomness_or_bias_a_thousand_paths_do():
    process = Diffusion(lambda t, x: jnp.ones_like(x), lambda t, x: 0.0)
    run = _run(sde.EulerMaruyama(), _first, 1e-6, 0, process, (1.0,))
    assert run.estimate == pytest.approx(2, abs=1e-12)
    assert run.sem < 1e-12
    assert list(run.paths) == [1000] * 3


def test_result_adds_up_and_prints():
    run = _run(sde.Milstein(), _call, 0.1, 1)
    assert run.estimate == pytest.approx(run.means.sum())
    assert run.sem == pytest.approx(np.sqrt(np.sum(run.variances / run.paths)))
    steps = 1 / run.dts
    assert run.cost == round(np.sum(run.paths * np.where(steps == 1, 1, 1.5 * steps)))
    text = str(run)
    assert text.startswith(f"{run.estimate:.6g} ± ")
    assert f"dt 0.125      {run.paths[3]:>9} paths" in text
    assert len(text.splitlines()) == 2 + len(run.dts)


def test_wrong_arguments(unchecked):
    for changes, error, text in [
        ({"tolerance": 0.0}, ValueError, "`tolerance` must be positive"),
        ({"x0": jnp.ones((2, 1))}, ValueError, "`x0` must be one finite point"),
        ({"t1": -1.0}, ValueError, "`t1` must be finite and later"),
        ({"dt": 0.3}, ValueError, "whole number of steps `dt`"),
        ({"functional": lambda x: x}, ValueError, r"`functional\(x\)` must return a real scalar"),
        ({"key": -1}, ValueError, "`key` as a seed"),
        ({"method": sde.EulerMaruyama}, TypeError, "`method` must be an integrator"),
        ({"method": sde.EulerMaruyama(noise="three-point")}, ValueError, "increments that can be summed"),
        ({"tolerance": 1e-9}, RuntimeError, r"`tolerance`=1e-09 would take"),
        (
            {"process": Diffusion(lambda t, x: -(x**9), lambda t, x: 1.0), "x0": jnp.full(1, 9.0)},
            FloatingPointError,
            "non-finite at steps of 0.5. Use a smaller `dt`",
        ),
    ]:
        arguments = {"process": _geometric, "method": sde.Milstein(), "x0": jnp.ones(1), "t1": 1.0, "key": 0}
        arguments |= {"functional": _first, "tolerance": 0.1} | changes
        with pytest.raises(error, match=text):
            sde.multilevel(**arguments)
