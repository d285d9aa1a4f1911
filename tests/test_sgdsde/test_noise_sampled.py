"""The noise of minibatches and of labels: exact covariances by enumeration, without a matrix in high dimension."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgdsde as sg
from sgdsde import losses, noise
from sgdsde._operators import row_squares
from solvers import sde
from solvers.process import noise_structure

eta = jnp.asarray(0.3)
inputs = np.random.default_rng(0).normal(size=(4, 2))
labels = np.array([0.5, -1.0, 2.0, 0.3])


def network(x, a):
    w, v = x[:4].reshape(2, 2), x[4:]
    return v @ jnp.tanh(w @ a)


loss = losses.SquaredLoss(network, inputs, labels, floor=0.1)
point = jnp.array([0.4, -0.2, 1.0, 0.7, -0.5, 1.2])


@jax.jit
def gradients(x):
    return jax.jacrev(lambda x: loss.examples(x, jnp.arange(4)))(x)


@pytest.mark.parametrize("replacement", [True, False])
def test_minibatch_noise_has_the_covariance_of_all_batches(replacement):
    single = np.asarray(gradients(point))
    draws = itertools.product(range(4), repeat=2) if replacement else itertools.combinations(range(4), 2)
    batches = np.array([single[list(draw)].mean(axis=0) for draw in draws])
    expected = np.cov(batches.T, ddof=0)
    model = noise.Minibatch(loss, 2, replacement)
    g, covariance = eqx.filter_jit(lambda x: (model.operator(loss, eta, x).as_matrix(), model.covariance(x)))(point)
    assert g.shape == (6, 4)
    assert np.linalg.matrix_rank(g) == 3
    np.testing.assert_allclose(g @ g.T, 0.3 * expected, atol=1e-14)
    np.testing.assert_allclose(covariance, expected, atol=1e-14)


def test_a_batch_of_all_examples_has_no_noise():
    g = noise.Minibatch(loss, 4, replacement=False).operator(loss, eta, point)
    assert np.all(jax.jit(lambda w: g.mv(w))(jnp.arange(4.0)) == 0)


def test_label_noise_is_what_new_labels_do_to_the_gradient():
    # The mean over the 2⁴ signs of the noise on each label, in full batches: (s/N)² Σ ∇h_i ∇h_iᵀ.
    s = 0.7
    differences = []
    base = jax.jit(jax.grad(loss))(point)
    gradient = jax.jit(lambda y: jax.grad(losses.SquaredLoss(network, inputs, y))(point))
    for signs in itertools.product((-1, 1), repeat=4):
        differences.append(gradient(jnp.asarray(labels + s * np.array(signs))) - base)
    expected = np.cov(np.array(differences).T, ddof=0)
    g = noise.LabelNoise(loss, s, batch_size=4).operator(loss, eta, point)
    g = jax.jit(lambda: g.as_matrix())()
    np.testing.assert_allclose(g @ g.T, 0.3 * expected, atol=1e-14)


def test_label_noise_and_minibatches_together():
    # One example at random, and its label moved by ±s: all eight gradients.
    s = 0.7
    h = jax.jit(jax.jacrev(lambda x: loss.residuals(x, jnp.arange(4))))(point)
    single = gradients(point)
    both = np.concatenate([single + s * h, single - s * h])
    total = noise.Sum(noise.Minibatch(loss, 1), noise.LabelNoise(loss, s))
    np.testing.assert_allclose(
        2 * jax.jit(lambda x: sg.SGD(loss, total, 0.3).diffusion(0.0, x))(point),
        0.3 * np.cov(both.T, ddof=0),
        atol=1e-14,
    )


@pytest.mark.parametrize(
    "model",
    [
        noise.Minibatch(loss, 2),
        noise.LabelNoise(loss, 0.7),
        noise.Sum(noise.Minibatch(loss, 2), noise.Constant(0.2), noise.LabelNoise(loss, 0.7)),
    ],
)
def test_products_agree_with_the_matrix(model):
    @eqx.filter_jit
    def all_of(x, v, w):
        g = model.operator(loss, eta, x)
        return g.mv(v), g.transpose().mv(w), g.as_matrix(), row_squares(g)

    motions = 14 if isinstance(model, noise.Sum) else 4
    v, w = jnp.cos(jnp.arange(1.0, 1 + motions)), jnp.arange(6.0)
    product, transposed, matrix, squares = all_of(point, v, w)
    np.testing.assert_allclose(product, matrix @ v, atol=1e-14)
    np.testing.assert_allclose(transposed, matrix.T @ w, atol=1e-14)
    np.testing.assert_allclose(squares, np.sum(matrix**2, axis=1), atol=1e-14)


def test_a_product_for_a_network_of_many_parameters_stores_no_gradients_of_examples():
    # 10⁵ parameters: their covariance would take 80 GB, the gradients of all examples 40 MB.
    hidden, width, n = 1000, 100, 50
    random = np.random.default_rng(1)

    def wide(x, a):
        return jnp.tanh(x.reshape(hidden, width) @ a).mean()

    data = losses.SquaredLoss(wide, random.normal(size=(n, width)), random.normal(size=n))
    model = sg.SGD(data, noise.Minibatch(data, 8), 0.1)
    x, w = jnp.asarray(random.normal(size=hidden * width)), jnp.asarray(random.normal(size=n))
    kick = jax.jit(lambda x, w: model.noise(0.0, x).mv(w)).lower(x, w).compile()
    memory = kick.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < n * x.nbytes / 4
    weighted = jax.grad(lambda x: jnp.vdot(w - jnp.mean(w), data.examples(x, jnp.arange(n))))
    np.testing.assert_allclose(kick(x, w), np.sqrt(0.1 / (8 * n)) * jax.jit(weighted)(x), atol=1e-12)
    out = sde.simulate(model, sde.EulerMaruyama(), x, t1=0.02, dt=0.01, key=jax.random.key(0), paths=2)
    assert out.final.shape == (2, x.size)
    assert np.all(out.final[0] != out.final[1])


def test_particles_move_under_matrix_free_noise():
    model = sg.SGD(loss, noise.Minibatch(loss, 2), 0.3)
    dt, paths = 0.01, 4000
    out = sde.simulate(
        model,
        sde.EulerMaruyama(),
        point,
        t1=dt,
        dt=dt,
        key=jax.random.key(1),
        paths=paths,
        observe={"x": sde.Moments()},
    )
    # One step of Euler-Maruyama is Gaussian; the variance of an entry of its sample covariance is known.
    drift, diffusion = jax.jit(lambda x: (model.drift(0.0, x), model.diffusion(0.0, x)))(point)
    c = np.asarray(2 * dt * diffusion)
    np.testing.assert_array_less(np.abs(out["x"].mean - (point + dt * drift)), 5 * np.sqrt(np.diag(c) / paths))
    error = np.sqrt((c**2 + np.outer(np.diag(c), np.diag(c))) / paths)
    np.testing.assert_array_less(np.abs(np.cov(out.final.T) - c), 5 * error)
    assert noise_structure(model, point) == ("general", 4)


def test_dtype_follows_the_state():
    x = point.astype(jnp.float32)
    for model in (noise.Minibatch(loss, 2), noise.Minibatch(loss, 2, replacement=False), noise.LabelNoise(loss, 0.7)):
        g = eqx.filter_eval_shape(model.operator, loss, eta, x)
        out = eqx.filter_eval_shape(lambda g: (g.mv(jnp.ones(4, jnp.float32)), g.as_matrix(), row_squares(g)), g)
        assert {leaf.dtype for leaf in out} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: noise.Minibatch(lambda x: x @ x, 2), TypeError, "`loss` must be a finite sum"),
        (lambda: noise.Minibatch(loss, 0), ValueError, "`batch_size` must be at least 1"),
        (lambda: noise.Minibatch(loss, 5, replacement=False), ValueError, "at most the number 4 of examples"),
        (lambda: noise.LabelNoise(losses.FiniteSum(lambda x, a: x @ a, inputs), 1.0), TypeError, "a squared loss"),
        (lambda: noise.Sum(), ValueError, "`noises` must be at least one"),
        (lambda: noise.Sum(noise.Constant(1.0), 2.0), TypeError, "`noises` must be noises such as"),
        (lambda: noise.LabelNoise(loss, -1.0), ValueError, "`std` must be at least 0"),
        (lambda: losses.SquaredLoss(network, inputs, labels[:3]), ValueError, r"`labels` must have shape \(N,\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
