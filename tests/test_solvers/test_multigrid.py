"""Multigrid and what it is made of, against dense matrices and elimination; and how fast it converges."""

import importlib

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from test_solvers.fokker_planck_problems import brownian, double_well, gibbs, loss_proportional, quadratic
from test_solvers.test_exit_time import ball, radial_time

from solvers import Diffusion, Grid, fokker_planck
from solvers.fokker_planck import balance, killed_solver, krylov_modes
from solvers.fokker_planck.assembly import assemble_checked
from solvers.fokker_planck.davidson import slowest
from solvers.fokker_planck.gmres import gmres
from solvers.fokker_planck.jumps import coarsened, generator_jumps
from solvers.fokker_planck.multigrid import Lines, Multigrid


def tilted(x):
    return (x[0] ** 2 - 1) ** 2 / 4 + 0.5 * jnp.sum(x[1:] ** 2) + (0.3 * x[0] * x[-1] if x.size > 1 else 0.0)


def jumps_of(process, grid, kinds, shift=0.0):
    generator = assemble_checked(process, grid, (kinds,) * grid.ndim if isinstance(kinds, str) else kinds)
    log_mass = np.zeros(grid.shape) if generator.log_weights is None else generator.log_weights
    return generator, generator_jumps(generator, np.full(grid.shape, shift), log_mass)


def turning_axes(grid):
    """A periodic process in a box: D depends on the place, and detailed balance holds."""
    low, length = (jnp.array([e[0] for e in grid.edges]), jnp.array([e[-1] - e[0] for e in grid.edges]))
    return gibbs(lambda x: jnp.sum(jnp.cos(2 * jnp.pi * (x - low) / length)), 0.7)


_boxes = {
    "line": (gibbs(tilted, 0.1), Grid.uniform((-2.0, 2.0, 13)), "no-flux"),
    "absorbing line": (gibbs(tilted, 0.1), Grid.stretched((20.0, 12, 1.0)), "absorbing"),
    "plane": (gibbs(tilted, 0.05), Grid.uniform((-2.0, 2.0, 9), (-2.0, 2.2, 6)), ("absorbing", "no-flux")),
    "space": (gibbs(tilted, 0.2), Grid.uniform((-2.0, 2.0, 5), (-1.0, 1.0, 2), (-2.0, 2.2, 4)), "no-flux"),
    "circle": (turning_axes(Grid.uniform((0.0, 1.0, 7))), Grid.uniform((0.0, 1.0, 7)), "periodic"),
    "torus": (
        turning_axes(Grid.uniform((0.0, 1.0, 7), (0.0, 2.0, 4), (0.0, 1.0, 2))),
        Grid.uniform((0.0, 1.0, 7), (0.0, 2.0, 4), (0.0, 1.0, 2)),
        "periodic",
    ),
}


@pytest.mark.parametrize("name", _boxes)
@pytest.mark.slow("line", "torus", "circle")
def test_jumps_are_those_of_the_generator(name):
    process, grid, kinds = _boxes[name]
    generator, jumps = jumps_of(process, grid, kinds, 0.3)
    exact = 0.3 * np.eye(grid.size) - generator.matrix.T.toarray()
    scale = np.abs(np.diag(exact))[:, None]
    np.testing.assert_allclose(jumps.matrix().toarray() / scale, exact / scale, atol=1e-15)


@pytest.mark.parametrize("name", _boxes)
def test_lines_solve_what_is_coupled_along_one_axis(name):
    process, grid, kinds = _boxes[name]
    _, jumps = jumps_of(process, grid, kinds, 0.3)
    whole, n = jumps.matrix().toarray(), grid.size
    place = np.stack(np.unravel_index(np.arange(n), grid.shape))
    f = np.random.default_rng(0).standard_normal(n)
    for k in range(grid.ndim):
        same = np.all(np.delete(place[:, :, None] == place[:, None, :], k, axis=0), axis=0)
        np.testing.assert_allclose(Lines(jumps, k).solve(f), np.linalg.solve(np.where(same, whole, 0), f), rtol=1e-11)


