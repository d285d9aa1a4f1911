"""Stationary covariances against numbers computed with 30 digits, and against long runs of the recursion's moments."""

import numpy as np
import pytest

from sgdsde.theory import excess_loss, stationary_covariance

H = np.array([[2.0, 0.5], [0.5, 1.0]])
C = np.array([[1.0, -0.3], [-0.3, 2.0]])


def test_small_learning_rate():
    P = stationary_covariance(H, C, 0.1, 4)
    expected = [[0.008452380952381, -0.0088095238095238], [-0.0088095238095238, 0.029404761904762]]
    np.testing.assert_allclose(P, expected, rtol=1e-12)
    np.testing.assert_allclose(np.trace(H @ P) / 2, 0.01875, rtol=1e-14)
    np.testing.assert_allclose(excess_loss(C, 0.1, 4), 0.01875, rtol=1e-15)


@pytest.mark.parametrize(
    ("rate", "expected", "loss"),
    [
        (
            0.1,
            [[0.009157890940231962, -0.009001134748362383], [-0.009001134748362383, 0.030699983445806288]],
            0.020007315288953914,
        ),
        (0.8, [[0.3517857142857143, 0.005357142857142857], [0.005357142857142857, 0.39107142857142857]], 0.55),
    ],
)
def test_discrete(rate, expected, loss):
    P = stationary_covariance(H, C, rate, 4, finite_rate=True)
    np.testing.assert_allclose(P, expected, rtol=1e-12)
    np.testing.assert_allclose(np.trace(H @ P) / 2, loss, rtol=1e-12)


@pytest.mark.parametrize(
    ("rate", "momentum", "expected"),
    [
        (0.1, 0.9, [[0.09463940342014804, -0.09570942406966934], [-0.09570942406966934, 0.2941347659059267]]),
        (0.5, 0.5, [[0.11973477998794455, -0.09640747438215792], [-0.09640747438215792, 0.33921639541892706]]),
    ],
)
def test_heavy_ball(rate, momentum, expected):
    np.testing.assert_allclose(stationary_covariance(H, C, rate, 4, momentum, finite_rate=True), expected, rtol=1e-10)


def test_exponential_average_is_heavy_ball_at_a_smaller_rate():
    expected = [[0.008687257992668207, -0.009021187221609538], [-0.009021187221609538, 0.029268890705182307]]
    np.testing.assert_allclose(
        stationary_covariance(H, C, 0.1 * (1 - 0.9), 4, 0.9, finite_rate=True), expected, rtol=1e-10
    )


def test_finite_rate_tends_to_the_limit():
    for momentum in (0.0, 0.6):
        limit = stationary_covariance(H, C, 1e-6, 1, momentum)
        np.testing.assert_allclose(stationary_covariance(H, C, 1e-6, 1, momentum, finite_rate=True), limit, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stationary_covariance(np.diag([1.0, 0.0]), C, 0.1), "`H` must be positive definite, .* eigenvalue 0"),
        (lambda: stationary_covariance([[1.0, 2.0], [0.0, 1.0]], C, 0.1), "`H` must be symmetric"),
        (lambda: stationary_covariance(H, -C, 0.1), "`C` must be positive semi-definite"),
        (lambda: stationary_covariance(H, np.eye(3), 0.1), "must have one shape"),
        (lambda: stationary_covariance(H, C, 0.95, finite_rate=True), r"2\(1\+momentum\)/λ_max\(H\) = 0.906164"),
        (lambda: stationary_covariance(H, C, 0.1, momentum=1.0), "`momentum` must be at least 0 and below 1"),
        (lambda: stationary_covariance(H, C, -0.1), "`learning_rate` must be positive"),
        (lambda: excess_loss(C, 0.1, 0), "`batch_size` must be positive"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
