"""Rotationally symmetric processes in d dimensions, by their radial part, against closed forms."""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.integrate import quad
from scipy.special import betainc, gammainc, gammaln
from test_solvers.fokker_planck_problems import brownian, gibbs, loss_proportional, quadratic

from solvers import Density, Diffusion, Grid, fokker_planck
from solvers.fokker_planck.radial import _multiplicity


def paraboloid(x):
    return 1 + x @ x


def ring(x):
    return 0.1 + (x @ x - 1) ** 2 / 8


# --- rates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("d", "kappa", "reach", "angular"), [(2, 0.2, 1e4, (0, 3)), (3, 0.1, 300.0, (0, 1)), (10, 0.05, 100.0, (0, 1))]
)
@pytest.mark.slow("3-0.1-300.0-angular1", "2-0.2-10000.0-angular0")
def test_student_rates(d, kappa, reach, angular):
    # f = 1 + |x|², D = κ f: 2n - κ (n (n + d - 2) - l (l + d - 2)), n = l, l + 2, ..., n < 1 + 1/κ - d/2, below
    # κ ((1/κ - (d - 2)/2)² + l (l + d - 2)).
    radial = fokker_planck.radial(loss_proportional(paraboloid, kappa), Grid.half_line(reach, 800, 1.0), d)
    for l in angular:  # noqa: E741
        n = np.array([m for m in (l, l + 2, l + 4) if m < 1 + 1 / kappa - d / 2])
        exact = 2 * n - kappa * (n * (n + d - 2) - l * (l + d - 2))
        sp = radial.spectrum(l=l, k=len(n))
        np.testing.assert_allclose(sp.rates, exact, rtol=1e-8)
        assert np.all(np.abs(sp.rates - exact) <= sp.error)
        assert sp.threshold == pytest.approx(kappa * ((1 / kappa - (d - 2) / 2) ** 2 + l * (l + d - 2)), rel=1e-6)


@pytest.mark.parametrize(("d", "cells", "rtol"), [(2, 600, 1e-7), (3, 600, 1e-7), (1000, 800, 1e-6)])
@pytest.mark.slow("1000-800-1e-06", "2-600-1e-07")
def test_ornstein_uhlenbeck_rates(d, cells, rtol):
    # l + 2j, and the law of r is that of χ.
    reach = np.sqrt(d) + 9
    radial = fokker_planck.radial(gibbs(quadratic, 1.0), Grid.half_line(reach, cells, reach), d)
    for l in (0, 2):  # noqa: E741
        sp = radial.spectrum(l, k=3)
        np.testing.assert_allclose(sp.rates, [l, l + 2, l + 4], rtol=rtol)
        assert sp.threshold == np.inf
    p = fokker_planck.stationary(radial.generator)
    face = int(np.searchsorted(p.grid.edges[0], np.sqrt(d)))
    exact = scipy.stats.chi(d).cdf(p.grid.edges[0][face])
    assert p.mass[:face].sum() == pytest.approx(exact, rel=1e-9)


def test_multiplicities_are_those_of_spherical_harmonics():
    for d, count in [(2, [1, 2, 2, 2]), (3, [1, 3, 5, 7]), (4, [1, 4, 9, 16])]:
        assert [_multiplicity(d, l) for l in range(4)] == count  # noqa: E741


@pytest.mark.slow
def test_rates_agree_with_those_in_the_plane():
    # The ring f = .1 + (r² - 1)²/8: its slowest mode has l = 1.
    process = loss_proportional(ring, 0.5)
    radial = fokker_planck.radial(process, Grid.half_line(20.0, 200, 1.0), 2)
    slow = [radial.spectrum(l, k=2).rates for l in (0, 1)]  # noqa: E741
    assert slow[0][0] == 0
    plane = Grid.stretched((20.0, 96, 1.0), (20.0, 96, 1.0))
    sp = fokker_planck.spectrum(fokker_planck.assemble(process, plane), 3)
    np.testing.assert_allclose(sp.rates[1:], slow[1][0], rtol=2e-4)


@pytest.mark.slow
def test_rates_of_a_ring_do_not_depend_on_the_grid():
    process = loss_proportional(ring, 0.5)
    rates = [
        fokker_planck.radial(process, Grid.half_line(reach, n, scale), 10).spectrum(1, k=2).rates
        for reach, n, scale in [(20.0, 400, 1.0), (30.0, 640, 0.7)]
    ]
    np.testing.assert_allclose(*rates, rtol=2e-6)


