"""Models of optimisers on quadratics: the exact means and covariances of their linear equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg

import sgdsde as sg
from solvers.process import noise_structure


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
    model = sg.Momentum(well(2.0), sg.noise.Covariance([[3.0]], 4), 0.1, 1 - gamma * 0.1, form="ema")
    A, _, Q = linear(model, np.zeros(2))
    np.testing.assert_allclose(scipy.linalg.expm(0.5 * A) @ [1, 0], mean, rtol=1e-12)
    np.testing.assert_allclose(covariance(A, Q, 0.5), cov, rtol=1e-10)
    np.testing.assert_allclose(stationary(A, Q), np.diag([0.01875, 0.01875 * 2 * gamma]), atol=1e-14)


def test_the_heavy_ball_approaches_its_algorithm():
    # With η = δ²/2 and 1 - β = δ friction and frequency √(h/η) are ∝ 1/δ: one motion in ever finer steps.
    h, c = 2.0, 3.0
    errors = []
    for delta in (0.02, 0.01):
        eta, beta = 0.5 * delta**2, 1 - delta
        step = np.array([[1 - eta * h, -eta * beta], [h, beta]])
        kick = np.array([-eta, 1.0])
        exact = scipy.linalg.solve_discrete_lyapunov(step, c * np.outer(kick, kick))
        A, _, Q = linear(sg.Momentum(well(h), sg.noise.Covariance([[c]], 1), eta, beta), np.zeros(2))
        np.testing.assert_allclose(stationary(A, Q)[0, 0], eta * c / (2 * h * delta), rtol=1e-9)
        steps = int(1 / delta)
        mean = np.linalg.matrix_power(step, steps) @ [1, 0]
        errors.append(
            [
                abs(stationary(A, Q)[1, 1] / exact[1, 1] - 1),
                abs((scipy.linalg.expm(steps * eta * A) @ [1, 0] - mean)[0]),
            ]
        )
    np.testing.assert_allclose(np.divide(*errors), 2, rtol=0.1)


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
@pytest.mark.slow("ModifiedSGD-2")
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


@pytest.mark.parametrize("F", [[[1.5, -0.3], [-0.3, 0.8]], [0.5, 2.0]])
def test_preconditioned(F):
    H, C = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.3], [-0.3, 2.0]])
    model = sg.PreconditionedSGD(sg.losses.Quadratic(H), sg.noise.Covariance(C, 4), 0.1, F)
    A, _, Q = linear(model, np.array([1.0, -0.5]))
    F = np.diag(F) if np.ndim(F) == 1 else np.array(F)
    np.testing.assert_allclose(A, -F @ H, rtol=1e-12)
    np.testing.assert_allclose(Q, 0.025 * F @ C @ F, rtol=1e-12)


def test_newton():
    H, C = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.3], [-0.3, 2.0]])
    loss = sg.losses.Quadratic(H)
    model = sg.PreconditionedSGD(loss, sg.noise.Covariance(C, 4), 0.1, lambda x: jnp.linalg.inv(jax.hessian(loss)(x)))
    A, _, Q = linear(model, np.array([1.0, -0.5]))
    np.testing.assert_allclose(0.5 * np.trace(H @ stationary(A, Q)), 0.01892857142857, rtol=1e-12)


def test_preconditioned_noise_of_a_diagonal_is_diagonal():
    model = sg.PreconditionedSGD(well(1.0), sg.noise.Constant(0.5), 0.1, lambda x: 1 + x**2)
    x = jnp.array([1.0, 2.0])
    assert noise_structure(model, x) == ("diagonal", 2)
    # Ito: no ∇·F = 2x in the drift.
    np.testing.assert_allclose(model.drift(0.0, x), [-2.0, -10.0], rtol=1e-14)
    np.testing.assert_allclose(model.diffusion(0.0, x), 0.05 * np.diag([4.0, 25.0]), rtol=1e-14)


def test_embedded_sgd_has_the_law_of_sgd():
    H, C, eta = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.3], [-0.3, 2.0]]), 0.4
    model = sg.EmbeddedSGD(H, C, eta, 4, centre=[1.0, -1.0])
    A, b, Q = linear(model, np.array([0.3, 0.2]))
    step = np.eye(2) - eta * H
    np.testing.assert_allclose(scipy.linalg.expm(eta * A), step, atol=1e-13)
    np.testing.assert_allclose(covariance(A, Q, eta), eta**2 * C / 4, atol=1e-14)
    np.testing.assert_allclose(b, -A @ [1, -1], rtol=1e-12)
    # One dimension, h = c = 1: A = 1.1157..., Q = 0.2479... for η = 0.2.
    A, _, Q = linear(sg.EmbeddedSGD([[1.0]], [[1.0]], 0.2), np.zeros(1))
    np.testing.assert_allclose([-A[0, 0], Q[0, 0]], [1.1157177565710488, 0.24793727923801084], rtol=1e-12)


def test_embedded_sgd_along_a_flat_direction():
    A, _, Q = linear(sg.EmbeddedSGD(np.diag([0.0, 1.0]), np.eye(2), 0.2), np.zeros(2))
    np.testing.assert_allclose(Q[0, 0], 0.2, rtol=1e-14)
    np.testing.assert_allclose(A[0], 0, atol=1e-15)


def test_what_can_not_be_embedded_is_refused():
    with pytest.raises(ValueError, match="`learning_rate` must be below 1/2"):
        sg.EmbeddedSGD(np.diag([2.0, 1.0]), np.eye(2), 0.5)
    with pytest.raises(ValueError, match="no process in continuous time"):
        sg.EmbeddedSGD(np.diag([4.0, 1.0]), np.ones((2, 2)), 0.2)


@pytest.mark.parametrize(
    ("epsilon", "limit", "mean", "variance"),
    [
        (0.0, 0.21650635094610965, 0.08304021303029864, 0.26929629969397995),
        (1.0, 0.19409427460754358, 0.12377314235140405, 0.2359322760483671),
    ],
)
def test_rmsprop(epsilon, limit, mean, variance):
    # h = 2, sη = 1/2, c = 3, (1-β)/η² = 2, u₀ = 1/4: with η = 0.1, s = 5, v = 25 u and Cov g = 75.
    model = sg.RMSProp(well(2.0), sg.noise.Covariance([[75.0]], 1), 0.1, 0.98, epsilon)
    np.testing.assert_allclose(model.time(100), 1, rtol=1e-12)
    A, _, Q = linear(model, model.initial(jnp.zeros(1)))
    np.testing.assert_allclose(-Q[0, 0] / (2 * A[0, 0]), limit, rtol=1e-12)

    @jax.jit
    def derivative(t, moments):
        # w is linear for a given v, and v does not know of w.
        first, second, v = moments
        A = jax.jacfwd(lambda x: model.drift(t, x))(jnp.stack([first, v]))[0, 0]
        return jnp.stack(
            [
                A * first,
                2 * A * second + 2 * model.diffusion(t, jnp.stack([first, v]))[0, 0],
                model.drift(t, jnp.stack([first, v]))[1],
            ]
        )

    out = scipy.integrate.solve_ivp(derivative, (0, 0.7), [1.0, 0.0, 6.25], rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(out.y[:, -1], [mean, variance, 25 * 2.321858349160582], rtol=1e-7)


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_stationary_adam(beta1):
    model = sg.Adam(well(2.0), sg.noise.Covariance([[75.0]], 1), 0.1, beta1, 0.98, 0.0, form="simplified")
    A, _, Q = linear(model, model.initial(jnp.zeros(1)))
    assert np.all(A[2, :2] == 0)
    np.testing.assert_allclose(stationary(A[:2, :2], Q[:2, :2])[0, 0], 0.21650635094610965, rtol=1e-12)


def test_bias_correction_of_adam():
    eta, t = 0.1, 0.3
    model = sg.Adam(well(2.0), sg.noise.Covariance([[75.0]], 1), eta, 0.9, 0.98, 0.7)
    x = jnp.array([0.4, 1.1, 30.0])
    # Formula of Malladi et al.: -(√γ₂/γ₁) m/(η√v + εη√γ₂), and here c₁ = 10, c₂ = 2.
    g1, g2 = 1 - np.exp(-10 * t), 1 - np.exp(-2 * t)
    literature = -np.sqrt(g2) / g1 * 1.1 / (eta * np.sqrt(30) + 0.7 * eta * np.sqrt(g2))
    np.testing.assert_allclose(model.drift(t, x), [literature, 10 * (0.8 - 1.1), 2 * (75 - 30)], rtol=1e-12)
    # At the start the first step is the one along the gradient; and late it is that without correction.
    start = model.initial(jnp.array([0.4]))
    np.testing.assert_allclose(model.drift(0.0, start)[0], -0.8 / (eta * (np.sqrt(75) + 0.7)), rtol=1e-12)
    late = sg.Adam(well(2.0), sg.noise.Covariance([[75.0]], 1), eta, 0.9, 0.98, 0.7, form="simplified")
    np.testing.assert_allclose(model.drift(50.0, x), late.drift(0.0, x), rtol=1e-12)


@pytest.mark.parametrize("name", ["RMSProp", "Adam"])
def test_square_root_rule(name):
    # Batches four times as large: the same law of w, with v/4.
    make = getattr(sg, name)
    model = make(well(2.0), sg.noise.Covariance([[75.0]], 1), 0.1, epsilon=0.3)
    scaled = make(well(2.0), sg.noise.Covariance([[75.0]], 4), **model.square_root_rule(4))
    x = jnp.array([0.4, 1.1, 30.0])[-3 if name == "Adam" else -2 :]
    to = jnp.ones_like(x).at[-1].set(0.25)
    np.testing.assert_allclose(scaled.drift(0.3, x * to), to * model.drift(0.3, x), rtol=1e-12)
    np.testing.assert_allclose(scaled.diffusion(0.3, x * to), model.diffusion(0.3, x), rtol=1e-12)
    with pytest.raises(ValueError, match="must be at least 0"):
        model.square_root_rule(11 if name == "RMSProp" else 1001)


def test_linearised_sgd_has_the_covariance_of_the_time_dependent_process():
    # f' = x + x³: Γ(t) = f'(x_t)² ∫ Σ(x)/f'(x)² ds, on the path x(t) = x₀ e^-t/√(1 + x₀²(1 - e^-2t)).
    model = sg.LinearisedSGD(
        lambda x: jnp.sum(x**2 / 2 + x**4 / 4), sg.noise.Covariance(lambda x: (1 + x**2)[None], 2), 0.1
    )

    def path(t):
        return 1.2 * np.exp(-t) / np.sqrt(1 + 1.44 * (1 - np.exp(-2 * t)))

    def slope(x):
        return x + x**3

    ts = np.array([0.4, 1.0])
    mean, cov = model.moments(jnp.array([1.2]), ts)
    np.testing.assert_allclose(mean[:, 0], path(ts), rtol=1e-8)
    for t, variance in zip(ts, cov[:, 0, 0], strict=True):
        integral, _ = scipy.integrate.quad(lambda s: (1 + path(s) ** 2) / slope(path(s)) ** 2, 0, t, epsrel=1e-11)
        np.testing.assert_allclose(variance, 0.05 * slope(path(t)) ** 2 * integral, rtol=1e-7)


def test_linearised_sgd_as_a_process():
    loss, x = sg.losses.DoubleWell(), jnp.array([0.5, 1.0])
    model = sg.LinearisedSGD(loss, sg.noise.Constant(0.5), 0.1)
    state = model.initial(x) + jnp.array([0.1, -0.2, 0.0, 0.0])
    # ∇f = (x³ - x, y) and H = diag(3x² - 1, 1).
    flow, H = np.array([0.375, -1.0]), np.array([-0.25, 1.0])
    A, _, Q = linear(model, state)
    expected = np.concatenate([flow - H * [0.1, -0.2], flow])
    np.testing.assert_allclose(jax.jit(lambda x: model.drift(0.0, x))(state), expected, rtol=1e-12)
    np.testing.assert_allclose(A[:2, :2], -np.diag(H), atol=1e-14)
    np.testing.assert_allclose(Q, 0.1 * np.diag([1, 1, 0, 0]), atol=1e-15)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sg.Momentum(well(1.0), sg.noise.Constant(1.0), 0.1, 1.0), "`momentum` must be below 1"),
        (lambda: sg.Momentum(well(1.0), sg.noise.Constant(1.0), 0.1, form="nesterov"), '"heavy-ball" or "ema"'),
        (lambda: sg.RMSProp(well(1.0), sg.noise.Constant(1.0), 0.1, -0.1), "`decay` must be at least 0"),
        (lambda: sg.Adam(well(1.0), sg.noise.Constant(1.0), 0.1, form="amsgrad"), '"bias-corrected" or "simplified"'),
        (
            lambda: sg.PreconditionedSGD(well(1.0), sg.noise.Constant(1.0), 0.1, [1.0]).drift(0.0, jnp.ones(2)),
            r"`preconditioner` must be a matrix \(2, 2\), its diagonal \(2,\)",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
