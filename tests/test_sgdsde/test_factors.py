"""Reports of curvature and gradient noise: against matrices written down, and on losses whose H and C are known."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgdsde as sg
from sgdsde import losses
from sgdsde._spectra import lanczos
from sgdsde.theory import excess_loss, squared_gradient

rng = np.random.default_rng(0)
inputs, labels = rng.normal(size=(30, 4)), rng.integers(0, 3, 30)
network = eqx.nn.MLP(4, 3, 16, 1, key=jax.random.key(0), dtype=jnp.float64)


def cross_entropy(logits, label):
    return jax.nn.logsumexp(logits) - logits[label]


loss = losses.from_model(network, cross_entropy, (inputs, labels))
# 131 parameters. Further from the start, where the law of the labels is not flat.
x = 2.0 * loss.x0


@pytest.fixture(scope="module")
def matrices():
    """H, C, G and F from gradients and outputs of all examples, with no help but that of `unravel`."""

    def logits(x):
        return jax.vmap(loss.unravel(x))(jnp.asarray(inputs))

    def singles(x):
        return jax.vmap(cross_entropy)(logits(x), jnp.asarray(labels))

    @jax.jit
    def all_of(x):
        return jax.hessian(lambda x: jnp.mean(singles(x)))(x), jax.jacrev(singles)(x), logits(x), jax.jacrev(logits)(x)

    H, g, z, J = (np.asarray(part) for part in all_of(x))
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    inner = np.einsum("ij,jk->ijk", p, np.eye(3)) - p[:, :, None] * p[:, None, :]
    scores = J[:, None] * (np.eye(3)[None, :, :, None] - p[:, None, :, None])
    scores = scores.sum(axis=2)
    return {
        "H": H,
        "C": np.cov(g.T, ddof=0),
        "G": np.einsum("ikd,ikl,ile->de", J, inner, J) / 30,
        "F": np.einsum("iy,iyd,iye->de", p, scores, scores) / 30,
        "p": p,
    }


def _expected(m):
    top = {name: np.linalg.eigh(m[name])[1][:, ::-1][:, :10] for name in "HC"}
    norms = {name: np.linalg.norm(m[name]) for name in "HC"}
    return {
        "tr HC": np.sum(m["H"] * m["C"]),
        "tr H": np.trace(m["H"]),
        "tr C": np.trace(m["C"]),
        "tr G": np.trace(m["G"]),
        "tr F": np.trace(m["F"]),
        "|H|": norms["H"],
        "|C|": norms["C"],
        "alignment": np.sum(m["H"] * m["C"]) / norms["H"] / norms["C"],
    }, np.sum((top["H"].T @ top["C"]) ** 2) / 10


def _estimates(report):
    return {
        "tr HC": report.trace_product,
        "tr H": report.H.trace,
        "tr C": report.C.trace,
        "tr G": report.gauss_newton,
        "tr F": report.fisher,
        "|H|": report.H.norm,
        "|C|": report.C.norm,
        "alignment": report.alignment,
    }


@pytest.mark.slow
def test_exact_report_of_a_network(matrices):
    report = sg.noise_report(loss, x)
    expected, overlap = _expected(matrices)
    for name, found in _estimates(report).items():
        assert found is not None
        np.testing.assert_allclose(found.value, expected[name], rtol=1e-9, err_msg=name)
        assert found.sem == 0
    # The cross-entropy of logits: Fisher and Gauss-Newton are one matrix.
    np.testing.assert_allclose(matrices["F"], matrices["G"], atol=1e-14)
    np.testing.assert_allclose(report.overlap, overlap, rtol=1e-6)
    np.testing.assert_allclose(report.H.top, np.linalg.eigvalsh(matrices["H"])[::-1][:10], rtol=1e-9)
    np.testing.assert_allclose(report.C.share(1e-9).value, 29 / 131, rtol=1e-12)
    p = matrices["p"][np.arange(30), labels]
    assert report.accuracy == np.mean(matrices["p"].argmax(axis=1) == labels)
    assert report.mean_odds == pytest.approx(np.mean(p / (1 - p)), rel=1e-10)
    assert report.typical_odds == pytest.approx(np.exp(np.mean(np.log(p / (1 - p)))), rel=1e-10)
    # Predictions, by the functions of the theory.
    arguments = (0.1, 8)
    assert report.wang_excess_loss(*arguments).value == pytest.approx(excess_loss(matrices["C"], *arguments))
    assert report.jastrzebski_excess_loss(*arguments).value == pytest.approx(0.1 * expected["tr H"] / 32)
    product = 0.1 / 16 * np.sum(matrices["H"] * matrices["C"])
    assert report.wang_squared_gradient(*arguments).value == pytest.approx(product)
    assert "Wang" in str(report)
    assert "accuracy" in str(report)


def test_estimates_are_within_their_error_bars():
    # A network with one output, 96 parameters and squared errors; its Hessian is indefinite.
    def predict(x, a):
        hidden = jnp.tanh(x[:64].reshape(16, 4) @ a + x[64:80])
        return x[80:] @ hidden

    regression = losses.SquaredLoss(predict, inputs, labels.astype(float))
    x = jnp.asarray(rng.normal(size=96))

    @jax.jit
    def all_of(x):
        h = jax.jacrev(lambda x: jax.vmap(predict, (None, 0))(x, jnp.asarray(inputs)))
        r = regression.residuals(x, jnp.arange(30))
        return jax.hessian(regression)(x), h(x), r

    H, J, r = (np.asarray(part) for part in all_of(x))
    m = {"H": H, "C": np.cov((r[:, None] * J).T, ddof=0), "G": J.T @ J / 30, "F": J.T @ J / 30}
    expected, _ = _expected(m)
    reports = [sg.noise_report(regression, x, exact=False, key=k, top=4, steps=30) for k in range(8)]
    for name in expected:
        found: list = [_estimates(report)[name] for report in reports]
        if name == "tr C":
            np.testing.assert_allclose([e.value for e in found], expected[name], rtol=1e-12)
            continue
        z = np.array([(e.value - expected[name]) / e.sem for e in found])
        # Student's law with 15 degrees of freedom, squared: mean 1.15, and so for 8 of them ± 0.7.
        assert 0.25 < np.mean(z**2) < 3, (name, z)
        assert max(e.sem for e in found) < 0.15 * abs(expected[name])
    report = reports[0]
    values = np.linalg.eigvalsh(H)
    np.testing.assert_allclose(report.H.top, values[::-1][:4], rtol=1e-4)
    np.testing.assert_allclose(report.H.lowest, values[0], rtol=1e-3)
    # The density: shares of eigenvalues with error bars, from 4 runs, and its first moments.
    share = report.H.share(0.05)
    assert abs(share.value - np.mean(values > 0.05)) < 5 * share.sem + 0.01
    moments = np.sum(report.H.weights * report.H.nodes, axis=1) * len(values)
    assert abs(moments.mean() - values.sum()) < 5 * moments.std(ddof=1) / 2


def test_label_noise_regression_has_c_proportional_to_h():
    """y = A w* + s ξ at w*, where C = (s²/N) Σ a aᵀ - ∇f∇fᵀ; with signs ξ it is s² H less the gradient's square."""
    s, A = 0.3, rng.normal(size=(8, 3))
    # Every input with both signs of noise: the gradient at w* is exactly 0.
    doubled, signs = np.concatenate([A, A]), np.repeat([1.0, -1.0], 8)
    w = np.array([1.0, -2.0, 0.5])
    regression = losses.LeastSquares(doubled, doubled @ w + s * signs)
    report = sg.noise_report(regression, w)
    H = A.T @ A / 8
    np.testing.assert_allclose(report.H.trace.value, np.trace(H))
    np.testing.assert_allclose(report.C.trace.value, s**2 * np.trace(H))
    np.testing.assert_allclose([report.alignment.value, report.overlap], 1.0)
    # A linear model with squared loss: Gauss-Newton is the Hessian, and the Fisher matrix of the unit normal law.
    assert report.gauss_newton is not None
    assert report.gauss_newton == report.fisher
    assert report.gauss_newton.value == pytest.approx(report.H.trace.value)
    np.testing.assert_allclose(report.wang_excess_loss(0.1, 2).value, 0.1 * s**2 * np.trace(H) / 8)
    np.testing.assert_allclose(report.wang_squared_gradient(0.1, 2).value, squared_gradient(H, s**2 * H, 0.1, 2))
    # At the minimum loss is s²/2, and the empirical Fisher matrix is C.
    np.testing.assert_allclose([report.loss, report.empirical_fisher.value], [s**2 / 2, report.C.trace.value])
    # In single precision, and where Lanczos finds the whole space and nothing is left to chance.
    again = sg.noise_report(regression, w.astype(np.float32), exact=False)
    for name in ("trace_product", "gauss_newton", "fisher", "alignment", "empirical_fisher"):
        found, expected = getattr(again, name), getattr(report, name)
        assert found.value == pytest.approx(expected.value, rel=1e-5)
        assert found.sem < 1e-5 * expected.value
    for found, expected in ((again.H, report.H), (again.C, report.C)):
        np.testing.assert_allclose(
            [found.trace.value, found.norm.value], [expected.trace.value, expected.norm.value], 1e-5
        )
        np.testing.assert_allclose(found.top, expected.top, rtol=1e-5)
        np.testing.assert_allclose(found.density([0.5], 1.0), expected.density([0.5], 1.0), rtol=1e-5)


