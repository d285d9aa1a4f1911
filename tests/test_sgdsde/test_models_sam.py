"""SAM, USAM and DNSAM: drift and noise are those of one step of the algorithm, to first order in the radius."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgdsde as sg

data = np.random.default_rng(3).normal(size=(4, 3))
loss = sg.losses.FiniteSum(lambda x, a: jnp.cos(x @ a[:2]) + 0.5 * (x[0] - a[2]) ** 2 + a[0] * x[1] ** 3 / 3, data)
point = jnp.array([0.4, -0.9])
pairs = np.array(list(itertools.product(range(4), repeat=2)))


def gradient(batch, x):
    return jax.grad(lambda y: jnp.mean(loss.examples(y, batch)))(x)


def uphill(name, g):
    if name == "SAM":
        return g / jnp.linalg.norm(g)
    return g / jnp.linalg.norm(jax.grad(loss)(point)) if name == "DNSAM" else g


@pytest.mark.parametrize(("name", "batches"), [("SAM", None), ("SAM", pairs), ("USAM", pairs), ("DNSAM", None)])
@pytest.mark.slow("DNSAM-None", "SAM-None")
def test_one_step_of_the_algorithm(name, batches):
    every = np.arange(4)[:, None] if batches is None else batches

    @jax.jit
    def moments(rho):
        # The step divided by the learning rate, for all batches: its mean, and its covariance.
        steps = jax.vmap(lambda b: gradient(b, point + rho * uphill(name, gradient(b, point))))(every)
        return jnp.mean(steps, axis=0), jnp.cov(steps.T, ddof=0)

    @jax.jit
    def model(rho):
        process = getattr(sg, name)(loss, 0.3, rho, batches)
        return -process.drift(0.0, point), 2 * process.diffusion(0.0, point) / 0.3

    errors = np.array(
        [[np.max(np.abs(a - b)) for a, b in zip(moments(r), model(r), strict=True)] for r in (2e-3, 1e-3)]
    )
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), 2, atol=0.1)
    # Without the terms in ρ the error would be O(ρ).
    plain = model(0.0)
    assert np.max(np.abs(moments(1e-3)[0] - plain[0])) > 20 * errors[1, 0]
    assert np.max(np.abs(moments(1e-3)[1] - plain[1])) > 20 * errors[1, 1]


def test_drift_is_that_of_the_sharpened_loss():
    def sharpened(x):
        norms = jnp.stack([jnp.linalg.norm(gradient(jnp.array([i]), x)) for i in range(4)])
        return loss(x) + 0.2 * jnp.mean(norms), loss(x) + 0.1 * jnp.mean(norms**2)

    sam, usam = (jax.jit(jax.grad(lambda x, k=k: sharpened(x)[k]))(point) for k in (0, 1))
    np.testing.assert_allclose(jax.jit(lambda x: sg.SAM(loss, 0.3, 0.2).drift(0.0, x))(point), -sam, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(lambda x: sg.USAM(loss, 0.3, 0.2).drift(0.0, x))(point), -usam, rtol=1e-12)


def test_the_perturbation_by_the_same_batch_amplifies_noise():
    # l_i = h(x - a_i)²/2: one gradient noise, and u = (1 + ρh) g. Stationary: ηc(1 + ρh)/(2h).
    h, a, eta, rho = 2.0, np.array([-1.0, 0.5, 0.5]), 0.1, 0.3
    quadratic = sg.losses.FiniteSum(lambda x, a: 0.5 * h * jnp.sum((x - a) ** 2), a)
    process = sg.USAM(quadratic, eta, rho)

    @jax.jit
    def stationary(x):
        return -process.diffusion(0.0, x)[0, 0] / jax.jacfwd(lambda x: process.drift(0.0, x))(x)[0, 0]

    c, variance = h**2 * np.var(a), stationary(jnp.zeros(1))
    np.testing.assert_allclose(variance, eta * c * (1 + rho * h) / (2 * h), rtol=1e-12)


def test_additive_noise_makes_the_drift_of_dnsam_a_gradient():
    # l_i = q(x) + a_i x: then it is that of f + ρ|∇f|.
    linear = sg.losses.FiniteSum(lambda x, a: jnp.sum(x**4) / 4 + x[0] * x[1] + a @ x, data[:, :2])

    @jax.jit
    def both(x):
        return sg.DNSAM(linear, 0.3, 0.2).drift(0.0, x), jax.grad(
            lambda x: linear(x) + 0.2 * jnp.linalg.norm(jax.grad(linear)(x))
        )(x)

    drift, slope = both(point)
    np.testing.assert_allclose(drift, -slope, rtol=1e-12)


def test_a_batch_of_all_examples_has_no_noise():
    process = sg.SAM(loss, 0.3, 0.2, batches=[[0, 1, 2, 3]])

    @jax.jit
    def all_of(x):
        return (
            process.drift(0.0, x),
            process.diffusion(0.0, x),
            jax.grad(lambda x: loss(x) + 0.2 * jnp.linalg.norm(jax.grad(loss)(x)))(x),
        )

    drift, diffusion, slope = all_of(point)
    np.testing.assert_allclose(drift, -slope, rtol=1e-12)
    np.testing.assert_allclose(diffusion, 0, atol=1e-30)


def test_a_batch_without_a_gradient_has_no_direction():
    quadratic = sg.losses.FiniteSum(lambda x, a: 0.5 * jnp.sum((x - a) ** 2), np.array([0.0, 1.0]))
    process = sg.SAM(quadratic, 0.3, 0.2)
    np.testing.assert_allclose(jax.jit(lambda x: process.drift(0.0, x))(jnp.zeros(1)), [0.5 + 0.1], rtol=1e-14)


@pytest.mark.parametrize(
    ("batches", "message"), [([0, 1], r"shape \(K, B\)"), ([[0, 4]], "from 0 to 3, but they are from 0 to 4")]
)
@pytest.mark.usefixtures("unchecked")
def test_bad_batches(batches, message):
    with pytest.raises(ValueError, match=message):
        sg.SAM(loss, 0.1, 0.1, batches)