def test_a_gap_of_1e_100_has_its_digits():
    # A well around 0 and one around r = 2.2, with D = T: by Kramers' law for the flux through a sphere, with both
    # integrals exact, rate = D (1/M_in + 1/M_out) / ∫ r^(1-d) e^(V/D), up to a relative error of the rate itself.
    d, top, temperature = 3, 1.0, 3.2e-3

    def v(r):
        return (r**2 * (r**2 - 4) ** 2) / 9.481481481481481 * top

    process = gibbs(lambda x: (x @ x) * (x @ x - 4) ** 2 / 9.481481481481481 * top, temperature)
    radial = fokker_planck.radial(process, Grid.half_line(3.0, 1200, 3.0), d)
    found = radial.spectrum(0, k=2)
    barrier = 2 / np.sqrt(3)

    def integral(sign, low, high, power):
        f = lambda r: r**power * np.exp(sign * (v(r) - (top if sign > 0 else 0)) / temperature)  # noqa: E731
        return sum(quad(f, a, b, epsabs=0, epsrel=1e-12)[0] for a, b in pairwise(np.linspace(low, high, 61)))

    inner, outer = integral(-1, 1e-9, barrier, d - 1), integral(-1, barrier, 3.0, d - 1)
    over = integral(1, 0.6, 1.8, 1 - d)
    exact = temperature * (1 / inner + 1 / outer) / over * np.exp(-top / temperature)
    assert 1e-150 < exact < 1e-100
    assert found.rates[1] == pytest.approx(exact, rel=1e-6)


def test_modes_obey_their_equation():
    # φ = r^l times Jacobi polynomials: for n = l, r^l itself.
    radial = fokker_planck.radial(loss_proportional(paraboloid, 0.1), Grid.half_line(50.0, 800, 1.0), 3)
    r = radial.generator.grid.centres[0]
    for l in (2,):  # noqa: E741
        mode = radial.spectrum(l, k=1).modes[0]
        bulk = (r > 0.05) & (r < 3)
        ratio = (mode / r**l)[bulk]
        np.testing.assert_allclose(ratio / ratio[0], 1, atol=2e-3)


def test_rates_of_the_continuum_are_reported():
    # d = 2, κ = 1: only 0 is a mode, and the spectrum is continuous from 1.
    radial = fokker_planck.radial(loss_proportional(paraboloid, 1.0), Grid.half_line(1e6, 400, 1.0), 2)
    with pytest.warns(UserWarning, match=r"continuous from 1 on: rate number 1"):
        radial.spectrum(0, k=2)


# --- laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "kappa"), [(2, 0.5), (3, 0.25), (10, 0.1)])
@pytest.mark.slow("3-0.25", "10-0.1")
def test_tails_of_student_laws(d, kappa):
    # P(|x| > R) = I_(1/(1+R²))(p - d/2, d/2), p = 1 + 1/κ.
    index = 2 + 2 / kappa - d
    grid = Grid.half_line(float(Grid.heavy_tailed((index, 2, 1.0), outside=1e-18).edges[0][-1]), 400, 1.0)
    p = fokker_planck.stationary(fokker_planck.radial(loss_proportional(paraboloid, kappa), grid, d).generator)
    for r in (0.3, 3.0, 10.0):
        face = int(np.searchsorted(grid.edges[0], r))
        exact = betainc(1 + 1 / kappa - d / 2, d / 2, 1 / (1 + grid.edges[0][face] ** 2))
        assert p.mass[face:].sum() == pytest.approx(exact, rel=1e-8, abs=1e-13)


@pytest.mark.parametrize(("d", "exact"), [(2, 1.011047945844), (3, 1.072501131904)])
@pytest.mark.slow("2-1.011047945844")
def test_radial_wells(d, exact):
    # f = .1 + (r² - 1)²/4, κ = 1/2: E r², whose error is that of `expect`.
    process = loss_proportional(lambda x: 0.1 + (x @ x - 1) ** 2 / 4, 0.5)
    errors = []
    for n in (200, 400):
        p = fokker_planck.stationary(fokker_planck.radial(process, Grid.half_line(100.0, n, 1.0), d).generator)
        errors.append(p.expect(lambda r: r[0] ** 2) - exact)
    assert abs(errors[-1]) < 1e-4
    assert np.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.1)


def test_the_law_of_r_at_later_times():
    # OU in five dimensions from a Gaussian: r / sd is χ at all times.
    d, t = 5, 0.3
    grid = Grid.half_line(9.0, 400, 9.0)
    generator = fokker_planck.radial(gibbs(quadratic, 1.0), grid, d).generator
    law = lambda sd: np.diff(scipy.stats.chi(d).cdf(grid.edges[0] / sd))  # noqa: E731
    p0 = law(0.5)
    (p,) = fokker_planck.evolve(generator, Density(grid, p0 / p0.sum()), [t], rtol=1e-9).densities
    sd = np.sqrt(1 - 0.75 * np.exp(-2 * t))
    assert np.abs(p.mass - law(sd)).sum() < 3e-4
    assert p.mass.sum() == pytest.approx(1, abs=1e-12)


