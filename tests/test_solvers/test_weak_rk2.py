"""WeakRK2: weak order 2 for every form of noise, from expectations without sampling error where possible."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from scipy.linalg import expm
from test_solvers.one_step import cases, expectation, local_orders

from solvers import Diffusion, sde

_t, _x = jnp.asarray(0.3), jnp.array([0.7, -0.4])


def _drift(t, x):
    return jnp.array([jnp.sin(x[1]) - x[0] + 0.3 * t, 0.3 * x[0] * x[1] - jnp.cos(t) * x[1]])


def _matrix(t, x):
    return jnp.array(
        [[1 + 0.3 * jnp.sin(x[1]) + 0.1 * t, 0.2 * x[0], 0.4 * x[1]], [0.3 * x[0] * x[1], 0.5, 0.2 * jnp.cos(x[0])]]
    )


# Noise with what a step needs for it; all depend on time and state, none is linear.
_noises = {
    "isotropic": (lambda t, x: jnp.exp(0.2 * t) * jnp.sqrt(0.5 + 0.3 * x @ x + 0.1 * x[0]), "time"),
    "separable": (lambda t, x: jnp.array([1 + 0.3 * jnp.sin(x[0]) + 0.1 * t, 0.5 + 0.2 * x[1] ** 2]), "increment"),
    "diagonal": (lambda t, x: jnp.array([1 + 0.3 * jnp.sin(x[1]) + 0.1 * t * x[0], 0.5 + 0.2 * x[0] ** 2]), "signs"),
    "matrix": (_matrix, "signs"),
    "additive": (lambda t, x: jnp.array([[1 + 0.5 * t, 0.2, 0.0], [0.3, 0.5, t**2]]), "increment"),
}


def _functionals(t, x):
    return jnp.array([x[0], x[0] * x[1], jnp.exp(0.5 * x[0] - 0.3 * x[1] + 0.1 * t)])


@pytest.mark.parametrize("noise", list(_noises))
@pytest.mark.slow("isotropic", "separable", "matrix")
def test_a_step_agrees_with_the_expansion_by_the_generator_to_order_two(noise):
    fn, need = _noises[noise]
    process = Diffusion(_drift, fn)
    assert sde.WeakRK2().needs(process, _x[None]) == need
    orders = local_orders(sde.WeakRK2(), process, _functionals, _t, _x, order=2)
    np.testing.assert_allclose(orders, 3, atol=0.05)


def test_a_noise_that_is_never_written_down_gives_the_same_step():
    three = jax.ShapeDtypeStruct((3,), jnp.float64)
    operator = Diffusion(_drift, lambda t, x: lx.FunctionLinearOperator(lambda w: _matrix(t, x) @ w, three))
    dw = sde.Increment(jnp.array([0.1, -0.3, 0.2]), signs=jnp.array([1.0, 1.0, -1.0]))

    @jax.jit
    def step(dw):
        return [sde.WeakRK2().step(p, _t, _x, jnp.asarray(0.1), dw) for p in (operator, Diffusion(_drift, _matrix))]

    np.testing.assert_allclose(*step(dw), rtol=1e-13)


class _Altered(eqx.Module):
    """WeakRK2 with other numbers than it asked for."""

    alter: object

    def needs(self, process, x):
        return sde.WeakRK2().needs(process, x)

    def step(self, process, t, x, dt, increment):
        return sde.WeakRK2().step(process, t, x, dt, self.alter(dt, increment))


@pytest.mark.parametrize("noise", ["isotropic", "matrix"])
@pytest.mark.slow("matrix")
def test_with_too_little_in_the_place_of_levy_areas_a_step_is_of_order_one(noise):
    alter = {
        "isotropic": lambda dt, w: sde.Increment(w.dw, dz=0.25 * dt * w.dw + 0.5 * w.dz),
        "matrix": lambda dt, w: sde.Increment(w.dw, signs=0.5 * w.signs),
    }[noise]
    process = Diffusion(_drift, _noises[noise][0])
    orders = local_orders(_Altered(alter), process, _functionals, _t, _x, order=2, h=0.0005)
    # The mean, the first functional, does not see the areas.
    np.testing.assert_allclose(orders[1:], 2, atol=0.2)


def test_euler_maruyama_is_told_apart():
    process = Diffusion(_drift, _matrix)
    orders = local_orders(sde.EulerMaruyama(), process, _functionals, _t, _x, order=2)
    np.testing.assert_allclose(orders, 2, atol=0.1)


def _global_orders(errors):
    return np.log2(np.abs(np.array(errors[:-1]) / np.array(errors[1:])))


@pytest.mark.parametrize("power", [2, 4])
@pytest.mark.slow("2")
def test_moments_of_linear_noise_that_does_not_commute(power):
    """All moments of one degree of dX = A X dt + Σ_j B_j X dW_j, by a matrix exponential; and those of the scheme."""
    a = np.array([[-1.0, 0.5], [-0.3, -0.7]])
    b = np.array([[[0.3, 0.4], [0.1, -0.2]], [[0.2, -0.3], [0.5, 0.1]]])
    process = Diffusion(lambda t, x: a @ x, lambda t, x: (b @ x).T)
    method = sde.WeakRK2()
    assert np.linalg.norm(b[0] @ b[1] - b[1] @ b[0]) > 0.3

    def slot(matrix, i):
        return functools.reduce(np.kron, [matrix if k == i else np.eye(2) for k in range(power)])

    rate = sum(slot(a, i) for i in range(power))
    rate = rate + sum(slot(bj, i) @ slot(bj, k) for bj in b for i in range(power) for k in range(i))
    start = functools.reduce(np.kron, [np.array([1.0, -0.5])] * power)
    exact, errors = expm(rate) @ start, []
    for steps in (8, 16, 32):
        h = 1 / steps
        parts, weights = cases("signs", 2, h)

        def matrix(parts, h=h):
            dw = sde.Increment(**parts)
            columns = [method.step(process, jnp.asarray(0.0), e, jnp.asarray(h), dw) for e in jnp.eye(2)]
            return jnp.stack(columns, axis=1)

        products = jax.jit(jax.vmap(lambda parts: functools.reduce(jnp.kron, [matrix(parts)] * power)))(parts)
        mean = np.tensordot(weights, products, axes=1)
        errors.append(np.linalg.norm(np.linalg.matrix_power(mean, steps) @ start - exact))
    np.testing.assert_allclose(_global_orders(errors), 2, atol=0.12)


@pytest.mark.parametrize("q", [2, 4])
def test_moments_under_isotropic_loss_proportional_noise(q):
    """f = |x|²/2 with D = κ f I in d = 2: E|X|^q grows at the rate q (κ (q + d - 2) / 2 - 1), the scheme's by a factor
    a step."""
    kappa, t1 = 0.3, 1.0
    process = Diffusion(lambda t, x: -x, lambda t, x: jnp.sqrt(kappa * x @ x))
    exact = np.exp(q * (kappa * q / 2 - 1) * t1)
    steps = np.array([16, 32, 64])
    factors = expectation(
        sde.WeakRK2(),
        process,
        lambda t, x: (x @ x) ** (q / 2),
        jnp.asarray(0.0),
        jnp.array([0.6, -0.8]),
        *(t1 / steps),
    )
    np.testing.assert_allclose(_global_orders(factors**steps - exact), 2, atol=0.15)


def test_nonlinear_drift_and_noise_in_one_dimension():
    """X = sinh(asinh x + t + W) solves dX = (X/2 + √(1 + X²)) dt + √(1 + X²) dW."""
    process = Diffusion(lambda t, x: 0.5 * x + jnp.sqrt(1 + x**2), lambda t, x: jnp.sqrt(1 + x**2))
    study = sde.weak_order(
        process,
        sde.WeakRK2(),
        jnp.array([0.0]),
        dts=[1 / 4, 1 / 8, 1 / 16],
        key=1,
        paths=200_000,
        functional=lambda x: jnp.arcsinh(x[0]) ** 2,
        exact=lambda x0, t, w: jnp.sinh(jnp.arcsinh(x0) + t + w),
    )
    assert abs(study.order - 2) < 0.2, str(study)
    assert study.interval[1] - study.interval[0] < 0.6, str(study)


@pytest.mark.parametrize("noise", ["isotropic", "matrix"])
def test_float32(noise):
    process = Diffusion(_drift, _noises[noise][0])
    number = jnp.asarray(0.1, jnp.float32)
    parts = {"isotropic": {"dz": 0.1 * jnp.ones(2)}, "matrix": {"signs": jnp.ones(3)}}[noise]
    dw = jnp.ones(2 if noise == "isotropic" else 3)
    increment = jax.tree.map(lambda v: v.astype(jnp.float32), sde.Increment(dw, **parts))
    x = eqx.filter_jit(sde.WeakRK2().step)(process, number, _x.astype(jnp.float32), number, increment)
    assert x.dtype == jnp.float32


def test_many_motions_are_refused():
    process = Diffusion(lambda t, x: -x, lambda t, x: jnp.outer(x, jnp.ones(33)))
    with pytest.raises(ValueError, match=r"`WeakRK2` evaluates this noise twice for each of its 33"):
        sde.WeakRK2().needs(process, jnp.ones((1, 2)))
    constant = Diffusion(lambda t, x: -x, lambda t, x: jnp.ones((2, 33)))
    assert sde.WeakRK2().needs(constant, jnp.ones((1, 2))) == "increment"
