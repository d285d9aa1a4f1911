"""Sphere integrals by independent quadratures, the identity with determinants, and transverse Lyapunov exponents."""

import math

import numpy as np
import pytest
from scipy.integrate import quad

from sgdsde import theory
from sgdsde.theory import geometric, lyapunov, sphere


def circle_mean(a, q):
    angle = 2 * np.pi * np.arange(4096) / 4096
    return np.mean((a[0] * np.cos(angle) ** 2 + a[1] * np.sin(angle) ** 2) ** -q)


def ball_mean(a, q):
    """k = 3: Gauss-Legendre in the height, an equidistant sum in the angle."""
    z, w = np.polynomial.legendre.leggauss(400)
    return 0.5 * w @ [circle_mean(np.array(a[:2]) * (1 - s**2) + a[2] * s**2, q) for s in z]


@pytest.mark.parametrize("q", [0.05, 0.5, 1.0, 1.7, 3.0, 11.0])
def test_against_quadrature(q):
    a = np.array([0.1, 1.3])
    assert sphere.sphere_mean(np.diag(a), q) == pytest.approx(circle_mean(a, q), rel=1e-12)
    a = np.array([0.4, 1.0, 3.0])
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    assert sphere.sphere_mean(turn @ np.diag(a) @ turn.T, q) == pytest.approx(ball_mean(a, q), rel=1e-11)
    assert sphere.sphere_integral([[0.3]], q) == pytest.approx(2 * 0.3**-q, rel=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 8, 20])
def test_the_integral_is_the_determinant(k):
    rng = np.random.default_rng(k)
    A = np.diag(np.exp(rng.normal(size=k) * 2))
    assert sphere.sphere_integral(A, k / 2) == pytest.approx(sphere.determinant_form(A), rel=1e-12)


def test_the_integral_is_not_the_arithmetic_geometric_mean():
    A = np.diag([1.0, 0.01])
    assert sphere.sphere_integral(A, 1) / (2 * math.pi) == pytest.approx(10, rel=1e-13)
    # agm(√1, √0.01): the mean of (νᵀAν)^{-1/2}; with A² in place of A the mean of 1/|Aν| = 1/agm(1, 0.01).
    assert sphere.agm_form(A) == pytest.approx(sphere.sphere_integral(A, 0.5), rel=1e-12)
    assert sphere.agm_form(A @ A) / (2 * math.pi) == pytest.approx(3.814364242074, rel=1e-12)
    tiny = 2 * math.pi / sphere.agm_form(np.diag([1.0, 1e-20]))
    assert tiny * abs(math.log(1e-10)) == pytest.approx(1.4815953956870096, rel=1e-12)


@pytest.mark.parametrize(
    ("diagonal", "kappa", "exponent"),
    [
        ([1, 4], 0.1, -1.053839897406193),
        ([1, 4], 0.5, -1.3559322033898304),
        ([1, 4], 2.0, -1.780690239269494),
        ([1, 1, 4], 1.0, -0.7074654083846308),
        ([1, 1, 4], 2.0, 0.0),
        ([1, 1, 4], 3.0, 0.7809825902719005),
    ],
)
def test_transverse_exponent(diagonal, kappa, exponent):
    H = np.diag(np.array(diagonal, dtype=float))
    assert theory.transverse_exponent(H, kappa) == pytest.approx(exponent, rel=1e-12, abs=1e-15)


def test_transverse_exponent_of_round_valleys_is_that_of_geometric_brownian_motion():
    for k, kappa in ((1, 0.7), (2, 0.7), (5, 0.05), (5, 2.0)):
        found = theory.transverse_exponent(1.7 * np.eye(k), kappa)
        assert found == pytest.approx(geometric.lyapunov_exponent(kappa, k, 1.7), rel=1e-11)


def test_transverse_exponent_in_the_plane_from_the_angle():
    # The angle ψ is a diffusion on the circle, dψ = (a-b)/2 sin 2ψ dt + √(2κh) dB, and d log r = -2h dt + noise.
    a, b, kappa = 1.0, 4.0, 0.5

    def h(angle):
        return 0.5 * (a * np.cos(angle) ** 2 + b * np.sin(angle) ** 2)

    def law(angle):
        # Its stationary law without current: 1/(κh) exp ∫ (a-b)/2 sin 2ψ/(κh), where h' = (b-a)/2 sin 2ψ.
        return h(angle) ** (-1 - 1 / kappa)

    top = quad(lambda s: -2 * h(s) * law(s), 0, np.pi)[0]
    expected = top / quad(law, 0, np.pi)[0]
    assert theory.transverse_exponent(np.diag([a, b]), kappa) == pytest.approx(expected, rel=1e-9)


def test_hessian_aligned_noise():
    h = lyapunov.aligned_threshold(0.5, 4)
    # D = κ f h I is isotropic noise at the temperature κh.
    assert geometric.lyapunov_exponent(0.5 * h, 4) == pytest.approx(0)
    assert lyapunov.aligned_threshold(0.5, 2) == np.inf


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sphere.sphere_mean(np.diag([1.0, -1.0]), 1.0), "`A` must be positive definite"),
        (lambda: sphere.sphere_mean(np.eye(2), 0.0), "`power` must be positive"),
        (lambda: sphere.agm_form(np.eye(3)), "`A` must be 2 × 2"),
        (lambda: theory.transverse_exponent(np.diag([1.0, 0.0]), 1.0), "`H` must be positive definite"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