def test_lanczos_ends_where_the_space_is_exhausted():
    A = jnp.diag(jnp.array([3.0, 3.0, -1.0, 0.0]))
    run = lanczos(lambda A, v: A @ v, (A,), jnp.ones(4), jnp.zeros((4, 2)), 4)
    # A double eigenvalue is seen once, with the weight of both.
    nodes, weights = run.quadrature()
    np.testing.assert_allclose(nodes, [-1, 0, 3], atol=1e-14)
    np.testing.assert_allclose(weights, [0.25, 0.25, 0.5])
    values, errors, vectors = run.top(1)
    np.testing.assert_allclose([values[0], errors[0]], [3, 0], atol=1e-13)
    np.testing.assert_allclose(np.abs(vectors[:, 0]), [0.5**0.5, 0.5**0.5, 0, 0], atol=1e-14)
    # In the complement of its eigenvector the other one is left.
    rest = lanczos(
        lambda A, v: A @ v, (A,), jnp.array([1.0, -1.0, 1.0, 1.0]), jnp.zeros((4, 2)).at[:, :1].set(vectors), 4
    )
    np.testing.assert_allclose(rest.quadrature()[0], [-1, 0, 3], atol=1e-14)


def test_gaussian_regression_loses_what_theory_says():
    """Fresh data a ~ N(0, H), labels of variance s² = 0.3: at w* E f - min f = ηs² tr H/(4B), to leading order."""
    h, N = np.array([2.0, 1.0, 0.5]), 4000
    a = rng.normal(size=(N, 3)) * np.sqrt(h)
    regression = losses.LeastSquares(a, np.sqrt(0.3) * rng.normal(size=N))
    report = sg.noise_report(regression, np.zeros(3))
    # Means of a_k² ξ² over N examples: relative errors below √(9/N).
    np.testing.assert_allclose(report.wang_excess_loss(0.1, 1).value, 0.02625, rtol=4 * np.sqrt(9 / N))
    assert report.alignment.value > 0.99


