"""SignSGD: mean and covariance of the signs of a Gaussian gradient, and the exact stationary law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

import sgdsde as sg


@pytest.mark.parametrize(("eta", "expected"), [(0.1, 0.062078490454611765), (0.5, 0.2967061332986314)])
def test_stationary_variance(eta, expected):
    # f = x²/2 with Var g = 1: the stationary density is D⁻¹ exp(∫ b/D), from drift and noise of the process alone.
    model = sg.SignSGD(lambda x: 0.5 * x @ x, sg.noise.Covariance([[1.0]], 1), eta)
    x = np.linspace(-4, 4, 8001)
    b, D = jax.jit(jax.vmap(lambda x: (model.drift(0.0, x)[0], model.diffusion(0.0, x)[0, 0])))(jnp.asarray(x)[:, None])
    exponent = scipy.integrate.cumulative_simpson(b / D, x=x, initial=0)
    density = np.exp(exponent - np.max(exponent)) / D
    variance = scipy.integrate.simpson(x**2 * density) / scipy.integrate.simpson(density)
    np.testing.assert_allclose(variance, expected, rtol=1e-6)


def test_correlated_signs():
    # Orthant probabilities from scipy, for means of both signs and all correlations.
    C = np.array([[2.0, 0.9, -0.5], [0.9, 1.0, 0.1], [-0.5, 0.1, 0.5]])
    model = sg.SignSGD(lambda x: 0.5 * x @ x, sg.noise.Covariance(C, 1), 0.3)
    for x in (jnp.array([0.4, -1.0, 0.3]), jnp.array([0.0, 0.0, 0.0])):
        means = 1 - 2 * scipy.stats.norm.cdf(-np.asarray(x) / np.sqrt(np.diag(C)))
        expected = np.diag(1 - means**2)
        for i, j in ((0, 1), (0, 2), (1, 2)):
            pair = scipy.stats.multivariate_normal([0, 0], C[np.ix_([i, j], [i, j])])
            # P(both positive), P(i positive), P(j positive).
            both = pair.cdf(np.asarray(x)[[i, j]])
            expected[i, j] = expected[j, i] = 4 * (both - (1 + means[i]) * (1 + means[j]) / 4)
        drift, diffusion = jax.jit(lambda x: (model.drift(0.0, x), model.diffusion(0.0, x)))(x)
        np.testing.assert_allclose(drift, -means, atol=1e-14)
        np.testing.assert_allclose(2 * diffusion / 0.3, expected, atol=1e-7)


def test_without_noise_the_sign_is_that_of_the_gradient():
    model = sg.SignSGD(lambda x: 0.5 * x @ x, sg.noise.Covariance(np.diag([1.0, 0.0, 0.0]), 1), 0.3)
    drift, diffusion = jax.jit(lambda x: (model.drift(0.0, x), model.diffusion(0.0, x)))(jnp.array([0.5, -2.0, 0.0]))
    mean = scipy.special.erf(0.5 / np.sqrt(2))
    np.testing.assert_allclose(drift, [-mean, 1.0, 0.0], atol=1e-14)
    np.testing.assert_allclose(2 * diffusion / 0.3, np.diag([1 - mean**2, 0.0, 1.0]), atol=1e-14)
