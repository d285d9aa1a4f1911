"""Minibatches: every set and every order equally likely, and what runs make of them."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

import sgdsde as sg
from sgdsde.optimizers import sampling
from solvers import sde
from solvers.sde.random import key_words

opt = sg.optimizers

MANY = 24_000


def draw(fn, size, count, sample=0, step=0, key=0):
    runs = jnp.arange(MANY, dtype=jnp.uint32)
    arguments = [a for a in (size, count, sample) if a is not None]
    return np.asarray(fn(key_words(key), runs, jnp.uint32(step), *arguments)).T


def check_equally_likely(outcomes, all_outcomes):
    """A chi-squared test at one in a million."""
    expected = len(outcomes) / len(all_outcomes)
    places = {outcome: k for k, outcome in enumerate(all_outcomes)}
    counts = np.bincount([places[tuple(o)] for o in outcomes.tolist()], minlength=len(places))
    assert np.sum((counts - expected) ** 2 / expected) < chi2.isf(1e-6, len(places) - 1)


# Draws


def test_with_replacement_examples_are_independent():
    check_equally_likely(draw(sampling.with_replacement, 3, 3), list(itertools.product(range(3), repeat=3)))


def test_without_replacement_all_sets_are_equally_likely():
    chosen = np.sort(draw(sampling.without_replacement, 3, 6), axis=1)
    check_equally_likely(chosen, list(itertools.combinations(range(6), 3)))


def test_all_orders_are_equally_likely():
    check_equally_likely(draw(sampling.permutations, None, 4), list(itertools.permutations(range(4))))


def test_orders_of_many_examples_are_orders():
    order = np.asarray(sampling.permutations(key_words(0), jnp.arange(3, dtype=jnp.uint32), jnp.uint32(0), 1000, 0))
    np.testing.assert_array_equal(np.sort(order, axis=0), np.arange(1000)[:, None].repeat(3, axis=1))


@pytest.mark.parametrize("fn", [sampling.with_replacement, sampling.without_replacement, sampling.permutations])
def test_samples_steps_and_keys_are_independent(fn):
    size = None if fn is sampling.permutations else 1
    one = draw(fn, size, 3)[:, :1]
    pairs = list(itertools.product(range(3), repeat=2))
    for other in (draw(fn, size, 3, sample=1), draw(fn, size, 3, step=1), draw(fn, size, 3, key=1)):
        check_equally_likely(np.concatenate([one, other[:, :1]], axis=1), pairs)
    check_equally_likely(np.concatenate([one[:-1], one[1:]], axis=1), pairs)


def test_small_minibatches_are_the_beginning_of_larger_ones():
    large = draw(sampling.with_replacement, 7, 50)
    for size in (1, 2, 5):
        np.testing.assert_array_equal(draw(sampling.with_replacement, size, 50), large[:, :size])


def test_numbers_below_a_bound_are_exact():
    rng = np.random.default_rng(0)
    words = [*rng.integers(0, 2**64, 200, dtype=np.uint64).tolist(), 0, 2**64 - 1, 2**63, 2**63 - 1]
    high = jnp.asarray([w >> 32 for w in words], jnp.uint32)
    low = jnp.asarray([w & (2**32 - 1) for w in words], jnp.uint32)
    for count in (1, 2, 3, 1000, 2**31 - 1):
        np.testing.assert_array_equal(sampling._below(high, low, count), [w * count >> 64 for w in words])


def test_label_noise_is_normal_and_not_that_of_the_steps():
    runs = jnp.arange(2000, dtype=jnp.uint32)
    groups = [np.asarray(sampling.label_noise(key_words(0), runs, jnp.uint32(k), 3, jnp.float64)) for k in (4, 5)]
    z = np.concatenate([part for pair in groups for part in (pair.real, pair.imag)])
    np.testing.assert_allclose(np.cov(z), np.eye(12), atol=5 * np.sqrt(2 / 2000))
    np.testing.assert_allclose(z.mean(axis=1), 0, atol=5 / np.sqrt(2000))


def test_labels_are_drawn_anew_in_every_step():
    # l = (x - y - ε)²/2 and η = 1: each step sets x to the label, whatever it was. Pairs of steps share a draw.
    loss = sg.losses.LeastSquares(np.ones((1, 1)), np.full(1, 3.0))
    for dtype in (np.float32, np.float64):
        out = opt.run(
            opt.LabelNoiseSGD(1.0, std=0.5),
            loss,
            np.zeros(1, dtype),
            steps=9,
            runs=1000,
            key=0,
            save_at=np.arange(1, 10),
        )
        labels = (np.asarray(out.xs[:, :, 0], np.float64) - 3) / 0.5
        np.testing.assert_allclose(np.cov(labels), np.eye(9), atol=5 * np.sqrt(2 / 1000))


# Runs


def constant_gradients(x, b):
    """l_i = -b_i x: a step of η = 1 adds the b of its minibatch, which so can be seen."""
    return -b * x[0]


def test_an_epoch_of_reshuffling_takes_every_example_once():
    loss = sg.losses.FiniteSum(constant_gradients, jnp.array([2 * 4.0**k for k in range(6)]))
    out = opt.run(
        opt.SGD(1.0, 2, sampling="reshuffling"), loss, np.zeros(1), steps=9, runs=200, key=0, save_at=np.arange(10)
    )
    taken = np.diff(out.xs[:, :, 0], axis=0).astype(int)
    epochs = taken.reshape(3, 3, 200)
    np.testing.assert_array_equal(epochs.sum(axis=1), (4**6 - 1) // 3)
    # 6!/2³ sequences of three pairs: runs differ from each other, and epochs of a run do.
    assert len({tuple(run) for run in epochs[0].T}) > 70
    assert np.mean(np.all(epochs[0] == epochs[1], axis=0)) < 0.1


@pytest.mark.parametrize("chosen", ["with-replacement", "without-replacement", "reshuffling"])
@pytest.mark.slow("reshuffling", "without-replacement")
def test_optimizers_see_the_same_minibatches(chosen):
    """Sign descent and SGD of another learning rate: every step is that of the same example."""
    loss = sg.losses.FiniteSum(constant_gradients, jnp.array([-3.0, -1.0, 1.0, 3.0]))
    options = {"steps": 8, "runs": 50, "key": 4, "save_at": np.arange(9)}
    fast = opt.run(opt.SGD(1.0, 1, sampling=chosen), loss, np.zeros(1), **options)
    sign = opt.run(opt.SignSGD(1.0, 1, sampling=chosen), loss, np.zeros(1), **options)
    np.testing.assert_array_equal(np.sign(np.diff(fast.xs, axis=0)), np.diff(sign.xs, axis=0))


def pulled(x, example):
    h, a = example
    return 0.5 * h * (x[0] - a) ** 2


def test_mean_iterate_after_an_epoch_of_reshuffling():
    """The mean over all 4! orders; over examples drawn anew it is that of gradient descent, 2.02559."""
    loss = sg.losses.FiniteSum(pulled, (jnp.array([1.0, 2, 3, 5]), jnp.array([0.0, 1, -1, 2])))
    out = opt.run(
        opt.SGD(0.05, 1, sampling="reshuffling"),
        loss,
        np.full(1, 3.0),
        steps=4,
        runs=60_000,
        key=1,
        observe={"x": sde.Moments()},
        every=4,
    )
    assert out["x"].sem[0] < 0.0036 / 10
    assert abs(out["x"].mean[0] - 2.02196875) < 5 * out["x"].sem[0]


def test_variance_at_the_end_of_epochs_of_reshuffling():
    """η²s²(M/(M-1))(S₂ - S₁²/M)/(1-a^{2M}) for M = 10, h = 1, η = 0.1, s = 1; drawn anew it is 0.0526."""
    loss = sg.losses.FiniteSum(lambda x, b: 0.5 * x[0] ** 2 - b * x[0], jnp.array([1.0, -1.0] * 5))
    out = opt.run(
        opt.SGD(0.1, 1, sampling="reshuffling"),
        loss,
        np.zeros(1),
        steps=200,
        runs=2000,
        key=0,
        observe={"square": sde.Moments(_square)},
        burn_in=50,
        every=10,
    )
    assert abs(out["square"].mean - 0.004820290598537) < 5 * out["square"].sem
    assert out["square"].sem < 1e-4


def test_delayed_momentum_at_a_finite_learning_rate():
    """From the start to the observables: E L = 0.02159 where the SDE has 0.01875 and the usual form 0.01881."""
    H, C = np.array([[2, 0.5], [0.5, 1]]), np.array([[1, -0.3], [-0.3, 2]])
    loss = sg.losses.Quadratic(H)
    out = opt.run(
        opt.Momentum(0.1, form="delayed"),
        loss,
        np.zeros(2),
        noise=sg.noise.Covariance(C, 4),
        steps=2000,
        runs=1500,
        key=0,
        observe={"loss": sde.Moments(lambda t, x: loss(x))},
        burn_in=500,
        every=10,
    )
    assert out["loss"].sem < 0.0004
    assert abs(out["loss"].mean - 0.021588148231159097) < 5 * out["loss"].sem


@pytest.mark.slow
def test_label_noise_on_all_labels():
    """Stationary covariance η (std²/N) (2 - ηH)⁻¹ on data that are fitted exactly; the same for a model's residuals."""
    A = np.array([[1.0, 0.2], [0.3, -1.0], [0.5, 0.7]])
    H, eta, std = A.T @ A / 3, 0.5, 0.6
    results = []
    for loss in (sg.losses.LeastSquares(A, np.zeros(3)), sg.losses.SquaredLoss(lambda x, a: a @ x, A, np.zeros(3))):
        out = opt.run(
            opt.LabelNoiseSGD(eta, std=std),
            loss,
            np.zeros(2),
            steps=200,
            runs=500,
            key=0,
            observe={"x": sde.Moments(), "products": sde.Moments(_products)},
            burn_in=40,
            every=4,
        )
        results.append(out.final)
    expected = (eta * std**2 / 3) * np.linalg.inv(2 * np.eye(2) - eta * H)
    products = out["products"]
    assert np.all(np.abs(products.mean - expected[np.triu_indices(2)]) < 5 * products.sem)
    assert np.all(products.sem < 0.05 * expected[0, 0])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-10)


def test_svag_takes_independent_samples():
    """With l = 1 it is SGD on the first sample; the second changes nothing but the noise."""
    loss = sg.losses.FiniteSum(constant_gradients, jnp.array([-3.0, 3.0]))
    options = {"steps": 1, "runs": 4000, "key": 2}
    out = opt.run(opt.SVAG(1.0, 1, amplification=5), loss, np.zeros(1), **options)
    values, counts = np.unique(np.round(out.final, 12), return_counts=True)
    # (r₊ ± r₋)·3/5 up to the sign, with r± = 2 and -1.
    np.testing.assert_allclose(values, [-1.8, -0.6, 0.6, 1.8])
    assert np.all(np.abs(counts - 1000) < 5 * np.sqrt(4000 * 3 / 16))
    same = opt.run(opt.SVAG(1.0, 1, amplification=1), loss, np.zeros(1), **options)
    np.testing.assert_array_equal(same.final, opt.run(opt.SGD(1.0, 1), loss, np.zeros(1), **options).final)


def _square(t, x):
    return x[0] ** 2


def _products(t, x):
    return jnp.stack([x[0] ** 2, x[0] * x[1], x[1] ** 2])
