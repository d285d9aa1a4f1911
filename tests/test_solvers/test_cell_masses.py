"""Masses of the stationary law in cells, and what having them does to drift, transients and rates."""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.integrate import quad
from scipy.special import i0e, i1e
from test_solvers.fokker_planck_problems import brownian, double_well, gibbs, loss_proportional, quadratic

from solvers import Density, Diffusion, Grid, fokker_planck
from solvers.fokker_planck.assembly import assemble_checked


def law(process, grid):
    return fokker_planck.stationary(fokker_planck.assemble(process, grid))


def ou(temperature):
    return gibbs(lambda x: 0.5 * x @ x, temperature)


@pytest.mark.parametrize(
    ("kappa", "cells", "rtol"), [(0.5, 400, 1e-12), (0.5, 200, 1e-10), (0.1, 400, 1e-9), (1.0, 200, 1e-8)]
)
def test_student_tails_in_few_cells(kappa, cells, rtol):
    # Student's t with ν = 1 + 2/κ degrees of freedom and scale ν^(-1/2), without what lies beyond the box.
    nu = 1 + 2 / kappa
    p = law(loss_proportional(quadratic, kappa), Grid.stretched((1e6, cells, 1.0)))
    t = scipy.stats.t(nu)
    beyond = lambda x: t.sf(x * np.sqrt(nu))  # noqa: E731
    for x in (3, 30, 3000):
        face = int(np.searchsorted(p.grid.edges[0], x))
        exact = (beyond(p.grid.edges[0][face]) - beyond(1e6)) / (1 - 2 * beyond(1e6))
        assert p.mass[face:].sum() == pytest.approx(exact, rel=rtol, abs=0)


def test_a_gaussian_law_in_thirty_cells():
    p = law(ou(1.0), Grid.uniform((-6.0, 6.0, 36)))
    # The upper half mirrored: there the distribution function is 1 but for rounding.
    exact = np.diff(scipy.stats.norm.cdf(p.grid.edges[0][:19]))
    exact = np.concatenate([exact, exact[::-1]])
    np.testing.assert_allclose(p.mass, exact / exact.sum(), rtol=1e-9)


def test_masses_of_uneven_cells_and_uneven_noise():
    # D = 1 + x²/2 and b = -x: π = exp(∫b/D)/D = (1 + x²/2)^-2 on cells of irregular width with centres off the middle.
    rng = np.random.default_rng(5)
    edges = np.concatenate([[-40.0], np.sort(rng.uniform(-4, 4, 60)), [30.0, 50.0]])
    edges = np.unique(np.concatenate([edges, np.linspace(-40, 50, 400)]))
    centres = edges[:-1] + np.diff(edges) * rng.uniform(0.3, 0.7, edges.size - 1)
    process = Diffusion(lambda t, x: -x, lambda t, x: jnp.sqrt(2 + x @ x))
    p = law(process, Grid([edges], [centres]))
    exact = np.array([quad(lambda x: (1 + x * x / 2) ** -2, a, b)[0] for a, b in pairwise(edges)])
    np.testing.assert_allclose(p.mass, exact / exact.sum(), rtol=1e-9)


def test_cells_that_do_not_resolve_the_law_keep_the_drift():
    # A law 0.4 cells wide. Far out all mass is carried by the drift: m' = -m for the mean, as without cell means.
    process, grid = ou(1e-4), Grid.uniform((-2.0, 2.0, 160))
    speeds = {}
    for masses in ("cells", "points"):
        g = assemble_checked(process, grid, ("no-flux",), masses=masses)
        jump = np.diff(grid.centres[0])
        speeds[masses] = (g.up[0][1:-1] * jump)[100:] - (g.down[0][1:-1] * jump)[99:-1]
    np.testing.assert_array_equal(speeds["cells"], speeds["points"])


def test_a_constant_drift_is_exact_at_every_steepness():
    # Φ linear: the midpoint weight over the cell mean is Scharfetter and Gummel's. Between, where means fade, the
    # rates of neighbours differ by no more than their means.
    for drift in (0.1, 3.0, 19.0, 25.0, 35.0, 100.0):
        g = fokker_planck.assemble(brownian(1.0, drift), Grid.uniform((0.0, 1.0, 10)))
        up, down = g.up[0][2:-2], g.down[0][2:-2]
        np.testing.assert_allclose((up - down) * 0.1, drift, rtol=1e-9)


def test_independent_coordinates_stay_independent():
    # One axis is steep, the other has means far from 1: generators add up.
    grid = Grid.stretched((30.0, 24, 1.0), (5.0, 20, 3.0))
    process = Diffusion(
        lambda t, x: jnp.stack([-x[0], -4 * x[1]]),
        lambda t, x: jnp.stack([jnp.sqrt(0.5 + 0.5 * x[0] ** 2), jnp.asarray(0.4)]),
    )
    a = fokker_planck.assemble(process, grid)
    parts = [
        Diffusion(lambda t, x: -x, lambda t, x: jnp.sqrt(0.5 + 0.5 * x @ x)),
        Diffusion(lambda t, x: -4 * x, lambda t, x: jnp.asarray(0.4)),
    ]
    x, y = (fokker_planck.assemble(q, grid.axis(k)).matrix.toarray() for k, q in enumerate(parts))
    total = np.kron(x, np.eye(20)) + np.kron(np.eye(24), y)
    np.testing.assert_allclose(a.matrix.toarray(), total, rtol=1e-9, atol=1e-9 * np.max(np.abs(total)))


