"""Splitting: probabilities, loop times and mean exit times of the scheme, and of wells left once in a million."""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from solvers import Diffusion, sde

# The function of that name hides the module.
_module = sys.modules["solvers.sde.splitting"]
_start, _target = -1.0, 0.9


def _coordinate(x):
    return x[0]


def _well(kappa):
    """The double well V = (x² - 1)² / 4 with D = κ."""
    noise = jnp.asarray(np.sqrt(2 * kappa))
    return Diffusion(_descent, jax.tree_util.Partial(_constant, noise))


def _descent(t, x):
    return x - x**3


def _constant(noise, t, x):
    return noise.astype(x.dtype)


def _proportional(t, x, kappa=0.15, least=0.05):
    """D = κ f on f = f₀ + V."""
    return jnp.sqrt(2 * kappa * (least + (x @ x - 1) ** 2 / 4))


def _run(process, dt, home, surface, *, method=None, x0=(_start,), level=_coordinate, target=_target, **options):
    levels = {"level": level, "home": home, "surface": surface, "target": target}
    method = sde.EulerMaruyama() if method is None else method
    return sde.splitting(process, method, jnp.asarray(x0), **levels, dt=dt, **({"key": 1} | options))


def _exact_additive(kappa):
    """The mean time from the start to the target, by the double integral."""

    def law(x):
        return np.exp(-((x * x - 1) ** 2) / 4 / kappa)

    def below(y):
        return integrate.quad(law, -4, y, points=[-1], epsrel=1e-10)[0]

    return integrate.quad(lambda y: below(y) / law(y), _start, _target, epsrel=1e-9)[0] / kappa


def _exact_proportional(kappa, least):
    def f(x):
        return least + (x * x - 1) ** 2 / 4

    def below(y):
        near = integrate.quad(lambda z: f(z) ** (-1 - 1 / kappa), -4, y, points=[-1], epsrel=1e-10)[0]
        return near + integrate.quad(lambda z: f(z) ** (-1 - 1 / kappa), -np.inf, -4)[0]

    return integrate.quad(lambda y: f(y) ** (1 / kappa) * below(y), _start, _target, epsrel=1e-9)[0] / kappa


def _of_scheme(kappa, dt, home, surface, target=_target):
    """Probability, loop time and mean arrival time of Euler-Maruyama, by Gauss's quadrature between the levels."""
    edges, (nodes, weights) = [-3.0, home, surface, target, 2.5], np.polynomial.legendre.leggauss(120)
    x = np.concatenate([(a + b) / 2 + (b - a) / 2 * nodes for a, b in itertools.pairwise(edges)] + [[_start]])
    w = np.concatenate([(b - a) / 2 * weights for a, b in itertools.pairwise(edges)])
    zone = np.searchsorted(edges[1:-1], x)
    gap = (x[None, :-1] - (x + dt * (x - x**3))[:, None]) / np.sqrt(2 * kappa * dt)
    kernel = np.exp(-(gap**2) / 2) / np.sqrt(4 * np.pi * kappa * dt) * w
    kernel = np.hstack([kernel, np.zeros((len(x), 1))])

    def leg(law, inside):
        """The law where paths from `law` first are outside of these zones, and the number of steps until then."""
        among, outside = np.isin(zone, inside), ~np.isin(zone, inside)
        visits = np.linalg.solve(np.eye(among.sum()) - kernel[np.ix_(among, among)].T, law[among])
        law = np.where(outside, law, 0)
        law[outside] += visits @ kernel[np.ix_(among, outside)]
        return law, visits.sum()

    origin = (np.arange(len(x)) == len(x) - 1).astype(float)
    law, _ = leg(origin, [0, 1])
    for _ in range(20):
        there, steps = leg(law, [1, 2])
        probability = there[zone == 3].sum()
        law, more = leg(np.where(zone == 3, 0, there) + probability * origin, [0, 1])
    among = zone < 3
    times = np.linalg.solve(np.eye(among.sum()) - kernel[np.ix_(among, among)], np.full(among.sum(), dt))
    return probability, dt * (steps + more), times[-1]


def _agrees(value, sem, exact, allowed=0.0):
    assert abs(value - exact) < 3.5 * sem + allowed, f"{value} ± {sem} against {exact}"


def test_the_relation_of_hill_is_exact_for_the_scheme():
    for kappa, tolerance in ((0.1, 1e-9), (0.0203, 1e-5)):
        p, loop, time = _of_scheme(kappa, 0.04, -0.9, -0.6)
        assert loop / p == pytest.approx(time, rel=tolerance)
    assert _exact_additive(0.1) == pytest.approx(65.2870, rel=1e-5)
    assert _exact_additive(0.0203) == pytest.approx(1_024_874, rel=1e-5)


