"""What the docstrings say of the losses' minima and curvatures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgdsde import losses

named = [
    losses.Quadratic(2.0),
    losses.Quadratic([1.0, 3.0], floor=0.5, centre=[1.0, -1.0]),
    losses.Quadratic([[2.0, 0.5], [0.5, 1.0]]),
    losses.Student(2.0),
    losses.DoubleWell(0.1, 0.1),
    losses.RadialWell(0.1),
    losses.RingValley(0.1),
    losses.LeastSquares([[1.0, 2.0]], [1.0]),
    losses.FiniteSum(lambda x, a: jnp.sum((x - a) ** 2), np.eye(2)),
    losses.TwoLayerLinear(),
    losses.Rastrigin(),
    losses.rosenbrock,
    losses.himmelblau,
]


@pytest.mark.parametrize("loss", named)
def test_one_real_number_in_the_dtype_of_the_state(loss):
    for dtype in (jnp.float32, jnp.float64):
        value, slope = jax.jit(jax.value_and_grad(loss))(jnp.array([0.3, -0.7], dtype))
        assert value.shape == ()
        assert value.dtype == slope.dtype == dtype


def at(loss, *x):
    x = jnp.array(x, float)
    value, slope, curvature = jax.jit(lambda x: (loss(x), jax.grad(loss)(x), jax.hessian(loss)(x)))(x)
    return float(value), np.asarray(slope), np.asarray(curvature)


def test_quadratic():
    H = np.array([[2.0, 0.5], [0.5, 1.0]])
    value, slope, curvature = at(losses.Quadratic(H, 0.3, [1.0, 2.0]), 2.0, 1.0)
    np.testing.assert_allclose(value, 0.3 + 0.5 * (2 - 1 + 1), rtol=1e-15)
    np.testing.assert_allclose(slope, H @ [1.0, -1.0], rtol=1e-15)
    np.testing.assert_allclose(curvature, H, rtol=1e-15)
    np.testing.assert_allclose(at(losses.Quadratic([1.0, 3.0]), 1.0, 1.0)[0], 2.0, rtol=1e-15)


def test_double_well():
    loss = losses.DoubleWell(0.05)
    for x in (-1.0, 1.0):
        value, slope, curvature = at(loss, x, 0.0)
        np.testing.assert_allclose(value, 0.05, rtol=1e-15)
        np.testing.assert_allclose(slope, 0, atol=1e-15)
        np.testing.assert_allclose(curvature, np.diag([2.0, 1.0]), rtol=1e-15)
    np.testing.assert_allclose(at(loss, 0.0, 0.0)[0], 0.3, rtol=1e-15)
    np.testing.assert_allclose(at(loss, 0.0, 0.0)[2], np.diag([-1.0, 1.0]), rtol=1e-15)
    # Barrier and minima of 0.3 + V + x/10.
    for x, f in ((0.10103125788101082, 0.555025515573821), (-1.0466805318046022, 0.19761392619996357)):
        value, slope, _ = at(losses.DoubleWell(0.3, 0.1), x)
        np.testing.assert_allclose(value, f, rtol=1e-14)
        np.testing.assert_allclose(slope, 0, atol=1e-14)


def test_ring_valley():
    loss = losses.RingValley(0.1, 0.5)
    for angle in (0.0, 1.0, np.pi):
        normal = np.array([np.cos(angle), np.sin(angle)])
        value, slope, curvature = at(loss, *normal)
        np.testing.assert_allclose(value, 0.1, atol=1e-15)
        np.testing.assert_allclose(slope, 0, atol=1e-15)
        np.testing.assert_allclose(normal @ curvature @ normal, 1 + 0.5 * np.cos(angle), rtol=1e-14)
    value, slope, _ = at(loss, 0.0, 0.0)
    np.testing.assert_allclose(value, 0.1 + 0.125, rtol=1e-15)
    assert np.all(np.isfinite(slope))


def test_radial_well():
    value, slope, curvature = at(losses.RadialWell(0.1), 0.6, 0.0, 0.8)
    np.testing.assert_allclose(slope, 0, atol=1e-15)
    np.testing.assert_allclose(value, 0.1, rtol=1e-15)
    np.testing.assert_allclose(np.linalg.eigvalsh(curvature), [0, 0, 2], atol=1e-14)


def test_least_squares():
    A, y = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]]), np.array([1.0, 3.0])
    loss = losses.LeastSquares(A, y, floor=0.2)
    assert (loss.rank, loss.flat_dimension) == (2, 1)
    x = loss.minimum_norm_solution
    value, slope, curvature = at(loss, *x)
    np.testing.assert_allclose(value, 0.2, rtol=1e-14)
    np.testing.assert_allclose(slope, 0, atol=1e-14)
    np.testing.assert_allclose(curvature, A.T @ A / 2, rtol=1e-14)
    flat = np.linalg.svd(A)[2][-1]
    np.testing.assert_allclose(flat @ x, 0, atol=1e-14)
    np.testing.assert_allclose(at(loss, *(x + 3 * flat))[0], 0.2, rtol=1e-14)


def test_two_layer_linear():
    value, slope, curvature = at(losses.TwoLayerLinear(2.0), 1.0, 0.5, 1.0, 2.0)
    assert value == 0
    assert np.all(slope == 0)
    np.testing.assert_allclose(np.linalg.eigvalsh(curvature), [0, 0, 0, 6.25], atol=1e-14)


def test_test_problems():
    assert at(losses.rosenbrock, 1.0, 1.0, 1.0)[0] == 0
    for x in ((3, 2), (-2.805118, 3.131312), (-3.779310, -3.283186), (3.584428, -1.848126)):
        assert at(losses.himmelblau, *x)[0] < 1e-9
    value, slope, curvature = at(losses.Rastrigin(0.1, 0.2), 0.0, 0.0)
    assert np.all(slope == 0)
    np.testing.assert_allclose(value, 0.2, rtol=1e-15)
    np.testing.assert_allclose(curvature, (1 + 0.4 * np.pi**2) * np.eye(2), rtol=1e-14)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.Quadratic([[1.0, 2.0], [0.0, 1.0]]), "`H` must be symmetric"),
        (lambda: losses.Quadratic(np.ones((2, 3))), r"`H` must be a number.*got shape \(2, 3\)"),
        (lambda: losses.Quadratic([1.0, 2.0], centre=[1.0, 2.0, 3.0]), r"`centre` must be.*got shape \(3,\)"),
        (lambda: losses.Student(scale=0.0), "`scale` must be positive"),
        (lambda: losses.RingValley(amplitude=1.0), "`amplitude` must be below 1"),
        (lambda: losses.LeastSquares([[1.0, 2.0]], [1.0, 2.0]), r"got \(1, 2\) and \(2,\)"),
        (lambda: losses.FiniteSum(lambda x, a: x @ x, np.ones(0)), r"`data` must be arrays .* \[\(0,\)\]"),
        (lambda: losses.FiniteSum(lambda x, a: x @ x, (np.ones(2), np.ones(3))), r"\[\(2,\), \(3,\)\]"),
        (lambda: losses.FiniteSum(lambda x, a: x * a, np.ones(2))(jnp.ones(2)), r"one number, but .* \(2,\)"),
        (lambda: losses.TwoLayerLinear()(jnp.ones(3)), "odd length 3"),
        (lambda: losses.DoubleWell(floor=float("nan")), "`floor` must be finite"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_finite_sum_is_the_mean_of_its_examples():
    rng = np.random.default_rng(0)
    A, y, x = rng.normal(size=(5, 3)), rng.normal(size=5), jnp.asarray(rng.normal(size=3))
    least_squares = losses.LeastSquares(A, y, floor=0.5)
    by_hand = losses.FiniteSum(lambda x, row: 0.5 + 0.5 * (row["a"] @ x - row["y"]) ** 2, {"a": A, "y": y})
    each = 0.5 + 0.5 * (A @ np.asarray(x) - y) ** 2
    index = jnp.array([4, 0, 0])
    for loss in (least_squares, by_hand):
        assert loss.count == 5
        np.testing.assert_allclose(loss.examples(x, index), each[np.asarray(index)], rtol=1e-14)
        np.testing.assert_allclose(loss(x), each.mean(), rtol=1e-14)
