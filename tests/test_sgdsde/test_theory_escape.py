"""Escape times: asymptotic formulas, exact passage times by quadrature, and two wells with different noise."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import iv

from sgdsde import losses, theory
from sgdsde.theory import line, student

well = losses.DoubleWell()


def proportional(loss, kappa):
    return lambda x: kappa * loss(x)


# On a line


@pytest.mark.parametrize(
    ("kappa", "to_saddle", "across", "square", "height"),
    [
        (0.25, 5.743437068035236, 14.27773663650805, 0.83274548712838, 0.10431362821790498),
        (0.1, 30.82130247266569, 66.26862636491788, 0.8713629080420499, 0.057159272989487545),
    ],
)
def test_constant_noise_on_a_line(kappa, to_saddle, across, square, height):
    assert line.mean_passage_time(well, kappa, -1.0, 0.0) == pytest.approx(to_saddle, rel=1e-10)
    assert line.mean_passage_time(well, kappa, -1.0, 1.0) == pytest.approx(across, rel=1e-10)
    assert line.mean_passage_time(well, kappa, 1.0, -1.0) == pytest.approx(across, rel=1e-10)
    law = line.invariant_law(well, kappa)
    assert law.expect(np.square) == pytest.approx(square, rel=1e-10)
    assert law.expect(lambda x: (x**2 - 1) ** 2 / 4) == pytest.approx(height, rel=1e-10)
    # The partition function, in closed form.
    z = 1 / (8 * kappa)
    Z = np.pi / 2 * np.exp(-z) * (iv(-0.25, z) + iv(0.25, z))
    weight = np.exp(-((law.nodes**2 - 1) ** 2) / (4 * kappa)) / Z
    np.testing.assert_allclose(law.pdf, weight, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize(
    ("floor", "kappa", "to_saddle", "across", "square"),
    [
        (0.05, 0.25, 6688.838614551646, 13383.397459291393, 0.9845106884738493),
        (0.05, 0.5, 176.7307569822162, 357.8710116910439, None),
        (0.25, 0.5, None, 25.44686127416225, None),
        (0.1, 1.0, 11.051637032213138, 24.732480756724087, 0.903431048581823),
    ],
)
def test_loss_proportional_noise_on_a_line(floor, kappa, to_saddle, across, square):
    loss = losses.DoubleWell(floor)
    D = proportional(loss, kappa)
    assert line.mean_passage_time(loss, D, -1.0, 1.0) == pytest.approx(across, rel=1e-9)
    if to_saddle is not None:
        assert line.mean_passage_time(loss, D, -1.0, 0.0) == pytest.approx(to_saddle, rel=1e-9)
    if square is not None:
        law = line.invariant_law(loss, D)
        assert law.expect(np.square) == pytest.approx(square, rel=1e-9)
        assert np.sum(law.mass) == pytest.approx(1, rel=1e-14)


@pytest.mark.parametrize(
    ("kappa", "right", "mean", "gibbs", "gibbs_mean"),
    [
        (0.25, 0.050559972553725796, -0.9094021670964482, 0.3229737704259425, -0.3229061896605109),
        (0.5, 0.16476312669795054, -0.660061137732083, 0.3936331868486081, -0.17737221493921881),
    ],
)
def test_two_wells_of_different_depth(kappa, right, mean, gibbs, gibbs_mean):
    loss, top = losses.DoubleWell(0.3, 0.1), 0.10103125788101082
    D = proportional(loss, kappa)
    assert 1 - line.mass_below(loss, D, top) == pytest.approx(right, rel=1e-9)
    assert line.invariant_law(loss, D).expect(lambda x: x) == pytest.approx(mean, rel=1e-9)
    assert 1 - line.mass_below(loss, kappa, top) == pytest.approx(gibbs, rel=1e-9)
    assert line.invariant_law(loss, kappa).expect(lambda x: x) == pytest.approx(gibbs_mean, rel=1e-9)


@pytest.mark.parametrize(
    ("low", "probability", "ratio", "asymptotic"),
    [
        (0.05, 0.9380321913595033, 15.137411051622836, 17.228648182755176),
        (0.1, 0.822382445973135, 4.630074152742518, 4.936090347775955),
    ],
)
def test_two_wells_of_different_noise(low, probability, ratio, asymptotic):
    def noise(x):
        return 1.5 * low + 0.5 * low * jnp.tanh(8 * x[0])

    left = line.mass_below(well, noise, 0.0)
    assert left == pytest.approx(probability, rel=1e-9)
    assert left / (1 - left) == pytest.approx(ratio, rel=1e-8)
    assert line.noise_preference(0.25, low, 2 * low) == pytest.approx(asymptotic, rel=1e-13)


def test_heavy_tails_on_a_line():
    loss = losses.Student()
    law = line.invariant_law(loss, proportional(loss, 3.0))
    np.testing.assert_allclose(law.pdf, student.pdf(law.nodes[:, None], 3.0), rtol=1e-7)
    assert line.mass_below(loss, proportional(loss, 3.0), -10.0) == pytest.approx(0.011469615482278511 / 2, rel=1e-8)


def test_passage_times_of_brownian_motion_with_drift():
    # f = x for x ≫ 0, f = x²/2 on the left: from 0 to b up a slope; T'' - T'/D... has the solution by Dynkin's formula
    # E T = (e^{b/D} - 1)(D + behind) - b with `behind` the mass behind the start.
    D, b = 0.3, 2.0

    def loss(x):
        return jnp.where(x[0] > 0, x[0], 0.5 * x[0] ** 2)

    behind = np.sqrt(np.pi * D / 2) / D
    exact = behind * D * np.expm1(b / D) + D * np.expm1(b / D) - b
    assert line.mean_passage_time(loss, D, 0.0, b) == pytest.approx(exact, rel=1e-9)


# Asymptotic formulas


def test_kramers_time():
    assert theory.kramers_time(well, [-0.9], [0.1], 0.25) == pytest.approx(12.07700795676662, rel=1e-12)
    assert theory.kramers_time(well, [-1.0], [0.0], 0.1) == pytest.approx(54.1253945622268, rel=1e-12)
    assert theory.kramers_time(well, [-1.0], [0.0], 0.1, to_saddle=True) == pytest.approx(54.1253945622268 / 2)
    # A second axis of curvature 1 at both points changes nothing; curvatures 4 at the saddle and 1 at the minimum: √4.
    narrow = theory.kramers_time(lambda x: well(x[:1]) + 0.5 * (4 - 3 * x[0] ** 2) * x[1] ** 2, [-1, 0], [0, 0], 0.1)
    assert theory.kramers_time(well, [-1.0, 0.0], [0.0, 0.0], 0.1) == pytest.approx(54.1253945622268)
    assert narrow == pytest.approx(2 * 54.1253945622268, rel=1e-12)


@pytest.mark.parametrize(
    ("floor", "kappa", "expected"),
    [(0.05, 0.25, 14104.103856285277), (0.05, 0.5, 391.7806627), (0.1, 1.0, 29.091555087231285)],
)
def test_power_law_escape_time(floor, kappa, expected):
    loss = losses.DoubleWell(floor)
    assert theory.power_law_escape_time(loss, [-1.0], [0.0], kappa) == pytest.approx(expected, rel=1e-9)
    # Each further dimension takes half a power from the ratio of losses.
    plane = theory.power_law_escape_time(loss, [-1.0, 0.0], [0.0, 0.0], kappa)
    assert plane == pytest.approx(expected * ((floor + 0.25) / floor) ** -0.5, rel=1e-9)


def test_asymptotic_formulas_become_exact():
    def error(kappa):
        loss = losses.DoubleWell(0.5)
        exact = line.mean_passage_time(loss, proportional(loss, kappa), -1.0, 1.0)
        return abs(theory.power_law_escape_time(loss, [-1.0], [0.0], kappa) / exact - 1)

    assert error(0.01) < 0.55 * error(0.02) < 0.05
    exact = [line.mean_passage_time(well, T, -1.0, 1.0) for T in (0.025, 0.0125)]
    errors = [e / theory.kramers_time(well, [-1.0], [0.0], T) - 1 for e, T in zip(exact, (0.025, 0.0125), strict=True)]
    assert 0 < errors[1] < 0.55 * errors[0]
    assert errors[0] == pytest.approx(0.043, abs=5e-4)


def test_the_exponent_of_the_plane():
    # With f = g(x) + ½ y², integrating y out of ρ and of the flux leaves a line with two powers of g:
    # capacity ∫ f^{-1/κ} dy ∝ g^{1/2-1/κ}, mass ∫ f^{-p} dy ∝ g^{1/2-p}; both constants are ratios of Beta functions.
    from scipy.special import beta

    kappa, loss = 0.005, losses.DoubleWell(1.0)
    p = 1 + 1 / kappa
    x, w = np.polynomial.legendre.leggauss(400)
    g = 1 + (x**2 - 1) ** 2 / 4
    resistance = np.sum(w * g ** (1 / kappa - 0.5)) / beta(0.5, 1 / kappa - 0.5)
    y = 3 * x
    mass = 0.5 * 3 * np.sum(w * (1 + (y**2 - 1) ** 2 / 4) ** (0.5 - p)) * beta(0.5, p - 0.5)
    direct = mass * resistance / kappa
    found = theory.power_law_escape_time(loss, [-1.0, 0.0], [0.0, 0.0], kappa)
    assert found == pytest.approx(direct, rel=0.01)
    assert abs(theory.power_law_escape_time(loss, [-1.0], [0.0], kappa) / direct - 1) > 0.09


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: theory.kramers_time(well, [0.0], [0.0], 0.1), "`minimum` must lead to a minimum"),
        (lambda: theory.kramers_time(well, [1.0], [-1.0], 0.1), "`saddle` must have one falling direction"),
        (lambda: theory.kramers_time(lambda x: jnp.exp(x[0]), [0.0], [1.0], 0.1), "is not near a critical point"),
        (lambda: theory.power_law_escape_time(well, [-1.0], [0.0], 0.5), "must be positive at the minimum"),
        (lambda: line.mean_passage_time(lambda x: x[0], 0.5, 0.0, -1.0), None),
        (lambda: line.mean_passage_time(lambda x: x[0], 0.5, 0.0, 1.0), "mean time is infinite"),
        (lambda: line.invariant_law(lambda x: jnp.log1p(x[0] ** 2), 3.0), "cannot be normalised"),
        (lambda: line.invariant_law(well, lambda x: well(x) - 1.0), "diffusion positive"),
        (lambda: line.invariant_law(well, 0.0), "`diffusion` must be positive"),
    ],
)
def test_bad_arguments(make, message):
    if message is None:
        # Down a slope: T = distance / speed.
        assert make() == pytest.approx(1.0, rel=1e-9)
        return
    with pytest.raises(ValueError, match=message):
        make()