@pytest.mark.parametrize("paths", [8, 200])
@pytest.mark.slow("8")
def test_estimates_are_those_of_the_scheme_and_unbiased_for_few_paths(paths):
    p, loop, time = _of_scheme(0.08, 0.05, -1.0, -0.8)
    out = _run(_well(0.08), 0.05, -1.0, -0.8, paths=paths, repeats=6000 // paths + 8)
    assert len(out.levels) > 3
    _agrees(out.probability, out.probability_sem, p)
    _agrees(out.loop_time, out.loop_time_sem, loop)
    if paths == 200:
        _agrees(out.time, out.time_sem, time)
    assert np.prod(out.fractions) == pytest.approx(out.probability)


def test_error_bars_hold():
    p, _, time = _of_scheme(0.08, 0.05, -1.0, -0.8)
    process = _well(0.08)
    runs = [_run(process, 0.05, -1.0, -0.8, paths=100, repeats=10, loops=2, key=k) for k in range(12)]
    for scores in (
        [(r.probability - p) / r.probability_sem for r in runs],
        [(r.time - time) / r.time_sem for r in runs],
    ):
        assert 0.5 < np.sqrt(np.mean(np.square(scores))) < 1.7
        assert abs(np.mean(scores)) < 1.0


def test_an_exit_in_a_million_relaxation_times():
    out = _run(_well(0.0203), 0.04, -1.0, -0.85, paths=600)
    exact = _exact_additive(0.0203)
    assert out.time_sem < 0.15 * out.time
    _agrees(out.time, out.time_sem, _of_scheme(0.0203, 0.04, -1.0, -0.85)[2])
    _agrees(out.time, out.time_sem, exact, allowed=0.02 * exact)
    # One exit would take more steps than all of this did.
    assert out.steps < exact / 0.04


@pytest.mark.parametrize("inner", [sde.EulerMaruyama(), sde.LeimkuhlerMatthews()])
@pytest.mark.slow("inner1")
def test_a_rare_exit_under_loss_proportional_noise_in_physical_time(inner):
    exact = _exact_proportional(0.15, 0.05)
    assert exact == pytest.approx(1_621_354, rel=1e-4)
    process = Diffusion(_descent, _proportional)
    # The relaxation time at the bottom is 1/2 in time; the clock τ of unit D(-1) runs at the same rate there.
    out = _run(process, 0.02, -1.0, -0.9, method=sde.TimeChanged(inner), paths=600)
    assert out.time_sem < 0.15 * out.time
    _agrees(out.time, out.time_sem, exact, allowed=0.06 * exact)


@pytest.mark.slow
def test_two_dimensions_and_other_levels():
    # The second coordinate is independent of the first; a function of the level is as good a level.
    def drift(t, x):
        return jnp.stack([x[0] - x[0] ** 3, -3 * x[1]])

    process = Diffusion(drift, lambda t, x: jnp.asarray([np.sqrt(2 * 0.05), 0.4]))
    time = _of_scheme(0.05, 0.05, -1.0, -0.8)[2]
    out = _run(process, 0.05, -1.0, -0.8, x0=(_start, 0.5), paths=500)
    _agrees(out.time, out.time_sem, time)
    change = np.tanh
    out = _run(
        process,
        0.05,
        change(-1.0),
        change(-0.8),
        x0=(_start, 0.5),
        level=lambda x: jnp.tanh(x[0]),
        target=change(_target),
        paths=500,
    )
    _agrees(out.time, out.time_sem, time)


@pytest.mark.slow
def test_methods_that_look_at_another_variable_than_they_step():
    out = _run(_well(0.05), 0.04, -1.0, -0.8, method=sde.LeimkuhlerMatthews(), paths=500)
    exact = _exact_additive(0.05)
    _agrees(out.time, out.time_sem, exact, allowed=0.03 * exact)


def test_the_key_decides():
    process, options = _well(0.1), {"paths": 50, "repeats": 4, "loops": 1}
    first, again, other = (_run(process, 0.05, -1.0, -0.8, key=k, **options) for k in (1, 1, 2))
    assert np.array_equal(first.probabilities, again.probabilities)
    assert np.array_equal(first.loop_times, again.loop_times)
    assert np.array_equal(first.levels, again.levels)
    assert not np.any(first.loop_times == other.loop_times)


def test_float32(float32):
    with jax.numpy_dtype_promotion("standard"):
        process = Diffusion(_descent, lambda t, x: np.float32(np.sqrt(0.2)))
        out = _run(process, 0.05, -1.0, -0.8, paths=300, x0=np.float32([_start]))
    _agrees(out.time, out.time_sem, _of_scheme(0.1, 0.05, -1.0, -0.8)[2])
    assert "mean time" in str(out)
    assert "16 repeats with 300 paths, EulerMaruyama, dt 0.05" in str(out)


def test_events_that_are_not_rare_need_no_levels():
    p, loop, time = _of_scheme(0.3, 0.05, -0.5, 0.0)
    out = _run(_well(0.3), 0.05, -0.5, 0.0, paths=500)
    assert np.array_equal(out.levels, [0.0, _target])
    _agrees(out.probability, out.probability_sem, p)
    _agrees(out.loop_time, out.loop_time_sem, loop)
    _agrees(out.time, out.time_sem, time)


# Trouble


_small = {"paths": 20, "repeats": 2, "loops": 1}


def test_paths_that_do_not_come_to_an_end(monkeypatch):
    monkeypatch.setattr(_module, "_longest", 2000)
    with pytest.raises(RuntimeError, match=r"neither to level -inf nor to 3.*levels that paths come to all the time"):
        _run(_well(0.02), 0.05, 2.0, 3.0, target=4.0, **_small)


def test_a_level_that_leads_nowhere(monkeypatch):
    monkeypatch.setattr(_module, "_most_levels", 6)
    with pytest.raises(RuntimeError, match=r"does not lead to `target`=1e\+06"):
        _run(_well(0.1), 0.05, -1.0, -0.8, target=1e6, **_small)


def test_paths_that_blow_up():
    process = Diffusion(lambda t, x: jnp.where(x > 0, x, -x) * 1e300 * x, lambda t, x: 1.0)
    with pytest.raises(FloatingPointError, match=r"became non-finite.*smaller `dt`"):
        _run(process, 0.05, -1.0, -0.5, x0=(-2.0,), **_small)


def test_none_arrives():
    # Beyond the surface there is a way down only; the level that is nearly reached is a trap.
    with pytest.raises(RuntimeError, match=r"(No path came to `target`|none came to the next level)"):
        _run(_well(0.004), 0.05, -1.0, -0.95, paths=2, repeats=2, loops=1)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"home": -0.5}, ValueError, "`home` < `surface` < `target` must be finite values"),
        ({"target": np.inf}, ValueError, "`home` < `surface` < `target`"),
        ({"x0": jnp.asarray([0.5])}, ValueError, "`level.x0.` is 0.5 and `surface` is -0.8.*sign"),
        ({"x0": jnp.zeros((2, 1))}, ValueError, r"`x0` must be one finite point of shape \(d,\)"),
        ({"x0": jnp.asarray([1])}, ValueError, "floating dtype"),
        ({"paths": 1}, ValueError, "`paths` must be a whole number of at least 2"),
        ({"repeats": 1}, ValueError, "`repeats` must be a whole number of at least 2"),
        ({"loops": 0}, ValueError, "`loops` must be a whole number of at least 1"),
        ({"paths": 2**20, "repeats": 2**13}, ValueError, "`paths` times `repeats`"),
        ({"dt": -0.1}, ValueError, "`dt` must be positive"),
        ({"level": lambda x: x}, ValueError, r"`level\(x\)` must return a real scalar"),
        ({"level": lambda x: x[0] > 0}, ValueError, r"`level\(x\)` must return a real scalar"),
        ({"level": lambda x: float(x[0])}, TypeError, r"`level\(x\)` cannot be compiled"),
        (
            {"process": Diffusion(lambda t, x: t - x, lambda t, x: 1.0)},
            ValueError,
            "coefficients that do not depend on time.*`FirstPassage`",
        ),
    ],
)
def test_bad_arguments(changes, error, text):
    arguments = {
        "process": _well(0.1),
        "method": sde.EulerMaruyama(),
        "x0": jnp.asarray([_start]),
        "level": _coordinate,
        "home": -1.0,
        "surface": -0.8,
        "target": _target,
        "dt": 0.05,
        "key": 1,
    }
    with pytest.raises(error, match=text):
        sde.splitting(**(arguments | _small | changes))


def test_wrong_kinds_of_arguments(unchecked):
    with pytest.raises(TypeError, match="`level` must be a function of one point"):
        _run(_well(0.1), 0.05, -1.0, -0.8, level=1.0)
    with pytest.raises(TypeError, match="`method` must be an integrator"):
        _run(_well(0.1), 0.05, -1.0, -0.8, method="euler")