def test_diffusion_may_differ_along_and_across():
    # D_r = (1 + r²)/2, D_t = (1 + 3r²)/2, b = -4r: π ∝ D_r⁻¹ exp ∫ (b/D_r + 2 (D_t/D_r - 1)/r) = (1 + r²)^(-1-4+2).
    def noise(t, x):
        square = x @ x
        along = jnp.outer(x, x) / square
        return jnp.sqrt(1 + square) * along + jnp.sqrt(1 + 3 * square) * (jnp.eye(3) - along)

    grid = Grid.half_line(1e4, 300, 1.0)
    p = fokker_planck.stationary(fokker_planck.radial(Diffusion(lambda t, x: -4 * x, noise), grid, 3).generator)
    total = quad(lambda r: r**2 / (1 + r * r) ** 3, 0, np.inf)[0]
    face = int(np.searchsorted(grid.edges[0], 0.9))
    exact = quad(lambda r: r**2 / (1 + r * r) ** 3, 0, grid.edges[0][face], epsabs=0, epsrel=1e-12)[0] / total
    assert p.mass[:face].sum() == pytest.approx(exact, rel=1e-8)


# --- exit -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 3, 10, 1000])
@pytest.mark.slow("1000", "10", "2")
def test_brownian_motion_in_a_ball(d):
    # (R² - r²) / (2 d D).
    grid = Grid.half_line(10.0, 100, 1.0)
    values, error = fokker_planck.radial(brownian(0.7), grid, d).exit_time(1.3)
    r = grid.centres[0]
    np.testing.assert_allclose(values, np.where(r < 1.3, (1.69 - r**2) / (1.4 * d), 0), rtol=1e-12)
    assert np.all(error <= 1e-11 * values)


@pytest.mark.parametrize(
    ("d", "temperature", "radius", "power"), [(3, 0.1, 1.0, 0), (3, 0.02, 3.0, 93), (10, 0.02, 3.2, 100)]
)
@pytest.mark.slow("3-0.02-3.0-93", "3-0.1-1.0-0")
def test_times_of_1e100(d, temperature, radius, power):
    # V = r²/2: ∫ e^(V/T) y^(1-d) (2T)^(d/2) γ(d/2, y²/2T) / 2T dy.
    grid = Grid.half_line(10.0, 200, 1.0)
    values, error = fokker_planck.radial(gibbs(quadratic, temperature), grid, d).exit_time(radius)
    start = grid.centres[0][3]

    def rate(y):
        log = y * y / (2 * temperature) + (1 - d) * np.log(y) + 0.5 * d * np.log(2 * temperature) + gammaln(d / 2)
        return np.exp(log - np.log(2 * temperature)) * gammainc(d / 2, y * y / (2 * temperature))

    edges = np.linspace(start, radius, 41)
    exact = sum(quad(rate, a, b, epsabs=0, epsrel=1e-13)[0] for a, b in pairwise(edges))
    assert exact > 10.0**power
    assert values[3] == pytest.approx(exact, rel=1e-12)
    assert abs(values[3] - exact) <= 3 * error[3]


def test_exits_beyond_float64_are_refused():
    radial = fokker_planck.radial(gibbs(quadratic, 1e-3), Grid.half_line(10.0, 40, 1.0), 2)
    with pytest.raises(ArithmeticError, match="beyond 1e308"):
        radial.exit_time(2.0)
    with pytest.raises(ValueError, match="`radius` must be finite"):
        radial.exit_time(0.0)


# --- bad input --------------------------------------------------------------------------------------------------------

_grid = Grid.half_line(10.0, 40, 1.0)


@pytest.mark.parametrize(
    "process",
    [
        Diffusion(lambda t, x: -x * jnp.arange(1.0, 4.0), lambda t, x: 1.0),
        Diffusion(lambda t, x: -x + jnp.array([0.0, 0.1, 0.0]), lambda t, x: 1.0),
        Diffusion(lambda t, x: -x + jnp.cross(x, jnp.array([0.0, 0.0, 1.0])), lambda t, x: 1.0),
        Diffusion(lambda t, x: -x, lambda t, x: jnp.array([1.0, 1.0, 1.1])),
        Diffusion(lambda t, x: -x, lambda t, x: jnp.sqrt(1 + x[0] ** 2)),
    ],
)
def test_other_processes_are_refused(process):
    with pytest.raises(ValueError, match="not rotationally symmetric"):
        fokker_planck.radial(process, _grid, 3)


def test_arguments_are_checked(unchecked):
    process = gibbs(quadratic, 1.0)
    with pytest.raises(ValueError, match="start at r = 0"):
        fokker_planck.radial(process, Grid.uniform((0.1, 3.0, 20)), 3)
    with pytest.raises(ValueError, match="`d` must be a whole number from 2 to 1000"):
        fokker_planck.radial(process, _grid, 1)
    radial = fokker_planck.radial(process, _grid, 3)
    with pytest.raises(ValueError, match="`l` must be a whole number"):
        radial.spectrum(-1)
    with pytest.raises(ValueError, match="`k` must be from 1 to a quarter"):
        radial.spectrum(0, k=11)
    assert "3 dimensions" in str(radial)
    assert "l = 1: rates" in str(radial.spectrum(1))
