"""Closed forms for reshuffling, adaptive and sign methods, SAM, modified equations, and noise of low rank."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import solve_continuous_lyapunov

from sgdsde import losses
from sgdsde.theory import adaptive, balance, central_limit, low_rank, modified, sharpness, shuffling, signed

# Reshuffling


@pytest.mark.parametrize(
    ("m", "variance"), [(4, 0.0009565911033849342), (10, 0.004820290598537), (50, 0.033506809129887)]
)
def test_reshuffled_variance(m, variance):
    np.testing.assert_allclose(shuffling.reshuffled_variance(1.0, 1.0, 0.1, m), variance, rtol=1e-12)
    np.testing.assert_allclose(shuffling.independent_variance(1.0, 1.0, 0.1), 0.05263157894736842, rtol=1e-14)


def test_reshuffled_variance_by_enumeration():
    b, a = np.array([1.0, -2.0, 3.0, -1.5, -0.5]), 1 - 0.3 * 0.7
    sums = [np.dot(a ** np.arange(5), order) for order in itertools.permutations(b)]
    expected = 0.3**2 * np.mean(np.square(sums)) / (1 - a**10)
    np.testing.assert_allclose(shuffling.reshuffled_variance(0.7, np.mean(b**2), 0.3, 5), expected, rtol=1e-12)
    # Small ηhM, where the difference of two nearly equal sums would cancel: η³hs²M(M+1)/24.
    np.testing.assert_allclose(shuffling.reshuffled_variance(1e-6, 1.0, 0.1, 4), 1e-9 * 20 / 24, rtol=1e-6)


@pytest.mark.parametrize(
    ("eps", "shuffled", "flow", "plain", "independent", "independent_flow"),
    [
        (0.05, 2.02196875, 2.0293987852263093, 2.0769814044665162, 2.0255923828125, 2.0302717154373844),
        (0.025, 2.457716796875, 2.458910853091092, 2.475430087036295, 2.4590878051757814, 2.4598377263749507),
    ],
)
def test_implicit_regularisation(eps, shuffled, flow, plain, independent, independent_flow):
    case = ([1.0, 2.0, 3.0, 5.0], [0.0, 1.0, -1.0, 2.0], 3.0, eps)
    np.testing.assert_allclose(shuffling.reshuffled_mean(*case), shuffled, rtol=1e-14)
    np.testing.assert_allclose(shuffling.reshuffled_flow(*case), flow, rtol=1e-14)
    np.testing.assert_allclose(shuffling.gradient_flow(*case), plain, rtol=1e-14)
    np.testing.assert_allclose(shuffling.independent_mean(*case), independent, rtol=1e-14)
    np.testing.assert_allclose(shuffling.independent_flow(*case), independent_flow, rtol=1e-14)


def test_the_variance_of_gradients_acts_only_on_shuffled_means():
    h, a = [1.0, 2.0, 3.0, 5.0], [0.0, 1.0, -1.0, 2.0]
    errors = {"matched": [], "crossed": []}
    for eps in (2e-3, 1e-3):
        shuffled, independent = (f(h, a, 3.0, eps) for f in (shuffling.reshuffled_mean, shuffling.independent_mean))
        errors["matched"].append(abs(shuffled - shuffling.reshuffled_flow(h, a, 3.0, eps)))
        errors["crossed"].append(abs(independent - shuffling.reshuffled_flow(h, a, 3.0, eps)))
    assert 7.6 < errors["matched"][0] / errors["matched"][1] < 8.1
    assert 3.75 < errors["crossed"][0] / errors["crossed"][1] < 4.05
    np.testing.assert_allclose(shuffling.reshuffled_mean(h, a, 3.0, 0.0125), 2.714712768555, rtol=1e-12)
    np.testing.assert_allclose(shuffling.reshuffled_flow(h, a, 3.0, 0.0125), 2.714880512548, rtol=1e-12)


def test_means_over_orders_by_enumeration():
    h, a, eps = np.array([1.0, -0.5, 2.0, 0.3]), np.array([0.2, 1.0, -1.0, 4.0]), 0.2
    # Two epochs with independent orders: the map of means twice.
    once = shuffling.reshuffled_mean(h, a, 1.5, eps)
    assert shuffling.reshuffled_mean(h, a, 1.5, eps, epochs=2) == pytest.approx(
        shuffling.reshuffled_mean(h, a, once, eps), rel=1e-13
    )
    single = [_epoch(h, a, eps, order, 1.5) for order in itertools.permutations(range(4))]
    assert once == pytest.approx(np.mean(single), rel=1e-13)


def _epoch(h, a, eps, order, w):
    for j in order:
        w -= eps * h[j] * (w - a[j])
    return w


# RMSProp and Adam


@pytest.mark.parametrize(
    ("epsilon", "stationary", "mean", "variance"),
    [
        (0.0, 0.21650635094610965, 0.08304021303029864, 0.26929629969397995),
        (0.1, 0.19409427460754358, 0.12377314235140405, 0.2359322760483671),
    ],
)
def test_rmsprop(epsilon, stationary, mean, variance):
    assert adaptive.stationary_variance(2.0, 3.0, 0.5, epsilon) == pytest.approx(stationary, rel=1e-13)
    assert adaptive.rmsprop_mean(1.0, 0.7, 2.0, 3.0, 0.5, 2.0, 0.25, epsilon) == pytest.approx(mean, rel=1e-10)
    assert adaptive.rmsprop_variance(0.7, 2.0, 3.0, 0.5, 2.0, 0.25, epsilon) == pytest.approx(variance, rel=1e-10)
    np.testing.assert_allclose(adaptive.second_moment_average(0.7, 3.0, 2.0, 0.25), 2.321858349160582, rtol=1e-14)
    late = adaptive.rmsprop_variance(60.0, 2.0, 3.0, 0.5, 2.0, 0.25, epsilon)
    assert late == pytest.approx(stationary, rel=1e-9)


@pytest.mark.parametrize("c1", [0.3, 20.0])
def test_adam_has_the_same_stationary_variance(c1):
    h, c, sigma, eps = 2.0, 3.0, 0.5, 0.1
    P = sigma * np.sqrt(c) + eps
    A = np.array([[0, -1 / P], [c1 * h, -c1]])
    cov = solve_continuous_lyapunov(A, -np.diag([0, (sigma * c1) ** 2 * c]))
    assert adaptive.stationary_variance(h, c, sigma, eps) == pytest.approx(cov[0, 0], rel=1e-12)


def _adam_at_rest(n, t, h, c, sigma, c1, eps):
    """Mean from 1 and variance from a point of n steps of Adam whose v is the variance of a gradient."""
    dt = t / n
    beta, P = 1 - c1 * dt, sigma * np.sqrt(c) + eps
    mean, cov = np.array([1.0, 0.0]), np.zeros((2, 2))
    for k in range(n):
        q = dt / P / (1 - beta ** (k + 1))
        A = np.array([[1 - q * (1 - beta) * h, -q * beta], [(1 - beta) * h, beta]])
        g = np.array([-q, 1.0]) * (1 - beta) * sigma * np.sqrt(c / dt)
        mean, cov = A @ mean, A @ cov @ A.T + np.outer(g, g)
    return np.array([mean[0], cov[0, 0]])


def test_adam_is_the_limit_of_its_recursion():
    h, c, sigma, c1, eps, t = 2.0, 3.0, 0.5, 4.0, 0.1, 1.0
    coarse, fine = (_adam_at_rest(n, t, h, c, sigma, c1, eps) for n in (1000, 2000))
    exact = adaptive.adam_mean(1.0, t, h, c, sigma, c1, eps), adaptive.adam_variance(t, h, c, sigma, c1, eps)
    # The error of the fine one is 6e-5, of first order; that of the extrapolation is of second, some t c₁²/n².
    np.testing.assert_allclose(2 * fine - coarse, exact, atol=4e-6)
    late = adaptive.adam_variance(40.0, h, c, sigma, c1, eps)
    assert late == pytest.approx(adaptive.stationary_variance(h, c, sigma, eps), rel=1e-9)
    early = adaptive.adam_variance(1e-4, h, c, sigma, c1, eps)
    assert early == pytest.approx(2 * sigma**2 * c * 1e-4 / (sigma * np.sqrt(c) + eps) ** 2, rel=1e-3)
    assert adaptive.adam_variance(0.0, h, c, sigma, c1, eps) == 0
    assert adaptive.adam_mean(3.0, 0.0, h, c, sigma, c1, eps) == 3


def test_square_root_rule_keeps_the_sde():
    batch, eta, betas, eps = adaptive.square_root_rule(4, 32, 1e-3, (0.9, 0.99), 1e-8)
    assert (batch, eta, eps) == pytest.approx((128, 2e-3, 5e-9))
    assert betas == pytest.approx((0.6, 0.96))
    # c_i = (1-β_i)/η², σ₀ = ση with σ ∝ 1/√B, ε₀ = εη.
    assert (1 - betas[1]) / eta**2 == pytest.approx((1 - 0.99) / 1e-6)
    assert eta / np.sqrt(batch) == pytest.approx(1e-3 / np.sqrt(32))
    assert eps * eta == pytest.approx(1e-11)


def test_missing_bias_correction():
    ratio = adaptive.missing_bias_correction(np.arange(1, 2000))
    np.testing.assert_allclose(ratio[[0, 11, 99]], [np.sqrt(10), 6.5685203, 3.2408], rtol=2e-5)
    assert np.argmax(ratio) == 11


# SignSGD


@pytest.mark.parametrize(
    ("eta", "exact", "linear"),
    [(0.1, 0.062078490454611765, 0.06266570686577501), (0.5, 0.2967061332986314, 0.3133285343288751)],
)
def test_sign_descent(eta, exact, linear):
    assert signed.stationary_second_moment(1.0, 1.0, eta) == pytest.approx(exact, rel=1e-11)
    assert signed.linearised_second_moment(1.0, 1.0, eta) == pytest.approx(linear, rel=1e-13)
    # In units: h → 3h, s → 2s, η → (2/3)η is a change of length.
    assert signed.stationary_second_moment(3.0, 2.0, eta * 2 / 3) == pytest.approx(exact * 4 / 9, rel=1e-10)


def test_sign_descent_has_a_law_without_current():
    from scipy.special import erf

    def pdf(x):
        return signed.stationary_pdf(x, 1.3, 0.7, 0.4)

    # Sums over a fine grid are exact to rounding for a smooth density that vanishes at both ends.
    x = np.linspace(-5, 5, 2001)
    assert 0.005 * np.sum(pdf(x)) == pytest.approx(1, rel=1e-12)
    second = 0.005 * np.sum(x**2 * pdf(x))
    assert signed.stationary_second_moment(1.3, 0.7, 0.4) == pytest.approx(second, rel=1e-12)

    def flux(x):
        return 0.2 * (1 - erf(1.3 * x / (np.sqrt(2) * 0.7)) ** 2) * pdf(x)

    slope = (flux(0.5 + 1e-4) - flux(0.5 - 1e-4)) / 2e-4
    assert slope == pytest.approx(-erf(1.3 * 0.5 / (np.sqrt(2) * 0.7)) * pdf(0.5), rel=1e-6)


# SAM


@pytest.mark.parametrize("w", [[0.3, -0.8], [0.0, 0.7], [0.5, 0.0], [0.0, 0.0], [0.0, 1e-3]])
def test_sam_loss_against_the_circle(w):
    H = np.array([[2.0, 0.5], [0.5, 1.0]]) if w[0] == 0.3 else np.diag([3.0, 1.0])
    angle = np.linspace(0, 2 * np.pi, 200_001)
    points = np.array(w)[:, None] + 0.2 * np.stack([np.cos(angle), np.sin(angle)])
    brute = np.max(0.5 * np.sum(points * (H @ points), axis=0))
    assert sharpness.sam_loss(H, w, 0.2) == pytest.approx(brute, rel=1e-8)


def test_sam_in_one_dimension():
    assert sharpness.sam_loss(2.0, -0.7, 0.1) == pytest.approx(0.8**2)
    w = sharpness.cycle_amplitude(2.0, 0.1, 0.3)
    assert w - 0.3 * 2.0 * (w + 0.1) == pytest.approx(-w, rel=1e-13)
    assert w == pytest.approx(0.3 * 2.0 * 0.1 / 1.4)


def test_usam_amplifies_the_noise():
    assert sharpness.usam_covariance(2.0, 3.0, 0.1, 0.05)[0, 0] == pytest.approx(0.1 * 3 * 1.1 / 4, rel=1e-13)
    # One step of w - η h((1+ρh)w + ρξ) - ηξ leaves the covariance as it is.
    H, C = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.3], [-0.3, 2.0]])
    P = sharpness.usam_covariance(H, C, 0.3, 0.1, 4, finite_rate=True)
    push = np.eye(2) + 0.1 * H
    step = np.eye(2) - 0.3 * H @ push
    np.testing.assert_allclose(step @ P @ step.T + 0.09 / 4 * push @ C @ push, P, rtol=1e-12)


# Modified equations


@pytest.mark.parametrize(
    ("eta", "variances", "means", "rate", "noise"),
    [
        (
            0.1,
            [0.05263157894736842, 0.05, 0.047619047619047616],
            [0.3486784401, 0.36787944117144233, 0.3499377491111553],
            1.053605156578263,
            0.11090580595560663,
        ),
        (
            0.2,
            [0.1111111111111111, 0.1, 0.09090909090909091],
            [0.1073741824, 0.1353352832366127, 0.11080315836233388],
            1.1157177565710488,
            0.24793727923801084,
        ),
    ],
)
def test_modified_equations(eta, variances, means, rate, noise):
    orders = (None, 1, 2)
    np.testing.assert_allclose([modified.stationary_variance(1.0, 1.0, eta, o) for o in orders], variances, rtol=1e-13)
    np.testing.assert_allclose([modified.mean_factor(1.0, eta, 10, o) for o in orders], means, rtol=1e-13)
    assert modified.matched_rate(1.0, eta) == pytest.approx(rate, rel=1e-13)
    assert modified.matched_noise(1.0, 1.0, eta) == pytest.approx(noise, rel=1e-13)
    assert np.exp(-10 * eta * rate) == pytest.approx(means[0], rel=1e-12)
    assert noise / (2 * rate) == pytest.approx(variances[0], rel=1e-12)


# Fluctuations about gradient flow


def test_fluctuations_about_the_flow():
    # f = x⁴/4 from 1: X = (1+2t)^{-1/2}, Γ = σ² ((1+2t) - (1+2t)^{-3})/8.
    ts = np.array([0.0, 0.5, 20.0])
    np.testing.assert_allclose(central_limit.flow(lambda x: x[0] ** 4 / 4, 1.0, ts), (1 + 2 * ts) ** -0.5, rtol=1e-9)
    found = central_limit.variance(lambda x: x[0] ** 4 / 4, 2.0, 1.0, ts)
    np.testing.assert_allclose(found, ((1 + 2 * ts) - (1 + 2 * ts) ** -3) / 4, rtol=1e-8, atol=1e-12)


def test_fluctuations_solve_their_equation():
    loss = losses.DoubleWell()

    def rates(_, y):
        x, gamma = y
        return [x - x**3, -2 * (3 * x**2 - 1) * gamma + 0.3 + x**2]

    direct = solve_ivp(rates, (0, 2.5), [0.1, 0.0], rtol=1e-11, atol=1e-13, method="DOP853").y[:, -1]
    found = central_limit.variance(loss, lambda x: 0.3 + x[0] ** 2, 0.1, [2.5])
    np.testing.assert_allclose(found, direct[1:], rtol=1e-7)


# Law of balance


@pytest.mark.parametrize(
    ("eta", "s2", "shape", "rate", "below", "pdf", "risk"),
    [
        (0.2, 1.0, 4.5, 5.0, 0.16569173980659244, 0.8717251524956242, 0.095),
        (0.25, 4.0, 0.5, 1.0, 0.6826894921370859, 0.4839414490382867, 0.375),
    ],
)
def test_law_of_balance(eta, s2, shape, rate, below, pdf, risk):
    assert balance.product_law(1.0, s2, eta) == pytest.approx((shape, rate))
    assert balance.product_cdf(0.5, 1.0, s2, eta) == pytest.approx(below, rel=1e-12)
    assert balance.product_pdf(0.5, 1.0, s2, eta) == pytest.approx(pdf, rel=1e-12)
    assert balance.product_moments(1.0, s2, eta) == pytest.approx((shape / rate, shape / rate**2))
    assert balance.excess_risk(1.0, s2, eta) == pytest.approx(risk, rel=1e-12)
    assert balance.collapse_rate(1.0, s2) == pytest.approx(2 / s2)
    assert balance.exponent_at_zero(1.0, s2, eta) == pytest.approx(2 - eta * s2)


def test_law_of_balance_has_no_current():
    # D = 2ηs²v², drift 2v(μ-v) + ηs²v.
    mu, s2, eta, v, h = 1.3, 0.8, 0.3, 0.9, 1e-4
    flux = [2 * eta * s2 * x**2 * balance.product_pdf(x, mu, s2, eta) for x in (v - h, v + h)]
    drift = 2 * v * (mu - v) + eta * s2 * v
    assert (flux[1] - flux[0]) / (2 * h) == pytest.approx(drift * balance.product_pdf(v, mu, s2, eta), rel=1e-6)


def test_balance_holds_on_a_path():
    # Euler-Maruyama steps of the SDE with the same noise in both layers; strong error of order √dt in the noise only.
    rng = np.random.default_rng(3)
    u, w, dt, eta, s2 = 1.5, 0.4, 1e-4, 0.3, 0.7
    for dB in np.sqrt(dt) * rng.standard_normal(10_000):
        kick = (u * w - 1.0) * dt + np.sqrt(eta * s2) * dB
        u, w = u - w * kick, w - u * kick
    assert u**2 - w**2 == pytest.approx(float(balance.imbalance(1.5, 0.4, 1.0, eta, s2)), rel=0.01)


# Low rank


@pytest.mark.parametrize(
    ("b", "sde", "cross", "discrete", "lyapunov"),
    [
        (1, 0.1572371663136276, 0.1287349035878042, 0.15164491305017583, -0.26875),
        (2, 0.1458757568562274, 0.13199384318783022, 0.13962410156177374, -0.259375),
    ],
)
def test_low_rank(b, sde, cross, discrete, lyapunov):
    assert low_rank.sde_second_moments(4, b, 0.2, 4.0) == pytest.approx((sde, cross), rel=1e-13)
    assert low_rank.second_moments(4, b, 0.2, 20)[0] == pytest.approx(discrete, rel=1e-13)
    assert low_rank.lyapunov_exponents(4, b, 0.2)[1] == pytest.approx(lyapunov)


def test_svag_and_lyapunov_exponent_of_low_rank_noise():
    expected = [0.15164491305017583, 0.15444084744804049, 0.1558390800247586, 0.15688767104326504]
    found = [low_rank.second_moments(4, 1, 0.2, 20, levels)[0] for levels in (1, 2, 4, 16)]
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    assert low_rank.lyapunov_exponents(4, 1, 0.2)[0] == pytest.approx(-0.2789294391427622, rel=1e-13)


def test_low_rank_moments_by_enumeration():
    n, eta = 3, 0.3
    factors = np.array(
        [1 - eta / 2 * np.bincount(batch, minlength=n) for batch in itertools.product(range(n), repeat=2)]
    )
    square, cross = np.mean(factors[:, 0] ** 2), np.mean(factors[:, 0] * factors[:, 1])
    assert low_rank.second_moments(n, 2, eta, 1) == pytest.approx((square, cross), rel=1e-13)
    assert low_rank.lyapunov_exponents(n, 2, eta)[0] == pytest.approx(np.mean(np.log(factors[:, 0])) / eta, rel=1e-13)
    sigma = low_rank.noise_covariance([1.0, -2.0, 0.5], 2)
    step = (factors - 1) * np.array([1.0, -2.0, 0.5]) / eta
    np.testing.assert_allclose(sigma, np.cov(step.T, bias=True), rtol=1e-12)
    assert np.linalg.matrix_rank(sigma) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: shuffling.reshuffled_variance(1.0, 1.0, 2.0, 4), "below 2/h = 2"),
        (lambda: shuffling.reshuffled_mean([1.0, 2.0], [1.0], 0.0, 0.1), "must both have the shape"),
        (lambda: adaptive.rmsprop_mean(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0), "must not both be 0"),
        (lambda: adaptive.square_root_rule(20, 1, 0.1, (0.9,), 0.0), r"`factor` must keep 1 - k\(1 - β\)"),
        (lambda: adaptive.missing_bias_correction(0), "`steps` must be 1 or more"),
        (lambda: sharpness.sam_loss(np.diag([1.0, -1.0]), [0.0, 0.0], 0.1), "must be positive semi-definite"),
        (lambda: sharpness.cycle_amplitude(2.0, 0.1, 1.0), "below 2/h = 1"),
        (lambda: modified.matched_rate(1.0, 1.5), "SGD alternates there"),
        (lambda: modified.mean_factor(1.0, 0.1, 1, 3), "`order` must be 1, 2, or None"),
        (lambda: central_limit.variance(lambda x: jnp.sum(x**2), 1.0, 0.0, [1.0]), "must not be a critical point"),
        (lambda: balance.product_law(1.0, 1.0, 2.0), "below 2μ/s² = 2"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
