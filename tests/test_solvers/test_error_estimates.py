"""The errors that the Fokker-Planck solver states: of masses, of rates, and of what the box cuts off."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erfc
from test_solvers.fokker_planck_problems import double_well, gibbs, loss_proportional, quadratic

from solvers import Density, Diffusion, Grid, fokker_planck
from solvers.fokker_planck.extrapolation import extrapolate

_unit_gaussian = gibbs(lambda x: 0.5 * x @ x, 1.0)


def masses(grid, log_law, nodes=8):
    mass = grid.cell_averages(lambda x: jnp.exp(log_law(x)), nodes) * grid.volumes
    return mass / mass.sum()


def stationary(process, *axes, grid=None):
    generator = fokker_planck.assemble(process, grid or Grid.uniform(*axes))
    return generator, fokker_planck.stationary(generator)


# --- masses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [24, 48])
def test_masses_on_a_line_are_within_their_errors(cells):
    well = double_well()
    _, p = stationary(gibbs(well, 0.2), (-3.2, 3.2, cells))
    error = np.abs(p.mass - masses(p.grid, lambda x: -well(x) / 0.2, nodes=16)).sum()
    # On the safe side, and no worse than the cells in the tails that are not resolved.
    assert 1e-12 < error < p.error.sum() < 0.1 * 24 / cells


def test_masses_in_the_plane_are_of_fourth_order_and_so_is_their_error():
    def ring(x):
        return (x @ x - 1) ** 2 / 4 + 0.1 * x[0]

    errors, estimates = [], []
    for n in (32, 64):
        _, p = stationary(gibbs(ring, 0.4), (-3.0, 3.0, n), (-3.0, 3.0, n))
        errors.append(np.abs(p.mass - masses(p.grid, lambda x: -ring(x) / 0.4)).sum())
        estimates.append(p.error.sum())
    assert errors[0] < estimates[0]
    assert errors[1] < 1.1 * estimates[1] < 4 * errors[1]
    assert errors[0] > 12 * errors[1]


def test_a_law_in_one_cell_is_seen():
    with pytest.warns(UserWarning, match="does not resolve the law.*they measure 1, 1"):
        _, p = stationary(gibbs(lambda x: 0.5 * x @ x, 0.02), (-5.5, 5.5, 11), (-5.5, 5.5, 11))
    assert p.error is None
    # On cells of an even number the law lies on an edge, and wider cells have the same masses: no reason for trust.
    with pytest.warns(UserWarning, match="does not resolve the law"):
        _, p = stationary(gibbs(lambda x: 0.5 * x @ x, 0.02), (-5.0, 5.0, 8))
    assert p.error.sum() > 0.5


def test_a_grid_that_resolves_the_law_is_left_alone():
    # A cell of one standard deviation; and a drift around a circle whose log ratios are large, but whose law is flat.
    stationary(_unit_gaussian, (-6.0, 6.0, 12))
    process = Diffusion(lambda t, x: 1e3 - jnp.sin(x), lambda t, x: jnp.asarray(1.0))
    p = fokker_planck.stationary(fokker_planck.assemble(process, Grid.uniform((0.0, 2 * np.pi, 24)), "periodic"))
    assert p.beyond == 0


def _series(h, power):
    # On 8 cells around a circle: masses with even powers of h as their error, and exact ones of the same cells.
    edges = np.arange(round(2 * np.pi / h) + 1) * h
    law = np.diff(edges + 0.4 * np.sin(edges)) / (2 * np.pi)
    error = sum(0.1 * h**p * np.cos(edges[:-1] + h / 2 + p) for p in power)
    mass = law * (1 + error)
    return mass / mass.sum(), law


@pytest.mark.parametrize(("grids", "order"), [(2, 4), (3, 6)])
def test_each_grid_adds_two_orders(grids, order):
    errors = []
    for h in (np.pi / 32, np.pi / 64):
        laws = [_series(h * 2**i, (2, 4, 6))[0] for i in range(grids)]
        mass, stated, left = extrapolate(laws, (True,), smooth=True)
        exact = _series(h, ())[1]
        errors.append(np.abs(mass - exact).sum())
        assert stated.sum() == pytest.approx(np.abs(laws[0] - exact).sum(), rel=0.05)
        assert left.sum() > errors[-1]
    assert np.log2(errors[0] / errors[1]) > order - 0.3


def test_laws_that_are_far_apart_are_not_extrapolated():
    fine, coarse = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.9, 0.1])
    mass, error, left = extrapolate([fine, coarse], (False,), smooth=True)
    np.testing.assert_array_equal(mass, fine)
    assert min(error.sum(), left.sum()) > 0.3


# --- the box ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The box is too small")
@pytest.mark.parametrize("reach", [1.5, 3.0, 4.5])
def test_what_a_box_cuts_off_a_gaussian(reach):
    generator, p = stationary(_unit_gaussian, (-reach, reach, 80))
    cut = fokker_planck.cut_off(generator, p)
    # Relative to the mass inside, which the solver takes for all.
    inside = 1 - erfc(reach / np.sqrt(2))
    exact = 0.5 * erfc(reach / np.sqrt(2)) / inside
    second = exact + reach * np.exp(-0.5 * reach**2) / np.sqrt(2 * np.pi) / inside
    np.testing.assert_allclose(cut.mass, [[exact] * 2], rtol=0.05)
    np.testing.assert_allclose(cut.second_moment, [[second] * 2], rtol=0.05)
    # 6 standard deviations leave out 1e-9.
    np.testing.assert_allclose(np.abs(cut.box), 5.998, atol=0.15)
    assert exact < 0.5 * p.beyond < 2 * exact
    assert f"{p.beyond:.2g} cut off by the box" in str(p)
    assert "would leave out 1e-09" in str(cut)


def test_moments_that_do_not_exist_are_infinite():
    # Student laws with κ = 2 and 1/2: P(X > R) = 1/(4R²) and O(R^-5).
    grid = Grid.stretched((50.0, 100, 1.0))
    heavy = fokker_planck.cut_off(*stationary(loss_proportional(quadratic, 2.0), grid=grid), outside=1e-8)
    np.testing.assert_allclose(heavy.mass, [[0.25 / 50**2] * 2], rtol=0.02)
    assert np.all(np.isinf(heavy.second_moment))
    np.testing.assert_allclose(np.abs(heavy.box), 5e3, rtol=0.03)
    light = fokker_planck.cut_off(*stationary(loss_proportional(quadratic, 0.5), grid=grid))
    # ν = 5: E[X²; beyond] is 5/3 of R² P(X > R).
    np.testing.assert_allclose(light.second_moment / light.mass, [[5 / 3 * 50**2] * 2], rtol=0.02)


def test_a_radial_power_law_widens():
    # f = (1 + |x|²)/2, κ = 1/2 in the plane: P(X₁ > R) falls as R^-4, while the density on the axis has R^-6.
    generator, p = stationary(loss_proportional(quadratic, 0.5), grid=Grid.stretched((30.0, 60, 1.0), (30.0, 60, 1.0)))
    cut = fokker_planck.cut_off(generator, p)
    np.testing.assert_allclose(cut.mass, 3 / 16 * 30.0**-4, rtol=0.2)


def test_walls_that_close_or_absorb_cut_nothing_off():
    turning = Diffusion(lambda t, x: jnp.sin(x), lambda t, x: jnp.ones(()))
    generator = fokker_planck.assemble(turning, Grid.uniform((0.0, 2 * np.pi, 16)), "periodic")
    cut = fokker_planck.cut_off(generator, fokker_planck.stationary(generator))
    np.testing.assert_array_equal(cut.mass, 0)
    np.testing.assert_allclose(cut.box, [[0, 2 * np.pi]])


def test_a_warning_suggests_a_box():
    # Beyond 4.75 standard deviations there is 1e-6.
    generator = fokker_planck.assemble(_unit_gaussian, Grid.uniform((-6.0, 1.0, 70)))
    with pytest.warns(UserWarning, match=r"high face of axis 0, at 1\. Move that face outwards to about 4\.[678]"):
        fokker_planck.stationary(generator)


def test_bad_arguments(unchecked):
    generator, p = stationary(_unit_gaussian, (-6.0, 6.0, 12))
    with pytest.raises(ValueError, match="`outside` must be a mass between 0 and 1, got 0"):
        fokker_planck.cut_off(generator, p, outside=0)
    with pytest.raises(ValueError, match="`p` must be a density on the grid"):
        fokker_planck.cut_off(generator, Density.point(Grid.uniform((-6.0, 6.0, 14)), [0.0]))


# --- rates ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The box is too small")
@pytest.mark.parametrize("reach", [2.5, 3.5, 4.5])
def test_rates_know_of_the_box(reach):
    # Ornstein-Uhlenbeck: 0, 1, 2. In so small a box the walls are all of the error.
    sp = fokker_planck.spectrum(fokker_planck.assemble(_unit_gaussian, Grid.uniform((-reach, reach, 160))), 3)
    wrong = np.abs(sp.rates - np.arange(3))[1:]
    assert np.all(wrong < sp.error[1:])
    assert np.all(sp.error[1:] < 3 * wrong)
