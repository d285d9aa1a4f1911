"""Manifolds of minimisers whose dimension, projection and sharpness are known in closed form."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgdsde import losses, minimisers, optimizers

rng = np.random.default_rng(0)


def test_dimension_of_a_linear_model():
    # 4 rows of rank 3.
    A = rng.normal(size=(4, 6))
    A[3] = A[0] - 2 * A[1]
    found = minimisers.dimension(losses.LeastSquares(A, np.zeros(4)), np.ones(6))
    assert (found.rank, found.dimension, found.conditions) == (3, 3, 4)
    np.testing.assert_allclose(found.singular_values[:3], np.linalg.svd(A)[1][:3])
    assert found.gap > 1e10
    assert "dimension 3 = 6 parameters - rank 3" in str(found)
    # A column of 1e-3 is one of 0 if that is what the tolerance says, and the gap says that it is not clear.
    scaled = minimisers.dimension(
        losses.LeastSquares(np.diag([1.0, 0.03, 0.01]), np.zeros(3)), np.ones(3), tolerance=0.02
    )
    assert scaled.rank == 2
    assert "no clear gap" in str(scaled)


def test_dimension_of_a_network(monkeypatch):
    """Cooper's count: generic, so d - N times outputs; and from the Gram matrix the same singular values."""
    network = eqx.nn.MLP(3, 2, 8, 1, activation=jnp.tanh, key=jax.random.key(0), dtype=jnp.float64)
    data = (rng.normal(size=(10, 3)), rng.normal(size=(10, 2)))
    loss = losses.from_model(network, lambda z, y: 0.5 * jnp.sum((z - y) ** 2), data)
    found = minimisers.dimension(loss, loss.x0)
    assert (found.parameters, found.conditions, found.dimension) == (50, 20, 30)
    monkeypatch.setattr(minimisers, "_most_numbers", 500)
    again = minimisers.dimension(loss, loss.x0)
    np.testing.assert_allclose(again.singular_values, found.singular_values, rtol=1e-8)
    assert again.rank == 20
    monkeypatch.setattr(minimisers, "_most_numbers", 300)
    with pytest.raises(ValueError, match="at most 17"):
        minimisers.dimension(loss, loss.x0)


def test_flow_limits_in_closed_form():
    # Radially to the unit sphere.
    x = rng.normal(size=(3, 4))
    limits = minimisers.flow_limit(losses.RadialWell(), x)
    np.testing.assert_allclose(limits, x / np.linalg.norm(x, axis=1, keepdims=True), atol=1e-7)
    # To the nearest solution of A x = y.
    A, y = rng.normal(size=(2, 4)), rng.normal(size=2)
    limits = minimisers.flow_limit(losses.LeastSquares(A, y), x[0])
    np.testing.assert_allclose(limits, x[0] - np.linalg.pinv(A) @ (A @ x[0] - y), atol=1e-6)


def test_flow_limits_keep_the_imbalance_of_two_layers():
    # u·w = 1 and uuᵀ - wwᵀ as before.
    x = np.array([1.5, -0.4, 0.7, 0.9])
    limit = minimisers.flow_limit(losses.TwoLayerLinear(1.0), x)
    u, w = limit[:2], limit[2:]
    np.testing.assert_allclose(u @ w, 1, atol=1e-7)
    np.testing.assert_allclose(u @ u - w @ w, x[:2] @ x[:2] - x[2:] @ x[2:], atol=1e-6)


@pytest.mark.slow
def test_label_noise_moves_to_flatter_minimisers():
    """The law of balance: u² - w² decays as exp(-ηs²t), t = ηk, and tr H = √((u²-w²)² + 4y²) with it."""
    eta, s, steps, runs = 0.05, 1.0, 240, 100
    loss, start = losses.TwoLayerLinear(1.0), np.array([2.0, 0.5])
    out = optimizers.run(
        optimizers.LabelNoiseSGD(eta, std=s), loss, start, steps=steps, save_at=[0, 120, 240], runs=runs, key=0
    )
    assert out.xs is not None
    along = minimisers.trace_hessian_along(loss, out.xs)
    assert along.traces.shape == (3, runs)
    assert along.losses.max() < 1e-12
    imbalance = out.xs[..., 0] ** 2 - out.xs[..., 1] ** 2
    np.testing.assert_allclose(along.traces, np.sqrt(imbalance**2 + 4), rtol=1e-6)
    # A step multiplies u² - w² by 1 - η²(r-ε)², with E (r-ε)² = s² + E r², E r² ≈ ηh s²/(2-ηh) ≤ 0.12 s² for
    # h = tr H ≤ 4.3; and log(1-z) = -z - z²/2 - ..., E z² = 3η⁴s⁴. So the logarithm falls by η²s²k to 13 %.
    falls = -np.log(imbalance[1:] / imbalance[0]).mean(axis=1) / (eta**2 * s**2 * np.array([120, 240]))
    sem = np.sqrt(2 / (np.array([120, 240]) * runs)) * 1.13
    assert np.all((falls > 1 - 4 * sem) & (falls < 1.13 + 4 * sem))
    # Where the law of balance puts the trace at the end: from 4.25 down.
    expected = np.sqrt((imbalance[0, 0] * np.exp(-(eta**2) * s**2 * steps)) ** 2 + 4)
    assert along.traces[0, 0] == pytest.approx(4.25)
    assert along.traces[2].mean() == pytest.approx(expected, rel=0.1)


def test_traces_of_large_models_are_estimates():
    loss = losses.Quadratic(np.concatenate([np.full(1100, 2.0), [50.0]]))
    found = minimisers.trace_hessian(loss, np.zeros(1101), probes=4)
    # With a diagonal Hessian vectors of signs make no error at all.
    np.testing.assert_allclose([found.value, found.sem], [2250, 0], atol=1e-9)
    small = losses.Quadratic(np.array([[2.0, 1.0], [1.0, 3.0]]))
    assert minimisers.trace_hessian(small, np.zeros(2)).value == pytest.approx(5)


@pytest.mark.usefixtures("unchecked")
def test_messages():
    with pytest.raises(TypeError, match="know the outputs"):
        minimisers.dimension(losses.RadialWell(), np.ones(2))
    with pytest.raises(RuntimeError, match=r"1 of 1 points.*`max_steps`=50"):
        minimisers.flow_limit(lambda x: jnp.exp(-x[0]), np.ones(1), max_steps=50)
    with pytest.raises(ValueError, match="must be finite"):
        minimisers.flow_limit(losses.RadialWell(), np.array([np.inf, 1.0]))