@pytest.mark.parametrize("name", _boxes)
def test_coarse_jumps_keep_balance_and_are_never_negative(name):
    process, grid, kinds = _boxes[name]
    generator, jumps = jumps_of(process, grid, kinds)
    fine = np.exp(jumps.log_mass)
    widths = tuple(np.ones(n) for n in grid.shape)
    while max(jumps.killed.shape) > 1:
        coarse, share, widths = coarsened(jumps, widths)
        mass = np.exp(coarse.log_mass.ravel())
        assert mass.sum() == pytest.approx(fine.sum())
        assert [w.sum() for w in widths] == list(grid.shape)
        # Exits are summed, and jumps have the same flow both ways.
        killed = np.sum(fine * generator.exit_rates)
        assert np.sum(mass * coarse.killed.ravel()) == pytest.approx(killed)
        flow = mass[:, None] * coarse.matrix().toarray()
        np.testing.assert_allclose(flow, flow.T, atol=1e-13 * np.max(flow))
        assert np.max(flow - np.diag(np.diag(flow))) <= 0
        assert share.shape == jumps.killed.shape
        jumps = coarse


@pytest.mark.parametrize(("shape", "kind"), [((12, 8), "no-flux"), ((8, 4, 6), "periodic")])
def test_coarse_diffusion_is_that_of_coarse_cells(shape, kind):
    # Without drift, on cells of equal width, the coarse jumps are those of the generator on the coarse grid.
    grid = Grid.uniform(*[(0.0, 1.0 + k, n) for k, n in enumerate(shape)])
    coarse = coarsened(jumps_of(brownian(0.7), grid, kind)[1], tuple(np.ones(n) for n in shape))[0]
    exact = jumps_of(brownian(0.7), grid.coarsen(), kind)[1]
    np.testing.assert_allclose(coarse.matrix().toarray(), exact.matrix().toarray(), rtol=1e-12)


def test_coarse_jumps_carry_the_net_flow_of_fine_ones():
    # Without detailed balance: what passes a coarse face in the law of the weights is what passes its fine ones.
    process = Diffusion(lambda t, x: 30.0 * jnp.array([x[1], -x[0]]), lambda t, x: jnp.array(0.7))
    _, fine = jumps_of(process, Grid.uniform((-1.0, 1.0, 8), (-1.0, 1.0, 6)), "no-flux")
    coarse = coarsened(fine, (np.ones(8), np.ones(6)))[0]
    net, wide = (
        np.exp(j.log_mass[:-1]) * j.up[0][:-1] - np.exp(j.log_mass[1:]) * j.down[0][1:] for j in (fine, coarse)
    )
    np.testing.assert_allclose(wide, net[1::2].reshape(3, 3, 2).sum(axis=2), atol=1e-12 * np.max(net))
    assert np.max(np.abs(net)) > 10
    assert min(np.min(coarse.up[0]), np.min(coarse.down[0])) >= 0


def test_one_cycle_is_self_adjoint_in_the_masses():
    _, jumps = jumps_of(gibbs(tilted, 0.1), Grid.uniform((-2.0, 2.0, 32), (-2.0, 2.0, 25)), "no-flux", 0.1)
    cycle, mass = Multigrid(jumps), np.exp(jumps.log_mass.ravel())
    assert len(cycle.levels) == 2
    a, b = np.random.default_rng(0).standard_normal((2, mass.size))
    assert np.sum(mass * a * cycle(b)) == pytest.approx(np.sum(mass * b * cycle(a)), rel=1e-10)


def rotated(x):
    return 0.5 * (400 * (x[0] + x[1]) ** 2 + (x[0] - x[1]) ** 2) / 2


