"""First passages: the exact mean of each scheme at finite dt, how far it is from the process, and bookkeeping."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats
from scipy.special import erfcx

from solvers import Diffusion, Grid, sde
from solvers.sde import choice, ensemble
from solvers.sde.passage import crossing_part
from solvers.sde.random import key_words, uniform

# Mean overshoot of a random walk with normal steps, -ζ(1/2) / √(2π): by how many standard deviations of a step the
# boundary is farther away for paths that are looked at after each step only.
_overshoot = 0.5825971579390106


def _close(value, sem, exact, allowed=0.0):
    assert abs(value - exact) < 4 * sem + allowed, f"{value} ± {sem} against {exact}"


def _run(process, observe, x0, *, method=None, **options):
    out = sde.simulate(process, method or sde.EulerMaruyama(), x0, observe={"T": observe}, **options)
    return out["T"]


def _process(drift, diffusivity):
    return Diffusion(lambda t, x: drift(x), lambda t, x: jnp.sqrt(2 * diffusivity(x[0])))


# Exit from the interval between low and high, of which only the ends in `real` can be reached.

_cases = {
    "brownian": (lambda x: 0 * x, lambda x: 0.5 + 0 * x, 0.3, (-1.0, 1.0)),
    "ou": (lambda x: -x, lambda x: 1.0 + 0 * x, 0.3, (-1.2, 1.2)),
    "loss-proportional": (lambda x: -x, lambda x: 0.5 * (1 + x * x), 0.3, (-1.2, 1.2)),
    "double well": (lambda x: x - x**3, lambda x: 0.25 + 0 * x, -1.0, (-np.inf, 0.0)),
    "loss-proportional double well": (
        lambda x: x - x**3,
        lambda x: 0.5 * (0.25 + (x * x - 1) ** 2 / 4),
        -1.0,
        (-np.inf, 0.0),
    ),
}


def _exact(drift, diffusivity, x0, low, high):
    """The mean exit time of the process, by the double integral."""

    def potential(x):
        return -integrate.quad(lambda y: drift(y) / diffusivity(y), x0, x, epsabs=1e-12)[0]

    def below(y, start):
        return integrate.quad(lambda z: np.exp(-potential(z)) / diffusivity(z), start, y, epsabs=1e-12)[0]

    def integral(a, b, start):
        return integrate.quad(lambda y: np.exp(potential(y)) * below(y, start), a, b, epsabs=1e-10)[0]

    if low == -np.inf:
        return integral(x0, high, -np.inf)
    chance = integrate.quad(lambda y: np.exp(potential(y)), low, x0)[0]
    chance /= integrate.quad(lambda y: np.exp(potential(y)), low, high)[0]
    return chance * integral(low, high, low) - integral(low, x0, low)


def _of_scheme(case, kind, dt, unit=None):
    """The mean exit time of Euler-Maruyama with its rule for crossings: an integral equation, by Gauss's quadrature.

    With `unit` steps are of equal length on the clock dτ = D / unit dt.
    """
    drift, diffusivity, x0, (low, high) = case
    far = max(low, -6.0)
    nodes, weights = np.polynomial.legendre.leggauss(500)
    y, w = (high + far) / 2 + (high - far) / 2 * nodes, (high - far) / 2 * weights
    x = np.append(y, x0)[:, None]
    change = 1.0 if unit is None else unit / diffusivity(x)
    mean, std = x + drift(x) * change * dt, np.sqrt(2 * diffusivity(x) * change * dt)

    def distance(y):
        return np.minimum(high - y, y - low)

    def duration(y):
        return dt if unit is None else dt * 0.5 * (unit / diffusivity(x) + unit / diffusivity(y))

    def share(y):
        if kind == "boolean":
            return 0.5
        a, b = distance(x), np.abs(distance(y))
        if kind == "linear":
            return a / (a + b)
        return a / std * np.sqrt(np.pi / 2) * erfcx((a + b) / std / np.sqrt(2))

    def density(y):
        return np.exp(-0.5 * ((y - mean) / std) ** 2) / (np.sqrt(2 * np.pi) * std)

    crossing = np.exp(-2 * distance(x) * distance(y) / std**2) if kind == "bridge" else np.zeros((len(x), len(y)))
    inside = density(y) * w
    gained = np.sum(inside * duration(y) * (1 - crossing + crossing * share(y)), axis=1)
    reach = 12 * std.max()
    for edge, sign in ((high, 1), (low, -1)):
        if np.isfinite(edge):
            outside = edge + sign * reach / 2 * (1 + nodes)
            gained += np.sum(density(outside) * reach / 2 * weights * duration(outside) * share(outside), axis=1)
    kernel = inside * (1 - crossing)
    means = np.linalg.solve(np.eye(len(y)) - kernel[:-1], gained[:-1])
    return gained[-1] + kernel[-1] @ means


def _observables(low, high):
    def level(x):
        return high - x[0] if low == -np.inf else jnp.minimum(high - x[0], x[0] - low)

    return {
        "bridge": sde.FirstPassage(level),
        "linear": sde.FirstPassage(level, bridge=False),
        "boolean": sde.FirstPassage(lambda x: level(x) > 0),
    }


def test_references_agree_with_tabulated_mean_exit_times():
    def well(x):
        return (x * x - 1) ** 2 / 4

    drift, diffusivity, _, _ = _cases["double well"]
    assert _exact(drift, diffusivity, -1.0, -np.inf, 0.0) == pytest.approx(5.743437068035236, rel=1e-9)
    assert _exact(drift, diffusivity, -1.0, -np.inf, 1.0) == pytest.approx(14.27773663650805, rel=1e-9)
    assert _exact(drift, lambda x: 0.1 + well(x), -1.0, -np.inf, 0.0) == pytest.approx(11.051637032213138, rel=1e-6)
    # (L² - x²) / (2D)
    drift, diffusivity, x0, ends = _cases["brownian"]
    assert _exact(drift, diffusivity, x0, *ends) == pytest.approx(0.91, rel=1e-9)


@pytest.mark.parametrize("name", list(_cases))
@pytest.mark.slow("loss-proportional", "loss-proportional double well")
def test_the_bridge_makes_the_bias_one_of_order_dt(name):
    """Of the schemes, that is; that the code is them is tested below."""
    case = _cases[name]
    drift, diffusivity, x0, (low, high) = case
    exact = _exact(drift, diffusivity, x0, low, high)
    bias = {k: [_of_scheme(case, k, dt) - exact for dt in (0.02, 0.005)] for k in _observables(low, high)}
    for kind, order in (("bridge", 1.0), ("linear", 0.5), ("boolean", 0.5)):
        if name == "brownian" and kind == "bridge":
            assert np.max(np.abs(bias[kind])) < 1e-5
        else:
            assert np.log(bias[kind][0] / bias[kind][1]) / np.log(4) == pytest.approx(order, abs=0.12)
    assert abs(bias["bridge"][1]) < 0.1 * bias["linear"][1]
    shift = _overshoot * np.sqrt(2 * diffusivity(high) * 0.005)
    farther = _exact(drift, diffusivity, x0, low - shift, high + shift)
    assert bias["linear"][1] == pytest.approx(farther - exact, rel=0.1)


@pytest.mark.parametrize(
    ("name", "t1", "dt"), [("brownian", 12.0, 0.04), ("ou", 14.0, 0.08), ("loss-proportional", 40.0, 0.08)]
)
@pytest.mark.slow("brownian-12.0-0.04", "loss-proportional-40.0-0.08")
def test_mean_exit_time_is_the_exact_one_of_the_scheme(name, t1, dt):
    drift, diffusivity, x0, ends = case = _cases[name]
    out = sde.simulate(
        _process(drift, diffusivity),
        sde.EulerMaruyama(),
        jnp.asarray([x0]),
        t1=t1,
        dt=dt,
        key=1,
        paths=60_000,
        observe=_observables(*ends),
    )
    for kind in ("bridge", "linear", "boolean"):
        assert out[kind].fraction == 1
        _close(out[kind].mean, out[kind].sem, _of_scheme(case, kind, dt))
    exact = _exact(drift, diffusivity, x0, *ends)
    assert out["linear"].mean - exact > 20 * out["linear"].sem
    assert abs(out["bridge"].mean - exact) < 4 * out["bridge"].sem + 1.2 * dt


@pytest.mark.slow
def test_mean_exit_time_from_a_well():
    drift, diffusivity, x0, ends = case = _cases["double well"]
    process, options = _process(drift, diffusivity), {"t1": 72.0, "dt": 0.04, "key": 3, "paths": 20_000}
    out = sde.simulate(process, sde.EulerMaruyama(), jnp.asarray([x0]), observe=_observables(*ends), **options)
    for kind in ("bridge", "linear", "boolean"):
        assert out[kind].fraction > 0.9999
        _close(out[kind].mean, out[kind].sem, _of_scheme(case, kind, 0.04))
    _close(out["bridge"].mean, out["bridge"].sem, 5.743437068035236, allowed=3.5 * 0.04)


@pytest.mark.parametrize("inner", [sde.EulerMaruyama(), sde.LeimkuhlerMatthews()])
@pytest.mark.slow("inner0")
def test_exit_times_are_physical_under_a_change_of_time(inner):
    drift, diffusivity, x0, ends = case = _cases["loss-proportional double well"]
    out = sde.simulate(
        _process(drift, diffusivity),
        sde.TimeChanged(inner),
        jnp.asarray([x0]),
        t1=256.0,
        dt=0.08,
        key=2,
        paths=10_000,
        observe=_observables(*ends),
    )
    exact = _exact(drift, diffusivity, x0, *ends)
    for kind in ("bridge", "linear", "boolean"):
        assert out[kind].fraction == 1
        if isinstance(inner, sde.EulerMaruyama):
            _close(out[kind].mean, out[kind].sem, _of_scheme(case, kind, 0.08, unit=diffusivity(x0)))
    _close(out["bridge"].mean, out["bridge"].sem, exact, allowed=6 * 0.08)
    assert out["linear"].mean - exact > 4 * out["linear"].sem + 6 * 0.08


@pytest.mark.slow
def test_bias_of_a_simulation_falls_with_dt_and_without_the_bridge_with_its_root():
    drift, diffusivity, x0, ends = _cases["ou"]
    exact, bias = _exact(drift, diffusivity, x0, *ends), {"bridge": [], "linear": []}
    for dt in (0.16, 0.04):
        out = sde.simulate(
            _process(drift, diffusivity),
            sde.EulerMaruyama(),
            jnp.asarray([x0]),
            t1=12.8,
            dt=dt,
            key=5,
            paths=120_000,
            observe={k: _observables(*ends)[k] for k in bias},
        )
        for k in bias:
            bias[k].append((out[k].mean - exact, out[k].sem))
    order, sem = {}, {}
    for k, ((coarse, coarse_sem), (fine, fine_sem)) in bias.items():
        order[k] = np.log(coarse / fine) / np.log(4)
        sem[k] = np.hypot(coarse_sem / coarse, fine_sem / fine) / np.log(4)
    assert 0.4 < order["linear"] < 0.55
    assert 0.7 - 3 * sem["bridge"] < order["bridge"] < 1.1 + 3 * sem["bridge"]
    assert order["bridge"] - order["linear"] > 3 * sem["bridge"]


def test_exit_from_a_disc():
    # From the point at distance r of the centre: mean time (R² - r²) / (2dD), and Poisson's kernel for the angle, with
    # E cos(kθ) = (r/R)^k.
    radius, r, d, diffusivity, dt = 1.5, 0.6, 2, 0.5, 0.02
    process = Diffusion(lambda t, x: 0 * x, lambda t, x: np.sqrt(2 * diffusivity))
    observe = sde.FirstPassage(lambda x: radius**2 - x @ x)
    out = _run(process, observe, jnp.asarray([0.0, r]), t1=14.0, dt=dt, key=4, paths=40_000)
    assert out.fraction == 1
    _close(out.mean, out.sem, (radius**2 - r**2) / (2 * d * diffusivity), allowed=1.0 * dt)
    angle = np.arctan2(out.points[:, 0], out.points[:, 1])
    for k in (1, 2):
        _close(np.cos(k * angle).mean(), np.cos(k * angle).std() / 200, (r / radius) ** k, allowed=0.2 * dt)
        _close(np.sin(k * angle).mean(), np.sin(k * angle).std() / 200, 0.0)
    # The boundary is taken for flat at the length of a step: exit points miss it by O(dt).
    miss = np.linalg.norm(out.points, axis=1) - radius
    assert np.sqrt(np.mean(miss**2)) < dt


@pytest.mark.slow
def test_exit_points_from_the_centre_of_a_disc_are_uniform_on_the_circle():
    process = Diffusion(lambda t, x: -x, lambda t, x: jnp.sqrt(1 + x @ x))
    for inside in (lambda x: 1 - x @ x, lambda x: x @ x < 1):
        out = _run(process, sde.FirstPassage(inside), jnp.zeros(2), t1=8.0, dt=0.02, key=9, paths=4000)
        angle = np.arctan2(*out.points.T) / (2 * np.pi) + 0.5
        assert stats.kstest(angle, "uniform").pvalue > 0.001


@pytest.mark.slow
def test_exit_points_under_correlated_noise():
    # A Brownian motion with x₁ = c x₀ + an independent one leaves the strip |x₀| < 1 with E[x₁ x₀] = c: from inside it
    # crosses along the noise, not at right angles.
    c, dt = 2.0, 0.04
    process = Diffusion(lambda t, x: 0 * x, lambda t, x: jnp.asarray([[1.0, 0.0], [c, 1.0]]))
    out = _run(
        process,
        sde.FirstPassage(lambda x: 1 - jnp.abs(x[0])),
        jnp.asarray([0.1, 0.0]),
        t1=12.0,
        dt=dt,
        key=6,
        paths=20_000,
    )
    assert np.allclose(np.abs(out.points[:, 0]), 1, atol=1e-12)
    product = out.points[:, 1] * out.points[:, 0] + c * 0.1 * out.points[:, 0]
    _close(product.mean(), product.std() / np.sqrt(20_000), c)


def test_censoring():
    # Started from the law ∝ cos(πx/2) the exit time of a Brownian motion from (-1, 1) is exponential, of rate π²/8.
    rate, end = np.pi**2 / 8, 0.8
    x0 = 2 / np.pi * np.arcsin(2 * (np.arange(20_000) + 0.5) / 20_000 - 1)[:, None]
    process = _process(*_cases["brownian"][:2])
    out = _run(process, sde.FirstPassage(lambda x: 1 - jnp.abs(x[0])), x0, t1=end, dt=0.02, key=8)
    assert out.horizon == pytest.approx(end)
    _close(out.fraction, 0.5 / np.sqrt(20_000), 1 - np.exp(-rate * end))
    _close(out.mean, out.sem, (1 - np.exp(-rate * end)) / rate)
    _close(out.rate, out.rate_sem, rate)
    assert out.rate_sem == pytest.approx(rate / np.sqrt(out.fraction * 20_000), rel=0.05)
    times = np.array([0.0, 0.1, 0.5, 0.8])
    for share, t in zip(out.survival(times), times, strict=True):
        _close(share, 0.5 / np.sqrt(20_000), np.exp(-rate * t), allowed=1e-12)
    assert np.isnan(out.survival(0.9))
    assert np.isnan(out.times).sum() == 20_000 - len(out.points)
    assert np.allclose(out.watched[np.isnan(out.times)], end)
    assert "mean time inside up to 0.8:" in str(out)
    assert "exits per time at risk" in str(out)


def test_nobody_leaves():
    out = _run(_process(*_cases["ou"][:2]), sde.FirstPassage(lambda x: 50 - x[0]), jnp.zeros(1), **_small)
    assert out.fraction == out.rate == 0
    assert np.isnan(out.rate_sem)
    assert out.points.shape == (0, 1)
    assert out.mean == pytest.approx(1.0)
    assert "0 of 7 paths left" in str(out)


_small = {"t1": 1.0, "dt": 0.1, "key": 0, "paths": 7}


def test_all_that_is_looked_at_agrees_with_the_saved_paths():
    times = np.arange(51) / 50
    out = sde.simulate(
        _process(*_cases["ou"][:2]),
        sde.EulerMaruyama(),
        jnp.zeros(1),
        t1=1.0,
        dt=0.02,
        key=0,
        paths=333,
        save_at=times,
        observe={"T": sde.FirstPassage(lambda x: 1.2 - x[0], bridge=False)},
        every=1000,
        burn_in=0.9,
    )
    x = out.xs[:, :, 0]
    left = (x > 1.2).any(axis=0)
    step = np.argmax(x > 1.2, axis=0)[left]
    before, after = x[step - 1, left], x[step, left]
    share = (1.2 - before) / (after - before)
    assert 50 < left.sum() < 300
    assert np.array_equal(~np.isnan(out["T"].times), left)
    assert np.allclose(out["T"].times[left], times[step - 1] + 0.02 * share)
    assert np.allclose(out["T"].points, 1.2)


@pytest.mark.slow
def test_a_step_crosses_by_the_noise_at_its_start():
    # That is the noise of the step; here it grows fast towards the boundary.
    x0, dt, n = 0.8, 0.04, 100_000
    process = Diffusion(lambda t, x: jnp.ones_like(x), lambda t, x: x[0] ** 4)
    out = _run(process, sde.FirstPassage(lambda x: 1 - x[0]), jnp.asarray([x0]), t1=dt, dt=dt, key=3, paths=n)
    mean, std = x0 + dt, x0**4 * np.sqrt(dt)

    def crossing(y):
        return stats.norm.pdf(y, mean, std) * np.exp(-2 * (1 - x0) * (1 - y) / std**2)

    chance = stats.norm.sf(1, mean, std) + integrate.quad(crossing, mean - 10 * std, 1)[0]
    _close(out.fraction, np.sqrt(chance * (1 - chance) / n), chance)


def test_mean_crossing_time_of_a_bridge():
    # A bridge from a to -b is at 0 first after the part s / (1 + s) of the step, where s, the time at which a Brownian
    # motion with drift -b gets from a to 0, has an inverse Gaussian law of mean a / b and shape a².
    for a, b in ((0.3, 0.2), (1.0, 2.0), (3.0, 0.5)):
        law = stats.invgauss(1 / (a * b), scale=a * a)
        exact = law.expect(lambda s: s / (1 + s), epsabs=1e-12)
        assert crossing_part(np.array([a]), np.array([b]), np.array([1.0])) == pytest.approx(exact, rel=1e-6)
    for spread in (0.0, 1e-12):
        assert crossing_part(np.array([1.0]), np.array([3.0]), np.array([spread])) == pytest.approx(0.25)


# Bookkeeping


_layouts = {
    "em, float32": (sde.EulerMaruyama(), False),
    "milstein": (sde.Milstein(), True),
    "time-changed": (sde.TimeChanged(sde.LeimkuhlerMatthews()), True),
}


@pytest.mark.parametrize("name", list(_layouts))
@pytest.mark.slow("time-changed", "em, float32", "milstein")
def test_same_bits_in_every_layout(name, monkeypatch):
    monkeypatch.setattr(ensemble, "_block_sizes", (64, 1024))
    method, x64 = _layouts[name]
    with jax.enable_x64(x64), jax.numpy_dtype_promotion("standard"):
        process = _ring
        x0 = 0.5 * np.random.default_rng(0).normal(size=(2577, 2)).astype(np.float64 if x64 else np.float32)
        run = {"t1": 0.8, "dt": 0.02, "key": 5, "burn_in": 0.1, "every": 3}
        others = {"x": sde.Moments(), "p": sde.Histogram(Grid.uniform(*[(-2.0, 2.0, 9)] * 2))}
        observe = others | {"T": sde.FirstPassage(lambda x: 1.2 - x @ x)}
        whole = sde.simulate(process, method, x0, **run, observe=observe)
        assert 0.1 < whole["T"].fraction < 0.9
        layouts = [
            {"chunk": 500},
            {"segment": 7, "chunk": 2048},
            {"mesh": jax.make_mesh((2,), ("paths",)), "chunk": 1, "segment": 3},
        ]
        for layout in layouts:
            other = sde.simulate(process, method, x0, **run, observe=observe, **layout)
            for field in ("times", "points", "watched", "nonfinite", "uncorrected"):
                assert np.array_equal(getattr(other["T"], field), getattr(whole["T"], field), equal_nan=True), layout
        without = sde.simulate(process, method, x0, **run, observe=others)
        assert np.array_equal(without.final, whole.final)
        assert np.array_equal(without["x"].mean, whole["x"].mean)
        assert np.array_equal(without["x"].cov, whole["x"].cov)
        assert np.array_equal(without["p"].mass, whole["p"].mass)
        alone = sde.simulate(process, method, x0, **(run | {"every": 1000}), observe={"T": observe["T"]})
        assert np.array_equal(alone.final, whole.final)
        assert np.array_equal(alone["T"].times, whole["T"].times, equal_nan=True)


_ring = Diffusion(lambda t, x: -x * (x @ x - 1), lambda t, x: jnp.sqrt(0.3 + (x @ x - 1) ** 2 / 4))
_guards = {
    "bridges": (_ring, sde.FirstPassage(lambda x: 1.2 - x @ x), 1, sde.EulerMaruyama(), jnp.float32),
    "interpolated": (_ring, sde.FirstPassage(lambda x: 1.2 - x @ x, bridge=False), 1, sde.Milstein(), jnp.float32),
    "booleans": (_ring, sde.FirstPassage(lambda x: x @ x < 1.2), 1, sde.EulerMaruyama(), jnp.float64),
    "time": (
        Diffusion(lambda t, x: jnp.sin(3 * t) - x, lambda t, x: 0.5 + 0.1 * jnp.cos(t)),
        sde.FirstPassage(lambda x: jnp.minimum(0.9 - x[0], x[0] + 0.8)),
        1,
        sde.EulerMaruyama(),
        jnp.float64,
    ),
}


@pytest.mark.parametrize("name", list(_guards))
@pytest.mark.slow("interpolated", "booleans", "time")
def test_watching_from_inside_the_loop_changes_nothing(name, monkeypatch):
    monkeypatch.setattr(ensemble, "_block_sizes", (64, 1024))
    process, passage, d, method, dtype = _guards[name]
    with jax.enable_x64(dtype == jnp.float64), jax.numpy_dtype_promotion("standard"):
        x0 = 0.3 * np.random.default_rng(0).normal(size=(2577, d)).astype(dtype)
        run = {"t1": 1.62, "dt": 0.02, "key": 5, "burn_in": 0.1, "every": 5}
        observe = {"T": passage, "x": sde.Moments()}
        plain = sde.simulate(process, method, x0, **run, observe=observe)
        assert "watched" not in plain.engine
        assert 0.1 < plain["T"].fraction < 0.95
        monkeypatch.setattr(choice, "_steps_worth_a_loop", 0)
        layouts = [
            {},
            {"segment": 7, "chunk": 2048},
            {"mesh": jax.make_mesh((2,), ("paths",)), "chunk": 1, "segment": 33},
        ]
        for layout in layouts:
            inside = sde.simulate(process, method, x0, **run, observe=observe, **layout)
            assert "watched from inside the loop" in inside.engine
            assert np.array_equal(inside.final, plain.final), layout
            assert np.array_equal(inside["x"].mean, plain["x"].mean), layout
            for field in ("times", "points", "watched", "nonfinite"):
                assert np.array_equal(getattr(inside["T"], field), getattr(plain["T"], field), equal_nan=True), layout


@pytest.mark.slow
def test_what_is_not_watched_from_inside_the_loop(monkeypatch):
    monkeypatch.setattr(choice, "_steps_worth_a_loop", 0)
    one, x0 = sde.FirstPassage(lambda x: 1.2 - x @ x), np.full((50, 1), 0.1)
    run = {"t1": 0.4, "dt": 0.02, "key": 5}
    for method, start, observe in (
        (sde.EulerMaruyama(), x0, {"a": one, "b": one}),
        (sde.TimeChanged(sde.LeimkuhlerMatthews()), x0, {"a": one}),
        (sde.EulerMaruyama(), np.full((50, 2), 0.1), {"a": one}),
        (sde.EulerMaruyama(), x0, {"a": sde.FirstPassage(lambda x: 1.2 - jnp.sort(x)[0] ** 2)}),
    ):
        assert "watched" not in sde.simulate(_ring, method, start, **run, observe=observe).engine


def test_a_resumed_run_has_the_same_exits(tmp_path):
    def run(**options):
        observe = sde.FirstPassage(lambda x: 1 - jnp.abs(x[0]))
        return _run(_process(*_cases["ou"][:2]), observe, jnp.zeros(1), t1=0.5, dt=0.02, key=1, paths=50, **options)

    plain, saved, resumed = run(), run(checkpoint=str(tmp_path / "run")), run(checkpoint=str(tmp_path / "run"))
    for other in (saved, resumed):
        assert np.array_equal(other.times, plain.times, equal_nan=True)
        assert np.array_equal(other.points, plain.points)


def _parts(observable):
    blocks = np.random.default_rng(0).normal(size=(3, 50, 2))
    process = _process(*_cases["ou"][:2])
    t, parts = jnp.asarray(0.0), []
    for b, x in enumerate(blocks):
        path = jnp.asarray(50 * b + np.arange(50), jnp.uint32)
        paths = sde.observables.Paths(
            process, None, jnp.asarray(0.1), key_words(0), jnp.asarray(0, jnp.uint32), path, jnp.arange(50) % 7 != b
        )
        told = observable.following(paths)
        state = told.init(t, jnp.asarray(0.1 * x), False)
        for factor in (0.5, 1.5, 2.5):
            state = told.update(state, t, jnp.asarray(factor * x), jnp.arange(50) % 7 != b)
        parts.append(told.reduce(jax.tree.map(np.asarray, state), b))
    return parts


def test_parts_merge_in_any_order():
    observable = sde.FirstPassage(lambda x: 4 - x @ x)
    a, b, c = _parts(observable)
    left = observable.result(observable.merge(observable.merge(a, b), c))
    assert 10 < len(left.points) < 140
    assert left.watched.size == sum(np.sum(np.arange(50) % 7 != k) for k in range(3))
    for order in (observable.merge(a, observable.merge(b, c)), observable.merge(observable.merge(c, a), b)):
        right = observable.result(order)
        for field in ("times", "points", "watched"):
            assert np.array_equal(getattr(left, field), getattr(right, field), equal_nan=True)


def test_long_times_in_float32_lose_nothing():
    dt, steps = 0.01, 300_000
    paths = sde.observables.Paths(
        Diffusion(lambda t, x: 0 * x, lambda t, x: 1.0),
        None,
        jnp.asarray(dt, jnp.float32),
        key_words(0),
        jnp.asarray(0, jnp.uint32),
        jnp.arange(1, dtype=jnp.uint32),
        jnp.ones(1, bool),
    )
    observable = sde.FirstPassage(lambda x: x[0] > 0).following(paths)
    t, x, weight = jnp.zeros((), jnp.float32), jnp.ones((1, 1), jnp.float32), jnp.ones(1, bool)
    state = observable.init(t, x, False)
    state = jax.lax.fori_loop(0, steps - 1, lambda _, s: observable.update(s, t, x, weight), state)
    state = observable.update(state, t, -x, weight)
    out = observable.result(observable.reduce(jax.tree.map(np.asarray, state), 0))
    assert out.times[0] == pytest.approx((steps - 0.5) * float(np.float32(dt)), rel=1e-8)


def test_paths_that_blow_up_before_they_leave_are_counted_apart():
    process = Diffusion(lambda t, x: x**3, lambda t, x: 0.1)
    x0 = np.full((100, 1), 0.2)
    x0[17], x0[40] = -4.0, 0.99
    out = _run(process, sde.FirstPassage(lambda x: 1 - x[0]), x0, t1=2.0, dt=0.1, key=0, throw=False)
    assert out.nonfinite == 1
    assert np.isnan(out.watched[17])
    assert not np.isnan(np.delete(out.watched, 17)).any()
    assert out.fraction == pytest.approx(len(out.points) / 99)
    assert out.times[40] < 0.5
    assert "1 became non-finite before they left" in str(out)
    with pytest.raises(FloatingPointError, match="became non-finite"):
        _run(process, sde.FirstPassage(lambda x: 1 - x[0]), x0, t1=2.0, dt=0.1, key=0)


def test_paths_that_start_outside_leave_at_once():
    x0 = np.array([[0.0], [1.5], [-3.0]])
    process = _process(*_cases["brownian"][:2])
    out = _run(process, sde.FirstPassage(lambda x: 1 - jnp.abs(x[0])), x0, t1=0.02, dt=0.01, key=0)
    assert np.isnan(out.times[0])
    assert np.array_equal(out.times[1:], [0, 0])
    assert np.array_equal(out.points, x0[1:])
    assert "2 started outside" in str(out)


def test_where_the_level_function_has_no_gradient_steps_are_counted():
    process = Diffusion(lambda t, x: 0 * x, lambda t, x: 1.0)
    out = _run(
        process, sde.FirstPassage(lambda x: 1 - jnp.linalg.norm(x)), jnp.zeros(2), t1=8.0, dt=0.02, key=0, paths=2000
    )
    assert out.uncorrected == 2000
    _close(out.mean, out.sem, 0.5, allowed=0.02)
    assert "went unseen" in str(out)


@pytest.mark.slow
def test_without_noise_the_crossing_is_that_of_the_straight_line():
    process = Diffusion(lambda t, x: jnp.ones_like(x), lambda t, x: 0.0)
    out = _run(process, sde.FirstPassage(lambda x: 2 * (0.375 - x[0])), jnp.zeros(1), t1=1.0, dt=0.25, key=0, paths=1)
    assert out.times == pytest.approx([0.375])
    assert out.points == pytest.approx(0.375)


def test_uniform_numbers():
    words = key_words(3)
    path, step = jnp.arange(20_000, dtype=jnp.uint32), jnp.asarray(7, jnp.uint32)
    u = np.asarray(uniform(words, path, step, jnp.float64))
    assert stats.kstest(u, "uniform").pvalue > 0.001
    other = np.asarray(uniform(words, path, step + jnp.uint32(1), jnp.float64))
    assert abs(np.corrcoef(u, other)[0, 1]) < 4 / np.sqrt(20_000)
    single = np.asarray(uniform(words, path, step, jnp.float32))
    assert np.allclose(single, u, atol=1e-6)


@pytest.mark.slow
def test_a_continued_run_does_not_reuse_its_random_numbers():
    # Paths that got so far without leaving had large ones.
    process, observe = _process(*_cases["brownian"][:2]), sde.FirstPassage(lambda x: 1 - jnp.abs(x[0]))
    x0 = np.random.default_rng(0).uniform(-1, 1, size=(20_000, 1))
    first = _run(process, observe, x0, t1=0.5, dt=0.05, key=2)
    stayed = np.where(np.isnan(first.times), 0.0, 1.0)
    start = np.where(stayed[:, None] == 0, 0.95, 0.0)
    second = _run(process, observe, start, t0=0.5, t1=0.55, dt=0.05, key=2)
    # 1 - P(stay), for a Brownian motion at distance 0.05 of one end.
    chance = 2 * stats.norm.sf(0.05 / np.sqrt(0.05))
    left = ~np.isnan(second.times[stayed == 0])
    _close(left.mean(), np.sqrt(chance * (1 - chance) / left.size), chance)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (
            (lambda x: jnp.stack([x[0], x[0]]),),
            ValueError,
            r"`inside\(x\)`.*one boolean, or one real number.*shape \(2,\)",
        ),
        ((lambda x: jnp.asarray(1),), ValueError, "dtype int"),
        ((lambda x: (x[0], 1.0),), TypeError, "got tuple"),
        ((lambda x: x[0] if x[0] > 0 else -x[0],), TypeError, r"`inside\(x\)` of `FirstPassage` cannot be compiled"),
        ((lambda x: x[0] - 5,), ValueError, "must hold, or be positive, where paths start.*sign"),
        ((lambda x: x[0] > 5,), ValueError, "must hold, or be positive, where paths start"),
    ],
)
def test_bad_regions(arguments, error, text):
    with pytest.raises(error, match=text):
        _run(_process(*_cases["ou"][:2]), sde.FirstPassage(*arguments), jnp.zeros(1), **_small)


def test_wrong_kinds_of_arguments(unchecked):
    with pytest.raises(TypeError, match="`inside` must be a function of one point"):
        sde.FirstPassage(1.0)
    with pytest.raises(TypeError, match="`bridge` must be True or False"):
        sde.FirstPassage(lambda x: x[0], bridge="yes")


def test_an_observable_that_was_not_told_of_paths_says_so():
    with pytest.raises(ValueError, match="has not been told"):
        sde.FirstPassage(lambda x: x[0]).init(jnp.asarray(0.0), jnp.zeros((2, 1)), False)
