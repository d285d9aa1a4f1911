"""Every optimiser against its reference, step by step, and against its exact laws.

Laws are exact and without random numbers: a step that is affine in the state and the noise is taken apart into its
matrices, and a step on a minibatch is taken for all minibatches.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from scipy.special import erf

import sgdsde as sg
from sgdsde.optimizers.gradients import GaussianGradient, MinibatchGradient
from solvers import sde

opt = sg.optimizers

H = np.array([[2.0, 0.5], [0.5, 1.0]])
C = np.array([[1.0, -0.3], [-0.3, 2.0]])
ROOT = np.linalg.cholesky(C)

ALL = [
    opt.SGD(0.1, 2),
    opt.PreconditionedSGD(0.1, 2, preconditioner=[1.0, 0.5]),
    opt.Momentum(0.1, 2),
    opt.RMSProp(0.1, 2),
    opt.Adam(0.1, 2),
    opt.SignSGD(0.1, 2),
    opt.SAM(0.1, 2, radius=0.05),
    opt.USAM(0.1, 2, radius=0.05),
    opt.DNSAM(0.1, 2, radius=0.05),
    opt.LabelNoiseSGD(0.1, 2, std=0.3),
    opt.SVAG(0.1, 2, amplification=2),
]
DATA = sg.losses.LeastSquares(np.array([[1.0, 0.2], [0.3, -1.0], [0.5, 0.7]]), np.array([1.0, -0.5, 0.3]))


# References


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (opt.SGD(0.1), optax.sgd(0.1)),
        (opt.Momentum(0.1, momentum=0.8), optax.sgd(0.1, momentum=0.8)),
        (opt.Momentum(0.1, momentum=0.8, form="nesterov"), optax.sgd(0.1, momentum=0.8, nesterov=True)),
        (opt.RMSProp(0.1), optax.rmsprop(0.1, decay=0.9, eps_in_sqrt=False)),
        (
            opt.RMSProp(0.1, decay=0.7, epsilon=0.01, initial=0.5),
            optax.rmsprop(0.1, decay=0.7, eps=0.01, eps_in_sqrt=False, initial_scale=0.5),
        ),
        (opt.Adam(0.1), optax.adam(0.1)),
        (opt.Adam(0.1, beta1=0.7, beta2=0.9, epsilon=0.1), optax.adam(0.1, b1=0.7, b2=0.9, eps=0.1)),
        (opt.SignSGD(0.1), optax.sign_sgd(0.1)),
    ],
)
def test_steps_are_those_of_optax(ours, theirs):
    gradients = jnp.asarray(np.random.default_rng(0).normal(size=(12, 3))).at[3, 1].set(0)
    x0 = jnp.array([1.0, -2.0, 0.5])

    def our_step(carry, given):
        k, g = given
        x, state = ours.step(k, *carry, lambda x: g * (1 + x))
        return (x, state), x

    def their_step(carry, g):
        x, state = carry
        update, state = theirs.update(g * (1 + x), state, x)
        return (x + update, state), x + update

    steps = jnp.arange(12, dtype=jnp.uint32)
    _, xs = jax.lax.scan(our_step, (x0, ours.init(x0)), (steps, gradients))
    # optax counts steps in whole numbers and mixes them with real ones.
    with jax.numpy_dtype_promotion("standard"):
        _, expected = jax.lax.scan(their_step, (x0, theirs.init(x0)), gradients)
    np.testing.assert_allclose(xs, expected, rtol=1e-12)


def test_missing_bias_correction():
    """At a constant gradient Adam's step is η; without the correction it is (1-β₁^k)/√(1-β₂^k) times that."""
    plain, corrected = opt.Adam(0.1, form="simplified", epsilon=1e-30), opt.Adam(0.1, epsilon=1e-30)
    x0 = jnp.zeros(1)

    def moves(optimizer):
        def step(carry, k):
            x, state = optimizer.step(k, *carry, lambda x: jnp.full_like(x, -3))
            return (x, state), x - carry[0]

        return jax.lax.scan(step, (x0, optimizer.init(x0)), jnp.arange(101, dtype=jnp.uint32))[1][:, 0]

    ratio = moves(plain) / 0.1
    assert ratio[0] == 0
    np.testing.assert_allclose(moves(corrected), 0.1, rtol=1e-10)
    np.testing.assert_allclose(ratio[jnp.array([1, 12, 100])], [np.sqrt(10), 6.5685203, 3.2408], rtol=2e-5)
    assert np.argmax(ratio) == 12