_square = lambda r, n: Grid.uniform((-r, r, n), (-r, r, n))  # noqa: E731
_sinh = lambda r, n: Grid.stretched((r, n, 1.0), (r, n, 1.0))  # noqa: E731
_table = {
    "ring": (loss_proportional(lambda x: (x @ x - 1) ** 2 / 4 + 0.05, 0.5), lambda n: _sinh(20.0, n)),
    "double well": (gibbs(tilted, 0.05), lambda n: _square(2.2, n)),
    "cold double well": (gibbs(tilted, 0.01), lambda n: _square(2.2, n)),
    "power law": (loss_proportional(lambda x: 1 + x @ x, 0.5), lambda n: _sinh(1e4, n)),
    "heavy power law": (loss_proportional(lambda x: 1 + x @ x, 2.0), lambda n: _sinh(1e4, n)),
    "valley": (gibbs(lambda x: 0.5 * (x[0] ** 2 + 400 * x[1] ** 2), 0.05), lambda n: _square(1.5, n)),
    "oblique valley": (gibbs(rotated, 0.05), lambda n: _square(1.5, n)),
    "Rosenbrock": (gibbs(lambda x: (1 - x[0]) ** 2 / 20 + 5 * (x[1] - x[0] ** 2) ** 2, 0.1), lambda n: _square(2.5, n)),
    "rugged": (gibbs(lambda x: 0.5 * x @ x + 0.3 * jnp.sum(jnp.cos(8 * x)), 0.05), lambda n: _square(2.0, n)),
    "space": (gibbs(tilted, 0.05), lambda n: Grid.uniform(*[(-2.2, 2.2, n // 4)] * 3)),
}


@pytest.mark.parametrize("cells", [64, 128])
@pytest.mark.parametrize("name", _table)
@pytest.mark.slow(
    "space-128",
    "double well-128",
    "ring-128",
    "oblique valley-128",
    "power law-128",
    "heavy power law-128",
    "cold double well-128",
    "Rosenbrock-128",
)
def test_sixteen_steps_are_enough_at_any_shift(name, cells):
    process, grid = _table[name][0], _table[name][1](cells)
    generator, jumps = jumps_of(process, grid, "no-flux")
    assert generator.reversible
    f = np.random.default_rng(0).standard_normal(grid.size)
    for shift in (100.0, 1.0, 0.01):
        jumps = generator_jumps(generator, np.full(grid.shape, shift), jumps.log_mass)
        matrix, cycle = jumps.matrix(), Multigrid(jumps)
        u, left, steps = gmres(matrix, cycle, f, np.zeros_like(f), 1e-8)
        assert steps <= 16
        assert left < 1e-8
        # Constants are killed at the rate of the shift. The inverse is bounded by 1 / shift.
        one = gmres(matrix, cycle, np.ones_like(f), np.zeros_like(f), 1e-8)[0]
        np.testing.assert_allclose(shift * one, 1, atol=1e-6)
        assert np.max(np.abs(f - matrix @ u) / jumps.leaving.ravel()) < 1e-7 * np.max(np.abs(u))


def test_a_singular_system():
    # Nothing is killed: what is found is right but for a constant.
    process, grid = gibbs(quadratic, 0.1), Grid.uniform((-2.5, 2.5, 70), (-2.5, 2.6, 60))
    _, jumps = jumps_of(process, grid, "no-flux")
    mass = np.exp(jumps.log_mass).ravel()
    matrix, cycle = jumps.matrix(), Multigrid(jumps)
    exact = np.random.default_rng(1).standard_normal(grid.size)
    u, left, steps = gmres(matrix, cycle, matrix @ exact, np.zeros(grid.size), 1e-11)
    assert left < 1e-11
    assert steps <= 20
    np.testing.assert_allclose(u - u @ mass / mass.sum(), exact - exact @ mass / mass.sum(), atol=1e-8)


def test_the_slowest_modes_of_a_square():
    # Absorbed at its faces: sin(n π x) sin(m π y), discrete and exact, with rates Σ (4 D / h²) sin²(n π h / 2) but for
    # the outer faces, half an edge away, for which the sines are exact as well.
    grid = Grid.uniform((0.0, 1.0, 40), (0.0, 1.0, 40))
    _, jumps = jumps_of(brownian(0.5), grid, "absorbing")
    start, mass = np.random.default_rng(0).random((4, grid.size)), np.full(grid.size, 1.0)
    for symmetric in (True, False):
        rates, modes = slowest(jumps.matrix(), Multigrid(jumps), start, mass, 3, symmetric=symmetric)
        one, two = (2 * 40**2 * np.sin(n * np.pi / 80) ** 2 for n in (1, 2))
        np.testing.assert_allclose(rates, [2 * one, one + two, one + two], rtol=1e-10)
        exact = np.prod(np.sin(np.pi * grid.points), axis=-1).ravel()
        np.testing.assert_allclose(np.abs(modes[0]), exact / np.linalg.norm(exact), atol=1e-9)


@pytest.mark.parametrize("name", ["ring", "double well", "power law", "space"])
@pytest.mark.slow("space", "power law", "double well")
def test_spectra_agree_with_elimination(name, monkeypatch):
    process, grid = _table[name][0], _table[name][1](56)
    generator = assemble_checked(process, grid, ("no-flux",) * grid.ndim)
    exact = fokker_planck.spectrum(generator, 6)
    monkeypatch.setattr(krylov_modes, "_many", 0)
    found = fokker_planck.spectrum(generator, 6)
    np.testing.assert_allclose(found.matrix_rates, exact.matrix_rates, rtol=1e-9)
    np.testing.assert_allclose(found.rates, exact.rates, rtol=1e-9)
    # Equal rates have any two modes that span the same: both sets, and everywhere.
    overlap = np.einsum("ai,bi,i->ab", *(m.reshape(6, -1) for m in (found.modes, exact.modes)), exact.weights.ravel())
    apart = [i for i in range(6) if np.all(np.abs(np.delete(exact.rates, i) - exact.rates[i]) > 1e-2 * exact.rates[-1])]
    assert len(apart) >= 2
    np.testing.assert_allclose(np.abs(np.diag(overlap))[apart], 1, rtol=1e-9)
    for rate, mode in zip(found.matrix_rates, found.modes.reshape(6, -1), strict=True):
        residual = np.abs(generator.matrix.T @ mode + rate * mode)
        assert np.max(residual / (np.abs(generator.matrix.diagonal()) * (np.abs(mode) + 1))) < 1e-6


@pytest.mark.slow
def test_the_spectrum_of_many_cells():
    # An Ornstein-Uhlenbeck process has the rates n₁ l₁ + n₂ l₂, and φ = x₁ / std for the first.
    process, grid = gibbs(lambda x: 0.5 * (0.8 * x[0] ** 2 + 2.2 * x[1] ** 2), 0.3), _square(5.0, 256)
    sp = fokker_planck.spectrum(fokker_planck.assemble(process, grid), 5)
    np.testing.assert_allclose(sp.rates, [0, 0.8, 1.6, 2.2, 2.4], rtol=1e-5, atol=1e-12)
    x = grid.points[..., 0] / np.sqrt(0.3 / 0.8)
    np.testing.assert_allclose(sp.modes[1][80:176], x[80:176], atol=2e-3)


def test_a_rate_that_rounding_makes_negative_is_refused():
    """The next rate, 1e16 times as large, must not take its place."""
    well = lambda x: double_well()(x) + x[1] ** 2  # noqa: E731
    grid = Grid.uniform((-2.0, 2.0, 80), (-1.5, 1.5, 20))
    generator = assemble_checked(gibbs(well, 0.007), grid, ("no-flux", "no-flux"))
    with pytest.raises(RuntimeError, match="below its rounding error"):
        fokker_planck.spectrum(generator, 2)


@pytest.mark.slow
def test_rates_below_rounding_are_refused_by_iterations_too(monkeypatch):
    monkeypatch.setattr(krylov_modes, "_many", 0)
    well = lambda x: double_well()(x) + x[1] ** 2  # noqa: E731
    grid, line = Grid.uniform((-2.0, 2.0, 80), (-1.5, 1.5, 20)), Grid.uniform((-2.0, 2.0, 80))
    for temperature in (0.05, 0.02, 0.01):
        plane = fokker_planck.spectrum(fokker_planck.assemble(gibbs(well, temperature), grid), 2)
        exact = fokker_planck.spectrum(fokker_planck.assemble(gibbs(double_well(), temperature), line), 2)
        # The axes are independent, and the sum of squares keeps all digits.
        assert plane.matrix_rates[1] == pytest.approx(exact.matrix_rates[1], rel=1e-10)
    with pytest.raises(RuntimeError, match="below its rounding error"):
        fokker_planck.spectrum(fokker_planck.assemble(gibbs(well, 0.004), grid), 2)


# --- killed where it meets a set --------------------------------------------------------------------------------------


@pytest.fixture
def iterations(monkeypatch):
    """Multigrid on grids so small that elimination would do."""
    return lambda many: monkeypatch.setattr(killed_solver, "_many", {1: np.inf, 2: many, 3: many})


_exits = {
    "well": (gibbs(tilted, 0.05), Grid.uniform((-2.0, 2.0, 50), (-1.5, 1.5, 34)), lambda x: x[0] + x[1] < 0.3),
    "student": (loss_proportional(quadratic, 0.4), Grid.stretched((1e3, 48, 1.0), (1e3, 40, 1.0)), ball(30.0)),
    "space": (gibbs(tilted, 0.2), Grid.uniform(*[(-1.3, 1.7, 14)] * 3), ball(1.0)),
}


@pytest.mark.parametrize("name", _exits)
@pytest.mark.slow("space", "student")
def test_exit_times_and_laws_agree_with_elimination(name, iterations):
    process, grid, inside = _exits[name]
    exact = fokker_planck.exit_time(process, grid, inside)
    law = fokker_planck.quasi_stationary(process, grid, inside)
    iterations(0)
    tau = fokker_planck.exit_time(process, grid, inside)
    quasi = fokker_planck.quasi_stationary(process, grid, inside)
    for a, b in ((tau.values, exact.values), (tau.variance, exact.variance), (quasi.density.mass, law.density.mass)):
        np.testing.assert_allclose(a, b, atol=1e-8 * np.max(b))
        assert np.min(a) >= 0
        assert np.any(a != b)
    np.testing.assert_allclose(tau.error, exact.error, atol=1e-6 * np.max(exact.values))
    assert quasi.rate == pytest.approx(law.rate, rel=1e-7)


def test_committors_agree_with_elimination(iterations):
    arguments = gibbs(tilted, 0.05), Grid.uniform((-2.0, 2.0, 50), (-1.5, 1.5, 34)), lambda x: x[0] < -0.7, ball(0.5)
    exact = fokker_planck.committor(*arguments)
    iterations(0)
    q = fokker_planck.committor(*arguments)
    np.testing.assert_allclose(q.values, exact.values, atol=1e-8)
    assert q.rate == pytest.approx(exact.rate, rel=1e-6)


@pytest.mark.slow
def test_exits_too_rare_for_float64_are_refused_by_iterations_too(iterations):
    iterations(0)
    grid, inside = Grid.uniform((-2.0, 2.0, 80), (-0.5, 0.5, 20)), lambda x: x[0] < 0.3
    well = lambda x: double_well()(x) + x[1] ** 2  # noqa: E731
    for temperature in (0.01, 0.008, 0.004):
        with pytest.raises(ArithmeticError, match=r"too rarely for float64.*one-dimensional"):
            fokker_planck.exit_time(gibbs(well, temperature), grid, inside)
    # Not yet too rare: the axes are independent, and on a line all digits are right.
    along = fokker_planck.exit_time(gibbs(double_well(), 0.02), Grid.uniform((-2.0, 2.0, 80)), inside)
    plane = fokker_planck.exit_time(gibbs(well, 0.02), grid, inside)
    assert along.at(-1.0) > 1e5
    np.testing.assert_allclose(plane.values, np.broadcast_to(along.values[:, None], (80, 20)), rtol=3e-2)
    assert np.all(plane.error[plane.values > 0] < 0.05 * along.at(-1.0))


@pytest.mark.slow
def test_a_ball_in_space():
    grid = Grid.uniform((-1.3, 1.7, 44), (-1.2, 1.3, 44), (-1.2, 1.3, 44))
    assert np.pi / 6 * 44**3 / (1.5 * 1.25**2) > killed_solver._many[3]
    tau = fokker_planck.exit_time(gibbs(quadratic, 0.2), grid, ball(1.0))
    r = np.linspace(0, 1, 30)
    times = [radial_time(a, 1.0, 3, lambda y: np.exp(y**2 / 0.4) / 0.2, lambda z: np.exp(-(z**2) / 0.4)) for a in r]
    exact = np.polynomial.Polynomial.fit(r**2, times, 12)
    square = np.sum(grid.points**2, axis=-1)
    error = np.abs(tau.values - np.where(square < 1, exact(np.minimum(square, 1)), 0))
    assert np.max(error) < 1.2e-3 * times[0]
    assert np.max(tau.error) == pytest.approx(np.max(error), rel=0.5)


# --- no detailed balance ----------------------------------------------------------------------------------------------


def linear(a, diffusion):
    a, g = jnp.asarray(a), jnp.sqrt(2 * jnp.asarray(diffusion))
    return Diffusion(lambda t, x: -a @ x, lambda t, x: g)


def stirred_well(x):
    return -jnp.stack([x[0] ** 3 - x[0] + 1.3 * x[1], x[1] - 0.7 * x[0]])


_currents = {
    "turning": (linear([[1.0, 2.0], [-1.0, 1.5]], [0.3, 0.5]), Grid.uniform((-5.0, 5.0, 64), (-5.0, 5.0, 72))),
    "fast": (linear([[1.0, 6.0], [-6.0, 1.5]], [0.3, 0.5]), Grid.uniform((-5.0, 5.0, 64), (-5.0, 5.0, 64))),
    "noise": (linear([[2.0, 0.5], [0.5, 1.0]], [1.0, 0.2]), Grid.uniform((-4.0, 4.0, 64), (-3.0, 3.0, 64))),
    "wells": (
        Diffusion(lambda t, x: stirred_well(x), lambda t, x: jnp.sqrt(jnp.array([0.1, 0.2]))),
        Grid.uniform((-2.2, 2.2, 64), (-2.2, 2.2, 64)),
    ),
    "space": (
        linear([[1.0, 2.0, 0.0], [-1.0, 1.5, 0.5], [0.3, 0.0, 1.0]], [0.3, 0.5, 0.4]),
        Grid.uniform(*[(-3.0, 3.0, 16)] * 3),
    ),
}


@pytest.mark.parametrize("name", _currents)
@pytest.mark.slow("fast", "wells", "turning")
def test_laws_with_a_current_agree_with_elimination_down_to_their_tails(name, monkeypatch):
    process, grid = _currents[name]
    generator = assemble_checked(process, grid, ("no-flux",) * grid.ndim)
    assert not generator.reversible
    exact = fokker_planck.stationary(generator).mass
    module = importlib.import_module("solvers.fokker_planck.stationary")
    monkeypatch.setattr(module, "_many", dict.fromkeys((2, 3), 2000))
    mass = fokker_planck.stationary(generator).mass
    assert np.any(mass != exact)
    assert np.min(exact) < 1e-10
    np.testing.assert_allclose(mass, exact, rtol=1e-9)


def test_a_law_with_a_current_around_a_torus():
    # Constant drift on a torus with a periodic one: the same as elimination, through the seams.
    process = Diffusion(lambda t, x: jnp.array([1.0, 0.3]) + jnp.sin(x[::-1]) * 2, lambda t, x: jnp.array(0.7))
    grid = Grid.uniform((0.0, 2 * np.pi, 48), (0.0, 2 * np.pi, 40))
    generator = fokker_planck.assemble(process, grid, "periodic")
    exact = fokker_planck.stationary(generator)
    log_law = balance.multilevel_log_law(generator, lambda g: fokker_planck.stationary(g).mass.ravel(), 1000)
    np.testing.assert_allclose(np.exp(log_law) / np.exp(log_law).sum(), exact.mass, rtol=1e-9)


@pytest.mark.slow
def test_a_turning_gaussian_of_many_cells():
    # The covariance P solves A P + P Aᵀ = 2 D.
    a, d = np.array([[1.0, 2.0], [-1.0, 1.5]]), np.array([0.3, 0.5])
    grid = Grid.uniform((-4.0, 4.0, 288), (-4.0, 4.0, 288))
    p = fokker_planck.stationary(fokker_planck.assemble(linear(a, d), grid))
    covariance = np.einsum("xyi,xyj,xy->ij", grid.points, grid.points, p.mass)
    exact = scipy.linalg.solve_continuous_lyapunov(a, 2 * np.diag(d))
    np.testing.assert_allclose(covariance, exact, atol=2e-3)
    assert np.min(p.mass) > 0
