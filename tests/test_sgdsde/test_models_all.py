"""What every model of an optimiser promises: shapes, clock, position, dtype, sweeps, terms for diffrax."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import sgdsde as sg
from sgdsde import models, noise
from solvers import sde

A = np.array([[1.0, 0.4], [-0.3, 0.8], [0.5, -1.2]])
loss = sg.losses.LeastSquares(A, [0.3, -0.5, 1.0])
H = A.T @ A / 3
minibatch = noise.Minibatch(loss, 2)
x0 = jnp.array([0.7, -0.4])

# Each as a function of the learning rate.
every = {
    "SGD": lambda eta: sg.SGD(loss, minibatch, eta),
    "ModifiedSGD": lambda eta: sg.ModifiedSGD(loss, minibatch, eta),
    "EmbeddedSGD": lambda eta: sg.EmbeddedSGD(H, np.eye(2), eta),
    "PreconditionedSGD": lambda eta: sg.PreconditionedSGD(loss, minibatch, eta, np.linalg.inv(H)),
    "Momentum": lambda eta: sg.Momentum(loss, minibatch, eta),
    "RMSProp": lambda eta: sg.RMSProp(loss, minibatch, eta),
    "Adam": lambda eta: sg.Adam(loss, minibatch, eta),
    "SignSGD": lambda eta: sg.SignSGD(loss, minibatch, eta),
    "SAM": lambda eta: sg.SAM(loss, eta, 0.1),
    "USAM": lambda eta: sg.USAM(loss, eta, 0.1),
    "DNSAM": lambda eta: sg.DNSAM(loss, eta, 0.1),
    "GradientFlow": lambda eta: sg.GradientFlow(loss, eta, order=2),
    "RandomReshuffling": lambda eta: sg.RandomReshuffling(loss, eta),
    "LinearisedSGD": lambda eta: sg.LinearisedSGD(loss, minibatch, eta),
}


def test_every_model_is_here():
    assert set(every) | {"AbstractModel"} == set(models.__all__)


@pytest.mark.parametrize("name", every)
@pytest.mark.slow("EmbeddedSGD", "DNSAM", "USAM")
def test_clock_position_and_coefficients(name):
    model = every[name](0.1)
    state = jax.jit(lambda x: model.initial(x))(x0)
    np.testing.assert_array_equal(model.position(state), x0)
    np.testing.assert_array_equal(model.position(jnp.stack([state, state + 1])), [x0, x0 + 1])
    np.testing.assert_allclose(model.clock, 0.01 if name in ("RMSProp", "Adam") else 0.1, rtol=1e-12)
    np.testing.assert_allclose(model.steps(model.time(jnp.array([3, 7]))), [3, 7], rtol=1e-12)

    @eqx.filter_jit
    def coefficients(rate, state):
        # A sweep over learning rates, under jit.
        process = every[name](rate)
        g = process.noise(0.1, state)
        v = jnp.arange(1, 1 + g.in_size(), dtype=state.dtype)
        return process.drift(0.1, state), g.mv(v), g.as_matrix() @ v, g.transpose().mv(state), g.as_matrix().T @ state

    drift, product, dense, transposed, dense_transposed = coefficients(jnp.asarray(0.1), state)
    assert drift.shape == product.shape == state.shape
    np.testing.assert_allclose(product, dense, atol=1e-14)
    np.testing.assert_allclose(transposed, dense_transposed, atol=1e-14)
    assert np.all(np.isfinite(drift))
    single = eqx.filter_eval_shape(coefficients, jnp.asarray(0.1), state.astype(jnp.float32))
    assert {value.dtype for value in single} == {jnp.dtype(jnp.float32)}


def test_particles_and_diffrax_take_steps_of_a_model():
    # Adam has all that could be in the way: a memory, a clock in its coefficients, and noise without a matrix.
    model = every["Adam"](0.1)
    state = jax.jit(lambda x: model.initial(x))(x0)
    out = sde.simulate(model, sde.EulerMaruyama(), state, t1=0.02, dt=0.01, key=jax.random.key(0), paths=3)
    assert np.all(np.isfinite(out.final))
    m = eqx.filter_eval_shape(lambda x: model.noise(0.0, x), state).in_size()
    path = diffrax.UnsafeBrownianPath(shape=(m,), key=jax.random.key(1))
    solution = diffrax.diffeqsolve(
        model.terms(path), diffrax.Euler(), 0.0, 0.02, 0.01, state, adjoint=diffrax.ForwardMode()
    )
    x = state
    step = jax.jit(lambda t, x, dw: x + 0.01 * model.drift(t, x) + model.noise(t, x).mv(dw))
    for k in range(2):
        x = step(0.01 * k, x, path.evaluate(0.01 * k, 0.01 * (k + 1)))
    np.testing.assert_allclose(solution.ys[-1], x, rtol=1e-9)


@pytest.mark.parametrize("batch", [1, 2])
def test_minibatch_noise_of_orthonormal_data(batch):
    # Four orthonormal data: dr_i = -(r_i/n) dt + √(η/(bn)) r_i dB̃_i with ⟨B̃_i, B̃_j⟩ = δ_ij - 1/n, rank 3, and the
    # component across the data is at rest.
    rows = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0][:4]
    data = sg.losses.LeastSquares(rows, np.zeros(4))
    model = sg.SGD(data, noise.Minibatch(data, batch), 0.2)
    x = np.random.default_rng(1).normal(size=6)
    drift, D = jax.jit(lambda x: (model.drift(0.0, x), model.diffusion(0.0, x)))(jnp.asarray(x))
    r = rows @ x
    np.testing.assert_allclose(drift, -rows.T @ r / 4, atol=1e-14)
    covariance = 0.2 / (4 * batch) * r[:, None] * (np.eye(4) - 0.25) * r
    np.testing.assert_allclose(2 * D, rows.T @ covariance @ rows, atol=1e-14)
    assert np.linalg.matrix_rank(D) == 3
    # So E r_i²/r_i(0)² after 20 steps is exp(-2t/n + (η/(bn))(1-1/n)t), read off the process.
    direction = rows[0]
    rate = 2 * direction @ drift / r[0] + 2 * direction @ D @ direction / r[0] ** 2
    expected = {1: 0.1572371663136276, 2: 0.1458757568562274}[batch]
    np.testing.assert_allclose(np.exp(rate * model.time(20)), expected, rtol=1e-12)


def test_law_of_balance():
    # l = (uw - y)²/2 under label noise of variance s²: u² - w² decays as exp(-ηs²t) without any noise, and v = uw
    # on u = w has the drift 2v(μ - v) + ηs²v and the noise 2√(ηs²) v.
    eta, s = 0.2, 1.3
    data = sg.losses.TwoLayerLinear(y=1.0)
    model = sg.SGD(data, noise.LabelNoise(data, s), eta)

    def ito(x, fn):
        bend, slope = jax.hessian(fn)(x), jax.grad(fn)(x)
        return slope @ model.drift(0.0, x) + jnp.sum(bend * model.diffusion(0.0, x)), model.noise(
            0.0, x
        ).transpose().mv(slope)

    ito = jax.jit(ito, static_argnums=1)
    drift, noise_of = ito(jnp.array([0.9, 0.4]), lambda x: x[0] ** 2 - x[1] ** 2)
    np.testing.assert_allclose(drift, -eta * s**2 * (0.81 - 0.16), rtol=1e-12)
    np.testing.assert_allclose(noise_of, 0, atol=1e-16)
    v = 0.36
    drift, noise_of = ito(jnp.array([0.6, 0.6]), lambda x: x[0] * x[1])
    np.testing.assert_allclose(drift, 2 * v * (1 - v) + eta * s**2 * v, rtol=1e-12)
    np.testing.assert_allclose(np.abs(noise_of), [2 * np.sqrt(eta) * s * v], rtol=1e-12)


def test_the_sum_operator_says_that_it_has_no_structure():
    # lineax asks; with as many examples as parameters the matrix is square.
    square = noise.Minibatch(sg.losses.LeastSquares(A[:2], [0.3, -0.5]), 1).operator(loss, jnp.asarray(0.1), x0)
    assert not lx.is_diagonal(square)
    assert not lx.is_symmetric(square)
    np.testing.assert_allclose((2 * square).as_matrix(), 2 * square.as_matrix(), rtol=1e-14)
