import re

import jax.numpy as jnp
import numpy as np
import pytest

from solvers import Grid, grid as grid_module
from solvers.grid import evaluate


def test_uniform_cells_are_equal_and_centres_halfway():
    grid = Grid.uniform((-3, 3, 12), (0, 1, 7))
    assert (grid.ndim, grid.shape, grid.size) == (2, (12, 7), 84)
    assert grid.edges[0][0] == -3
    assert grid.edges[0][-1] == 3
    np.testing.assert_allclose(np.diff(grid.edges[0]), 0.5, rtol=1e-14)
    np.testing.assert_allclose(grid.centres[0], -2.75 + 0.5 * np.arange(12), rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(grid.volumes, np.full((12, 7), 0.5 / 7), rtol=1e-13)
    assert all(a.dtype == np.float64 for a in grid.edges + grid.centres)


@pytest.mark.parametrize("cells", [1, 2, 7, 400])
def test_stretched_grid_is_symmetric_to_the_last_bit(cells):
    grid = Grid.stretched((1e6, cells, 0.3))
    (edges,), (centres,) = grid.edges, grid.centres
    assert len(edges) == cells + 1
    np.testing.assert_array_equal(edges, -edges[::-1])
    np.testing.assert_array_equal(centres, -centres[::-1])
    np.testing.assert_allclose(edges[[0, -1]], [-1e6, 1e6], rtol=1e-13)


def test_stretched_edges_and_centres_are_one_sinh_sequence():
    reach, cells, scale = 50.0, 9, 2.0
    grid = Grid.stretched((reach, cells, scale))
    sequence = np.empty(2 * cells + 1)
    sequence[::2], sequence[1::2] = grid.edges[0], grid.centres[0]
    # asinh(x / scale) is uniform over the interleaved sequence; a centre is not halfway between its edges.
    np.testing.assert_allclose(
        np.arcsinh(sequence / scale), np.linspace(-1, 1, 2 * cells + 1) * np.arcsinh(reach / scale), atol=1e-14
    )
    assert np.max(np.abs(grid.centres[0] - (grid.edges[0][1:] + grid.edges[0][:-1]) / 2)) > 1


def test_volumes_are_products_of_widths_and_fill_the_box():
    grid = Grid([[0, 1, 3], [0, 2, 2.5, 4], [-1, 1]])
    expected = np.array([[2.0, 0.5, 1.5], [4.0, 1.0, 3.0]])[:, :, None] * 2
    np.testing.assert_array_equal(grid.volumes, expected)
    assert grid.volumes.sum() == 3 * 4 * 2
    assert grid.shape == (2, 3, 1)


def test_points_are_the_centres_in_the_order_of_the_axes():
    grid = Grid.uniform((0, 2, 2), (10, 16, 3))
    assert grid.points.shape == (2, 3, 2)
    np.testing.assert_array_equal(grid.points[1, 2], [1.5, 15.0])
    np.testing.assert_array_equal(grid.points[0, 1], [0.5, 13.0])


def test_axis_gives_the_grid_of_one_coordinate():
    grid = Grid.stretched((10.0, 4, 1.0), (20.0, 6, 2.0))
    for k in (1, -1):
        axis = grid.axis(k)
        np.testing.assert_array_equal(axis.edges[0], grid.edges[1])
        np.testing.assert_array_equal(axis.centres[0], grid.centres[1])
    for k in (2, -3):
        with pytest.raises(ValueError, match=f"`axis` must be below the number of axes, 2, but got {k}"):
            grid.axis(k)


@pytest.mark.parametrize(
    ("fine", "coarse"),
    [
        (Grid.uniform((-3, 3, 12), (0, 1, 8)), Grid.uniform((-3, 3, 6), (0, 1, 4))),
        (Grid.stretched((1e4, 12, 1.0), (5.0, 20, 0.5)), Grid.stretched((1e4, 6, 1.0), (5.0, 10, 0.5))),
    ],
    ids=["uniform", "stretched"],
)
def test_coarsening_gives_the_grid_built_with_half_the_cells(fine, coarse):
    got = fine.coarsen()
    assert got.shape == coarse.shape
    for a, b in zip(got.edges + got.centres, coarse.edges + coarse.centres, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(
        got.volumes, fine.volumes.reshape(got.shape[0], 2, got.shape[1], 2).sum((1, 3)), rtol=1e-12
    )


def test_odd_axes_are_not_coarsened():
    message = r"Only axes with an even number of cells can be coarsened, got shape \(4, 3\)\."
    with pytest.raises(ValueError, match=message):
        Grid.uniform((0, 1, 4), (0, 1, 3)).coarsen()


@pytest.mark.parametrize("nodes", [1, 2, 3, 5])
def test_cell_averages_are_exact_for_polynomials_of_degree_2n_minus_1_and_no_further(nodes):
    grid = Grid([[-1.0, 0.5, 2.0, 2.25], [0.0, 1.0, 3.0]])

    def average(degree):
        # The exact average of x^degree over each cell, for each axis.
        return [np.diff(e ** (degree + 1)) / (degree + 1) / np.diff(e) for e in grid.edges]

    for p in range(2 * nodes):
        for q in (0, 2 * nodes - 1 - p, 2 * nodes - 1):
            got = grid.cell_averages(lambda x, p=p, q=q: x[0] ** p * x[1] ** q, nodes)
            np.testing.assert_allclose(got, np.outer(average(p)[0], average(q)[1]), rtol=1e-13, atol=1e-13)

    got = grid.cell_averages(lambda x: x[0] ** (2 * nodes), nodes)
    assert np.max(np.abs(got - average(2 * nodes)[0][:, None])) > 1e-8


def test_cell_averages_of_a_function_that_no_polynomial_equals():
    grid = Grid.uniform((0, 1, 7))
    exact = np.diff(np.exp(grid.edges[0])) * 7
    np.testing.assert_allclose(grid.cell_averages(lambda x: jnp.exp(x[0])), exact, rtol=1e-10)


def test_a_constant_has_itself_as_average():
    np.testing.assert_allclose(Grid.uniform((0, 1, 3), (0, 1, 2)).cell_averages(lambda x: 2.5), 2.5, rtol=1e-15)


def test_cell_averages_compile_the_function_once():
    traces = []

    def fn(x):
        traces.append(x.shape)
        return jnp.sum(x)

    Grid.uniform((0, 1, 3), (0, 1, 2)).cell_averages(fn)
    # Once for the shape of its value, once to compile; not once for each of the nine nodes.
    assert traces == [(2,), (2,)]


def test_evaluation_in_slices_is_evaluation_at_once(monkeypatch):
    points = np.linspace(0, 1, 46).reshape(23, 2)
    expected = np.stack([points[:, 0] * points[:, 1], points[:, 0] + 1], 1)
    for size in (1 << 18, 23, 7):
        monkeypatch.setattr(grid_module, "_points_per_call", size)
        got = evaluate(lambda x: jnp.stack([x[0] * x[1], x[0] + 1]), points)
        np.testing.assert_allclose(got, expected, rtol=1e-15)


def test_functions_that_do_not_return_one_number_are_refused():
    grid = Grid.uniform((0, 1, 3), (0, 1, 2))
    with pytest.raises(
        ValueError, match=r"The function must return one number for a point of shape \(2,\), got .*shape=\(2,"
    ):
        grid.cell_averages(lambda x: x)


def test_print_tells_the_box_and_the_cells():
    assert str(Grid.uniform((-3, 3, 400), (0, 0.25, 7))) == "Grid [-3, 3] in 400 cells × [0, 0.25] in 7 cells"


WRONG = {
    "no axes": (lambda: Grid([]), "`edges` must hold one array per axis, but it is empty."),
    "no axes, uniform": (Grid.uniform, "`edges` must hold one array per axis, but it is empty."),
    "one array for all axes": (
        lambda: Grid([0.0, 1.0, 2.0]),
        "`edges` of axis 0 must be at least two finite, strictly increasing numbers, got array(0.)",
    ),
    "one edge": (lambda: Grid([[0.0]]), "`edges` of axis 0 must be at least two finite"),
    "decreasing": (lambda: Grid([[0, 1], [0, 2, 1]]), "`edges` of axis 1 must be at least two finite"),
    "repeated": (lambda: Grid([[0, 1, 1]]), "strictly increasing numbers, got array([0., 1., 1.])"),
    "not a number": (lambda: Grid([[0, np.nan, 1]]), "finite, strictly increasing"),
    "infinite": (lambda: Grid([[0, 1, np.inf]]), "finite, strictly increasing"),
    "centres of fewer axes": (
        lambda: Grid([[0, 1], [0, 1]], [[0.5]]),
        "`centres` must hold one array per axis, but there are 1 for 2 axes.",
    ),
    "too few centres": (lambda: Grid([[0, 1, 2]], [[0.5]]), "`centres` of axis 0 must lie one in each cell"),
    "centre on an edge": (lambda: Grid([[0, 1, 2]], [[0.5, 1.0]]), "`centres` of axis 0 must lie one in each cell"),
    "numbers for axes": (
        lambda: Grid.uniform(-3, 3, 400),
        "Axis 0 of `Grid.uniform` must be (low, high, cells), got -3.",
    ),
    "two numbers": (lambda: Grid.uniform((0, 1, 2), (0, 1)), "Axis 1 of `Grid.uniform` must be (low, high, cells)"),
    "reversed": (
        lambda: Grid.uniform((3, -3, 400)),
        "Axis 0 of `Grid.uniform` must have low < high, got low=3.0, high=-3.0.",
    ),
    "unbounded": (lambda: Grid.uniform((-np.inf, 0, 4)), "must have low < high, got low=-inf"),
    "fractional cells": (
        lambda: Grid.uniform((0, 1, 2.5)),
        "Axis 0 must have a whole, positive number of cells, got 2.5.",
    ),
    "no cells": (lambda: Grid.stretched((1, 0, 1.0)), "Axis 0 must have a whole, positive number of cells, got 0."),
    "infinitely many cells": (lambda: Grid.uniform((0, 1, np.inf)), "a whole, positive number of cells, got inf."),
    "numbers for axes, stretched": (
        lambda: Grid.stretched(1e6, 400, 1.0),
        "Axis 0 of `Grid.stretched` must be (reach, cells, scale), got 1000000.0.",
    ),
    "scale": (
        lambda: Grid.stretched((10.0, 4, 0.0)),
        "Axis 0 of `Grid.stretched` must have a positive reach and scale, got reach=10.0, scale=0.0.",
    ),
    "reach": (lambda: Grid.stretched((np.inf, 4, 1.0)), "must have a positive reach and scale, got reach=inf"),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_wrong_arguments_are_refused_with_a_remedy(case, unchecked):
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
