import re

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from solvers import Density, Grid

GRID = Grid([[0.0, 1.0, 3.0], [-1.0, 0.0, 2.0, 4.0]])
MASS = np.array([[0.125, 0.25, 0.0], [0.0625, 0.25, 0.1875]])
DENSITY = Density(GRID, MASS, outside=0.125)


def test_pdf_is_mass_per_volume():
    np.testing.assert_array_equal(DENSITY.pdf, MASS / [[1, 2, 2], [2, 4, 4]])
    assert DENSITY.pdf.dtype == np.float64
    assert DENSITY.standard_error is None


def test_expectations_of_constants_and_of_whole_cells_are_sums_of_masses():
    assert DENSITY.expect(lambda x: 1.0) == 0.875
    assert DENSITY.expect(lambda x: x[1] > 0) == pytest.approx(0.25 + 0.25 + 0.1875, rel=1e-15)
    assert DENSITY.expect(lambda x: jnp.outer(x, x)).shape == (2, 2)


def test_expectations_are_exact_for_a_linear_density_and_quadratic_functions():
    edges = [np.array([-1.0, -0.75, 0.0, 0.25, 1.0]), np.array([0.0, 0.5, 2.0])]
    grid = Grid(edges, [0.5 * (e[1:] + e[:-1]) for e in edges])
    p = Density.from_function(grid, lambda x: 1 + 0.5 * x[0] + 0.25 * x[1])
    # The integrals of the density times 1, x, x², y, y², xy.
    one, x, xx, y, yy, xy = 5.0, 2 / 3, 5 / 3, 16 / 3, 22 / 3, 2 / 3
    np.testing.assert_allclose(p.expect(lambda x: x), [x / one, y / one], rtol=1e-14)
    np.testing.assert_allclose(p.expect(lambda x: jnp.outer(x, x)), np.array([[xx, xy], [xy, yy]]) / one, rtol=1e-14)


def test_expectations_converge_to_fourth_order():
    def error(cells):
        p = Density.from_function(Grid.stretched((60.0, cells, 1.0)), lambda x: jnp.exp(-0.5 * (x[0] - 0.3) ** 2))
        return np.array([p.expect(lambda x: x[0] ** 2) / 1.09 - 1, p.expect(lambda x: jnp.cos(x[0])) - _cosine])

    _cosine = np.exp(-0.5) * np.cos(0.3)
    coarse, fine = np.abs(error(60)), np.abs(error(120))
    assert np.all(fine < coarse / 13)
    assert np.all(fine < 1e-4)


def test_marginals_keep_mass_outside_and_replicates():
    replicates = np.stack([MASS, MASS[::-1]])
    p = Density(GRID, MASS, 0.125, replicates)
    for axis in (0, -2):
        np.testing.assert_array_equal(p.marginal(axis).mass, [0.375, 0.5])
    second = p.marginal(1)
    np.testing.assert_array_equal(second.mass, [0.1875, 0.5, 0.1875])
    np.testing.assert_array_equal(second.replicates, [[0.1875, 0.5, 0.1875]] * 2)
    np.testing.assert_array_equal(p.marginal(0).replicates, [[0.375, 0.5], [0.5, 0.375]])
    np.testing.assert_array_equal(second.grid.edges[0], GRID.edges[1])
    assert second.outside == 0.125
    np.testing.assert_array_equal(second.marginal(0).mass, second.mass)
    with pytest.raises(ValueError, match="`axis` must be below the number of axes, 2, but got 2"):
        p.marginal(2)


def test_distribution_function_counts_the_mass_below_each_edge():
    np.testing.assert_array_equal(DENSITY.cdf(), [[0, 0, 0, 0], [0, 0.125, 0.375, 0.375], [0, 0.1875, 0.6875, 0.875]])
    np.testing.assert_array_equal(DENSITY.marginal(0).cdf(), [0, 0.375, 0.875])


def test_from_function_gives_normalised_cell_masses():
    # f = x² y is integrated exactly by the quadrature: the mass of a cell is a product of differences.
    grid = Grid([[0.0, 1.0, 3.0], [0.0, 2.0, 2.5]])
    p = Density.from_function(grid, lambda x: 7.0 * x[0] ** 2 * x[1])
    first, second = np.diff(np.array([0, 1, 27])) / 27, np.diff(np.array([0, 4, 6.25])) / 6.25
    np.testing.assert_allclose(p.mass, np.outer(first, second), rtol=1e-14)
    assert p.outside == 0
    assert p.replicates is None


