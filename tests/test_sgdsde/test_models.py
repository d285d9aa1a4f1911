"""SGD as a diffusion: drift, clock, temperature, and what a sweep compiles."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgdsde as sg
from solvers import AbstractDiffusion
from solvers.process import noise_structure


def bowl(x):
    return 0.5 * (1 + x @ x)


def test_drift_and_diffusion():
    model = sg.SGD(sg.losses.DoubleWell(0.05), sg.noise.LossProportional(0.5), learning_rate=0.1)
    assert isinstance(model, AbstractDiffusion)
    x = jnp.array([0.5, 2.0])
    np.testing.assert_allclose(model.drift(0.0, x), [-(0.125 - 0.5), -2.0], rtol=1e-14)
    f = 0.05 + 0.25 * 0.75**2 + 2.0
    np.testing.assert_allclose(model.diffusion(0.0, x), 0.05 * f * np.eye(2), rtol=1e-14)
    np.testing.assert_allclose(model.temperature, 0.05, rtol=1e-15)
    assert noise_structure(model, x) == ("isotropic", 2)


def test_a_noise_without_sigma_has_no_temperature():
    model = sg.SGD(bowl, sg.noise.Covariance(np.eye(2), 4), 0.1)
    with pytest.raises(AttributeError, match="noise Covariance has no temperature"):
        model.temperature  # noqa: B018


def test_dtype_follows_the_state():
    x = jnp.ones(2, jnp.float32)
    for loss in (bowl, sg.losses.DoubleWell(0.1)):
        model = sg.SGD(loss, sg.noise.LossProportional(0.5), 0.1)
        assert model.drift(0.0, x).dtype == jnp.float32
        assert model.noise(0.0, x).as_matrix().dtype == jnp.float32


def test_a_sweep_compiles_once():
    traces = 0

    @eqx.filter_jit
    def step(model, x):
        nonlocal traces
        traces += 1
        return x + model.drift(0.0, x) + model.noise(0.0, x).mv(x)

    x = jnp.ones(2)
    for sigma, rate in ((0.1, 0.2), (1, 0.3), (np.float32(0.2), jnp.asarray(0.1)), (jnp.asarray(2), 1)):
        step(sg.SGD(bowl, sg.noise.LossProportional(sigma), rate), x)
        step(sg.SGD(bowl, sg.noise.LossProportional(sigma), learning_rate=rate), x)
    assert traces == 1


def test_sensitivity_to_the_learning_rate():
    def variance(rate):
        return sg.SGD(bowl, sg.noise.Constant(0.5), rate).diffusion(0.0, jnp.ones(1))[0, 0]

    np.testing.assert_allclose(jax.grad(variance)(0.1), 0.5, rtol=1e-14)


def test_diffrax_terms():
    model = sg.SGD(bowl, sg.noise.Constant(0.5), 0.2)
    path = diffrax.UnsafeBrownianPath(shape=(2,), key=jax.random.key(0))
    x0 = jnp.array([1.0, -1.0])
    out = diffrax.diffeqsolve(model.terms(path), diffrax.Euler(), 0.0, 1.0, 0.25, x0, adjoint=diffrax.ForwardMode())
    x = x0
    for k in range(4):
        x = 0.75 * x + np.sqrt(0.2) * path.evaluate(0.25 * k, 0.25 * (k + 1))
    np.testing.assert_allclose(out.ys[-1], x, rtol=1e-12)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda x: x**2, ValueError, r"`loss\(x\)` must return one number.*shape \(2,\)"),
        (lambda x: jnp.sum(x**2, keepdims=True), ValueError, r"returned shape \(1,\)"),
        (lambda x: 3, TypeError, "real floating-point number, but returned dtype int"),
        (lambda x: None, TypeError, "returned NoneType"),
        (lambda x: (x @ x).astype(complex), TypeError, "dtype complex"),
    ],
)
def test_bad_losses_are_named(loss, error, message):
    model = sg.SGD(loss, sg.noise.LossProportional(0.5), 0.1)
    x = jnp.ones(2)
    with pytest.raises(error, match=message):
        model.drift(0.0, x)
    with pytest.raises(error, match=message):
        jax.jit(lambda x: model.noise(0.0, x).as_matrix())(x)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: sg.SGD(bowl, sg.noise.Constant(1.0), 0.0), ValueError, "`learning_rate` must be positive, but got"),
        (lambda: sg.SGD(bowl, sg.noise.Constant(1.0), float("inf")), ValueError, "`learning_rate` must be finite"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
