"""SGD and its process in law: one where they should be, told apart where they should be."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

import sgdsde as sg
from sgdsde import losses, noise, optimizers
from sgdsde.law_comparison import _holm

rng = np.random.default_rng(0)
A = rng.normal(size=(20, 2)) * [1.0, 0.4]
labels = A @ [1.0, -1.0] + rng.normal(size=20)
loss = losses.LeastSquares(A, labels)
start = np.linalg.lstsq(A, labels, rcond=None)[0] + [0.3, 0.3]


def compared(eta, steps, **options):
    model = sg.SGD(loss, noise.Minibatch(loss, 2), eta)
    functionals = {"loss": loss, "x": lambda x: x}
    return sg.compare_laws(
        model, optimizers.SGD(eta, 2), start, eta * steps, functionals=functionals, runs=200, **options
    )


@pytest.fixture(scope="module")
def near():
    return compared(0.02, 50, substeps=(1, 4), svag=(2,), controls=("isotropic",))


@pytest.fixture(scope="module")
def far():
    # ηh is near 1: the stationary variance of SGD is nearly twice that of the process, and a step is no small one.
    return compared(0.9, 8, substeps=(4,), svag=(), controls=())


def test_sgd_has_the_law_of_its_process_at_small_learning_rates(near):
    alike = [k for k, route in enumerate(near.routes) if route.startswith(("process", "SVAG"))]
    assert len(alike) == 3
    assert not near.differs[:, alike].any()
    assert np.all(np.abs(near.distance[:, alike]) < 0.02)
    # A shift of half a standard deviation would have been seen, in half the runs even.
    assert np.all(near.shift_power > 0.85)
    assert "process, dt = η: no difference is seen." in near.verdict


def test_noise_of_another_shape_is_told_apart(near):
    # The true covariance of these gradients has tr Σ along the first axis: isotropic noise moves the second far more.
    k = near.routes.index("isotropic noise")
    assert near.differs[1, k]
    assert near.power[1, k] > 0.9
    assert "isotropic noise: DIFFERS in the law of" in near.verdict


def test_sgd_and_its_process_are_told_apart_at_large_learning_rates(far):
    assert far.differs.all()
    assert np.all(far.power > 0.9)
    assert np.all(far.p < 0.001)


def test_table_and_figure(near):
    text = str(near)
    assert text.startswith("SGD at t=1, η=0.02, 200 runs of each")
    assert all(route in text for route in near.routes)
    before = dict(plt.rcParams)
    panels = near.plot()
    assert dict(plt.rcParams) == before
    assert [label.get_text() for label in panels[1].get_yticklabels()] == list(near.routes)
    plt.close("all")


def test_controls_have_the_trace_and_not_the_shape():
    minibatch, x, eta = noise.Minibatch(loss, 2), jnp.asarray(start), jnp.asarray(0.3)
    controls = {shape: noise.EqualTrace(minibatch, shape) for shape in ("diagonal", "isotropic", "Hessian")}

    def diffusion(rule, x):
        return sg.SGD(loss, rule, eta).diffusion(0.0, x)

    found = jax.jit(lambda x: {name: diffusion(rule, x) for name, rule in controls.items()})(x)
    full = 0.5 * 0.3 * np.asarray(minibatch.covariance(x))
    h = A.T @ A / 20
    np.testing.assert_allclose(found["diagonal"], np.diag(np.diag(full)), atol=1e-15)
    np.testing.assert_allclose(found["isotropic"], np.trace(full) / 2 * np.eye(2), atol=1e-15)
    np.testing.assert_allclose(found["Hessian"], np.trace(full) / np.trace(h) * h, atol=1e-15)
    frozen = sg.SGD(loss, noise.Frozen(minibatch, start), eta)
    np.testing.assert_allclose(jax.jit(lambda x: frozen.diffusion(0.0, x))(x + 5), full, atol=1e-15)


def test_the_trace_of_a_hessian():
    curved = lambda x: jnp.sum(x**4) + x[0] * x[1]  # noqa: E731
    x = jnp.array([1.0, 2.0, 0.5])
    np.testing.assert_allclose(jax.jit(sg.hessian_trace(curved))(x), 12 * jnp.sum(x**2), rtol=1e-14)


def test_holm():
    p = np.array([[0.01, 0.04, np.nan], [0.012, 0.03, 0.5]])
    # 0.01 ≤ 0.05/5 and 0.012 ≤ 0.05/4, but 0.03 > 0.05/3: nothing after that counts.
    np.testing.assert_array_equal(_holm(p, 0.05), [[True, False, False], [True, False, False]])
    assert not _holm(np.full((1, 2), 0.04), 0.05).any()
    assert _holm(np.full((1, 2), 0.001), 0.05).all()


def test_defaults_of_a_model_on_data():
    inputs, classes = rng.normal(size=(12, 2)), rng.integers(0, 3, 12)
    start = {"W": jnp.zeros((3, 2))}
    made = losses.from_model(
        start, lambda z, y: jax.nn.logsumexp(z) - z[y], (inputs, classes), predict=lambda p, a: p["W"] @ a
    )
    model = sg.SGD(made, noise.Minibatch(made, 3), 0.1)
    found = sg.compare_laws(
        model, optimizers.SGD(0.1, 3), made.x0, 0.2, runs=16, substeps=(1,), svag=(), controls=(), permutations=19
    )
    assert found.names == ("loss", "outputs", "accuracy")
    outputs = found.samples["SGD"]["outputs"]
    assert outputs.shape == (16, 9)


@pytest.mark.usefixtures("unchecked")
def test_messages():
    model = sg.SGD(loss, noise.Minibatch(loss, 2), 0.1)
    sgd = optimizers.SGD(0.1, 2)
    momentum = sg.Momentum(loss, noise.Minibatch(loss, 2), 0.1, momentum=0.9), optimizers.Momentum(0.1, 2, momentum=0.9)
    for arguments, options, kind, message in [
        ((model, sgd, start, 0.25), {}, ValueError, "`t1` must be a whole number of steps"),
        ((model, optimizers.SGD(0.2, 2), start, 0.2), {}, ValueError, "one learning rate, but have 0.1 and 0.2"),
        ((loss, sgd, start, 0.2), {}, TypeError, "`model` must be one such as"),
        ((model, 3, start, 0.2), {}, TypeError, "`optimizer` must be one such as"),
        ((model, sgd, start[None], 0.2), {}, ValueError, "`x0` must be one point"),
        ((model, sgd, start, 0.2), {"runs": 8}, ValueError, "at least 16"),
        ((model, sgd, start, 0.2), {"controls": ("none",)}, ValueError, "`controls` must be some of constant"),
        ((model, sgd, start, 0.2), {"substeps": (0,)}, ValueError, "`substeps` must hold whole numbers"),
        ((model, sgd, start, 0.2), {"functionals": 3}, TypeError, "`functionals` must be a function"),
        ((model, sgd, start, 0.2), {"level": 5}, ValueError, "`level` must be between 0 and 1"),
        ((model, sgd, start, 0.2), {"permutations": 0}, ValueError, "`permutations` must be a positive"),
        ((*momentum, start, 0.2), {"controls": ("constant",)}, ValueError, "leave them out"),
    ]:
        with pytest.raises(kind, match=message):
            sg.compare_laws(*arguments, **options)
