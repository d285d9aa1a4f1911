"""SGD and its relatives on quadratic losses: numbers computed with 30 digits, and moments carried by other means."""

import numpy as np
import pytest

from sgdsde import theory
from sgdsde.theory import linear_regression, momentum, ornstein_uhlenbeck as ou, preconditioned, tails

H = np.array([[2.0, 0.5], [0.5, 1.0]])
C = np.array([[1.0, -0.3], [-0.3, 2.0]])


# Ornstein-Uhlenbeck


def test_squared_gradient():
    P = theory.stationary_covariance(H, C, 0.1, 4)
    np.testing.assert_allclose(theory.squared_gradient(H, C, 0.1, 4), 0.04625, rtol=1e-14)
    np.testing.assert_allclose(np.trace(H @ H @ P), 0.04625, rtol=1e-12)


def test_commuting_covariance_is_the_lyapunov_solution_only_where_it_commutes():
    np.testing.assert_allclose(theory.commuting_covariance(H, H, 0.1, 4), 0.1 / 8 * np.eye(2), atol=1e-16)
    polynomial = H @ H - 0.3 * H
    np.testing.assert_allclose(
        theory.commuting_covariance(H, polynomial, 0.1), theory.stationary_covariance(H, polynomial, 0.1), rtol=1e-12
    )
    with pytest.raises(ValueError, match=r"HC - CH has an entry of size 0\.2\. Use `stationary_covariance`"):
        theory.commuting_covariance(H, C, 0.1)


def test_ornstein_uhlenbeck_in_time():
    np.testing.assert_allclose(ou.mean([1.0, -1.0], 0.7, H), [0.3936875111636, -0.6487695693064], rtol=1e-12)
    P = ou.covariance(0.7, H, C, 0.1, 4, initial=np.diag([0.2, 0.1]))
    expected = [[0.02257073650686, -0.01863917552327], [-0.01863917552327, 0.05052858996726]]
    np.testing.assert_allclose(P, expected, rtol=1e-12)
    np.testing.assert_allclose(ou.mean(1.5, 0.2, 2.0), [1.0054800690534589], rtol=1e-14)
    np.testing.assert_allclose(ou.covariance(0.2, 2.0, 3.0, 0.1, 4), [[0.010325081922802095]], rtol=1e-13)


def test_covariance_near_a_saddle_and_along_a_flat_direction():
    # h = -1: c(e^{2t} - 1)/2; h = 0: ct.
    P = ou.covariance(1.5, np.diag([-1.0, 0.0, 2.0]), np.eye(3), 0.2)
    np.testing.assert_allclose(P, np.diag([0.1 * np.expm1(3.0), 0.3, 0.05 * -np.expm1(-6.0)]), rtol=1e-12, atol=1e-14)


def test_rates_of_relaxation():
    low, high = 0.792893218813452, 2.20710678118655
    expected = [0, low, 2 * low, high, 3 * low, low + high]
    np.testing.assert_allclose(ou.eigenvalues(H), expected, rtol=1e-13)


def test_current_and_entropy_production():
    omega = ou.current_matrix(H, C, 0.1, 4)
    P, D = theory.stationary_covariance(H, C, 0.1, 4), 0.1 * C / 8
    # Ωx ρ has no divergence: ΩP is antisymmetric.
    np.testing.assert_allclose(omega @ P, -(omega @ P).T, atol=1e-15)
    np.testing.assert_allclose(ou.entropy_production(H, C, 0.1, 4), 0.006980802792321, rtol=1e-11)
    # The same from the mean of current velocities squared, over a Gaussian sample with exact covariance.
    points = np.linalg.cholesky(P) @ (np.sqrt(2) * np.array([[1, 0, -1, 0], [0, 1, 0, -1]]))
    velocity = omega @ points
    np.testing.assert_allclose(
        np.mean(np.sum(velocity * np.linalg.solve(D, velocity), 0)), 0.006980802792321, rtol=1e-10
    )
    assert abs(ou.entropy_production(H, H @ H, 0.1)) < 1e-14


# Momentum


def test_momentum_forms():
    averaged = momentum.averaged_covariance(H, C, 0.1, 4, 0.9)
    expected = [[0.008687257992668207, -0.009021187221609538], [-0.009021187221609538, 0.029268890705182307]]
    np.testing.assert_allclose(averaged, expected, rtol=1e-11)
    delayed = momentum.delayed_covariance(H, C, 0.1, 4, 0.9)
    expected = [[0.01035280041928231, -0.009449641706050073], [-0.009449641706050073, 0.03192033732980365]]
    np.testing.assert_allclose(delayed, expected, rtol=1e-11)
    np.testing.assert_allclose(np.trace(H @ averaged) / 2, 0.01881110973445459, rtol=1e-12)
    np.testing.assert_allclose(np.trace(H @ delayed) / 2, 0.021588148231159097, rtol=1e-12)
    assert momentum.averaged_covariance(1.0, 1.0, 0.5, 1, 0.5)[0, 0] == pytest.approx(0.2727272727272727, rel=1e-12)
    assert momentum.delayed_covariance(1.0, 1.0, 0.5, 1, 0.5)[0, 0] == pytest.approx(0.5384615384615384, rel=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.4, 0.9])
