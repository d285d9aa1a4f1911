"""Quasi-stationary laws and their rates, against closed forms and the spectrum."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from test_solvers.fokker_planck_problems import brownian, double_well, gibbs, loss_proportional, quadratic

from solvers import Diffusion, Grid, fokker_planck


def turning(x):
    return -x + 2 * jnp.stack([x[1], -x[0]])


def ball(radius):
    return lambda x: x @ x < radius**2


@pytest.mark.parametrize("drift", [0.0, 2.0])
@pytest.mark.slow("0.0")
def test_brownian_motion_on_an_interval(drift):
    # On (-1, 1): rate D (π/2)² + b²/(4D), density ∝ e^(bx/2D) cos(πx/2).
    d, errors = 0.7, []
    for n in (20, 80):
        grid = Grid.uniform((-1.3, 1.7, n))
        qs = fokker_planck.quasi_stationary(brownian(d, drift), grid, lambda x: jnp.abs(x[0]) < 1)
        exact = d * np.pi**2 / 4 + drift**2 / (4 * d)
        assert abs(qs.rate - exact) < max(qs.error, 1e-12)
        x = grid.centres[0]
        a = drift / (2 * d)
        pdf = np.exp(a * x) * np.cos(np.pi * x / 2) * (a**2 + np.pi**2 / 4) / (np.pi * np.cosh(a))
        errors.append(np.max(np.abs(qs.density.pdf - np.where(np.abs(x) < 1, pdf, 0))))
    assert qs.rate == pytest.approx(exact, rel=1e-11)
    assert errors[-1] < 1e-3
    assert np.log2(errors[0] / errors[1]) / 2 > 1.7
    assert "QuasiStationary: rate" in str(qs)


@pytest.mark.parametrize(
    ("process", "gap", "rel"),
    [
        (gibbs(double_well(), 0.25), 0.187170418087098538, 1e-10),
        (gibbs(double_well(), 0.1), 0.0335452873080006109, 1e-10),
        (loss_proportional(double_well(0.05), 0.5), 0.00569701813910133081, 1e-8),
        (gibbs(double_well(), 0.004), 3.2159634056e-28, 1e-11),
        (gibbs(double_well(), 0.001), 1.19975e-109, 1e-5),
    ],
)
@pytest.mark.slow("process0-0.18717041808709853-1e-10", "process3-3.2159634056e-28-1e-11")
def test_half_a_double_well_is_left_at_the_rate_of_the_gap(process, gap, rel):
    # The first mode is odd: killed at 0 it is the slowest of each half.
    grid = Grid.uniform((-6.0, 6.0, 603)) if gap > 1e-6 else Grid.uniform((-2.0, 2.0, 401))
    qs = fokker_planck.quasi_stationary(process, grid, inside=lambda x: x[0] < 0)
    assert qs.rate == pytest.approx(gap, rel=rel)
    if gap < 1e-6:
        # Almost the inverse of the mean exit time, to the relative accuracy of both.
        tau = fokker_planck.exit_time(process, grid, inside=lambda x: x[0] < 0)
        assert qs.rate * tau.at(-1.0) == pytest.approx(1, rel=1e-10)
    else:
        spectrum = fokker_planck.spectrum(fokker_planck.assemble(process, Grid.uniform((-6.0, 6.0, 600))), k=2)
        assert qs.rate == pytest.approx(spectrum.gap, rel=1e-5)


@pytest.mark.parametrize(("d", "cells"), [(2, (16, 64)), (3, (10, 20))])
@pytest.mark.slow("3-cells1")
def test_brownian_motion_in_a_ball(d, cells):
    # D j²/R², j the first zero of J₀ (2-D, density ∝ J₀(jr)) or π (3-D, ∝ sin(πr)/r).
    j = special.jn_zeros(0, 1)[0] if d == 2 else np.pi
    rates, errors = [], []
    for n in cells:
        grid = Grid.uniform((-1.3, 1.7, n), *[(-1.2, 1.3, n)] * (d - 1))
        qs = fokker_planck.quasi_stationary(brownian(0.7), grid, ball(1.0))
        r = np.sqrt(np.sum(grid.points**2, axis=-1))
        pdf = special.j0(j * r) * j / (2 * np.pi * special.j1(j)) if d == 2 else np.sinc(r) * np.pi / 4
        errors.append(np.max(np.abs(qs.density.pdf - np.where(r < 1, pdf, 0))))
        rates.append(abs(qs.rate / (0.7 * j**2) - 1))
        assert abs(qs.rate - 0.7 * j**2) < qs.error
    assert rates[-1] < (2e-4 if d == 2 else 4e-3)
    assert np.log2(errors[0] / errors[-1]) / np.log2(cells[-1] / cells[0]) > 1.5


@pytest.mark.slow
def test_the_mean_exit_time_of_the_law_is_one_over_the_rate():
    # For any process: here one that turns, in a set that a rotation does not keep.
    process = Diffusion(lambda t, x: turning(x), lambda t, x: jnp.array([0.6, 0.9]))
    inside = lambda x: (x[0] - 0.5) ** 2 + 2 * (x[1] - 0.3) ** 2 < 0.64  # noqa: E731
    products = []
    for n in (31, 61):
        grid = Grid.uniform((-1.0, 2.0, n), (-1.0, 1.6, n))
        qs = fokker_planck.quasi_stationary(process, grid, inside)
        tau = fokker_planck.exit_time(process, grid, inside)
        products.append(qs.rate * np.sum(qs.density.mass * tau.values))
        assert np.all((qs.density.mass > 0) == (tau.values > 0))
    assert products[0] == pytest.approx(1, abs=2e-2)
    assert products[1] == pytest.approx(1, abs=5e-3)
    # The law is not that of the process that turns the other way.
    other = Diffusion(lambda t, x: -x - 2 * jnp.stack([x[1], -x[0]]), lambda t, x: jnp.array([0.6, 0.9]))
    far = fokker_planck.quasi_stationary(other, grid, inside).density.mass - qs.density.mass
    assert np.sum(np.abs(far)) > 0.1


@pytest.mark.slow
def test_a_rotation_changes_nothing_in_a_disc():
    grid = Grid.uniform((-1.2, 1.2, 48), (-1.2, 1.2, 48))
    still, moving = (
        fokker_planck.quasi_stationary(process, grid, ball(1.0))
        for process in (
            gibbs(quadratic, 0.2),
            Diffusion(lambda t, x: turning(x), lambda t, x: jnp.sqrt(jnp.asarray(0.4))),
        )
    )
    assert moving.rate == pytest.approx(still.rate, rel=2e-3)
    assert np.sum(np.abs(moving.density.mass - still.density.mass)) < 1e-2


def test_of_two_parts_the_slowest_counts():
    grid = Grid.uniform((-4.0, 4.0, 80))
    wide, both = (
        fokker_planck.quasi_stationary(brownian(1.0), grid, inside)
        for inside in (lambda x: jnp.abs(x[0] - 1.5) < 2, lambda x: (jnp.abs(x[0] - 1.5) < 2) | (x[0] < -3.1))
    )
    # The other part, (-4, -3.1) with a wall at -4, is left at the rate (π / 1.8)² instead of (π / 4)².
    assert both.rate == pytest.approx((np.pi / 4) ** 2, rel=1e-10)
    np.testing.assert_allclose(both.density.mass, wide.density.mass, atol=1e-12)


def test_faces_that_absorb():
    grid = Grid.uniform((0.0, 1.0, 24), (0.0, 2.0, 20))
    qs = fokker_planck.quasi_stationary(brownian(1.0), grid, lambda x: x[0] == x[0], boundary=("absorbing", "periodic"))
    assert qs.rate == pytest.approx(np.pi**2, rel=5e-4)
    x = grid.points[..., 0]
    np.testing.assert_allclose(qs.density.pdf, np.pi / 4 * np.sin(np.pi * x), atol=5e-3)


@pytest.mark.slow
def test_rates_below_rounding_are_refused_in_the_plane():
    line, side = (-2.0, 2.0, 81), (-0.5, 0.5, 9)
    well = lambda x: (x[0] ** 2 - 1) ** 2 / 4 + jnp.sum(x[1:] ** 2)  # noqa: E731
    with pytest.raises(ArithmeticError, match="too rarely for float64"):
        fokker_planck.quasi_stationary(gibbs(well, 4e-3), Grid.uniform(line, side), lambda x: x[0] < 0.3)
    plane, along = (
        fokker_planck.quasi_stationary(gibbs(well, 0.05), grid, lambda x: x[0] < 0.3).rate
        for grid in (Grid.uniform(line, side), Grid.uniform(line))
    )
    assert plane == pytest.approx(along, rel=2e-3)


def test_rates_below_float64_are_refused():
    with pytest.raises(ArithmeticError, match="practically never left"):
        fokker_planck.quasi_stationary(gibbs(double_well(), 3e-4), Grid.uniform((-2.0, 2.0, 800)), lambda x: x[0] < 0.3)


@pytest.mark.parametrize(("far", "says"), [(5.0, "never left"), (-5.0, "holds at none")])
def test_bad_sets(far, says):
    with pytest.raises(ValueError, match=says):
        fokker_planck.quasi_stationary(brownian(1.0), Grid.uniform((-2.0, 2.0, 20)), lambda x: x[0] < far)
