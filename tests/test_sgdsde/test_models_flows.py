"""Flows of the mean iterate: against the exact mean over all shuffles, and over all independent draws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgdsde as sg

# l_j = h_j (w - a_j)²/2 in two directions, and something that is no quadratic.
curvatures = np.array([[1.0, 0.5], [2.0, 1.0], [3.0, 0.2], [5.0, 0.3]])
centres = np.array([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.5], [2.0, -1.0]])


def one(x, example):
    h, a = example
    return 0.5 * jnp.sum(h * (x - a) ** 2) + 0.1 * jnp.sin(x[0] + h[1] * x[1])


loss = sg.losses.FiniteSum(one, (curvatures, centres))
start = jnp.array([1.5, -0.7])


def after(model, time):
    """Where a flow is after a short time, by four steps of the classical method of fourth order."""
    dt = time / 4

    def step(k, x):
        a = model.drift(0.0, x)
        b = model.drift(0.0, x + dt / 2 * a)
        c = model.drift(0.0, x + dt / 2 * b)
        return x + dt / 6 * (a + 2 * b + 2 * c + model.drift(0.0, x + dt * c))

    return jax.lax.fori_loop(0, 4, step, start)


@jax.jit
def mean_iterate(eta, orders):
    """The mean of SGD over the given orders, of shape (orders, steps, batch)."""

    def run(order):
        def step(x, batch):
            return x - eta * jax.grad(lambda y: jnp.mean(loss.examples(y, batch)))(x), None

        return jax.lax.scan(step, start, order)[0]

    return jnp.mean(jax.vmap(run)(orders), axis=0)


shuffles = np.array(list(itertools.permutations(range(4))))
draws_one_by_one = np.array(list(itertools.product(range(4), repeat=4)))[:, :, None]


@pytest.mark.parametrize(
    ("model", "orders"),
    [
        (lambda eta: sg.RandomReshuffling(loss, eta), shuffles[:, :, None]),
        (lambda eta: sg.RandomReshuffling(loss, eta, 2), shuffles.reshape(-1, 2, 2)),
        (lambda eta: sg.GradientFlow(loss, eta, order=2), draws_one_by_one),
    ],
    ids=["shuffled", "shuffled in pairs", "independent"],
)
@pytest.mark.slow("shuffled in pairs", "independent")
def test_the_mean_iterate_follows_the_flow_to_third_order(model, orders):
    flow = jax.jit(lambda eta: after(model(eta), eta * orders.shape[1]))
    error = [np.linalg.norm(mean_iterate(eta, orders) - flow(eta)) for eta in (2e-3, 1e-3)]
    np.testing.assert_allclose(np.log2(error[0] / error[1]), 3, atol=0.05)
    # Each tells its sampling from the other: the flow of the other one is off at second order.
    shuffled = orders is not draws_one_by_one
    other = sg.GradientFlow(loss, 1e-3, order=2) if shuffled else sg.RandomReshuffling(loss, 1e-3)
    off = mean_iterate(1e-3, orders) - jax.jit(lambda: after(other, 1e-3 * orders.shape[1]))()
    assert np.linalg.norm(off) > 20 * error[1]


def test_shuffles_of_quadratics():
    # C_j = h_j (w - a_j)²/2, h = (1, 2, 3, 5), a = (0, 1, -1, 2), w₀ = 3, η = 1/20, after one epoch.
    quadratics = sg.losses.FiniteSum(
        lambda x, c: 0.5 * c[0] * (x[0] - c[1]) ** 2, np.array([[1.0, 0.0], [2.0, 1.0], [3.0, -1.0], [5.0, 2.0]])
    )
    for model, expected in (
        (sg.RandomReshuffling(quadratics, 0.05), 2.0293987852263093),
        (sg.GradientFlow(quadratics, 0.05, order=2), 2.0302717154373844),
        (sg.GradientFlow(quadratics, 0.05), 2.0769814044665162),
    ):
        # The flow is linear: its slope from two values.
        drift = jax.jit(jax.vmap(lambda w, model=model: model.drift(0.0, w)))(jnp.array([[0.0], [1.0]]))[:, 0]
        slope = drift[1] - drift[0]
        fixed = -drift[0] / slope
        np.testing.assert_allclose(fixed + (3 - fixed) * np.exp(slope * model.time(4)), expected, rtol=1e-12)


def test_many_examples_are_taken_one_by_one(monkeypatch):
    drift = jax.jit(lambda x: sg.RandomReshuffling(loss, 0.3).drift(0.0, x))(start)
    monkeypatch.setattr("sgdsde._operators._at_once", 0)
    np.testing.assert_allclose(
        jax.jit(lambda x: sg.RandomReshuffling(loss, 0.3).drift(0.0, x))(start), drift, rtol=1e-12
    )


def test_a_batch_of_all_examples_is_gradient_descent():
    whole, plain = sg.RandomReshuffling(loss, 0.3, 4), sg.GradientFlow(loss, 0.3, order=2)
    drifts = jax.jit(lambda x: (whole.drift(0.0, x), plain.drift(0.0, x)))(start)
    np.testing.assert_allclose(*drifts, rtol=1e-12)
    assert np.all(whole.diffusion(0.0, start) == 0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: sg.RandomReshuffling(loss, 0.1, 3), ValueError, "`batch_size` must divide the number 4"),
        (lambda: sg.RandomReshuffling(lambda x: x @ x, 0.1), TypeError, "`loss` must be a finite sum"),
        (lambda: sg.GradientFlow(loss, 0.1, order=3), ValueError, "`order` must be 1 or 2"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