# Stationary laws at finite learning rates: the exact solution of P = A P Aᵀ + B Bᵀ


def affine(optimizer, d, noise, loss):
    """The matrices of one step (x, s) ← A (x, s) + B z."""
    x0 = jnp.zeros(d)
    m = 2 * d if optimizer.needs == "pair" else d
    flat, form = jax.flatten_util.ravel_pytree((x0, optimizer.init(x0)))

    def step(joined, z):
        x, state = form(joined)
        gradient = GaussianGradient(loss, noise, optimizer.learning_rate, z.reshape(-1, d))
        return jax.flatten_util.ravel_pytree(optimizer.step(jnp.uint32(0), x, state, gradient))[0]

    return tuple(np.asarray(j) for j in jax.jacobian(step, argnums=(0, 1))(flat, jnp.zeros(m)))


def stationary(optimizer, H=H, C=C, batch=4):
    loss = sg.losses.Quadratic(H)
    d = np.atleast_2d(H).shape[0]
    A, B = affine(optimizer, d, sg.noise.Covariance(np.atleast_2d(C), batch), loss)
    return scipy.linalg.solve_discrete_lyapunov(A, B @ B.T)[:d, :d], np.max(np.abs(np.linalg.eigvals(A)))


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (opt.SGD(0.1), [[0.009157890940231962, -0.009001134748362383], [-0.009001134748362383, 0.030699983445806288]]),
        (opt.SGD(0.5), [[0.07424187066131, -0.04504932407746], [-0.04504932407746, 0.1878699305809]]),
        (opt.SGD(0.8), [[0.3517857142857143, 0.005357142857142857], [0.005357142857142857, 0.39107142857142857]]),
        (
            opt.Momentum(0.1, momentum=0.9, form="ema"),
            [[0.008687257992668207, -0.009021187221609538], [-0.009021187221609538, 0.029268890705182307]],
        ),
        (
            opt.Momentum(0.1, momentum=0.9, form="delayed"),
            [[0.01035280041928231, -0.009449641706050073], [-0.009449641706050073, 0.03192033732980365]],
        ),
        (
            opt.Momentum(0.1, momentum=0.9, form="heavy-ball"),
            [[0.09463940342014804, -0.09570942406966934], [-0.09570942406966934, 0.2941347659059267]],
        ),
        (
            opt.Momentum(0.5, momentum=0.5, form="ema"),
            [[0.04950163310072194, -0.046475274493497726], [-0.046475274493497726, 0.1572669969025322]],
        ),
    ],
)
def test_stationary_covariance_at_a_finite_learning_rate(optimizer, expected):
    np.testing.assert_allclose(stationary(optimizer)[0], expected, rtol=1e-11)


def test_stationary_covariance_of_preconditioned_sgd():
    """Newton's method: η/(2-η) H⁻¹CH⁻¹/S; and any F: FHP + PHF - ηFHPHF = ηFCF/S."""
    eta, inverse = 0.3, np.linalg.inv(H)
    P, _ = stationary(opt.PreconditionedSGD(eta, preconditioner=inverse))
    np.testing.assert_allclose(P, eta / (2 - eta) * inverse @ C @ inverse / 4, rtol=1e-11)
    # η tr(H⁻¹C)/(4S) with η = 0.1, divided by 1 - η/2.
    loss = 0.5 * np.trace(H @ stationary(opt.PreconditionedSGD(0.1, preconditioner=lambda x: inverse))[0])
    np.testing.assert_allclose(loss, 0.01892857142857 / 0.95, rtol=1e-10)
    F = np.diag([0.5, 1.5])
    for given in (F, [0.5, 1.5]):
        P, _ = stationary(opt.PreconditionedSGD(eta, preconditioner=given))
        residual = F @ H @ P + P @ H @ F - eta * F @ H @ P @ H @ F - eta * F @ C @ F / 4
        np.testing.assert_allclose(residual, 0, atol=1e-14)