def test_from_function_on_a_gaussian_gives_the_error_function():
    grid = Grid.uniform((-6, 6, 48))
    p = Density.from_function(grid, lambda x: jnp.exp(-0.5 * x[0] ** 2))
    exact = np.diff(ndtr(grid.edges[0])) / (ndtr(6) - ndtr(-6))
    # Gauss-Legendre with 3 nodes: error h^7 f^(6) / 2016000 a cell, and f^(6) is at most 15 here.
    np.testing.assert_allclose(p.mass, exact, atol=0.25**7 * 15 / 2016000)
    np.testing.assert_allclose(p.cdf()[24], 0.5, atol=1e-14)


def test_from_function_under_float32_is_float32_accurate(float32):
    p = Density.from_function(Grid.uniform((0, 3, 7)), lambda x: x[0] ** 2)
    assert p.mass.dtype == np.float64
    np.testing.assert_allclose(p.mass, np.diff(np.arange(8.0) ** 3) / 343, rtol=1e-5)


def test_a_histogram_counts_each_sample_once():
    xs = np.array([[0.0, -1.0], [0.5, 0.0], [1.0, 3.0], [3.0, 4.0], [3.1, 0.0], [0.5, -2.0]])
    p = Density.from_samples(GRID, xs)
    # Lower edges belong to a cell, and so do the upper ends of the grid.
    np.testing.assert_array_equal(p.mass * 6, [[1, 1, 0], [0, 0, 2]])
    assert p.outside == 2 / 6
    assert p.replicates.shape == (6, 2, 3)
    np.testing.assert_allclose(p.replicates.mean(0), p.mass, rtol=1e-15)


def test_samples_all_inside_leave_exactly_nothing_outside():
    xs = np.random.default_rng(0).random(1009)
    p = Density.from_samples(Grid.uniform((0, 1, 7)), xs)
    assert p.outside == 0
    np.testing.assert_array_equal(p.mass, np.histogram(xs, 7, (0, 1))[0] / 1009)


def test_groups_of_unequal_size_are_each_a_law():
    # 33 samples in 32 groups: one group has two.
    p = Density.from_samples(Grid.uniform((0, 1, 4)), np.linspace(0.01, 0.99, 33))
    np.testing.assert_array_equal(p.replicates.sum(1), np.ones(32))
    np.testing.assert_array_equal(p.replicates[0], [0.5, 0, 0, 0.5])


def test_samples_of_one_axis_may_be_flat_and_jax_arrays():
    grid = Grid.uniform((0, 1, 4))
    xs = np.array([0.1, 0.3, 0.35, 0.9], np.float32)
    for given in (xs, xs[:, None], jnp.asarray(xs), jnp.asarray(xs)[:, None]):
        np.testing.assert_array_equal(Density.from_samples(grid, given).mass, [0.25, 0.5, 0.0, 0.25])


def test_one_sample_has_no_standard_error():
    assert Density.from_samples(Grid.uniform((0, 1, 4)), np.array([0.3])).standard_error is None


@pytest.mark.parametrize("n", [2, 7, 32])
def test_with_one_sample_a_group_the_standard_error_is_the_textbook_one(n):
    k = n // 2
    p = Density.from_samples(Grid([[0.0, 0.5, 1.0]]), np.array([0.2] * k + [0.7] * (n - k)))
    exact = np.sqrt(k / n * (1 - k / n) / (n - 1))
    np.testing.assert_allclose(p.standard_error, [exact, exact], rtol=1e-14)


def test_standard_error_of_many_samples_is_binomial():
    n = 40_009
    grid = Grid.uniform((-2, 2, 20))
    p = Density.from_samples(grid, np.random.default_rng(1).normal(size=n))
    assert len(p.replicates) == 32
    exact = np.diff(ndtr(grid.edges[0]))
    ratio = p.standard_error**2 / (exact * (1 - exact) / n)
    # 31 degrees of freedom: each ratio scatters by sqrt(2 / 31) about 1, the mean of 20 cells by a quarter of that.
    scatter = np.sqrt(2 / 31)
    assert np.all(np.abs(ratio - 1) < 4.5 * scatter)
    assert abs(ratio.mean() - 1) < 3.5 * scatter / np.sqrt(20)
    # And the masses are that far from the truth: a sum of 20 squares with mean 20 and variance 40.
    chi2 = np.sum((p.mass - exact) ** 2 / (exact * (1 - exact) / n))
    assert abs(chi2 - 20) < 3.5 * np.sqrt(40)


@pytest.mark.parametrize(
    ("x", "cell"),
    [
        ((0.0, -1.0), (0, 0)),
        ((0.5, 0.0), (0, 1)),
        ((1.0, 1.0), (1, 1)),
        ((3.0, 4.0), (1, 2)),
    ],
)
def test_a_point_fills_the_cell_that_a_histogram_puts_it_in(x, cell):
    p = Density.point(GRID, x)
    assert p.mass[cell] == 1
    assert (p.mass.sum(), p.outside) == (1, 0)
    np.testing.assert_array_equal(p.mass, Density.from_samples(GRID, np.array([x])).mass)


