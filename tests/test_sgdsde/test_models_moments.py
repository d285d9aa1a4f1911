"""Models of optimisers on quadratics: the exact means and covariances of their linear equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import sgdsde as sg


def linear(model, x, t=0.0):
    """A, b and Q of dX = (A X + b) dt + G dB with Q = G Gᵀ, read off a process that is linear at the time t."""

    @jax.jit
    def read(x):
        return jax.jacfwd(lambda y: model.drift(t, y))(x), model.drift(t, x), model.diffusion(t, x)

    A, drift, D = read(jnp.asarray(x))
    return np.asarray(A), np.asarray(drift - A @ x), np.asarray(2 * D)


def covariance(A, Q, t):
    """The covariance after the time t from a point (Van Loan)."""
    n = len(A)
    block = scipy.linalg.expm(t * np.block([[-A, Q], [np.zeros((n, n)), A.T]]))
    return block[n:, n:].T @ block[:n, n:]


def stationary(A, Q):
    return scipy.linalg.solve_continuous_lyapunov(A, -Q)


def well(h):
    return lambda x: 0.5 * h * x @ x


@pytest.mark.parametrize(
    ("gamma", "mean", "cov"),
    [
        (
            1.0,
            [0.795370023998395, 0.7232425922268032],
            [[0.0019846237747372436, -0.004903873567602618], [-0.004903873567602618, 0.020637079404475386]],
        ),
        (
            8.0,
            [0.4060058497098, 1.082682265893],
            [[0.01428556302087, -0.01098938333324], [-0.01098938333324, 0.2725265416669]],
        ),
    ],
)
def test_momentum(gamma, mean, cov):
    model = sg.Momentum(well(2.0), sg.noise.Covariance([[3.0]], 4), 0.1, 1 - gamma * 0.1)
    A, _, Q = linear(model, np.zeros(2))
    np.testing.assert_allclose(scipy.linalg.expm(0.5 * A) @ [1, 0], mean, rtol=1e-12)
    np.testing.assert_allclose(covariance(A, Q, 0.5), cov, rtol=1e-10)
    np.testing.assert_allclose(stationary(A, Q), np.diag([0.01875, 0.01875 * 2 * gamma]), atol=1e-14)


def test_heavy_ball_is_momentum_with_another_learning_rate():
    # The stationary variance of the algorithm is ηc/(2h(1-μ)) as η → 0.
    model = sg.Momentum.heavy_ball(well(2.0), sg.noise.Covariance([[3.0]], 1), 0.01, 0.9)
    A, _, Q = linear(model, np.zeros(2))
    np.testing.assert_allclose(stationary(A, Q)[0, 0], 0.01 * 3 / (2 * 2 * 0.1), rtol=1e-12)
    np.testing.assert_allclose(model.time(1), 0.1, rtol=1e-12)
    np.testing.assert_allclose(model.friction, 0.1**2 / 0.01, rtol=1e-12)


def test_modified_equations_of_first_and_second_order():
    # h = c = 1: the mean after ten steps and the stationary variance (exact: 0.3486784401 and 0.0526315789).
    for model, mean, variance in (
        (sg.SGD, 0.36787944117144233, 0.05),
        (sg.ModifiedSGD, 0.3499377491111553, 0.047619047619047616),
    ):
        process = model(well(1.0), sg.noise.Covariance([[1.0]], 1), 0.1)
        A, _, Q = linear(process, np.zeros(1))
        np.testing.assert_allclose(np.exp(process.time(10) * A[0, 0]), mean, rtol=1e-12)
        np.testing.assert_allclose(stationary(A, Q)[0, 0], variance, rtol=1e-12)


@pytest.mark.parametrize(("model", "order"), [(sg.SGD, 1), (sg.ModifiedSGD, 2)])
def test_weak_order_of_modified_equations(model, order):
    # One step of SGD with two examples in a loss that is no quadratic, against the expectation under the process
    # after t = η by its generator: E φ = φ + η Lφ + η²/2 LLφ + O(η³). The local error is O(η^(order + 1)).
    data = sg.losses.FiniteSum(
        lambda x, a: jnp.sum((x - a) ** 4) / 4 + x[0] * x[1], np.array([[0.3, -0.1], [0.8, 0.5]])
    )
    x = jnp.array([1.2, -0.7])

    def phi(x):
        return x[0] ** 2 * jnp.cos(x[1])

    def generator(process, phi):
        def applied(x):
            slope, bend = jax.grad(phi)(x), jax.hessian(phi)(x)
            return slope @ process.drift(0.0, x) + jnp.sum(bend * process.diffusion(0.0, x))

        return applied

    @jax.jit
    def error(eta):
        process = model(data, sg.noise.Minibatch(data, 1), eta)
        first = generator(process, phi)
        steps = jax.vmap(lambda i: phi(x - eta * jax.grad(lambda y: data.examples(y, i[None])[0])(x)))(jnp.arange(2))
        return jnp.mean(steps) - (phi(x) + eta * first(x) + eta**2 / 2 * generator(process, first)(x))

    ratio = error(1e-3) / error(5e-4)
    np.testing.assert_allclose(np.log2(ratio), order + 1, atol=0.03)