def test_stationary_variance_of_usam_grows_with_the_radius():
    eta, h, c, rho = 0.1, 2.0, 3.0, 0.25
    P, _ = stationary(opt.USAM(eta, radius=rho), [h], c, 1)
    np.testing.assert_allclose(P[0, 0], eta * (1 + rho * h) * c / (h * (2 - eta * h * (1 + rho * h))), rtol=1e-12)


def test_svag_has_the_covariance_of_sgd_times_l_in_steps_an_l_th_as_long():
    """The same as SGD with the learning rate η/l and l times the noise."""
    P, _ = stationary(opt.SVAG(0.5, amplification=4))
    np.testing.assert_allclose(P, stationary(opt.SGD(0.125), C=4 * C)[0], rtol=1e-11)
    np.testing.assert_allclose(stationary(opt.SVAG(0.5, amplification=1))[0], stationary(opt.SGD(0.5))[0], rtol=1e-11)


@pytest.mark.parametrize(
    ("form", "limit"), [("ema", 2 * 1.9 / 0.1), ("heavy-ball", 2 * 1.9), ("delayed", 1.0), ("nesterov", 3.8 / 2.8)]
)
def test_stability_with_momentum(form, limit):
    """ηh < 2(1+β)/(1-β), 2(1+β), 1 and 2(1+β)/(1+2β) at β = 0.9."""

    def radius(eta):
        A, _ = affine(opt.Momentum(eta, form=form), 1, sg.noise.Constant(1.0), sg.losses.Quadratic([1.0]))
        return np.max(np.abs(np.linalg.eigvals(A)))

    assert radius(0.999 * limit) < 1 < radius(1.001 * limit)


def test_contraction_under_loss_proportional_noise_is_the_sharp_rate():
    """E f⁺ = ρ f with ρ = 1 - Λη + (C_L/2)(Λ + σ)η² on f = x²/2, Λ = 2, C_L = 1, E|g-∇f|² = σf with σ = 1.

    f⁺ is quadratic in the normal number, so that its mean is that over z = ±1.
    """
    loss, noise = sg.losses.Quadratic([1.0]), sg.noise.LossProportional(0.5)
    for eta, rate in ((0.1, 0.815), (0.5, 0.375), (1.0, 0.5)):
        optimizer = opt.SGD(eta)
        after = [
            loss(optimizer.step(jnp.uint32(0), x, (), GaussianGradient(loss, noise, optimizer.learning_rate, z))[0])
            for x, z in ((jnp.array([1.7]), jnp.full((1, 1), s)) for s in (1.0, -1.0))
        ]
        np.testing.assert_allclose(np.mean(after) / loss(jnp.array([1.7])), rate, rtol=1e-12)


def test_tail_index_of_gaussian_sgd():
    """E|1 - ηλ + √(ηλκ) Z|^α = 1 where κ = ησ = 1/2 and ηλ = 1/2: the tail of SGD, where its SDE has 5."""
    loss, optimizer, alpha = sg.losses.Quadratic([0.5]), opt.SGD(1.0), 5.550605844383
    noise = sg.noise.LossProportional(0.5)
    z, dz = np.linspace(-12, 12, 200_001, retstep=True)

    def after(z):
        gradient = GaussianGradient(loss, noise, optimizer.learning_rate, z.reshape(1, 1))
        return optimizer.step(jnp.uint32(0), jnp.ones(1), (), gradient)[0][0]

    x = np.asarray(jax.jit(jax.vmap(after))(jnp.asarray(z)))
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(np.sum(np.abs(x) ** alpha * density) * dz, 1, atol=1e-7)


# Minibatches, all of them


