"""The law at later times, against closed-form transition densities."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from scipy.special import assoc_legendre_p, erf, factorial

from solvers import Density, Diffusion, Grid, fokker_planck
from solvers.fokker_planck.contour_steps import talbot


def student(kappa):
    """f = (1 + x²)/2 with loss-proportional noise D = κ f."""
    return Diffusion(lambda t, x: -x, lambda t, x: jnp.sqrt(kappa * (1 + x @ x)))


def student_kernel(x, x0, t, n):
    """The transition density of the Student diffusion at κ = 2/(2n - 1), by its n bound states."""
    y, y0, tau = np.arcsinh(x), np.arcsinh(x0), 2 * t / (2 * n - 1)
    step = y - y0
    total = np.exp(-(n**2) * tau / 2 - step**2 / (2 * tau)) / np.sqrt(2 * np.pi * tau)
    for k in range(1, n + 1):
        norm = k * factorial(n - k) / factorial(n + k)
        bound = norm * assoc_legendre_p(n, k, np.tanh(y))[0] * assoc_legendre_p(n, k, np.tanh(y0))[0]
        spread = erf((k * tau + step) / np.sqrt(2 * tau)) + erf((k * tau - step) / np.sqrt(2 * tau))
        total = total + bound * np.exp(-(n**2 - k**2) * tau / 2) * spread / 2
    return (np.cosh(y0) / np.cosh(y)) ** n * total / np.cosh(y)


def student_cells(grid, x0, t, n):
    """The mass of that density in each cell, by three Gauss-Legendre nodes."""
    xi, w = np.polynomial.legendre.leggauss(3)
    low, width = grid.edges[0][:-1], np.diff(grid.edges[0])
    return width * (0.5 * w @ student_kernel(low + width * 0.5 * (1 + xi[:, None]), x0, t, n))


def linear(a, diffusion):
    a, g = jnp.asarray(a), jnp.sqrt(2 * jnp.asarray(diffusion))
    return Diffusion(lambda t, x: -a @ x, lambda t, x: g)


_circling = linear([[1.0, 2.0], [-2.0, 1.0]], [0.3, 0.5])
_square = Grid.uniform((-4.0, 4.0, 16), (-4.0, 4.0, 15))


@pytest.mark.parametrize("nodes", [8, 12, 16, 20])
def test_the_contour_rule_converges_on_the_negative_axis(nodes):
    x = -np.concatenate([[0.0], np.logspace(-8, 8, 3001)])
    z, c = talbot(nodes)
    approximation = 2 * (c / (z - x[:, None])).real.sum(axis=1)
    assert approximation[0] == pytest.approx(1, abs=1e-15)
    assert np.max(np.abs(approximation - np.exp(x))) < 6 * 3.89**-nodes


@pytest.mark.parametrize("rtol", [1e-2, 1e-6, 1e-10])
@pytest.mark.parametrize("t", [1e-3, 1.0, 4.0, 10.0, 30.0])
@pytest.mark.parametrize(
    ("process", "grid", "kind"),
    [
        (student(0.5), Grid.stretched((1e4, 99, 1.0)), "no-flux"),
        (student(0.5), Grid.stretched((20.0, 60, 1.0)), ("absorbing",)),
        (Diffusion(lambda t, x: 5 + 0 * x, lambda t, x: jnp.ones(())), Grid.uniform((0.0, 6.0, 60)), "periodic"),
        (_circling, _square, ("absorbing", "no-flux")),
    ],
    ids=["line", "exits", "circle", "circling"],
)
@pytest.mark.slow(
    "circling-30.0-1e-10",
    "circle-30.0-1e-10",
    "circling-0.001-0.01",
    "circling-30.0-1e-06",
    "circling-10.0-1e-10",
    "circle-30.0-1e-06",
    "circling-10.0-1e-06",
    "line-0.001-0.01",
    "exits-0.001-0.01",
    "circling-4.0-1e-10",
    "circling-30.0-0.01",
    "circle-0.001-0.01",
    "circling-10.0-0.01",
    "circling-4.0-1e-06",
    "circling-4.0-0.01",
)
def test_the_exponential_is_within_rtol(process, grid, kind, t, rtol):
    generator = fokker_planck.assemble(process, grid, kind)
    p0 = Density.point(grid, [2.1] * grid.ndim)
    solution = fokker_planck.evolve(generator, p0, [t], rtol=rtol)
    exact = scipy.linalg.expm(t * generator.matrix.toarray()) @ p0.mass.ravel()
    (p,) = solution.densities
    assert np.abs(p.mass.ravel() - exact).sum() < rtol
    assert p.outside == pytest.approx(1 - exact.sum(), abs=rtol)
    assert solution.mass_error < 1e-12
    assert solution.min_mass >= -rtol


@pytest.mark.parametrize(
    ("n", "x", "exact"),
    [
        (1, [0.0, 1.0, 3.0], [0.4906833302608, 0.2917827324898, 0.02994514889891]),
        (2, [0.0, 0.5, 1.0], [0.48476007413053457, 0.7680726438554509, 0.4207006861835197]),
        (3, [0.0, 0.5, 1.0], [0.3806061785902431, 0.964395696260243, 0.4740045825105184]),
    ],
)
def test_the_closed_form_has_its_published_values(n, x, exact):
    np.testing.assert_allclose(student_kernel(np.array(x), 1.0, 0.5, n), exact, rtol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.slow("1", "2")
def test_student_transition_density(n):
    # From one cell, whose width blurs the start by O(h²); the grid has its centre within it.
    errors = []
    for cells in (201, 401, 801):
        grid = Grid.stretched((1e6 if n == 1 else 1e4, cells, 1.0))
        x = grid.centres[0]
        start = x[np.argmin(np.abs(x - 1))]
        generator = fokker_planck.assemble(student(2 / (2 * n - 1)), grid)
        solution = fokker_planck.evolve(generator, Density.point(grid, [start]), [0.2, 0.5], rtol=1e-9)
        errors.append(
            [
                np.abs(p.mass - student_cells(grid, start, t, n)).sum()
                for t, p in zip(solution.ts, solution.densities, strict=True)
            ]
        )
    order = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert np.min(order) > 1.9
    # Rates λ come out as λ (1 - λ h²/12 D), in the mapped coordinate: the steepest start has the largest error.
    assert np.max(errors[-1]) < 1.3e-3


def test_moments_of_student_relax_at_their_rates():
    # κ = 1/2, λ = 1, x₀ = 1.5: E X = x₀ e^-t and E X² = 1/3 + (x₀² - 1/3) e^(-3t/2).
    grid = Grid.stretched((1e6, 800, 1.0))
    generator = fokker_planck.assemble(student(0.5), grid)
    p0 = Density.point(grid, [1.5])
    start = p0.expect(lambda x: jnp.stack([x[0], x[0] ** 2]))
    solution = fokker_planck.evolve(generator, p0, [0.5, 2.0], rtol=1e-9)
    for t, p in zip(solution.ts, solution.densities, strict=True):
        exact = [start[0] * np.exp(-t), 1 / 3 + (start[1] - 1 / 3) * np.exp(-1.5 * t)]
        np.testing.assert_allclose(p.expect(lambda x: jnp.stack([x[0], x[0] ** 2])), exact, rtol=1e-3)


def test_mean_and_covariance_of_a_rotation():
    # Both obey linear equations: m' = -A m, P' = -A P - P Aᵀ + 2 D.
    a, d, t = np.array([[1.0, 2.0], [-2.0, 1.0]]), np.diag([0.3, 0.5]), 0.4
    errors = []
    for n in (40, 80):
        grid = Grid.uniform((-4.0, 4.0, n), (-4.0, 4.0, n))
        p0 = Density.from_function(grid, lambda x: jnp.exp(-((x[0] - 1) ** 2 + (x[1] + 0.5) ** 2) / 0.2))
        generator = fokker_planck.assemble(_circling, grid)
        (p,) = fokker_planck.evolve(generator, p0, [t], rtol=1e-7).densities
        mean = np.einsum("ij,ija->a", p.mass, grid.points)
        covariance = np.einsum("ij,ija,ijb->ab", p.mass, grid.points, grid.points) - np.outer(mean, mean)
        decay = scipy.linalg.expm(-a * t)
        rest = scipy.linalg.solve_continuous_lyapunov(a, 2 * d)
        exact = rest + decay @ (0.1 * np.eye(2) - rest) @ decay.T
        errors.append([np.max(np.abs(mean - decay @ [1, -0.5])), np.max(np.abs(covariance - exact))])
    assert np.max(errors[-1]) < 8e-3
    assert np.min(np.log2(np.array(errors[0]) / errors[1])) > 1.6


def test_diffusion_around_a_circle():
    # D = 1/2, b = 2 on a circle of length 2π: a cosine turns with speed b and decays at rate D.
    process = Diffusion(lambda t, x: 2 + 0 * x, lambda t, x: jnp.ones(()))
    errors = []
    for n in (50, 100):
        grid = Grid.uniform((0.0, 2 * np.pi, n))
        generator = fokker_planck.assemble(process, grid, "periodic")
        p0 = Density.from_function(grid, lambda x: 1 + 0.8 * jnp.cos(x[0]))
        solution = fokker_planck.evolve(generator, p0, [0.5, 1.0, 1.5], rtol=1e-9)
        exact = Density.from_function(grid, lambda x: 1 + 0.8 * jnp.exp(-0.75) * jnp.cos(x[0] - 3))
        errors.append(np.abs(solution.densities[-1].mass - exact.mass).sum())
    assert errors[1] < 2.5e-3
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.05)


def test_absorbed_brownian_motion():
    # On [0, 1] with D = 1 from 1/2: survival Σ (4/πn) sin(πn/2) e^(-n²π²t) over odd n.
    process = Diffusion(lambda t, x: jnp.zeros_like(x), lambda t, x: jnp.sqrt(jnp.asarray(2.0)))
    ts, odd = np.array([0.02, 0.1, 0.3]), np.arange(1, 60, 2)
    survival = (4 / (np.pi * odd) * np.sin(np.pi * odd / 2) * np.exp(-np.outer(ts, (np.pi * odd) ** 2))).sum(axis=1)
    errors = []
    for n in (51, 101, 201):
        generator = fokker_planck.assemble(process, Grid.uniform((0.0, 1.0, n)), "absorbing")
        solution = fokker_planck.evolve(generator, Density.point(generator.grid, [0.5]), ts, rtol=1e-10)
        errors.append([1 - p.outside - s for p, s in zip(solution.densities, survival, strict=True)])
        for p in solution.densities:
            assert p.mass.sum() + p.outside == pytest.approx(1, abs=1e-14)
    np.testing.assert_allclose(np.log2(np.abs(np.array(errors[:-1]) / errors[1:])), 2, atol=0.1)
    np.testing.assert_allclose(errors[-1], 0, atol=2e-4)


def test_the_stationary_law_stays():
    for process, grid in [(student(0.5), Grid.stretched((1e4, 99, 1.0))), (_circling, _square)]:
        generator = fokker_planck.assemble(process, grid)
        p = fokker_planck.stationary(generator)
        solution = fokker_planck.evolve(generator, p, [1e-3, 10.0], rtol=1e-4)
        for q in solution.densities:
            np.testing.assert_allclose(q.mass, p.mass, rtol=0, atol=1e-13)
        assert solution.mass_error < 1e-13


def test_time_zero_returns_the_start():
    generator = fokker_planck.assemble(student(0.5), Grid.uniform((-9.0, 9.0, 50)))
    p0 = Density.point(generator.grid, [1.0])
    solution = fokker_planck.evolve(generator, p0, [0.0, 0.5])
    np.testing.assert_array_equal(solution.densities[0].mass, p0.mass)
    assert "Evolution at 2 times from 0 to 0.5" in str(solution)


def test_intervals_add_up():
    generator = fokker_planck.assemble(student(0.5), Grid.uniform((-9.0, 9.0, 50)), "absorbing")
    p0 = Density.point(generator.grid, [1.0])
    once = fokker_planck.evolve(generator, p0, [1.0], rtol=1e-10).densities[-1]
    often = fokker_planck.evolve(generator, p0, [0.1, 0.45, 0.5, 0.95, 1.0], rtol=1e-10).densities[-1]
    np.testing.assert_allclose(often.mass, once.mass, atol=1e-11)
    assert often.outside == pytest.approx(once.outside, abs=1e-11)


@pytest.mark.parametrize("ts", [[], [1.0, 1.0], [2.0, 1.0], [-1.0], [np.nan], 1.0, [[1.0]]])
def test_times_must_increase(ts):
    generator = fokker_planck.assemble(student(0.5), Grid.uniform((-9.0, 9.0, 10)))
    with pytest.raises(ValueError, match="`ts` must"):
        fokker_planck.evolve(generator, Density.point(generator.grid, [1.0]), ts)


@pytest.mark.parametrize("rtol", [0.0, 1e-14, 0.5, np.nan])
def test_rtol_must_be_attainable(rtol):
    generator = fokker_planck.assemble(student(0.5), Grid.uniform((-9.0, 9.0, 10)))
    with pytest.raises(ValueError, match="`rtol` must be from 1e-12"):
        fokker_planck.evolve(generator, Density.point(generator.grid, [1.0]), [1.0], rtol=rtol)


def test_a_start_on_another_grid_is_refused():
    generator = fokker_planck.assemble(student(0.5), Grid.uniform((-9.0, 9.0, 10)))
    with pytest.raises(ValueError, match="`p0` must be a density on the grid"):
        fokker_planck.evolve(generator, Density.point(Grid.uniform((-9.0, 8.0, 10)), [1.0]), [1.0])


def _ou(temperature):
    return Diffusion(lambda t, x: -x, lambda t, x: jnp.sqrt(jnp.asarray(2 * temperature)))


@pytest.mark.parametrize(
    ("process", "grid", "start", "times"),
    [
        (_ou(1.0), Grid.uniform((-10.0, 10.0, 400)), 9.0, [0.5]),
        (_ou(0.05), Grid.uniform((-5.0, 5.0, 400)), 3.0, [0.5, 2.0]),
        (student(0.5), Grid.stretched((1e6, 400, 1.0)), 1e3, [1.0, 3.0]),
        (student(2.0), Grid.stretched((1e6, 400, 1.0)), 9e5, [3.0]),
    ],
)
@pytest.mark.parametrize("rtol", [1e-6, 1e-10])
@pytest.mark.slow(
    "1e-06-process1-grid1-3.0-times1",
    "1e-06-process0-grid0-9.0-times0",
    "1e-06-process2-grid2-1000.0-times2",
    "1e-10-process1-grid1-3.0-times1",
)
def test_far_starts_keep_rtol(process, grid, start, times, rtol):
    # 1/π is up to 1e80 there: an approximation that is accurate in L²(1/π) may be nonsense.
    generator = fokker_planck.assemble(process, grid)
    p0 = Density.point(grid, [start])
    sol = fokker_planck.evolve(generator, p0, times, rtol=rtol)
    for t, p in zip(times, sol.densities, strict=True):
        exact = scipy.linalg.expm(t * generator.matrix.toarray()) @ p0.mass
        assert np.abs(p.mass - exact).sum() < rtol
    assert sol.mass_error < 1e-11


def test_absorbed_mass_of_a_far_start():
    generator = fokker_planck.assemble(_ou(1.0), Grid.uniform((-3.0, 10.0, 260)), "absorbing")
    p0 = Density.point(generator.grid, [8.5])
    sol = fokker_planck.evolve(generator, p0, [0.5, 2.0])
    for t, p in zip(sol.ts, sol.densities, strict=True):
        exact = scipy.linalg.expm(t * generator.matrix.toarray()) @ p0.mass
        assert np.abs(p.mass - exact).sum() < 1e-6
        assert p.outside == pytest.approx(1 - exact.sum(), abs=1e-6)


def test_time_dependent_processes_are_refused():
    process = Diffusion(lambda t, x: 5 * t - x, lambda t, x: 1.0)
    with pytest.raises(ValueError, match="`process` depends on time"):
        fokker_planck.assemble(process, Grid.uniform((-3.0, 3.0, 20)))


def test_other_names_of_boundaries_are_understood():
    with pytest.raises(ValueError, match="Did you mean 'no-flux'"):
        fokker_planck.assemble(_ou(1.0), Grid.uniform((-3.0, 3.0, 20)), "reflecting")


@pytest.mark.parametrize("call", [fokker_planck.stationary, fokker_planck.spectrum])
def test_a_process_is_no_generator(call, unchecked):
    with pytest.raises(TypeError, match=r"must come from `fokker_planck.assemble"):
        call(_ou(1.0))


@pytest.mark.parametrize("reach", [8.0, 30.0])
def test_a_box_in_which_the_law_falls_by_hundreds_of_orders_costs_no_digits(reach):
    """At |x| = 30 the law is 1e-195: resolvents of the matrix for masses multiply rounding by the root of that."""
    grid = Grid.uniform((-reach, reach, round(30 * reach)))
    generator = fokker_planck.assemble(linear([[1.0]], [1.0]), grid)
    start = Density.from_function(grid, lambda x: jnp.exp(-0.5 * ((x[0] - 1) / 0.5) ** 2))
    ts = np.array([0.1, 0.5, 1.0, 4.0])
    solution = fokker_planck.evolve(generator, start, ts, rtol=1e-10)
    assert solution.min_mass > -1e-12
    for t, p in zip(ts, solution.densities, strict=True):
        mean, variance = np.exp(-t), 1 - 0.75 * np.exp(-2 * t)
        exact = np.exp(-0.5 * (grid.centres[0] - mean) ** 2 / variance) / np.sqrt(2 * np.pi * variance)
        assert np.abs(p.mass - exact * grid.volumes).sum() < 1e-3