def test_a_point_on_one_axis_may_be_a_number():
    np.testing.assert_array_equal(Density.point(Grid.uniform((0, 1, 4)), 0.3).mass, [0, 1, 0, 0])


def test_interpolation_is_exact_for_a_density_linear_in_each_coordinate():
    grid = Grid.stretched((4.0, 11, 1.0), (3.0, 8, 0.5))

    def f(x):
        return 20 + x[..., 0] - 2 * x[..., 1] + 0.5 * x[..., 0] * x[..., 1]

    p = Density(grid, f(grid.points) * grid.volumes / np.sum(f(grid.points) * grid.volumes))
    scale = np.sum(f(grid.points) * grid.volumes)
    low, high = (np.array([c[i] for c in grid.centres]) for i in (0, -1))
    x = low + (high - low) * np.random.default_rng(2).random((50, 2))
    np.testing.assert_allclose(p.at(x) * scale, f(x), rtol=1e-13)
    np.testing.assert_allclose(p.at(x[3]) * scale, f(x[3]), rtol=1e-13)
    assert p.at(x[3]).shape == ()
    np.testing.assert_allclose(p.at(grid.points.reshape(-1, 2)).reshape(grid.shape), p.pdf, rtol=1e-13)


def test_interpolation_is_constant_to_the_edge_and_zero_beyond():
    p = Density(Grid([[0.0, 1.0, 2.0]]), [0.25, 0.75])
    x = np.array([-np.inf, -1e-9, 0, 0.5, 1, 1.5, 2, 2 + 1e-9, np.inf])
    np.testing.assert_array_equal(p.at(x[:, None]), [0, 0, 0.25, 0.25, 0.5, 0.75, 0.75, 0, 0])
    assert p.at(1.0) == 0.5
    # One cell along an axis: nothing to interpolate with.
    one = Density(Grid([[0.0, 1.0, 2.0], [0.0, 4.0]]), [[0.25], [0.75]])
    np.testing.assert_array_equal(one.at(np.array([[1.0, 0.0], [1.0, 3.9], [1.0, 4.1]])), [0.125, 0.125, 0])


@pytest.mark.parametrize(
    ("fine", "coarse"),
    [
        (Grid.uniform((-3, 3, 12), (0, 1, 8)), Grid.uniform((-3, 3, 6), (0, 1, 8))),
        (Grid.stretched((1e9, 40, 1e-3), (5.0, 12, 0.5)), Grid.stretched((1e9, 20, 1e-3), (5.0, 4, 0.5))),
        (Grid.uniform((-3, 3, 12), (0, 1, 8)), Grid([[-3, 0, 1, 3], [0, 0.125, 1]])),
    ],
    ids=["uniform", "stretched", "unequal"],
)
def test_a_law_on_a_coarser_grid_is_the_histogram_on_that_grid(fine, coarse):
    rng = np.random.default_rng(3)
    low, high = (np.array([e[i] for e in fine.edges]) for i in (0, -1))
    xs = low + (high - low) * rng.random((500, 2)) * 1.1
    got, expected = Density.from_samples(fine, xs).on(coarse), Density.from_samples(coarse, xs)
    np.testing.assert_allclose(got.mass, expected.mass, atol=1e-15)
    np.testing.assert_allclose(got.replicates, expected.replicates, atol=1e-15)
    np.testing.assert_allclose(got.outside, expected.outside, atol=1e-14)
    assert got.grid is coarse


def test_a_law_on_part_of_its_grid_has_the_rest_outside():
    p = Density(Grid.uniform((0, 1, 8)), np.arange(1, 9) / 64, 28 / 64)
    q = p.on(Grid([[0.25, 0.5, 0.875]]))
    np.testing.assert_array_equal(q.mass * 64, [3 + 4, 5 + 6 + 7])
    np.testing.assert_allclose(q.outside * 64, 28 + 1 + 2 + 8, rtol=1e-14)
    np.testing.assert_array_equal(p.on(p.grid).mass, p.mass)


def test_grids_that_do_not_share_edges_are_not_mixed():
    message = (
        r"`grid` must have only edges that this density's grid has, but axis 1 does not\. "
        r"Build one grid from the other, or compute the density on the grid that you need\."
    )
    for edges in ([0.0, 0.3, 2.0], [0.0, 5.0], [-2.0, 0.0], [0.0, 1e-9, 2.0]):
        with pytest.raises(ValueError, match=message):
            DENSITY.on(Grid([[0.0, 3.0], edges]))
    with pytest.raises(ValueError, match=r"`grid` must have 2 axes like this density's, but it has 1\."):
        DENSITY.on(Grid([[0.0, 3.0]]))