def every_step(optimizer, loss, index, points):
    """Where one step on each of these minibatches leads from each of the points."""

    def after(index, x):
        gradient = MinibatchGradient(loss, index, None)
        return optimizer.step(jnp.uint32(0), x, optimizer.init(x), gradient)[0]

    return np.asarray(jax.jit(jax.vmap(jax.vmap(after, (None, 0)), (0, None)))(jnp.asarray(index), points))


def second_moment_maps(optimizer, loss, index, d):
    """Matrices A and vectors b of the steps x ← A x + b on these minibatches."""
    points = jnp.concatenate([jnp.zeros((1, d)), jnp.eye(d)])
    b, *columns = np.swapaxes(every_step(optimizer, loss, index, points), 0, 1)
    return np.stack([c - b for c in columns], axis=-1), b


def test_covariance_of_a_step_over_all_minibatches():
    """η²C/B with replacement; (N-B)/(N-1) times that without, and for each minibatch of a random order."""
    rng = np.random.default_rng(1)
    loss = sg.losses.LeastSquares(rng.normal(size=(5, 2)), rng.normal(size=5))
    x, eta, B = jnp.array([0.3, -0.7]), 0.2, 2
    single = np.asarray(jax.vmap(lambda i: jax.grad(lambda x: loss.examples(x, i[None])[0])(x))(jnp.arange(5)))
    covariance = np.cov(single.T, ddof=0)
    for minibatches, factor in (
        (list(itertools.product(range(5), repeat=B)), 1.0),
        (list(itertools.combinations(range(5), B)), 3 / 4),
        ([order[2:4] for order in itertools.permutations(range(5))], 3 / 4),
    ):
        after = every_step(opt.SGD(eta, B), loss, np.asarray(minibatches)[:, None], x[None])[:, 0]
        np.testing.assert_allclose(after.mean(axis=0), x - eta * jax.grad(loss)(x), rtol=1e-12)
        np.testing.assert_allclose(np.cov(after.T, ddof=0), eta**2 * factor * covariance / B, rtol=1e-11)


def test_gaussian_linear_regression():
    """Stationary E v_i² of SGD with S = 1 on inputs N(0, diag(2, 1, 1/2)) and labels of variance 0.3.

    Only moments of the inputs up to the fourth enter: 6³ points that have them, and two labels, take their place.
    """
    h, variance, eta = np.array([2.0, 1.0, 0.5]), 0.3, 0.1
    nodes = np.array([-np.sqrt(3), 0, 0, 0, 0, np.sqrt(3)])
    inputs = np.array(list(itertools.product(nodes, repeat=3))) * np.sqrt(h)
    A, y = np.repeat(inputs, 2, axis=0), np.tile([1.0, -1.0], len(inputs)) * np.sqrt(variance)
    loss = sg.losses.LeastSquares(A, y)
    M, b = second_moment_maps(opt.SGD(eta, 1), loss, np.arange(len(A))[:, None, None], 3)
    p = np.diag([0.0236405529953917, 0.0210138248847926, 0.0199078341013825])
    after = np.einsum("kij,jl,kml->im", M, p, M) / len(M) + b.T @ b / len(b)
    np.testing.assert_allclose(after, p, atol=1e-15)
    np.testing.assert_allclose(0.5 * (h @ np.diag(p) + variance), 0.1891244239631336, rtol=1e-12)


def test_low_rank_noise_of_sgd_and_svag():
    """E r_i² after t = 20η on n = 4 orthonormal data: SGD, and SVAG on its way to the 0.15723717 of the SDE."""
    loss = sg.losses.LeastSquares(np.eye(4), np.zeros(4))
    pairs = np.array(list(itertools.product(range(4), repeat=2)))
    for optimizer, index, repeats, expected in (
        (opt.SGD(0.2, 1), np.arange(4)[:, None, None], 20, 0.15164491305017583),
        (opt.SGD(0.2, 2), pairs[:, None], 20, 0.13962410156177374),
        (opt.SVAG(0.2, 1, amplification=1), pairs[:, :, None], 20, 0.15164491305017583),
        (opt.SVAG(0.2, 1, amplification=2), pairs[:, :, None], 40, 0.15444084744804049),
        (opt.SVAG(0.2, 1, amplification=16), pairs[:, :, None], 320, 0.15688767104326504),
    ):
        A, _ = second_moment_maps(optimizer, loss, index, 4)
        P = np.ones((4, 4))
        for _ in range(repeats):
            P = np.einsum("kij,jl,kml->im", A, P, A) / len(A)
        np.testing.assert_allclose(np.diag(P), expected, rtol=1e-11)