def test_momentum_in_one_dimension(beta):
    eta, h, c = 0.3, 1.7, 0.8
    a = eta * (1 - beta) * h
    averaged = (1 + beta) * eta * c / (h * (2 * (1 + beta) - a))
    late = (1 + beta + a) * eta * (1 - beta) * c / ((1 - beta - a) * h * (2 * (1 + beta) + a))
    np.testing.assert_allclose(momentum.averaged_covariance(h, c, eta, 1, beta), [[averaged]], rtol=1e-11)
    np.testing.assert_allclose(momentum.delayed_covariance(h, c, eta, 1, beta), [[late]], rtol=1e-11)


@pytest.mark.parametrize("form", ["heavy ball", "averaged", "delayed"])
def test_largest_rate_is_where_the_iteration_loses_stability(form):
    h, beta = 2.0, 0.9
    limit = momentum.largest_rate(h, beta, form)
    assert limit * h == pytest.approx({"heavy ball": 3.8, "averaged": 38.0, "delayed": 1.0}[form])
    for eta, stable in ((0.999 * limit, True), (1.001 * limit, False)):
        gain = 1.0 if form == "heavy ball" else 1 - beta
        if form == "delayed":
            step = np.array([[1, -eta], [gain * h, beta]])
        else:
            step = np.array([[1 - eta * gain * h, -eta * beta], [gain * h, beta]])
        assert (np.max(np.abs(np.linalg.eigvals(step))) < 1) == stable


@pytest.mark.parametrize(
    ("gamma", "mean", "cov"),
    [
        (
            1.0,
            [0.795370023998395, 0.7232425922268032],
            [[0.0019846237747372436, -0.004903873567602618], [-0.004903873567602618, 0.020637079404475386]],
        ),
        (
            8.0,
            [0.4060058497098, 1.082682265893],
            [[0.01428556302087, -0.01098938333324], [-0.01098938333324, 0.2725265416669]],
        ),
        (
            20.0,
            [0.37111889795374364, 0.8361985130672308],
            [[0.0158398137140663, -0.006555262061773573], [-0.006555262061773573, 0.7352341103072328]],
        ),
    ],
)
def test_underdamped(gamma, mean, cov):
    x, m = momentum.underdamped_mean(1.0, 0.0, 0.5, 2.0, gamma)
    np.testing.assert_allclose([x[0], m[0]], mean, rtol=1e-12)
    np.testing.assert_allclose(momentum.underdamped_covariance(2.0, 3.0, 0.1, gamma, 4, 0.5), cov, rtol=1e-11)
    stationary = momentum.underdamped_covariance(2.0, 3.0, 0.1, gamma, 4)
    np.testing.assert_allclose(stationary, np.diag([0.01875, gamma * 0.0375]), rtol=1e-12, atol=1e-15)


# Preconditioning


def test_preconditioned():
    newton = preconditioned.preconditioned_covariance(H, C, np.linalg.inv(H), 0.1, 4)
    inverse = np.linalg.inv(H)
    np.testing.assert_allclose(newton, 0.1 / 8 * inverse @ C @ inverse, rtol=1e-12)
    np.testing.assert_allclose(np.trace(H @ newton) / 2, 0.01892857142857, rtol=1e-12)
    discrete = preconditioned.preconditioned_covariance(H, C, inverse, 0.1, 4, finite_rate=True)
    np.testing.assert_allclose(discrete, newton / (1 - 0.05), rtol=1e-12)
    F = np.array([[0.6, 0.2], [0.2, 1.5]])
    for finite in (False, True):
        P = preconditioned.preconditioned_covariance(H, C, F, 0.3, 2, finite)
        residual = F @ H @ P + P @ H @ F - finite * 0.3 * F @ H @ P @ H @ F - 0.15 * F @ C @ F
        np.testing.assert_allclose(residual, 0, atol=1e-15)


# Gaussian linear regression


@pytest.mark.parametrize(
    ("eta", "batch", "loss", "p", "sde_loss", "sde_p", "limit"),
    [
        (
            0.1,
            1,
            0.18912442396313364,
            [0.023640552995391705, 0.02101382488479263, 0.01990783410138249],
            0.18504439511653717,
            [0.020560488346281908, 0.019478357380688125, 0.01897891231964484],
            0.2928932188134525,
        ),
        (
            0.25,
            4,
            0.1754171115856914,
            [0.015947010144153763, 0.012993860117458622, 0.011892685531233316],
            0.169452799629801,
            [0.0112968533086534, 0.010932438685793614, 0.010758907913003239],
            0.6424534368451283,
        ),
    ],
)
def test_gaussian_regression(eta, batch, loss, p, sde_loss, sde_p, limit):
    h = np.array([2.0, 1.0, 0.5])
    np.testing.assert_allclose(linear_regression.regression_loss(np.diag(h), 0.3, eta, batch), loss, rtol=1e-12)
    P = linear_regression.regression_covariance(np.diag(h), 0.3, eta, batch)
    np.testing.assert_allclose(P, np.diag(p), rtol=1e-12, atol=1e-17)
    np.testing.assert_allclose(
        linear_regression.regression_loss(np.diag(h), 0.3, eta, batch, False), sde_loss, rtol=1e-12
    )
    P = linear_regression.regression_covariance(np.diag(h), 0.3, eta, batch, False)
    np.testing.assert_allclose(P, np.diag(sde_p), rtol=1e-12, atol=1e-17)
    np.testing.assert_allclose(linear_regression.largest_rate(np.diag(h), batch), limit, rtol=1e-12)


