"""Tail indices and thresholds of continuous spectra from drift and diffusion, and grids chosen from them."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from test_solvers.fokker_planck_problems import brownian, double_well, gibbs, loss_proportional, quadratic

from solvers import Diffusion, Grid, fokker_planck


def student(nu):
    return loss_proportional(quadratic, 2 / (nu - 1))


_laplace = Diffusion(lambda t, x: -jnp.tanh(x), lambda t, x: 0.8)
_stretched_exponential = Diffusion(lambda t, x: -x * (1 + x @ x) ** -0.75, lambda t, x: 1.0)


@pytest.mark.parametrize(
    ("process", "index", "threshold"),
    [
        (student(2.0), 2.0, 4**2 / 16),
        (student(5.0), 5.0, 2.5**2 / 4),
        (student(21.0), 21.0, 2.1**2 / 0.8),
        # f^(-1 - 1/κ) with f ~ x⁴/4. ∞ is an entrance boundary: no continuous spectrum.
        (loss_proportional(double_well(0.05), 0.5), 11.0, np.inf),
        (loss_proportional(double_well(0.1), 1.0), 7.0, np.inf),
        (gibbs(quadratic, 0.3), np.inf, np.inf),
        (gibbs(double_well(), 0.1), np.inf, np.inf),
        # b = ∓1, D = .32: from b²/(4D).
        (_laplace, np.inf, 1 / 1.28),
        # b ~ |x|^(-1/2): lighter than any power, but without a gap.
        (_stretched_exponential, np.inf, 0.0),
        (brownian(0.5), -1.0, 0.0),
    ],
)
def test_index_and_threshold(process, index, threshold):
    for direction, scale in [((1.0,), 1.0), ((-2.0,), 3.0)]:
        assert fokker_planck.tail_index(process, direction, scale) == pytest.approx(index, rel=1e-9)
        found = fokker_planck.essential_threshold(process, direction, scale)
        assert found == pytest.approx(threshold, rel=1e-6, abs=1e-6)


def test_the_index_falls_with_the_dimension():
    # f = 1 + |x|², D = κ f: ν = 2 + 2/κ - d.
    for d in (2, 3, 7):
        process = loss_proportional(lambda x: 1 + x @ x, 0.25)
        assert fokker_planck.tail_index(process, np.arange(1.0, d + 1)) == pytest.approx(10 - d, rel=1e-9)


def test_one_tail_may_be_heavier():
    # D = (1 + x²)/4 to the left and the same times 2/5 to the right.
    process = Diffusion(lambda t, x: -x, lambda t, x: jnp.sqrt(0.5 * (1 + x @ x) * (0.7 - 0.3 * jnp.tanh(x[0]))))
    assert fokker_planck.tail_index(process, (-1.0,)) == pytest.approx(5.0)
    assert fokker_planck.tail_index(process, (1.0,)) == pytest.approx(11.0)


@pytest.mark.parametrize("nu", [1.5, 5.0, 21.0])
def test_a_grid_leaves_out_what_it_may(nu):
    # Student's t with scale ν^(-1/2): P(|x| > R) = C R^-ν with C of order 1.
    process = student(nu)
    grid = Grid.heavy_tailed((fokker_planck.tail_index(process), 400, 1.0), outside=1e-10)
    t = scipy.stats.t(nu)
    assert 1e-12 < 2 * t.sf(grid.edges[0][-1] * np.sqrt(nu)) < 1e-9
    p = fokker_planck.stationary(fokker_planck.assemble(process, grid))
    face = int(np.searchsorted(grid.edges[0], 2.0))
    # To eight orders, but for what is left out.
    assert p.mass[face:].sum() == pytest.approx(t.sf(grid.edges[0][face] * np.sqrt(nu)), rel=1e-9, abs=2e-10)


def test_rates_of_the_box_are_reported():
    # κ = 2: only the rate 0 is below the continuous spectrum, which starts at 1.
    generator = fokker_planck.assemble(student(2.0), Grid.stretched((1e6, 200, 1.0)))
    with pytest.warns(UserWarning, match=r"continuous from 1 on: rate number 1"):
        fokker_planck.spectrum(generator, k=2)
    # κ = 1/2: 0, 1, 1.5 are modes, and the fourth is above 1.5625.
    generator = fokker_planck.assemble(student(5.0), Grid.stretched((1e6, 400, 1.0)))
    fokker_planck.spectrum(generator, k=3)
    with pytest.warns(UserWarning, match=r"continuous from 1.5625 on: rate number 3"):
        fokker_planck.spectrum(generator, k=4)


def test_walls_that_are_part_of_the_model_are_not_reported():
    for process, grid in [
        (brownian(0.7), Grid.uniform((0.2, 1.5, 20))),
        (student(5.0), Grid.uniform((-1.0, 1.0, 20))),
        (Diffusion(lambda t, x: jnp.sin(x), lambda t, x: 1.0), Grid.uniform((0.0, 6.0, 20))),
    ]:
        fokker_planck.spectrum(fokker_planck.assemble(process, grid), k=4)


def test_half_lines_are_halves():
    half, both = Grid.half_line(50.0, 10, 2.0), Grid.stretched((50.0, 20, 2.0))
    np.testing.assert_array_equal(half.edges[0], both.edges[0][10:])
    np.testing.assert_array_equal(half.centres[0], both.centres[0][10:])


@pytest.mark.parametrize(
    ("axis", "outside", "says"),
    [
        ((np.inf, 10, 1.0), 1e-12, "use `Grid.uniform`"),
        ((0.0, 10, 1.0), 1e-12, "positive, finite index"),
        ((0.1, 10, 1.0), 1e-12, "raise `outside`"),
        ((5.0, 10, -1.0), 1e-12, "positive, finite index and scale"),
        ((5.0, 10), 1e-12, r"must be \(index, cells, scale\)"),
        ((5.0, 10, 1.0), 0.0, "`outside` must be a mass"),
    ],
)
def test_bad_tails_are_refused(axis, outside, says, unchecked):
    with pytest.raises(ValueError, match=says):
        Grid.heavy_tailed(axis, outside=outside)


@pytest.mark.parametrize("direction", [(0.0,), (np.nan,), 1.0])
def test_directions_are_checked(direction, unchecked):
    with pytest.raises(ValueError, match="`direction` must be a vector"):
        fokker_planck.tail_index(student(5.0), direction)


def test_a_tail_that_does_not_settle_is_refused():
    process = Diffusion(lambda t, x: -x * (2 + jnp.sin(jnp.log(1 + x @ x))), lambda t, x: jnp.sqrt(1 + x @ x))
    with pytest.raises(ValueError, match="does not settle"):
        fokker_planck.tail_index(process)
    with pytest.raises(ValueError, match="must be finite"):
        fokker_planck.tail_index(Diffusion(lambda t, x: -x * jnp.exp(x @ x), lambda t, x: 1.0))