def test_noise_on_labels_has_the_shape_of_the_hessian():
    """Where residuals are 0 the covariance of a step is η² std²/B · ∇h∇hᵀ, averaged over the minibatch."""
    inputs = np.array([[1.0, 0.2], [0.3, -1.0], [0.5, 0.7]])
    x = jnp.array([0.4, -0.3])

    def model(x, a):
        return jnp.tanh(x @ a) + x[0]

    labels = jax.vmap(lambda a: model(x, a))(inputs)
    loss, optimizer = sg.losses.SquaredLoss(model, inputs, labels), opt.LabelNoiseSGD(0.2, 2, std=0.3)

    def after(z):
        return optimizer.step(jnp.uint32(0), x, (), MinibatchGradient(loss, jnp.array([[0, 2]]), z))[0]

    root = jax.jacobian(after)(jnp.zeros(2))
    slopes = jax.vmap(lambda a: jax.grad(model)(x, a))(inputs[jnp.array([0, 2])])
    np.testing.assert_allclose(root @ root.T, 0.2**2 * 0.3**2 / 4 * slopes.T @ slopes, rtol=1e-12)
    np.testing.assert_allclose(after(jnp.zeros(2)), x, rtol=1e-14)


# Sharpness-aware minimisation


def test_sam_without_noise_ends_in_a_cycle():
    """|x| = ηhρ/(2-ηh), where plain gradient descent and USAM end at 0."""
    eta, h, rho = 0.3, 2.0, 0.5
    loss = sg.losses.Quadratic([h])
    out = opt.run(opt.SAM(eta, radius=rho), loss, np.ones(1), steps=200, key=0, save_at=[198, 199, 200])
    cycle = eta * h * rho / (2 - eta * h)
    np.testing.assert_allclose(np.abs(out.xs[:, 0, 0]), cycle, rtol=1e-12)
    np.testing.assert_allclose(out.xs[:2, 0, 0].sum(), 0, atol=1e-13)


def test_sam_is_undisturbed_at_a_minimum():
    for optimizer in (opt.SAM(0.1, radius=1.0), opt.USAM(0.1, radius=1.0), opt.DNSAM(0.1, radius=1.0)):
        out = opt.run(optimizer, sg.losses.Quadratic([1.0, 2.0]), np.zeros(2), steps=3, key=0)
        np.testing.assert_array_equal(out.final, 0)


def test_both_gradients_of_sam_are_of_one_minibatch():
    """By hand, for the minibatch (0, 2): the gradient is linear, g(x) = Kx - q."""
    x, index = jnp.array([0.4, -0.3]), jnp.array([[0, 2]])
    a, y = np.asarray(DATA.A)[[0, 2]], np.asarray(DATA.y)[[0, 2]]
    K, q = a.T @ a / 2, a.T @ y / 2
    g, whole = K @ x - q, jax.grad(DATA)(x)
    for optimizer, up in (
        (opt.SAM(0.1, 2, radius=0.05), g / np.linalg.norm(g)),
        (opt.USAM(0.1, 2, radius=0.05), g),
        (opt.DNSAM(0.1, 2, radius=0.05), g / np.linalg.norm(whole)),
    ):
        after, _ = optimizer.step(jnp.uint32(0), x, (), MinibatchGradient(DATA, index, None))
        np.testing.assert_allclose(after, x - 0.1 * (K @ (x + 0.05 * up) - q), rtol=1e-12)


