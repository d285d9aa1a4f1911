"""Extrapolation to step 0: its weights, its error bars, and the coupling of steps that it rests on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import Diffusion, sde
from solvers.sde import coupling
from solvers.sde.brownian import increment, numbers_per_step
from solvers.sde.coupling import joined

_geometric = Diffusion(lambda t, x: -x, lambda t, x: 0.5 * x)


def _euler_square(dt):
    """E X(1)² of Euler-Maruyama from 1."""
    return ((1 - dt) ** 2 + 0.25 * dt) ** round(1 / dt)


def _square(x):
    return x[0] ** 2


@pytest.mark.parametrize(
    ("method", "growth", "order"),
    [(sde.EulerMaruyama(), lambda h: 1 - h, 1), (sde.WeakRK2(), lambda h: 1 - h + h**2 / 2, 2)],
)
def test_without_noise_it_is_richardsons(method, growth, order):
    process = Diffusion(lambda t, x: -x, lambda t, x: 0.0)
    result = sde.extrapolated(process, method, jnp.ones(1), 1.0, 0.25, key=0, paths=3, functional=lambda x: x[0])
    full, half = growth(0.25) ** 4, growth(0.125) ** 8
    np.testing.assert_allclose(result.raw, (full, half), rtol=1e-13)
    assert result.estimate == pytest.approx((2**order * half - full) / (2**order - 1), rel=1e-13)
    assert result.order == order
    assert result.sem == 0


def test_estimates_are_those_of_the_scheme_with_error_bars_that_hold():
    scores = []
    for key in range(24):
        arguments = _geometric, sde.EulerMaruyama(), jnp.ones(1), 1.0, 0.25, key, 2000, _square
        result = sde.extrapolated(*arguments)
        full, half = _euler_square(0.25), _euler_square(0.125)
        known = np.array([full, half, 2 * half - full])
        sems = np.array([*result.raw_sem, result.sem])
        scores.append((np.array([*result.raw, result.estimate]) - known) / sems)
        # On independent paths it would be √5 times that of a run.
        assert result.sem < 1.5 * result.raw_sem[1]
    scatter = np.sqrt(np.mean(np.square(scores), axis=0))
    assert np.all((scatter > 0.65) & (scatter < 1.4)), scatter
    # And the bias that is removed is one to speak of.
    exact = np.exp(-2 + 0.25)
    assert abs(2 * half - full - exact) < 0.2 * abs(half - exact)


def test_postprocessed_methods_enter_and_leave():
    """Leimkuhler-Matthews on dX = -X dt + dB steps y' = (1-h) y + (1 - h/2) dW, with the state y + dW/2 of variance
    0 at the start."""

    def variance(h):
        y = h / 4
        for _ in range(round(1 / h) - 1):
            y = (1 - h) ** 2 * y + (1 - h / 2) ** 2 * h
        return y + h / 4

    process = Diffusion(lambda t, x: -x, lambda t, x: 1.0)
    method = sde.LeimkuhlerMatthews()
    result = sde.extrapolated(process, method, jnp.zeros(1), 1.0, 0.5, key=2, paths=50_000, functional=_square)
    for value, sem, h in zip(result.raw, result.raw_sem, (0.5, 0.25), strict=True):
        assert abs(value - variance(h)) < 4 * sem
        assert sem < 0.01 * value


def _student(form):
    """f = (1 + |x|²)/2 with D = f/5, its noise as a number or as a matrix of numbers."""
    return Diffusion(lambda t, x: -x, lambda t, x: jnp.sqrt(0.2 * (1 + x @ x)) * form)


@pytest.mark.parametrize(
    ("method", "form"), [(sde.Milstein(), 1.0), (sde.WeakRK2(), 1.0), (sde.WeakRK2(), np.eye(2))], ids=str
)
@pytest.mark.slow("Milstein()-1.0", "WeakRK2()-1.0")
def test_noise_that_does_not_commute(method, form):
    """E|X|² relaxes to 1/4 at the rate 1.6. Lévy areas, time integrals and signs are handed to the longer step."""
    x0 = jnp.array([1.0, 0.5])
    result = sde.extrapolated(_student(form), method, x0, 1.0, 0.125, 3, 40_000, lambda x: x @ x)
    exact = 0.25 + np.exp(-1.6)
    assert abs(result.estimate - exact) < 4 * result.sem + 0.003 * exact
    assert result.sem < 0.01 * exact


def test_paths_do_not_depend_on_how_many_are_computed_at_a_time(monkeypatch):
    arguments = _geometric, sde.EulerMaruyama(), jnp.ones(1), 1.0, 0.25, 7, 300, _square
    whole = sde.extrapolated(*arguments)
    monkeypatch.setattr(coupling, "_block_numbers", 64)
    np.testing.assert_allclose(sde.extrapolated(*arguments).raw, whole.raw, rtol=1e-13)


@pytest.mark.parametrize("need", ["increment", "time", "matrix", "signs"])
@pytest.mark.slow("matrix", "time")
def test_joined_increments_have_the_law_of_a_longer_step(need):
    m, h, n = 2, 0.3, 200_000
    z = jax.random.normal(jax.random.key(0), (2, n, numbers_per_step(need, m, h)))

    def draw(z):
        return increment(need, m, jnp.asarray(h), z)

    long = jax.jit(jax.vmap(lambda z, y: joined(draw(z), draw(y), jnp.asarray(h))))(*z)
    parts = [long.dw]
    second = [2 * h] * m
    if need == "time":
        parts, second = [*parts, long.dz, long.dz + long.dw], second + [(2 * h) ** 3 / 3] * m
        second += [(2 * h) ** 3 / 3 + (2 * h) ** 2 + 2 * h] * m
    if need == "matrix":
        parts, second = [*parts, long.area.matrix[:, 0, 1:]], [*second, (2 * h) ** 2 / 4]
    if need == "signs":
        parts, second = [*parts, long.signs, long.signs * long.dw[:, :1] * long.dw[:, 1:]], [*second, 1, (2 * h) ** 2]
    squares = np.concatenate(parts, axis=1) ** 2
    sem = squares.std(axis=0) / np.sqrt(n)
    assert np.all(np.abs(squares.mean(axis=0) - second) <= 4.5 * sem + 1e-12)


def test_wrong_arguments(unchecked):
    arguments = {
        "process": _geometric,
        "method": sde.EulerMaruyama(),
        "x0": jnp.ones(1),
        "t1": 1.0,
        "dt": 0.5,
        "key": 0,
        "paths": 10,
        "functional": _square,
    }
    for changes, error, text in [
        ({"paths": 1}, ValueError, "`paths` must be a whole number"),
        ({"x0": jnp.ones((2, 1))}, ValueError, "`x0` must be one finite point"),
        ({"x0": np.array([np.nan])}, ValueError, "`x0` must be one finite point"),
        ({"dt": 0.3}, ValueError, "whole number of steps `dt`"),
        ({"functional": lambda x: x}, ValueError, r"`functional\(x\)` must return a real scalar"),
        ({"functional": lambda x: float(x[0])}, TypeError, r"`functional\(x\)` cannot be compiled"),
        ({"method": sde.EulerMaruyama}, TypeError, "`method` must be an integrator"),
        ({"method": sde.EulerMaruyama(noise="three-point")}, ValueError, "increments that can be summed"),
        ({"process": Diffusion(lambda t, x: x**9, lambda t, x: 1.0), "x0": jnp.full(1, 9.0)}, FloatingPointError, "dt"),
    ]:
        with pytest.raises(error, match=text):
            sde.extrapolated(**(arguments | changes))


def test_a_functional_can_not_hide_paths_that_blew_up():
    process = Diffusion(lambda t, x: x**9, lambda t, x: 1.0)
    with pytest.raises(FloatingPointError, match="64 of 64 paths of EulerMaruyama"):
        sde.extrapolated(
            process,
            sde.EulerMaruyama(),
            jnp.full(1, 9.0),
            2.0,
            0.5,
            key=0,
            paths=64,
            functional=lambda x: jnp.where(x[0] > 1, 1.0, 0.0),
        )


def test_printed():
    text = str(sde.extrapolated(_geometric, sde.EulerMaruyama(), jnp.ones(1), 1.0, 0.25, 0, 100, _square))
    assert "by EulerMaruyama, 100 paths, extrapolated by order 1" in text
    assert "at dt=0.125" in text
