"""Exponential Euler: exact in law on linear problems, its orders on others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm, solve_continuous_lyapunov
from test_solvers.one_step import local_orders

from solvers import Diffusion, sde
from solvers.sde.exponential_euler import propagators

_rotating = np.array([[-1.0, 2.0, 0.0], [-2.0, -0.5, 1.0], [0.3, 0.0, -3.0]])
_shear = np.array([[1.0, 0.5, 0.0], [0.0, 2.0, 0.0], [0.2, 0.1, 0.7]])
_wide = np.array([[1.0, 0.5, 0.0, -1.0], [0.0, 2.0, 0.0, 0.3], [0.2, 0.1, 0.7, 0.0]])

# Matrices A with noises G: not symmetric, unstable, very stiff, defective, more and fewer motions than dimensions.
_linear = {
    "rotating": (_rotating, _shear),
    "unstable": (_rotating + 2 * np.eye(3), _shear),
    "stiff": (np.diag([-1.0, -100.0, -1e4]), _shear),
    "defective": (np.array([[-1.0, 1.0, 0.0], [0.0, -1.0, 1.0], [0.0, 0.0, -1.0]]), _shear),
    "four motions": (_rotating, _wide),
    "two motions": (_rotating, _shear[:, :2]),
    "momentum": (np.array([[0.0, 1.0], [-4.0, -0.5]]), np.array([[0.0], [1.0]])),
    "one coordinate without noise": (np.array([[-1.0, 1.0], [-1.0, -2.0]]), np.diag([1.0, 0.0])),
}


@jax.jit
def _law_of_a_step(a, shift, g, x, h, linear=None):
    """Mean and covariance: the state is linear in the increments, whose covariance is known."""
    process = Diffusion(lambda t, x: a @ x + shift, lambda t, x: g)
    d, m = g.shape
    method, none, t = sde.ExponentialEuler(linear), jnp.zeros(m, x.dtype), jnp.zeros((), x.dtype)

    def step(dw, dz):
        return method.step(process, t, x, h, sde.Increment(dw, dz=dz if m < d else None))

    by_dw, by_dz = jax.jacfwd(step, (0, 1))(none, none)
    cross = by_dw @ by_dz.T * h**2 / 2
    return step(none, none), by_dw @ by_dw.T * h + cross + cross.T + by_dz @ by_dz.T * h**3 / 3


def _moments(a, shift, g, x, h, linear=None):
    arguments = (jnp.asarray(v) for v in (a, shift, g, x, h))
    return _law_of_a_step(*arguments, None if linear is None else jnp.asarray(linear))


@pytest.mark.parametrize("name", list(_linear))
@pytest.mark.slow("two motions", "four motions", "momentum")
def test_one_step_is_exact_in_law_for_linear_drift_and_constant_noise(name):
    a, g = _linear[name]
    x, shift = np.arange(1.0, len(a) + 1), np.linspace(-1, 1, len(a))
    rest, stationary = np.linalg.solve(a, shift), solve_continuous_lyapunov(a, -g @ g.T)
    for h in (1e-3, 0.1, 1.0, 10.0):
        mean, covariance = _moments(a, shift, g, x, h)
        grown = expm(a * h)
        exact = grown @ (x + rest) - rest
        np.testing.assert_allclose(mean, exact, atol=1e-10 * (1 + np.abs(exact).max()))
        exact = stationary - grown @ stationary @ grown.T
        # The reference loses digits at small h, as a difference of stationary covariances.
        atol = 1e-10 * np.abs(exact).max() + 1e-14 * np.abs(stationary).max()
        np.testing.assert_allclose(covariance, exact, atol=atol)


@pytest.mark.parametrize(("dtype", "atol"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_covariance_of_a_short_step_has_all_digits(dtype, atol):
    """Momenta without noise on the positions: the variances of these are of size h³/3, far below those of momenta."""
    zero, one = np.zeros((3, 3), dtype), np.eye(3, dtype=dtype)
    a, g = np.block([[zero, one], [zero, zero]]), np.concatenate([zero, _shear.astype(dtype)])
    for h in (1e-4, 1.0):
        _, covariance = _moments(a, np.zeros(6, dtype), g, np.ones(6, dtype), dtype(h))
        assert covariance.dtype == dtype
        exact = np.kron([[h**3 / 3, h**2 / 2], [h**2 / 2, h]], _shear @ _shear.T)
        scale = np.sqrt(np.diag(exact))
        correlation = np.asarray(covariance) / np.outer(scale, scale)
        np.testing.assert_allclose(correlation, exact / np.outer(scale, scale), atol=atol)


def test_a_given_linear_part_is_used_as_such():
    (linear, g), rest, h = _linear["rotating"], 0.1 * np.ones((3, 3)), 0.7
    x = np.array([1.0, 2.0, 3.0])
    mean, covariance = _moments(linear + rest, np.zeros(3), g, x, h, linear)
    grown = expm(linear * h)
    np.testing.assert_allclose(mean, grown @ x + np.linalg.solve(linear, (grown - np.eye(3)) @ rest @ x), rtol=1e-12)
    stationary = solve_continuous_lyapunov(linear, -g @ g.T)
    np.testing.assert_allclose(covariance, stationary - grown @ stationary @ grown.T, atol=1e-12)


def test_propagators_of_zero_and_of_long_times():
    c, compiled = jnp.asarray(_shear @ _shear.T), jax.jit(propagators)
    mean, weighted, covariance = compiled(jnp.zeros((3, 3)), c, jnp.asarray(2.0))
    np.testing.assert_allclose(mean, 2 * np.eye(3))
    np.testing.assert_allclose(weighted, 2 * np.eye(3))
    np.testing.assert_allclose(covariance, 2 * c)
    mean, weighted, covariance = compiled(jnp.asarray(_rotating), c, jnp.asarray(1e6))
    inverse = np.linalg.inv(_rotating)
    np.testing.assert_allclose(mean, -inverse, atol=1e-13)
    np.testing.assert_allclose(weighted, inverse @ inverse, atol=1e-13)
    np.testing.assert_allclose(covariance, solve_continuous_lyapunov(_rotating, -c), atol=1e-13)
    assert np.all(np.isnan(compiled(jnp.full((3, 3), jnp.nan), c, jnp.asarray(1.0))[0]))


def _drift(t, x):
    return jnp.array([jnp.sin(x[1]) - x[0] + 0.3 * t, 0.3 * x[0] * x[1] - jnp.cos(t) * x[1]])


def test_weak_order():
    noise = jnp.array([[1.0, 0.3], [0.2, 0.5]])
    process = Diffusion(_drift, lambda t, x: noise * (1 + 0.3 * jnp.sin(x[::-1] + t))[:, None])
    orders = local_orders(
        sde.ExponentialEuler(),
        process,
        lambda t, x: jnp.array([x[0], x[0] * x[1], jnp.sin(x[0] + 0.5 * x[1])]),
        jnp.asarray(0.3),
        jnp.array([0.7, -0.4]),
        order=1,
        h=0.005,
    )
    np.testing.assert_allclose(orders, 2, atol=0.1)


@pytest.mark.parametrize(("motions", "least"), [(1, 1.4), (2, 0.9)])
@pytest.mark.slow("2-0.9")
def test_strong_order_under_additive_noise(motions, least):
    """One motion in two dimensions needs the time integral of the Brownian motion, and gains by it."""
    noise = jnp.array([[0.0, 0.7], [1.0, 0.2]])[:, :motions]
    process = Diffusion(lambda t, x: jnp.array([x[1], -jnp.sin(x[0]) - 0.5 * x[1]]), lambda t, x: noise)
    method = sde.ExponentialEuler()
    assert method.needs(process, jnp.ones((1, 2))) == ("time" if motions == 1 else "increment")
    levels = {"dts": [1 / 4, 1 / 8, 1 / 16], "key": 1, "paths": 100, "reference": method}
    study = sde.strong_order(process, method, jnp.ones(2), **levels)
    assert least < study.order < least + 0.8, str(study)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="`linear` of `ExponentialEuler` must be a square matrix"):
        sde.ExponentialEuler(linear=np.ones((2, 3)))
    process = Diffusion(lambda t, x: -x, lambda t, x: jnp.ones((3, 1)))
    with pytest.raises(ValueError, match="needs at least d/2 Brownian motions"):
        sde.ExponentialEuler().needs(process, jnp.ones((1, 3)))
    with pytest.raises(ValueError, match=r"must have shape \(3, 3\) for states of shape \(3,\)"):
        sde.ExponentialEuler(linear=np.eye(2)).needs(process, jnp.ones((1, 3)))