# Sign descent


def test_sign_descent_is_a_birth_death_chain():
    """With normal noise of variance s² a step down has the probability (1 + erf(hx/(√2 s)))/2."""
    eta, points = 0.5, 0.5 * np.arange(-12, 13)
    down = 0.5 * (1 + erf(points / np.sqrt(2)))
    weights = np.concatenate([[1.0], np.cumprod((1 - down[:-1]) / down[1:])])
    weights /= weights.sum()
    out = opt.run(
        opt.SignSGD(eta),
        sg.losses.Quadratic([1.0]),
        np.repeat([[0.0], [0.5]], 2000, axis=0),
        noise=sg.noise.Constant(0.5),
        steps=60,
        burn_in=20,
        key=2,
        observe={"square": sde.Moments(_square)},
    )
    assert set(np.unique(out.final)) <= set(points)
    assert abs(out["square"].mean - weights @ points**2) < 5 * out["square"].sem


def _square(t, x):
    return x[0] ** 2


# Contracts


@pytest.mark.parametrize("optimizer", ALL, ids=lambda o: type(o).__name__)
def test_every_optimizer_keeps_shape_and_dtype_and_has_traced_numbers(optimizer):
    x = jax.ShapeDtypeStruct((2,), jnp.float32)
    state = jax.eval_shape(optimizer.init, x)

    def step(k, x, state, index, z):
        return optimizer.step(k, x, state, MinibatchGradient(DATA, index, z))

    index = jax.ShapeDtypeStruct((2, 2), jnp.int32)
    after = jax.eval_shape(step, jax.ShapeDtypeStruct((), jnp.uint32), x, state, index, x)
    assert jax.tree.leaves(after) == jax.tree.leaves((x, state))
    assert jax.tree.structure(after) == jax.tree.structure((x, state))
    numbers = [leaf for leaf in jax.tree.leaves(optimizer) if isinstance(leaf, jax.Array)]
    assert len(numbers) == len(jax.tree.leaves(optimizer))
    square = type(optimizer) in (opt.Adam, opt.RMSProp)
    rate = 0.05 if isinstance(optimizer, opt.SVAG) else 0.1
    np.testing.assert_allclose(optimizer.clock, rate**2 if square else rate, rtol=1e-15)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: opt.Adam(0.1, beta2=1.0), "`beta2` must be below 1"),
        (lambda: opt.Adam(0.1, form="amsgrad"), "`form` must be"),
        (lambda: opt.Adam(0.1, form="simplified", epsilon=0), "`epsilon` must be positive"),
        (lambda: opt.RMSProp(0.1, epsilon=-1), "`epsilon` must be at least 0"),
        (lambda: opt.SAM(0.1, radius=-1), "`radius` must be at least 0"),
        (lambda: opt.SVAG(0.1, amplification=0.5), "`amplification` must be at least 1"),
        (lambda: opt.LabelNoiseSGD(0.1, std=-0.5), "`std` must be at least 0"),
        (lambda: opt.PreconditionedSGD(0.1, preconditioner=[np.inf]), "`preconditioner` must be finite"),
    ],
)
def test_bad_hyperparameters(unchecked, make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("optimizer", "loss", "options", "error", "message"),
    [
        (ALL[9], sg.losses.FiniteSum(lambda x, a: x @ a, np.ones((3, 2))), {}, TypeError, "`loss` must have labels"),
        (
            opt.LabelNoiseSGD(0.1, std=1.0),
            DATA,
            {"noise": sg.noise.Constant(1.0)},
            ValueError,
            "can't be given to `LabelNoiseSGD`",
        ),
        (
            opt.PreconditionedSGD(0.1, preconditioner=np.eye(3)),
            DATA,
            {},
            ValueError,
            "`preconditioner` must have shape",
        ),
    ],
)
def test_what_does_not_fit_the_loss_is_refused(unchecked, optimizer, loss, options, error, message):
    with pytest.raises(error, match=message):
        opt.run(optimizer, loss, np.ones(2), steps=3, key=0, **options)