def test_held_out_examples_and_binary_labels():
    a = rng.normal(size=(10, 2))
    answers = np.where(a[:, 0] > 0, 1.0, -1.0)
    logistic = losses.from_model(
        jnp.array([1.0, 0.5]), lambda z, y: jnp.logaddexp(0.0, -y * z), (a, answers), predict=lambda w, a: w @ a
    )
    report = sg.noise_report(logistic, logistic.x0, split=(a[::-1] / 2, answers[::-1]))
    margins = answers * (a @ [1.0, 0.5])
    assert report.accuracy == np.mean(margins > 0)
    assert report.mean_odds == pytest.approx(np.mean(np.exp(margins)))
    p = 1 / (1 + np.exp(-margins))
    # The Hessian of logistic regression is its Fisher matrix; a label is wrong by 1 - p.
    H = (a.T * (p * (1 - p))) @ a / 10
    C = np.cov(a.T * (answers * (1 - p)), ddof=0)
    for found in (report.fisher, report.gauss_newton):
        assert found is not None
        assert found.value == pytest.approx(np.trace(H))
    np.testing.assert_allclose(report.H.top, np.linalg.eigvalsh(H)[::-1])
    np.testing.assert_allclose(report.C.top, np.linalg.eigvalsh(C)[::-1])
    np.testing.assert_allclose(report.trace_product.value, np.sum(H * C))
    assert report.held_out is not None
    assert report.held_out.count == 10
    np.testing.assert_allclose(report.held_out.loss, np.mean(np.log1p(np.exp(-margins / 2))))
    assert "held out" in str(report)
    panels = report.plot()
    assert [ax.get_yscale() for ax in panels] == ["log", "log"]


