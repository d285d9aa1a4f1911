"""Every gradient noise has the diffusion that its docstring states."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from sgdsde import noise
from solvers.process import noise_kind

eta, sigma = jnp.asarray(0.1), 0.7


def saddle(x):
    return 1.5 + jnp.sum(jnp.cos(x) * jnp.arange(1, x.size + 1, dtype=x.dtype)) + x[0] * x[-1] + x @ x


@eqx.filter_jit
def diffusion(model, x, loss=saddle):
    g = model.operator(loss, eta, x).as_matrix()
    return 0.5 * g @ g.T


def points(d):
    return jax.random.normal(jax.random.key(d), (5, d))


@pytest.mark.parametrize("d", [1, 2, 3])
def test_isotropic(d):
    for x in points(d):
        np.testing.assert_allclose(diffusion(noise.Constant(sigma), x), 0.07 * np.eye(d), rtol=1e-14)
        np.testing.assert_allclose(
            diffusion(noise.LossProportional(sigma), x), 0.07 * saddle(x) * np.eye(d), rtol=1e-14, atol=1e-16
        )
        assert noise_kind(noise.LossProportional(sigma).operator(saddle, eta, x)) == "isotropic"


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("rule", ["clip", "abs"])
@pytest.mark.slow("clip-1", "clip-3", "abs-1", "abs-3")
def test_hessian_matched(d, rule):
    model = noise.HessianMatched(sigma, floor=0.2, rule=rule)
    negative = False
    for x in points(d):
        values, vectors = np.linalg.eigh(np.asarray(jax.jit(jax.hessian(saddle))(x)))
        negative |= values[0] < 0
        raised = np.maximum(np.abs(values) if rule == "abs" else values, 0.2)
        expected = 0.07 * (vectors * raised) @ vectors.T
        np.testing.assert_allclose(diffusion(model, x), expected, atol=1e-14)
        times_loss = noise.LossHessian(sigma, floor=0.2, rule=rule)
        np.testing.assert_allclose(diffusion(times_loss, x), saddle(x) * expected, atol=1e-13)
    operator = model.operator(saddle, eta, x)
    np.testing.assert_allclose(operator.as_matrix(), operator.as_matrix().T, atol=1e-15)
    assert (noise_kind(operator) == "diagonal") == (d == 1)
    assert negative or d == 1, "the rules must be told apart"


@pytest.mark.parametrize("rule", ["clip", "abs"])
def test_hessian_root_can_be_differentiated(rule):
    model = noise.HessianMatched(sigma, floor=0.2, rule=rule)

    @jax.jit
    def g(x):
        return model.operator(saddle, eta, x).as_matrix()

    v = jnp.array([0.3, -0.8, 0.5])
    value_and_slope = jax.jit(lambda x: jax.jvp(g, (x,), (v,)))
    for x in points(3):
        difference = (g(x + 1e-6 * v) - g(x - 1e-6 * v)) / 2e-6
        value, slope = value_and_slope(x)
        np.testing.assert_allclose(value, g(x), rtol=1e-12)
        np.testing.assert_allclose(slope, difference, atol=1e-8)


def test_hessian_root_has_a_derivative_where_eigenvalues_coincide():
    # H = (1 + 3 x₁²) I at x: the root is sqrt(1 + 3 x₁²) I, of derivative 3 x₁ / sqrt(1 + 3 x₁²) I.
    from sgdsde._roots import hessian_root

    slope = jax.jacfwd(lambda s: hessian_root((1 + 3 * s**2) * jnp.eye(3), jnp.asarray(0.1), "clip"))(jnp.asarray(0.5))
    np.testing.assert_allclose(slope, 1.5 / np.sqrt(1.75) * np.eye(3), rtol=1e-14)


def test_covariance_matrix_and_function():
    a = np.random.default_rng(0).normal(size=(3, 3))
    C = a @ a.T
    x = jnp.array([0.4, -1.0, 2.0])
    for model in (noise.Covariance(C, 8), noise.Covariance(lambda x: jnp.asarray(C), 8)):
        np.testing.assert_allclose(diffusion(model, x), 0.1 * C / 16, rtol=1e-12)


def test_covariance_of_low_rank_takes_as_few_brownian_motions():
    vector = np.array([[1.0], [2.0], [-1.0]])
    x = jnp.zeros(3)
    model = noise.Covariance(vector @ vector.T, 1)
    assert model.operator(saddle, eta, x).in_size() == 1
    np.testing.assert_allclose(diffusion(model, x), 0.05 * vector @ vector.T, atol=1e-15)
    function = noise.Covariance(lambda x: jnp.asarray(vector @ vector.T), 1)
    np.testing.assert_allclose(diffusion(function, x), 0.05 * vector @ vector.T, atol=1e-15)


def test_covariance_function_that_is_negative_gives_nan():
    model = noise.Covariance(lambda x: jnp.diag(jnp.array([1.0, -0.1])), 1)
    assert np.all(np.isnan(diffusion(model, jnp.zeros(2))))


def test_loss_proportional_noise_where_the_loss_is_zero():
    # Milstein's term is G ∂G = κ ∂f, which is 0 at the minimum.
    def g(x):
        return noise.LossProportional(sigma).operator(lambda x: 0.5 * x @ x, eta, x).as_matrix()

    x = jnp.zeros(2)
    assert np.all(g(x) == 0)
    assert np.all(jax.jacfwd(g)(x) == 0)


def test_negative_loss_gives_nan():
    assert np.isnan(diffusion(noise.LossProportional(sigma), jnp.ones(1), lambda x: -x[0])[0, 0])


@pytest.mark.parametrize(
    "model",
    [
        noise.Constant(sigma),
        noise.LossProportional(sigma),
        noise.HessianMatched(sigma, floor=0.1),
        noise.LossHessian(sigma, floor=0.1),
        noise.Covariance([[2.0, 1.0], [1.0, 3.0]], 4),
        noise.Covariance(lambda x: jnp.outer(x, x), 4),
    ],
)
def test_dtype_follows_the_state(model):
    x = jnp.array([0.3, -0.2], jnp.float32)
    operator = model.operator(saddle, eta, x)
    assert isinstance(operator, lx.AbstractLinearOperator)
    assert operator.as_matrix().dtype == jnp.float32


def test_a_sweep_over_sigma_can_be_vectorised():
    x = jnp.array([0.3, -0.2])
    sigmas = jnp.array([0.1, 0.2, 0.4])
    d = eqx.filter_vmap(lambda s: diffusion(noise.LossProportional(s), x)[0, 0])(sigmas)
    np.testing.assert_allclose(d, 0.1 * sigmas * saddle(x), rtol=1e-14)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: noise.Constant(-1.0), ValueError, "`sigma` must be at least 0, but got sigma=-1"),
        (lambda: noise.Constant(float("nan")), ValueError, "`sigma` must be finite"),
        (lambda: noise.Constant(1j), TypeError, "`sigma` must be real numbers, but got dtype complex"),
        (lambda: noise.Constant("a"), TypeError, "`sigma` must be real numbers, but got 'a'"),
        (lambda: noise.LossProportional([1.0, 2.0]), ValueError, r"`sigma` must be one number, .* shape \(2,\)"),
        (lambda: noise.HessianMatched(1.0, floor=-0.1), ValueError, "`floor` must be at least 0"),
        (
            lambda: noise.HessianMatched(1.0, floor=0.1, rule="fisher"),
            ValueError,
            '"clip" or "abs", but got \'fisher\'',
        ),
        (lambda: noise.Covariance(np.eye(2), 0), ValueError, "`batch_size` must be positive, but got batch_size=0"),
        (lambda: noise.Covariance([[1.0, 2.0], [0.0, 1.0]], 1), ValueError, "must be symmetric.*entry of size 2"),
        (lambda: noise.Covariance([[1.0, 2.0], [2.0, 1.0]], 1), ValueError, "semi-definite, but has the eigenvalue -1"),
        (lambda: noise.Covariance([1.0, 2.0], 1), ValueError, r"square matrix \(d, d\).*got shape \(2,\)"),
        (lambda: diffusion(noise.Covariance(np.eye(3), 1), jnp.ones(2)), ValueError, r"`C` has shape \(3, 3\), but x"),
        (lambda: diffusion(noise.Covariance(lambda x: x, 1), jnp.ones(2)), ValueError, r"`C\(x\)` must return shape"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
