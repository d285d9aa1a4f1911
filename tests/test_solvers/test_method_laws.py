"""Single integrators against what is known of them alone: exact laws, closed forms of the scheme, solved equations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import make_interp_spline
from scipy.linalg import solve_discrete_lyapunov
from test_solvers import sde_problems as problems

from solvers import Diffusion, sde
from solvers.sde.method import AbstractPostprocessed

_zero = jnp.asarray(0.0)


def _covariances(method, process, d, m, dt):
    """The stationary covariances of what a method steps and of its state, for a linear drift and constant noise."""
    dt = jnp.asarray(dt)

    def step(y, dw):
        return method.step(process, _zero, y, dt, sde.Increment(dw))

    propagator, noise = (np.asarray(jax.jacobian(step, k)(jnp.ones(d), jnp.ones(m))) for k in (0, 1))
    stepped = solve_discrete_lyapunov(propagator, dt * noise @ noise.T)
    if not isinstance(method, AbstractPostprocessed):
        return stepped, stepped
    ahead = jax.jacobian(lambda dw: method.leave(process, _zero, jnp.ones(d), dt, sde.Increment(dw)))(jnp.ones(m))
    return stepped, stepped + np.asarray(dt * ahead @ ahead.T)


# Leimkuhler-Matthews


def test_leimkuhler_matthews_has_the_exact_covariance_of_a_quadratic_loss():
    # D = σH: the law of dX = -HX dt + √(2σH) dB is N(0, σ I); dt times the largest curvature is 1.4 here.
    hessian, sigma, dt = np.asarray([[2.0, 0.5], [0.5, 1.0]]), 0.3, 0.635
    noise = np.linalg.cholesky(2 * sigma * hessian)
    process = Diffusion(lambda t, x: -hessian @ x, lambda t, x: noise)
    y, x = _covariances(sde.LeimkuhlerMatthews(), process, 2, 2, dt)
    np.testing.assert_allclose(x, sigma * np.eye(2), atol=1e-14)
    # What it steps is not the state, and Euler-Maruyama has σ (I - ½ dt H)⁻¹.
    np.testing.assert_allclose(y, sigma * (np.eye(2) - 0.5 * dt * hessian), atol=1e-14)
    _, euler = _covariances(sde.EulerMaruyama(), process, 2, 2, dt)
    np.testing.assert_allclose(euler, sigma * np.linalg.inv(np.eye(2) - 0.5 * dt * hessian), rtol=1e-12)


def test_leimkuhler_matthews_follows_its_recurrence():
    # x_{n+1} = x_n + b(x_n) dt + ½ G (dW_n + dW_{n+1}), however it is stepped.
    process, method, dt = problems.wells, sde.LeimkuhlerMatthews(), jnp.asarray(0.1)
    dws = [sde.Increment(jnp.asarray(dw)) for dw in 0.3 * np.random.default_rng(0).normal(size=(5, 2))]
    x = jnp.asarray([1.0, 0.5])
    y = method.enter(process, _zero, x, dt, dws[0])
    for now, ahead in itertools.pairwise(dws):
        noise = process.noise(_zero, x).mv(now.dw + ahead.dw)
        x = x + process.drift(_zero, x) * dt + 0.5 * noise
        y = method.step(process, _zero, y, dt, now)
        np.testing.assert_allclose(method.leave(process, _zero, y, dt, ahead), x, rtol=1e-13)


def _invariant_moment(method, process, dt):
    """E X² under the invariant law of a chain in one dimension: its transition kernel by quadrature on a grid.

    The kernel acts on functions as φ(y) -> Σ w_q φ(step(y, √dt z_q)) with Gauss-Hermite nodes and a spline for φ; its
    left eigenvector for the eigenvalue 1 is the law. Three nodes are the three-point variable itself.
    """
    grid = np.linspace(-3.2, 3.2, 401)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60 if method.noise == "normal" else 3)
    weights = weights / weights.sum()
    size = jnp.asarray(dt)

    def at_nodes(fn):
        one = jax.vmap(lambda y, z: fn(process, _zero, y[None], size, sde.Increment(jnp.sqrt(size) * z[None]))[0])
        ys, zs = np.broadcast_arrays(grid[:, None], nodes)
        return np.asarray(one(jnp.asarray(ys.ravel()), jnp.asarray(zs.ravel()))).reshape(ys.shape)

    spline = make_interp_spline(grid, np.eye(len(grid)), k=5)
    targets = np.clip(at_nodes(method.step), grid[0], grid[-1])
    kernel = np.einsum("q,yqj->yj", weights, spline(targets))
    singular = np.vstack([kernel.T - np.eye(len(grid)), np.ones(len(grid))])
    law = np.linalg.lstsq(singular, np.append(np.zeros(len(grid)), 1.0))[0]
    states = at_nodes(method.leave) if isinstance(method, AbstractPostprocessed) else np.tile(grid[:, None], len(nodes))
    return law @ (states**2 @ weights)


@pytest.mark.parametrize("noise", ["normal", "three-point"])
@pytest.mark.parametrize(("method", "order"), [(sde.LeimkuhlerMatthews, 2), (sde.EulerMaruyama, 1)])
@pytest.mark.parametrize("name", ["double well", "quartic"])
@pytest.mark.slow(
    "double well-LeimkuhlerMatthews-2-normal",
    "double well-LeimkuhlerMatthews-2-three-point",
    "double well-EulerMaruyama-1-normal",
)
def test_order_of_the_invariant_law(name, method, order, noise):
    # dX = -V' dt + dB has the invariant law exp(-2V).
    force, potential = {
        "double well": (lambda x: x - x**3, lambda x: x**4 / 4 - x**2 / 2),
        "quartic": (lambda x: -(x**3), lambda x: x**4 / 4),
    }[name]
    process = Diffusion(lambda t, x: force(x), lambda t, x: 1.0)
    x = np.linspace(-5, 5, 4001)
    density = np.exp(-2 * potential(x))
    exact = np.sum(x**2 * density) / np.sum(density)
    coarse, fine = (_invariant_moment(method(noise=noise), process, dt) - exact for dt in (0.04, 0.02))
    assert abs(np.log2(coarse / fine) - order) < 0.25
    # Not only of higher order: about 100 and 40 times smaller.
    assert abs(coarse) < (1e-4 if order == 2 else 1e-2)


# Tamed Euler


def test_tamed_euler_stays_where_euler_maruyama_explodes():
    run = {"t1": 5.0, "dt": 0.1, "key": 0, "paths": 1000}
    x0 = jnp.asarray([9.0])
    euler = sde.simulate(problems.cubic, sde.EulerMaruyama(), x0, **run, throw=False)
    assert euler.nonfinite == 1000
    tamed = sde.simulate(problems.cubic, sde.TamedEuler(), x0, **run)
    # Noise proportional to X keeps a few paths out there, for the drift moves them by less than 1 a step.
    assert np.all(np.isfinite(tamed.final))
    assert np.median(np.abs(tamed.final)) < 1


def test_tamed_drift_moves_less_than_one_unit():
    # Without noise: x' = x + b dt / (1 + dt |b|), with one norm for the vector.
    process = Diffusion(lambda t, x: -(x**3), lambda t, x: 0.0)
    x, dt = jnp.asarray([30.0, -40.0]), jnp.asarray(0.1)
    moved = sde.TamedEuler().step(process, _zero, x, dt, sde.Increment(jnp.zeros(2))) - x
    b = -(np.asarray(x) ** 3)
    np.testing.assert_allclose(moved, b * 0.1 / (1 + 0.1 * np.linalg.norm(b)), rtol=1e-12)
    assert np.linalg.norm(moved) < 1


# Stratonovich's drift


def _noises():
    """Noise of each form, with ½ Σ_j (g_j·∇) g_j by hand at (t, x)."""
    return {
        # s ∇s / 2 for s = √(1 + t|x|²) is t x / 2.
        "isotropic": (lambda t, x: jnp.sqrt(1 + t * x @ x), lambda t, x: 0.5 * t * x),
        # ½ g_i ∂_i g_i, where the first entry depends on both coordinates.
        "diagonal": (
            lambda t, x: jnp.stack([x[0] * x[1] ** 2, jnp.sin(t * x[1])]),
            lambda t, x: 0.5 * np.asarray([x[0] * x[1] ** 4, t * np.sin(t * x[1]) * np.cos(t * x[1])]),
        ),
        # g = (x_2, x_1²): (g·∇) g = (x_1², 2 x_1 x_2).
        "one motion": (
            lambda t, x: jnp.stack([x[1], x[0] ** 2])[:, None],
            lambda t, x: 0.5 * np.asarray([x[0] ** 2, 2 * x[0] * x[1]]),
        ),
        # Columns (x_2, 0), (0, x_1 t), (1, x_2): Σ (g_j·∇) g_j = 0 + 0 + (0, x_2).
        "general": (
            lambda t, x: jnp.stack([jnp.stack([x[1], 0.0, 1.0]), jnp.stack([0.0, t * x[0], x[1]])]),
            lambda t, x: 0.5 * np.asarray([0.0, x[1]]),
        ),
    }


@pytest.mark.parametrize("noise", ["isotropic", "diagonal", "one motion", "general"])
def test_stratonovich_drift_is_that_of_the_formula(noise):
    fn, correction = _noises()[noise]
    process = Diffusion(lambda t, x: jnp.cos(t) - 2 * x, fn)
    t, x = jnp.asarray(0.7), jnp.asarray([0.6, -1.3])
    expected = np.cos(0.7) - 2 * np.asarray(x) - correction(0.7, np.asarray(x))
    np.testing.assert_allclose(sde.stratonovich_drift(process, t, x), expected, rtol=1e-13)


def test_stratonovich_drift_under_loss_proportional_noise():
    # D = κ f I: b̃ = b - ½ κ ∇f.
    kappa = 0.4
    process = Diffusion(lambda t, x: -x, lambda t, x: jnp.sqrt(2 * kappa * (1 + x @ x) / 2))
    x = jnp.asarray([0.6, -1.3, 0.2])
    np.testing.assert_allclose(sde.stratonovich_drift(process, _zero, x), -(1 + kappa / 2) * x, rtol=1e-13)


@pytest.mark.parametrize("name", ["geometric", "tanh", "four turning"])
@pytest.mark.slow("four turning", "tanh")
def test_heun_has_strong_order_one_for_noise_that_commutes(name):
    process, x0, exact = problems.pathwise[name]
    dts = [2.0**-k for k in range(4, 8)]
    study = sde.strong_order(process, sde.StratonovichHeun(), x0, dts=dts, key=1, paths=1000, exact=exact)
    assert abs(study.order - 1) < 0.1, str(study)


# SRA1


@pytest.mark.slow
def test_sra1_integrates_a_brownian_motion_exactly():
    # dX_1 = X_2 dt, dX_2 = dB: every step size ends at the same point, and E X_1² = T³/3, E X_1 X_2 = T²/2.
    process = Diffusion(lambda t, x: jnp.stack([x[1], jnp.zeros_like(t)]), lambda t, x: jnp.asarray([[0.0], [1.0]]))
    study = sde.strong_order(process, sde.SRA1(), jnp.zeros(2), dts=[0.5, 0.25, 0.125], key=0, paths=100)
    assert np.all(study.errors < 1e-14)
    out = sde.simulate(process, sde.SRA1(), jnp.zeros(2), t1=1.0, dt=0.25, key=0, paths=100_000)
    x, y = out.final.T
    for value, moment in ((x * x, 1 / 3), (x * y, 1 / 2), (y * y, 1)):
        assert abs(value.mean() - moment) < 4 * value.std() / np.sqrt(len(x))


def test_sra1_integrates_noise_linear_in_time_exactly():
    # X = (∫ t dB, B, ∫ B dt), at any dt: by parts, T B(T) = ∫ t dB + ∫ B dt.
    process = Diffusion(
        lambda t, x: jnp.stack([0 * t, 0 * t, x[1]]), lambda t, x: jnp.stack([t, jnp.ones_like(t), 0 * t])[:, None]
    )
    out = sde.simulate(process, sde.SRA1(), jnp.zeros(3), t1=2.0, dt=0.5, key=1, paths=100)
    np.testing.assert_allclose(out.final[:, 0] + out.final[:, 2], 2 * out.final[:, 1], atol=1e-13)


# Drift-implicit Euler


def test_implicit_euler_is_one_linear_solve_for_a_linear_drift():
    matrix = np.asarray([[50.0, 10.0, 0.0], [0.0, 3.0, 1.0], [2.0, 0.0, 0.1]])
    process = Diffusion(lambda t, x: t - matrix @ x, lambda t, x: 1 + 0.1 * x)
    t, dt = jnp.asarray(0.5), jnp.asarray(0.25)
    x, dw = jnp.asarray([1.0, -2.0, 0.3]), jnp.asarray([0.2, -0.1, 0.4])
    new = sde.DriftImplicitEuler().step(process, t, x, dt, sde.Increment(dw))
    known = x + (1 + 0.1 * x) * dw + 0.25 * 0.75
    np.testing.assert_allclose(new, np.linalg.solve(np.eye(3) + 0.25 * matrix, known), rtol=1e-13)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("dt", [0.01, 1.0, 100.0])
@pytest.mark.slow("0.01-float32", "100.0-float32", "1.0-float64")
def test_implicit_euler_solves_its_equation_to_rounding(dt, dtype):
    # A quartic loss, from far away: x' + dt x'^3 = x has one solution.
    process = Diffusion(lambda t, x: -(x**3), lambda t, x: 0.0)
    x, dt = jnp.asarray([[30.0], [-1.0], [1e-3], [0.0]], dtype), jnp.asarray(dt, dtype)
    step = jax.jit(
        jax.vmap(
            lambda x: sde.DriftImplicitEuler().step(process, jnp.zeros((), dtype), x, dt, sde.Increment(x * 0)),
        )
    )
    new = np.asarray(step(x))
    assert new.dtype == dtype
    roots = [np.roots([float(dt), 0, 1, -float(v)]) for v in x[:, 0]]
    exact = [root[np.abs(root.imag) < 1e-9].real[0] for root in roots]
    np.testing.assert_allclose(new[:, 0], exact, rtol=8 * jnp.finfo(dtype).eps)


@pytest.mark.slow
def test_implicit_euler_has_its_own_variance_where_euler_maruyama_explodes():
    # x' = (x + s dW)/(1 + λ dt) has the variance s² dt/((1 + λ dt)² - 1); dt λ = 100 and 0.1 here.
    rates, s, dt = jnp.asarray([1000.0, 1.0]), 0.7, 0.1
    process = Diffusion(lambda t, x: -rates * x, lambda t, x: s)
    run = {"x0": jnp.ones(2), "dt": dt, "key": 2}
    euler = sde.simulate(process, sde.EulerMaruyama(), t1=20.0, paths=8, **run, throw=False)
    assert euler.nonfinite == 8
    out = sde.simulate(process, sde.DriftImplicitEuler(), t1=6.0, paths=10_000, **run)
    exact = s**2 * dt / ((1 + np.asarray(rates) * dt) ** 2 - 1)
    square = out.final**2
    assert np.all(np.abs(square.mean(0) - exact) < 4 * square.std(0) / np.sqrt(len(square)))


def test_implicit_euler_reports_an_equation_without_a_solution():
    # x' = x + dt (1 + x'^2) has none for dt (x + dt) > 1/4.
    process = Diffusion(lambda t, x: 1 + x * x, lambda t, x: 0.0)
    x = jnp.asarray([3.0])
    assert jnp.isnan(sde.DriftImplicitEuler().step(process, _zero, x, jnp.asarray(0.5), sde.Increment(jnp.zeros(1))))
    with pytest.raises(FloatingPointError, match="4 of 4 paths became non-finite"):
        sde.simulate(process, sde.DriftImplicitEuler(), x, t1=1.0, dt=0.5, key=0, paths=4)
