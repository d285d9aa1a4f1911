"""Loss-proportional noise: contraction, geometric Brownian motion, existence, gaps and limit points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.linalg import eigvalsh_tridiagonal

from sgdsde import losses, theory
from sgdsde.theory import contraction, existence, fluctuation_dissipation, gaps, geometric, limit_point

# Contraction


@pytest.mark.parametrize(("eta", "exact", "printed"), [(0.1, 0.815, 0.805), (0.5, 0.375, 0.125), (1.0, 0.5, -0.5)])
def test_contraction_is_sharp_and_the_printed_formula_is_not_a_bound(eta, exact, printed):
    # f = x²/2 with E|g - x|² = f: E f⁺/f = (1-η)² + η²/2.
    assert (1 - eta) ** 2 + eta**2 / 2 == pytest.approx(exact)
    assert theory.contraction_rate(eta, 2.0, 1.0, 1.0) == pytest.approx(exact, rel=1e-14)
    assert contraction.contraction_rate_as_printed(eta, 2.0, 1.0, 1.0) == pytest.approx(printed, rel=1e-14)
    assert contraction.contraction_rate_as_printed(eta, 2.0, 1.0, 1.0) < exact


def test_contraction_in_several_dimensions():
    # Isotropic noise D = κf I has the trace σ = 2dκ/η.
    eta, kappa, lam, d = 0.3, 0.2, 1.7, 4
    rho = theory.contraction_rate(eta, 2 * lam, lam, 2 * d * kappa / eta)
    assert rho == pytest.approx(geometric.discrete_growth(eta, kappa, d, lam), rel=1e-13)


def test_thresholds_of_contraction():
    assert contraction.largest_rate(2.0, 1.0, 1.0) == pytest.approx(4 / 3)
    assert contraction.best_rate(2.0, 1.0, 1.0) == pytest.approx((2 / 3, 1 / 3))
    eta, rho = contraction.best_rate(1.1, 3.0, 0.7)
    assert theory.contraction_rate(eta, 1.1, 3.0, 0.7) == pytest.approx(rho, rel=1e-13)
    assert theory.contraction_rate(contraction.largest_rate(1.1, 3.0, 0.7), 1.1, 3.0, 0.7) == pytest.approx(1)
    assert contraction.iterate_bound(0.5, 2.0, 1.0, 1.0) == pytest.approx(4.991510153071851, rel=1e-13)


# Fluctuation and dissipation


def average(log_density):
    """Averages over the law ∝ exp(log_density(f)) on the line, by sums over a fine grid: exact but for 1e-12."""
    x = jnp.linspace(-12.0, 12.0, 6001)[:, None]
    weight = jax.nn.softmax(log_density(jax.vmap(well)(x)))
    return jax.jit(lambda fn: weight @ jax.vmap(fn)(x), static_argnums=0)


well = losses.DoubleWell(0.3, 0.1)


def test_identities_hold_for_the_laws_and_fail_for_others():
    wrong = average(lambda f: -f / 0.3)
    for expect, diffusion in (
        (average(lambda f: -f / 0.25), lambda x: 0.25 * jnp.eye(1)),
        (average(lambda f: -5 * jnp.log(f)), lambda x: 0.25 * well(x) * jnp.eye(1)),
    ):
        for identity in (fluctuation_dissipation.virial, fluctuation_dissipation.dissipation):
            left, right = identity(well, diffusion, expect)
            assert left == pytest.approx(right, rel=1e-9)
            left, right = identity(well, diffusion, wrong)
            assert abs(left - right) > 0.03 * right


def test_dissipation_with_a_matrix():
    H, C = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.3], [-0.3, 2.0]])
    root = np.linalg.cholesky(theory.stationary_covariance(H, C, 0.1, 4))
    points = jnp.asarray(np.sqrt(2) * root @ np.array([[1, -1, 0, 0], [0, 0, 1, -1]])).T
    relation = fluctuation_dissipation.dissipation(
        losses.Quadratic(H), lambda x: jnp.asarray(0.1 * C / 8), lambda fn: jnp.mean(jax.vmap(fn)(points))
    )
    assert relation == pytest.approx((0.04625, 0.04625), rel=1e-12)


def test_discrete_identity_in_the_exact_law():
    # One dimension, x ~ N(0, P) and gradient noise ±√c, each with its weight by a symmetric rule exact to degree 3.
    h, c, eta = 1.3, 0.4, 0.5
    x = np.sqrt(theory.stationary_covariance(h, c, eta, finite_rate=True)[0, 0]) * np.array([[1], [1], [-1], [-1]])
    g = h * x + np.sqrt(c) * np.array([[1], [-1], [1], [-1]])
    left, right = fluctuation_dissipation.discrete(x, g, eta)
    assert left == pytest.approx(right, rel=1e-12)


# Existence


def test_temperatures_at_which_a_law_exists():
    assert existence.critical_temperature(3) == 2
    assert existence.critical_temperature(2) == np.inf
    window = existence.normalisable_temperatures(4, 4, codim=3)
    assert window == (2.0, np.inf)
    assert 2.1 in window
    assert 2.0 not in window
    # f ~ |x|²: nothing is left beside zeros of f.
    window = existence.normalisable_temperatures(4, 2, codim=4)
    assert window == (1, 1)
    assert existence.normalisable_temperatures(3, 2) == (0, 2)
    assert existence.normalisable_temperatures(3, 4, codim=2).low == np.inf
    # f = x⁴ + y² + z² has the threshold 1/4 + 1/2 + 1/2.
    assert existence.normalisable_temperatures(3, 2.5, threshold=1.25).low == pytest.approx(4)
    assert existence.why_not(2.5, 3, 4, codim=3) == ""
    assert "converges to the minimisers" in existence.why_not(1.5, 3, 4, codim=3)
    assert "p = 1.4 is not above d/γ = 1.5: mass escapes" in existence.why_not(2.5, 3, 2)


@pytest.mark.parametrize("kappa", [1.9, 2.1])
def test_windows_agree_with_the_integrals(kappa):
    # k = 3 near the zeros: ∫ r² (r²/2)^(-p) dr is finite iff p < 3/2. In log r, between -200 and -100 and above.
    rate = 3 - 2 * (1 + 1 / kappa)
    near, far = (quad(lambda x: np.exp(rate * x), a, b)[0] for a, b in ((-100, 0), (-200, -100)))
    assert (far < near) == (kappa in existence.normalisable_temperatures(3, 4, codim=3))


# Geometric Brownian motion


@pytest.mark.parametrize(
    ("d", "kappa", "lam", "lyapunov", "q2", "q4", "square", "median", "above", "sup", "euler"),
    [
        (
            1,
            0.5,
            1,
            -1.25,
            -1.5,
            -1,
            0.3246524673583497,
            0.391605626676799,
            0.06289321231947,
            3**-5,
            0.2213015788880307,
        ),
        (
            2,
            1.5,
            1,
            -1.0,
            1,
            8,
            2.117000016612675,
            0.4723665527410147,
            0.23975006109348,
            3 ** (-4 / 3),
            2.839420986069016,
        ),
        (3, 2.5, 1, 0.25, 5.5, 21, 61.86780925036788, 1.206230249420981, 0.5544571898913917, 1, 85.35834451185868),
        (5, 0.5, 2, -0.5, 1, 6, 2.117000016612675, 0.6872892787909722, 0.332502771051014, 1 / 3, 3.707221314118566),
    ],
)
def test_geometric_brownian_motion(d, kappa, lam, lyapunov, q2, q4, square, median, above, sup, euler):
    assert geometric.lyapunov_exponent(kappa, d, lam) == pytest.approx(lyapunov)
    assert geometric.moment_rate(2, kappa, d, lam) == pytest.approx(q2)
    assert geometric.moment_rate(4, kappa, d, lam) == pytest.approx(q4)
    assert np.exp(0.75 * geometric.moment_rate(2, kappa, d, lam)) == pytest.approx(square, rel=1e-13)
    assert np.exp(0.75 * geometric.lyapunov_exponent(kappa, d, lam)) == pytest.approx(median, rel=1e-13)
    assert geometric.radius_cdf(median, 0.75, kappa, d, lam) == pytest.approx(0.5, rel=1e-12)
    assert 1 - geometric.radius_cdf(1.0, 0.75, kappa, d, lam) == pytest.approx(above, rel=1e-12)
    assert geometric.ever_exceeds(3.0, kappa, d) == pytest.approx(sup, rel=1e-12)
    assert geometric.discrete_growth(0.1, kappa, d, lam) ** 10 == pytest.approx(euler, rel=1e-12)
    assert (kappa in geometric.deceptive_window(d)) == (lyapunov < 0 < q2)
    # The moment from the law of the radius: E r^q = ∫ q r^{q-1} P(r_t > r) dr.
    tail = quad(lambda r: 0.5 * r**-0.5 * (1 - geometric.radius_cdf(r, 0.75, kappa, d, lam)), 0, np.inf, epsabs=1e-10)
    assert tail[0] == pytest.approx(np.exp(0.75 * geometric.moment_rate(0.5, kappa, d, lam)), rel=1e-6)
    np.testing.assert_allclose(geometric.mean(2.0, 0.75, 1.0), 2 * 0.4723665527410147, rtol=1e-14)


# Gaps


@pytest.mark.parametrize(
    ("kappa", "d", "gap"),
    [(0.5, 2, 2.0), (0.2, 2, 2.0), (1.0, 2, 1.0), (0.5, 5, 0.125), (1.0, 3, 0.25), (2.0, 1, 2.0), (3.0, 1, 25 / 12)],
)
def test_spectral_gap(kappa, d, gap):
    assert gaps.spectral_gap(kappa, d, 2.0) == pytest.approx(gap, rel=1e-13)
    assert gaps.spectral_gap(kappa, d, 1.0) == pytest.approx(gap / 2, rel=1e-13)


def test_gap_is_continuous_and_vanishes_at_the_critical_temperature():
    for d in (1, 2, 3, 6):
        for edge in (1 / d, 2 / (d + 2), 2.0):
            below, above = (gaps.spectral_gap(edge * (1 + s * 1e-9), d, 2.0) for s in (-1, 1))
            assert below == pytest.approx(above, abs=1e-7)
    assert gaps.spectral_gap(2.0, 3, 2.0) == 0
    assert gaps.spectral_gap(2 / 3, 5, 2.0) == pytest.approx(0, abs=1e-14)


def radial_rates(kappa, d, degree, reach, cells=4000):
    """The lowest rates of f = 1 + |x|² for a harmonic of degree l, by finite volumes in log(radius): no closed form."""
    edges = np.linspace(-6.0, reach, cells + 1)
    centres, h, p = 0.5 * (edges[1:] + edges[:-1]), edges[1] - edges[0], 1 + 1 / kappa
    log_f = np.logaddexp(0, 2 * centres)
    weight = d * centres - p * log_f
    conductance = (d - 2) * edges[1:-1] + (1 - p) * np.logaddexp(0, 2 * edges[1:-1])
    gain = kappa / h**2
    right = gain * np.exp(conductance - weight[:-1])
    left = gain * np.exp(conductance - weight[1:])
    diagonal = np.zeros(cells)
    diagonal[:-1] += right
    diagonal[1:] += left
    diagonal += kappa * degree * (degree + d - 2) * np.exp(log_f - 2 * centres)
    return eigvalsh_tridiagonal(diagonal, -np.sqrt(right * left), select="i", select_range=(0, 1))


def test_gap_against_finite_volumes():
    # κ = 0.2: linear functions; κ = 0.37: |x|² in the second window.
    np.testing.assert_allclose(radial_rates(0.2, 3, 1, 7.0)[0], gaps.spectral_gap(0.2, 3, 2.0), rtol=1e-3)
    np.testing.assert_allclose(radial_rates(0.37, 3, 0, 14.0)[1], gaps.spectral_gap(0.37, 3, 2.0), rtol=1e-3)
    # Continuous spectrum, with and without an invariant law: a box of length Y in log r lifts it by up to κ(π/Y)².
    for kappa in (1.0, 6.0):
        edge = gaps.essential_threshold(kappa, 3, 2.0)
        found = radial_rates(kappa, 3, 0, 40.0)[1]
        assert edge < found < edge + kappa * (np.pi / 39) ** 2
        assert gaps.spectral_gap(kappa, 3, 2.0) == edge


def test_threshold_of_the_critical_loss():
    assert gaps.log_squared_threshold(3) == pytest.approx(2)
    assert gaps.log_squared_threshold(4) == pytest.approx(9 / 4)
    assert gaps.log_squared_threshold(7) == pytest.approx(36 / 10)


# Limit points


@pytest.mark.parametrize(
    ("k", "kappa", "at0", "at3", "beyond1", "beyond3", "variance"),
    [
        (2, 0.5, 0.75, 0.0023717082451262844, 0.11611652351681559, 0.0038825370469605103, 0.26381672362949266),
        (3, 1.0, 0.3183098861837907, 0.03183098861837907, 0.5, 0.20483276469913345, 1.1170000166126746),
        (4, 0.8, 0.1906899408754533, 0.03390999955603582, 0.6831128993256383, 0.43341042620175696, 0.9730687407712998),
    ],
)
def test_limit_point(k, kappa, at0, at3, beyond1, beyond3, variance):
    np.testing.assert_allclose(limit_point.pdf(np.array([[0.0], [3.0]]), 1.0, kappa, k), [at0, at3], rtol=1e-12)
    np.testing.assert_allclose(limit_point.beyond([1.0, 3.0], 1.0, kappa, k), [beyond1, beyond3], rtol=1e-11)
    np.testing.assert_allclose(limit_point.variance(0.75, 1.0, kappa, k), variance, rtol=1e-12)
    np.testing.assert_allclose(limit_point.beyond(2.0, 2.0, kappa, k), beyond1, rtol=1e-11)


def test_limit_point_is_a_harmonic_measure():
    # As a function of the start (φ, r) its density solves κr²/2 (∂φφ + ∂rr + (k-1)/r ∂r) u - r ∂r u = 0.
    k, kappa, phi, r, h = 3, 0.7, 0.4, 0.9, 1e-3

    def u(phi, r):
        return float(limit_point.pdf(np.array([phi, 0.3]), r, kappa, k))

    d_phi = (u(phi + h, r) - 2 * u(phi, r) + u(phi - h, r)) / h**2
    # The second coordinate of φ enters in the same way.
    d_psi = sum(
        s * float(limit_point.pdf(np.array([phi, 0.3 + j * h]), r, kappa, k)) for s, j in ((1, 1), (-2, 0), (1, -1))
    )
    d_rr, d_r = (u(phi, r + h) - 2 * u(phi, r) + u(phi, r - h)) / h**2, (u(phi, r + h) - u(phi, r - h)) / (2 * h)
    terms = kappa * r**2 / 2 * (d_phi + d_psi / h**2 + d_rr + (k - 1) / r * d_r), r * d_r
    assert terms[0] == pytest.approx(terms[1], rel=1e-5)


def test_moments_of_limit_points():
    assert limit_point.limit_variance(1.0, 0.5, 2) == pytest.approx(0.5)
    assert limit_point.limit_variance(1.0, 1.0, 3) == np.inf
    assert limit_point.variance(60.0, 1.5, 0.5, 2, dim=3) == pytest.approx(limit_point.limit_variance(1.5, 0.5, 2, 3))
    total = quad(lambda r: 2 * np.pi * r * limit_point.pdf(np.array([r, 0.0]), 1.2, 0.4, 3), 0, np.inf)[0]
    assert total == pytest.approx(1, rel=1e-9)
    for k, kappa, bias, spread in ((1, 0.5, 1 / 3, 1 / 3), (2, 0.5, 0.5, 0.5), (3, 0.25, 0.4, 0.2), (2, 0.0, 0.25, 0)):
        assert limit_point.drift(1.0, kappa, k, -1.0) == pytest.approx((bias, spread))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: theory.contraction_rate(2.5, 2.0, 1.0, 1.0), "below 2/smoothness = 2, where the descent"),
        (lambda: theory.contraction_rate(0.1, 3.0, 1.0, 1.0), "`pl_constant` must be at most 2 · smoothness"),
        (lambda: contraction.iterate_bound(1.5, 2.0, 1.0, 1.0), "below 1.33333, where ρ_η reaches 1"),
        (lambda: fluctuation_dissipation.discrete(np.ones(3), np.ones(3), 0.1), r"must both have the shape \(n, d\)"),
        (lambda: existence.normalisable_temperatures(3, 0.0), "`growth` must be positive"),
        (lambda: geometric.ever_exceeds(0.5, 0.5), "`ratio` must be at least 1"),
        (lambda: gaps.spectral_gap(0.5, 0), "`dim` must be a whole number, 1 or more"),
        (lambda: gaps.log_squared_threshold(2), "`dim` must be a whole number, 3 or more"),
        (lambda: limit_point.pdf(np.zeros(1), 1.0, 2.5, 3), r"below κ_c = 2/\(k-2\) = 2 for codim=3"),
        (lambda: limit_point.drift(1.0, 1.0, 2, 1.0), "below 2/k = 1, where the variance"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