@pytest.mark.slow
def test_digits_against_the_dense_hessian():
    """A network of 1,210 parameters in single precision, trained to 90 %; the matrices by differentiation in double."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    a, y = digits.data[:300] / 16, digits.target[:300]
    network = eqx.nn.MLP(64, 10, 16, 1, key=jax.random.key(1), dtype=jnp.float32)
    loss = losses.from_model(network, cross_entropy, (a, y))
    step = jax.jit(lambda x: x - 0.5 * jax.grad(loss)(x))
    x = loss.x0
    for _ in range(200):
        x = step(x)

    @jax.jit
    def all_of(x):
        def singles(x):
            W, b, V, c = (x[i:j] for i, j in ((0, 1024), (1024, 1040), (1040, 1200), (1200, 1210)))
            hidden = jax.nn.relu(a @ W.reshape(16, 64).T + b)
            return jax.vmap(cross_entropy)(hidden @ V.reshape(10, 16).T + c, y)

        return jax.hessian(lambda x: jnp.mean(singles(x)))(x), jax.jacrev(singles)(x)

    H, g = (np.asarray(part) for part in all_of(x.astype(jnp.float64)))
    m = {"H": H, "C": np.cov(g.T, ddof=0)}
    report = sg.noise_report(loss, x, steps=60, split=(digits.data[300:600] / 16, digits.target[300:600]))
    for name in "HC":
        spectrum, values = getattr(report, name), np.linalg.eigvalsh(m[name])[::-1]
        np.testing.assert_allclose(spectrum.top, values[:10], rtol=1e-4)
        assert abs(spectrum.norm.value - np.linalg.norm(values)) < 1e-4 * spectrum.norm.value + 5 * spectrum.norm.sem
        for bound in (0.01, 0.1):
            share = spectrum.share(bound)
            assert abs(share.value - np.mean(values > bound)) < 5 * share.sem + 2 / 1210
    assert abs(report.H.trace.value - np.trace(H)) < 5 * report.H.trace.sem < 0.1 * np.trace(H)
    assert report.C.trace.value == pytest.approx(np.trace(m["C"]), rel=1e-5)
    assert abs(report.trace_product.value / np.sum(H * m["C"]) - 1) < 1e-3
    # A network of rectifiers: second derivatives by one weight are 0 but through the outputs.
    assert report.gauss_newton is not None
    assert abs(report.gauss_newton.value - np.trace(H)) < 5 * report.gauss_newton.sem + 1e-4 * np.trace(H)
    assert report.accuracy is not None
    assert report.accuracy > 0.9
    assert report.held_out is not None


@pytest.mark.usefixtures("unchecked")
def test_messages():
    regression = losses.LeastSquares(np.eye(2), np.ones(2))
    for arguments, options, kind, message in [
        ((lambda x: x @ x, np.zeros(2)), {}, TypeError, "finite sum"),
        ((regression, np.zeros((1, 2))), {}, ValueError, r"`x` must be one point"),
        ((regression, np.zeros(2, int)), {}, TypeError, "`x`.*dtype int64"),
        ((regression, np.array([np.nan, 1.0])), {}, ValueError, "`x` must be finite"),
        ((regression, np.zeros(2)), {"split": (np.eye(2), np.ones(2))}, TypeError, "`split`.*LeastSquares"),
        ((regression, np.full(2, 1e200)), {}, ValueError, "`loss` must be finite at `x`"),
        ((regression, np.zeros(2)), {"probes": 1}, ValueError, "`probes`.*at least 2"),
    ]:
        with pytest.raises(kind, match=message):
            sg.noise_report(*arguments, **options)
    with pytest.raises(ValueError, match="`learning_rate`"):
        sg.noise_report(regression, np.zeros(2)).wang_excess_loss(-1.0)