def test_edges_are_compared_on_the_scale_of_their_cells():
    # Near 0 the cells are 1e-3 wide while the axis is 1e9 long: edges half a cell apart are not the same.
    p = Density.from_samples(Grid.stretched((1e9, 40, 1e-3)), np.array([0.0, 1.0]))
    edges = p.grid.edges[0]
    with pytest.raises(ValueError, match="must have only edges"):
        p.on(Grid([[edges[0], 0.5 * (edges[20] + edges[21]), edges[-1]]]))


def test_print_tells_where_the_mass_is():
    assert str(Density(Grid.uniform((0, 1, 4)), [0.5, 0.25, 0, 0.125], 0.125)) == (
        "Density on Grid [0, 1] in 4 cells: mass 0.875 in the grid, 0.125 outside"
    )
    sampled = Density.from_samples(Grid.uniform((0, 1, 4)), np.array([0.3, 0.4, 0.5]))
    assert str(sampled).endswith("mass 1 in the grid, 0 outside, sampled in 3 groups")


LINE = Grid.uniform((0, 1, 2))
WRONG = {
    "shape": (lambda: Density(LINE, [1.0]), "`mass` must have the shape of the grid, (2,), but got (1,)."),
    "negative": (
        lambda: Density(LINE, [1.5, -0.5]),
        "`mass` and `outside` must be finite and not negative, got a smallest mass of -0.5 and outside=0.",
    ),
    "not a number": (lambda: Density(LINE, [np.nan, 1]), "must be finite and not negative"),
    "infinite": (lambda: Density(LINE, [np.inf, 1]), "must be finite and not negative"),
    "outside": (lambda: Density(LINE, [0.5, 0.5], -0.1), "outside=-0.1."),
    "outside not a number": (lambda: Density(LINE, [0.5, 0.5], np.nan), "outside=nan."),
    "outside infinite": (lambda: Density(LINE, [0.5, 0.5], np.inf), "outside=inf."),
    "total": (
        lambda: Density(LINE, [1.0, 1.0]),
        "`mass` and `outside` must sum to 1, but their sum is 2. Values of a density become masses when multiplied by "
        "`grid.volumes`.",
    ),
    "replicates": (
        lambda: Density(LINE, [0.5, 0.5], 0.0, np.ones((4, 3))),
        "`replicates` must have shape (r, 2) with r > 1, got (4, 3).",
    ),
    "one replicate": (
        lambda: Density(LINE, [0.5, 0.5], 0.0, np.ones((1, 2))),
        "`replicates` must have shape (r, 2) with r > 1, got (1, 2).",
    ),
    "function negative": (
        lambda: Density.from_function(LINE, lambda x: x[0] - 0.5),
        "`f` must be finite, not negative and not zero everywhere on the grid; its cell masses reach from -0.125 to "
        "0.125.",
    ),
    "function zero": (lambda: Density.from_function(LINE, lambda x: 0 * x[0]), "not zero everywhere"),
    "function infinite": (lambda: Density.from_function(LINE, lambda x: 1 / (x[0] - x[0])), "`f` must be finite"),
    "function not a number": (lambda: Density.from_function(LINE, lambda x: jnp.log(-x[0])), "`f` must be finite"),
    "function of another shape": (
        lambda: Density.from_function(LINE, lambda x: jnp.exp(-(x**2))),
        "The function must return one number for a point of shape (1,), got",
    ),
    "samples of another dimension": (
        lambda: Density.from_samples(LINE, np.ones((5, 2))),
        "`xs` must have shape (n, 1) with n > 0, got (5, 2).",
    ),
    "flat samples": (
        lambda: Density.from_samples(GRID, np.ones(5)),
        "`xs` must have shape (n, 2) with n > 0, got (5,).",
    ),
    "no samples": (lambda: Density.from_samples(LINE, np.ones((0, 1))), "with n > 0, got (0, 1)."),
    "samples not finite": (
        lambda: Density.from_samples(LINE, np.array([0.5, np.nan])),
        "`xs` must be finite; drop or repair the samples that are not.",
    ),
    "point of another dimension": (lambda: Density.point(GRID, 0.5), "`x` must have shape (2,), got (1,)."),
    "point beyond": (
        lambda: Density.point(LINE, 1.5),
        "`x` must lie in the grid, Grid [0, 1] in 2 cells, but got [1.5].",
    ),
    "point not a number": (lambda: Density.point(LINE, np.nan), "`x` must lie in the grid"),
    "at flat points": (lambda: DENSITY.at(np.ones(3)), "`x` must have shape (2,) or (n, 2), got (3,)."),
    "at three axes": (lambda: DENSITY.at(np.ones((2, 2, 2))), "`x` must have shape (2,) or (n, 2), got (2, 2, 2)."),
    "at no number": (lambda: DENSITY.at([0.5, np.nan]), "`x` must hold numbers, but some are NaN."),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_wrong_arguments_are_refused_with_a_remedy(case, unchecked):
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
