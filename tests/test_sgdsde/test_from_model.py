"""Losses of models on data: the same numbers as without the library, and the exact covariance of minibatches."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgdsde as sg
from sgdsde import losses, noise
from sgdsde.optimizers import SGD, run
from solvers import sde
from solvers.process import noise_structure

rng = np.random.default_rng(0)
inputs, labels = rng.normal(size=(40, 6)), rng.integers(0, 3, 40)
network = eqx.nn.MLP(6, 3, 40, 1, key=jax.random.key(0), dtype=jnp.float64)
parameters = {"W": jnp.asarray(rng.normal(size=(3, 6))), "b": jnp.zeros(3)}


def cross_entropy(logits, label):
    return jax.nn.logsumexp(logits) - logits[label]


def linear(p, a):
    return p["W"] @ a + p["b"]


loss = losses.from_model(network, cross_entropy, (inputs, labels))


def direct(x, i):
    """The loss of one example with no help but that of `unravel`."""
    return cross_entropy(loss.unravel(x)(jnp.asarray(inputs)[i]), jnp.asarray(labels)[i])


singles = jax.jit(jax.vmap(direct, (None, 0)))(loss.x0, jnp.arange(40))
single = np.asarray(jax.jit(jax.vmap(jax.grad(direct), (None, 0)))(loss.x0, jnp.arange(40)))


def test_the_loss_is_that_of_the_model():
    expected = jax.jit(jax.vmap(lambda a, y: cross_entropy(network(a), y)))(inputs, labels)
    np.testing.assert_allclose(jax.jit(lambda x: loss(x))(loss.x0), expected.mean(), rtol=1e-14)
    back = loss.unravel(loss.x0)
    assert jax.tree.structure(back) == jax.tree.structure(network)
    np.testing.assert_array_equal(loss.ravel(network), loss.x0)
    assert loss.x0.shape == (6 * 40 + 40 + 40 * 3 + 3,)


def test_three_forms_of_one_loss():
    # Softmax regression as a module, as parameters with a function, and as a function of parameters and examples.
    module = eqx.nn.Linear(6, 3, key=jax.random.key(1), dtype=jnp.float64)
    module = eqx.tree_at(lambda m: (m.weight, m.bias), module, (parameters["W"], parameters["b"]))
    forms = [
        losses.from_model(module, cross_entropy, (inputs, labels)),
        losses.from_model(parameters, cross_entropy, (inputs, labels), predict=linear),
        losses.from_model(
            parameters, lambda p, e: cross_entropy(linear(p, e["a"]), e["y"]), {"a": inputs, "y": labels}
        ),
    ]
    logits = inputs @ np.asarray(parameters["W"]).T
    expected = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(40), labels]
    for form in forms:
        found = jax.jit(lambda x, form=form: form.examples(x, jnp.arange(40)))(form.x0)
        np.testing.assert_allclose(found, expected, rtol=1e-13)
    np.testing.assert_allclose(forms[0].outputs(forms[0].x0, jnp.array([3, 1])), logits[[3, 1]], rtol=1e-13)
    with pytest.raises(ValueError, match="no outputs"):
        forms[2].outputs(forms[2].x0, jnp.arange(2))


def test_chunks_do_not_change_the_numbers():
    chunked = losses.from_model(network, cross_entropy, (inputs, labels), chunk=7)
    x, v = loss.x0, jnp.asarray(rng.normal(size=loss.x0.size))
    value, slope = jax.jit(jax.value_and_grad(chunked))(x)
    np.testing.assert_allclose(value, singles.mean(), rtol=1e-13)
    np.testing.assert_allclose(slope, single.mean(axis=0), atol=1e-15)
    curved = jax.jit(lambda x, v: jax.jvp(jax.grad(chunked), (x,), (v,))[1])(x, v)
    expected = jax.jit(lambda x, v: jax.jvp(jax.grad(loss), (x,), (v,))[1])(x, v)
    np.testing.assert_allclose(curved, expected, atol=1e-13)
    # The noise of given motions, one for each example, is one and the same sum over examples.
    w = rng.normal(size=40)
    g = noise.Minibatch(chunked, 10).operator(chunked, jnp.asarray(0.2), x)
    expected = np.sqrt(0.2 / 400) * (w - w.mean()) @ single
    np.testing.assert_allclose(jax.jit(lambda w: g.mv(w))(jnp.asarray(w)), expected, atol=1e-14)


@pytest.mark.slow
def test_chunks_bound_the_memory_of_a_gradient():
    # 4,000 examples of some 200 numbers.
    wide = eqx.nn.MLP(6, 3, 100, 1, key=jax.random.key(0), dtype=jnp.float64)
    data = (np.zeros((4000, 6)), np.zeros(4000, int))

    def memory(chunk):
        whole = losses.from_model(wide, cross_entropy, data, chunk=chunk)
        analysis = jax.jit(jax.grad(whole)).lower(whole.x0).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert memory(100) < memory(4000) / 8


def test_weight_decay_is_in_every_example_and_not_in_the_noise():
    decayed = losses.from_model(network, cross_entropy, (inputs, labels), weight_decay=0.3)
    x = loss.x0
    slope, kick = jax.jit(
        lambda x, w: (jax.grad(decayed)(x), noise.Minibatch(decayed, 4).operator(decayed, jnp.asarray(0.2), x).mv(w))
    )(x, jnp.arange(40.0))
    np.testing.assert_allclose(slope, single.mean(axis=0) + 0.3 * np.asarray(x), atol=1e-15)
    weights = np.sqrt(0.2 / 160) * (np.arange(40) - 19.5)
    np.testing.assert_allclose(kick, weights @ single, atol=1e-13)


@pytest.mark.parametrize("replacement", [True, False])
def test_one_backward_pass_takes_the_step_of_drift_and_noise(replacement):
    # With weight decay, which the noise does not have; and another loss of the same examples takes two passes.
    decayed = losses.from_model(network, cross_entropy, (inputs, labels), weight_decay=0.3)
    x, w = loss.x0, jnp.asarray(rng.normal(size=40))
    share = 0.2 / (40 * 4) * (1 if replacement else 36 / 39)
    expected = x - 0.05 * (single.mean(axis=0) + 0.3 * x) + np.sqrt(share) * (w - w.mean()) @ single
    for of_noise, passes in ((decayed, 1), (loss, 2)):
        model = sg.SGD(decayed, noise.Minibatch(of_noise, 4, replacement), 0.2)
        step = jax.jit(lambda x, w, model=model: model.euler(0.0, x, jnp.asarray(0.05), w))
        np.testing.assert_allclose(step(x, w), expected, atol=1e-14)
        assert model.one_sum == (passes == 1)


def _agree(increments, expected):
    """|S - Σ|² of a sample covariance S against its mean ((tr Σ)² + tr Σ²)/(n-1) for normal samples."""
    n = len(increments)
    sample = np.cov(increments.T)
    chance = (np.trace(expected) ** 2 + np.sum(expected**2)) / (n - 1)
    # The ratio has mean 1 and a standard deviation below 0.5 for spectra such as these; errors in B or N show as
    # n (error)² ≈ 100 and more.
    assert 0.3 < np.sum((sample - expected) ** 2) / chance < 2.5
    np.testing.assert_allclose(np.trace(sample), np.trace(expected), rtol=5 * np.sqrt(2 / n))


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.slow("True")
def test_increments_have_the_covariance_of_minibatches(replacement):
    # 403 parameters, 40 examples, batches of 10: Σ = C/B, and (N-B)/(N-1) of it without replacement.
    sigma = np.cov(single.T, ddof=0) / 10 * (1 if replacement else 30 / 39)
    model = sg.SGD(loss, noise.Minibatch(loss, 10, replacement), 0.2)
    assert noise_structure(model, loss.x0) == ("general", 40)
    out = sde.simulate(model, sde.EulerMaruyama(), loss.x0, t1=0.05, dt=0.05, key=1, paths=4000)
    increments = out.final - np.asarray(loss.x0)
    _agree(increments, 0.05 * 0.2 * sigma)
    mean = -0.05 * single.mean(axis=0)
    assert np.sum((increments.mean(axis=0) - mean) ** 2) < 3 * 0.05 * 0.2 * np.trace(sigma) / 4000
    # The algorithm itself: a step has the covariance η²Σ.
    sampling = "with-replacement" if replacement else "without-replacement"
    steps = run(SGD(0.2, 10, sampling=sampling), loss, loss.x0, steps=1, runs=4000, key=1)
    _agree(steps.final - np.asarray(loss.x0), 0.2**2 * sigma)


def test_motions_belong_to_examples_and_coupled_runs_share_them():
    # A model and a larger one that starts as the same function: what they have in common moves alike, path by path.
    larger = {**parameters, "c": jnp.zeros(())}
    found = []
    for p in (parameters, larger):
        f = losses.from_model(
            p, cross_entropy, (inputs, labels), predict=lambda p, a: linear(p, a) * (1 + p.get("c", 0) * a[0])
        )
        model = sg.SGD(f, noise.Minibatch(f, 1), 1.0)
        out = sde.simulate(model, sde.EulerMaruyama(), f.x0, t1=1.0, dt=1.0, key=3, paths=2)
        found.append([f.unravel(jnp.asarray(x)) for x in out.final])
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one["W"], two["W"], atol=1e-13)
        assert two["c"] != 0


@pytest.mark.slow
def test_validity_of_a_network():
    small = losses.from_model(parameters, cross_entropy, (inputs, labels), predict=linear)
    report = sg.validity(
        sg.SGD(small, noise.Minibatch(small, 4), 0.2),
        SGD(0.2, 4),
        small.x0,
        t1=0.8,
        learning_rates=[0.2, 0.4],
        functional=small,
        key=0,
        runs=64,
        method=sde.EulerMaruyama(),
        substeps=2,
    )
    assert np.all(np.abs(report.errors) < 5 * report.sem + 0.05)


def test_float32_and_data_of_other_dtypes(float32):
    made = losses.from_model(
        {"W": jnp.ones((3, 6), jnp.bfloat16), "b": jnp.zeros(3)}, cross_entropy, (inputs, labels), predict=linear
    )
    assert made.x0.dtype == jnp.float32
    assert jax.grad(made)(made.x0).dtype == jnp.float32


def test_held_out_examples():
    held = loss.on((inputs[:7], labels[:7]))
    np.testing.assert_allclose(held(loss.x0), loss.examples(loss.x0, jnp.arange(7)).mean(), rtol=1e-14)


@pytest.mark.usefixtures("unchecked")
def test_messages():
    for arguments, kind, message in [
        ((parameters, 3, (inputs, labels)), TypeError, "`per_example_loss` must be a function"),
        ((network, cross_entropy, inputs), TypeError, "pair"),
        ((network, cross_entropy, (inputs, labels[:5])), ValueError, "first axis"),
        (((1, 2), cross_entropy, (inputs, labels)), ValueError, "no parameters"),
        (({"z": jnp.ones(2, complex)}, lambda p, e: 0.0, inputs), TypeError, "real parameters"),
        ((network, lambda z, y: z, (inputs, labels)), ValueError, "per_example_loss.*one number"),
    ]:
        with pytest.raises(kind, match=message):
            losses.from_model(*arguments)
    with pytest.raises(ValueError, match="`chunk`"):
        losses.from_model(network, cross_entropy, (inputs, labels), chunk=0)
    with pytest.raises(ValueError, match="403 parameters"):
        loss.unravel(jnp.zeros(3))