def test_gaussian_regression_is_the_fixed_point_of_one_step():
    # Fourth moments of normal data by Gauss-Hermite quadrature in the plane, exact for polynomials.
    H, eta, s2 = np.array([[1.5, 0.4], [0.4, 0.7]]), 0.2, 0.3
    P = linear_regression.regression_covariance(H, s2, eta)
    z, w = np.polynomial.hermite_e.hermegauss(6)
    w = w / w.sum()
    root = np.linalg.cholesky(H)
    after = np.zeros((2, 2))
    for i, j in np.ndindex(6, 6):
        a = root @ np.array([z[i], z[j]])
        step = np.eye(2) - eta * np.outer(a, a)
        after += w[i] * w[j] * (step @ P @ step.T + eta**2 * s2 * np.outer(a, a))
    np.testing.assert_allclose(after, P, rtol=1e-12)
    np.testing.assert_allclose(linear_regression.regression_loss(H, s2, eta), (np.trace(H @ P) + s2) / 2, rtol=1e-12)


def test_the_regression_sde_has_no_moment_drift_in_its_stationary_state():
    # d E vvᵀ/dt = -HP - PH + (η/B)(2 f H + H P H), with 2f = tr HP + s².
    H, eta, batch, s2 = np.array([[1.5, 0.4], [0.4, 0.7]]), 0.2, 3, 0.3
    P = linear_regression.regression_covariance(H, s2, eta, batch, False)
    noise = eta / batch * ((np.trace(H @ P) + s2) * H + H @ P @ H)
    np.testing.assert_allclose(H @ P + P @ H, noise, rtol=1e-12)


# Tails


@pytest.mark.parametrize(("step", "alpha"), [(0.01, 5.010073844252), (0.1, 5.106291895997), (0.5, 5.550605844383)])
def test_tail_of_loss_proportional_noise(step, alpha):
    np.testing.assert_allclose(tails.loss_proportional_tail_index(2.0, 0.5, step / 2), alpha, rtol=1e-11)
    assert tails.sde_tail_index(0.5) == 5


def test_tail_index_where_a_moment_is_a_polynomial():
    # E A⁴ = 1 by the moments of a normal: a⁴ + 6a²b² + 3b⁴ = 1 at α = 4.
    from scipy.optimize import brentq

    kappa = brentq(lambda k: 0.9**4 + 6 * 0.81 * 0.1 * k + 3 * (0.1 * k) ** 2 - 1, 0.1, 3)
    np.testing.assert_allclose(tails.loss_proportional_tail_index(1.0, kappa, 0.1), 4, rtol=1e-11)


def test_tail_of_gaussian_regression():
    np.testing.assert_allclose(linear_regression.regression_tail_index(2.0, 0.1), 8.302594072332, rtol=1e-11)
    np.testing.assert_allclose(linear_regression.regression_tail_index(1.0, 0.5), 2.903966228916, rtol=1e-11)
    assert linear_regression.regression_sde_tail_index(2.0, 0.1) == pytest.approx(6)
    assert linear_regression.regression_sde_tail_index(1.0, 0.5) == pytest.approx(3)
    # α = 2 is where the second moment turns infinite.
    edge = linear_regression.largest_rate(1.3, 3)
    np.testing.assert_allclose(linear_regression.regression_tail_index(1.3, edge, 3), 2, rtol=1e-10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ou.mean([1.0], -1.0, 1.0), "`t` must be at least 0"),
        (lambda: ou.entropy_production(H, np.diag([1.0, 0.0]), 0.1), "`C` must be positive definite"),
        (lambda: momentum.delayed_covariance(H, C, 0.5, 4, 0.5), r"below 1/λ_max\(H\) = 0.453"),
        (lambda: momentum.largest_rate(1.0, 0.9, "nesterov"), "`form` must be one of .*'delayed'"),
        (lambda: momentum.underdamped_mean(1.0, 0.0, 1.0, 1.0, 0.0), "`friction` must be positive"),
        (lambda: preconditioned.preconditioned_covariance(H, C, -H, 0.1), "`F` must be positive definite"),
        (lambda: preconditioned.preconditioned_covariance(H, C, H, 0.5, finite_rate=True), r"below 2/λ_max\(FH\)"),
        (lambda: linear_regression.regression_loss(H, 0.3, 1.0), "`learning_rate` must be below 0.2857"),
        (lambda: tails.loss_proportional_tail_index(1.0, 0.5, 5.0), "has no stationary law"),
        (lambda: tails.sde_tail_index(3.0, 3), r"needs `temperature` below 2/\(d-2\) = 2"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