def test_a_product_of_student_laws():
    # D_k = κ (1 + x_k²)/2: the coordinates are independent, and tails along an axis keep eight orders.
    kappa, nu = 0.5, 5.0
    process = Diffusion(lambda t, x: -x, lambda t, x: jnp.sqrt(kappa * (1 + x**2)))
    p = law(process, Grid.stretched((1e5, 200, 1.0), (30.0, 40, 1.0)))
    face = int(np.searchsorted(p.grid.edges[0], 1000))
    t = scipy.stats.t(nu)
    exact = t.sf(p.grid.edges[0][face] * np.sqrt(nu)) - t.sf(1e5 * np.sqrt(nu))
    assert p.mass[face:].sum() == pytest.approx(exact, rel=1e-9, abs=0)


def test_laws_in_the_plane_are_of_fourth_order():
    # Correlated and tilted: V = (x² - 1)²/4 + (y - x/2)²/2 + x/10 with D = 1/4; and f = .1 + (r² - 1)²/8 with D = f/2.
    def v(x):
        return (x[0] ** 2 - 1) ** 2 / 4 + (x[1] - x[0] / 2) ** 2 / 2 + x[0] / 10

    def f(x):
        return 0.1 + (x @ x - 1) ** 2 / 8

    for process, density in [
        (gibbs(v, 0.25), lambda x: jnp.exp(-4 * v(x))),
        (loss_proportional(f, 0.5), lambda x: f(x) ** -3),
    ]:
        errors = []
        for n in (80, 160):
            grid = Grid.uniform((-3.0, 3.0, n), (-3.0, 3.0, n))
            exact = grid.cell_averages(density, nodes=6) * grid.volumes
            errors.append(np.abs(law(process, grid).mass - exact / exact.sum()).sum())
        assert errors[-1] < 2e-6
        assert np.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.1)


def test_a_periodic_law():
    # b = sin x, D = 1: π = exp(-cos x)/(2π I₀(1)), E cos = -I₁/I₀; the mean of cos over a cell is sinc-damped.
    grid = Grid.uniform((0.0, 2 * np.pi, 32))
    process = Diffusion(lambda t, x: jnp.sin(x), lambda t, x: jnp.sqrt(jnp.asarray(2.0)))
    p = fokker_planck.stationary(fokker_planck.assemble(process, grid, "periodic"))
    h = 2 * np.pi / 32
    exact = -i1e(1.0) / i0e(1.0) * np.sin(h / 2) / (h / 2)
    assert np.sum(p.mass * np.cos(grid.centres[0])) == pytest.approx(exact, rel=1e-10)


def test_the_null_vector_has_these_masses():
    for process, grid in [
        (loss_proportional(quadratic, 0.5), Grid.stretched((1e6, 150, 1.0))),
        (gibbs(double_well(), 0.02), Grid.uniform((-2.0, 2.5, 40))),
        (loss_proportional(quadratic, 0.5), Grid.stretched((1e3, 40, 1.0), (1e3, 44, 1.0))),
    ]:
        g = fokker_planck.assemble(process, grid)
        p = fokker_planck.stationary(g)
        traffic = np.abs(g.matrix.diagonal()) * p.mass.ravel()
        np.testing.assert_allclose(g.matrix @ p.mass.ravel() / traffic, 0, atol=max(1e-13, g.cycle_defect))
        flow = fokker_planck.current(g, p)
        assert 0 <= flow.entropy_production < 1e-20


def test_transients_are_second_order():
    # An Ornstein-Uhlenbeck process from a Gaussian, in masses of cells; at the first size the law is one cell wide.
    temperature, t, errors = 0.02, 0.5, []
    for n in (80, 160, 320):
        grid = Grid.uniform((-3.0, 3.0, n))
        mass = lambda mean, sd: np.diff(scipy.stats.norm.cdf(grid.edges[0], mean, sd))  # noqa: B023, E731
        p0 = mass(1.2, 0.3)
        (p,) = fokker_planck.evolve(
            fokker_planck.assemble(ou(temperature), grid), Density(grid, p0 / p0.sum()), [t], rtol=1e-9
        ).densities
        sd = np.sqrt(0.09 * np.exp(-2 * t) + temperature * -np.expm1(-2 * t))
        errors.append(np.abs(p.mass - mass(1.2 * np.exp(-t), sd)).sum())
    assert errors[-1] < 1e-2
    assert np.log2(errors[1] / errors[2]) == pytest.approx(2, abs=0.15)


def test_without_detailed_balance_masses_are_those_of_the_centres():
    turn = jnp.array([[1.0, 0.5], [-0.5, 1.0]])
    process = Diffusion(lambda t, x: -turn @ x, lambda t, x: jnp.asarray(1.0))
    grid = Grid.uniform((-3.0, 3.0, 20), (-3.0, 3.0, 20))
    g = fokker_planck.assemble(process, grid)
    assert not g.reversible
    assert g.masses == "points"
    assert fokker_planck.coarsen(fokker_planck.assemble(ou(1.0), Grid.uniform((-3.0, 3.0, 20)))).masses == "cells"
