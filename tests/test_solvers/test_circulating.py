"""Large generators without detailed balance: rates and modes, time steps and exits by multigrid and Krylov methods."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
from test_solvers.test_exit_time import ball, radial_time

from solvers import Density, Diffusion, Grid, fokker_planck
from solvers.fokker_planck import davidson, killed_solver, krylov_modes, krylov_steps
from solvers.fokker_planck.krylov_steps import KrylovSteps


def linear(a, diffusion):
    a, g = jnp.asarray(a), jnp.asarray(np.linalg.cholesky(2 * np.asarray(diffusion)))
    return Diffusion(lambda t, x: -a @ x, lambda t, x: g)


_turn, _fast = [[1.0, 2.0], [-1.0, 1.5]], [[1.0, 6.0], [-6.0, 1.5]]
_diagonal = np.diag([0.3, 0.5])


def plane(cells, reach=4.0):
    return Grid.uniform((-reach, reach, cells), (-reach, reach, cells))


def bump(grid):
    return Density.from_function(grid, lambda x: jnp.exp(-((x[0] - 1) ** 2 + jnp.sum(x[1:] ** 2)) / 0.3))


# --- rates and modes --------------------------------------------------------------------------------------------------


@pytest.fixture
def multigrid(monkeypatch):
    """Iterations on grids so small that elimination would do."""
    none = dict.fromkeys((1, 2, 3), 0)
    for module, name in ((krylov_modes, "_many_irreversible"), (killed_solver, "_many"), (krylov_steps, "_many")):
        monkeypatch.setattr(module, name, none)


@pytest.mark.slow
def test_complex_pairs_are_found(multigrid):
    # n₁ l₁ + n₂ l₂ with l the eigenvalues of the drift, a conjugate pair.
    low = 1.25 + 1j * np.sqrt(2 - 0.25**2)
    sp = fokker_planck.spectrum(fokker_planck.assemble(linear(_turn, _diagonal), plane(64)), 6)
    exact = [0, low, low.conjugate(), 2.5, 2 * low, 2 * low.conjugate()]
    np.testing.assert_allclose(sp.rates, exact, rtol=6e-3, atol=1e-12)
    assert np.all(np.abs(sp.rates - exact) < 2 * sp.error + 1e-12)
    # Where there is mass modes obey their equation.
    generator = fokker_planck.assemble(linear(_turn, _diagonal), plane(64))
    for rate, mode in zip(sp.matrix_rates, sp.modes.reshape(6, -1), strict=True):
        residual = np.abs(generator.matrix.T @ mode + rate * mode)
        assert np.sqrt(np.sum(sp.weights.ravel() * residual**2)) < 1e-7


def test_real_rates_without_detailed_balance(multigrid):
    # H C differs from C H: rates n₁ .792893 + n₂ 2.207107, real.
    process = linear([[2.0, 0.5], [0.5, 1.0]], np.diag([1.0, 0.2]))
    sp = fokker_planck.spectrum(fokker_planck.assemble(process, plane(48)), 4)
    assert sp.rates.dtype == np.float64
    np.testing.assert_allclose(sp.rates, [0, 0.792893, 1.585786, 2.207107], rtol=2e-3, atol=1e-12)


def test_multigrid_finds_the_modes_of_elimination(monkeypatch):
    process = linear([[1.0, 2.0, 0.0], [-1.0, 1.5, 0.5], [0.3, 0.0, 1.0]], np.diag([0.3, 0.5, 0.4]))
    generator = fokker_planck.assemble(
        process, Grid.uniform(*[(-2.5, 2.5, 12)] * 3), ("absorbing", "no-flux", "no-flux")
    )
    exact = fokker_planck.spectrum(generator, 4)
    monkeypatch.setattr(krylov_modes, "_many_irreversible", {3: 0})
    found = fokker_planck.spectrum(generator, 4)
    np.testing.assert_allclose(found.matrix_rates, exact.matrix_rates, rtol=1e-9)
    weight = np.sqrt(exact.weights)
    np.testing.assert_allclose(found.modes * weight, exact.modes * weight, atol=1e-7)
    assert np.any(found.modes != exact.modes)


def test_slow_modes_that_turn_fast_are_not_missed(multigrid):
    # Rates n₁ (1.25 + 6i) + n₂ (1.25 - 6i): 2.5 ± 12i is farther from zero than 3.75 ± 6i, but slower.
    generator = fokker_planck.assemble(linear(_fast, _diagonal), plane(64, 5.0))
    rates = krylov_modes.krylov_rates_and_modes(generator, 6, fokker_planck.stationary(generator).mass)[0]
    assert np.all(np.diff(rates.real) > -1e-9)
    np.testing.assert_allclose(np.abs(rates.imag), [0, 6.0, 6.0, 0, 12.0, 12.0], atol=0.25)


def test_modes_that_are_not_found_are_refused(multigrid, monkeypatch):
    monkeypatch.setattr(davidson, "_steps", 3)
    with pytest.raises(ArithmeticError, match=r"not found in 3 steps.*circulates too fast"):
        fokker_planck.spectrum(fokker_planck.assemble(linear(_turn, _diagonal), plane(24)), 4)


# --- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["turning", "fast", "tensor"])
@pytest.mark.slow("fast", "tensor")
def test_laws_are_those_of_the_exponential(name):
    rtol = 1e-7
    tensor = _diagonal if name != "tensor" else np.array([[0.3, 0.25], [0.25, 0.5]])
    generator = fokker_planck.assemble(linear(_fast if name == "fast" else _turn, tensor), plane(40))
    start = bump(generator.grid).mass.ravel()
    for t in (0.05, 1.0, 30.0):
        exact = scipy.sparse.linalg.expm_multiply(t * generator.matrix, start)
        mass, outside, left = KrylovSteps(generator, rtol).advance(start, 0.0, t)
        assert np.sum(np.abs(mass - exact)) < rtol
        assert (outside, left) == (0, 0)
        assert mass.sum() == pytest.approx(1, abs=1e-12)


def test_multigrid_takes_the_same_steps(multigrid):
    generator = fokker_planck.assemble(linear(_turn, _diagonal), plane(40, 1.2), "absorbing")
    start = bump(generator.grid).mass.ravel()
    exact = scipy.sparse.linalg.expm_multiply(0.3 * generator.matrix, start)
    mass, outside, _ = KrylovSteps(generator, 1e-8).advance(start, 0.0, 0.3)
    assert np.sum(np.abs(mass - exact)) < 1e-8
    # What left was integrated, not taken from what is missing.
    assert outside == pytest.approx(1 - exact.sum(), abs=1e-8)
    assert 0.1 < outside < 0.9


def test_evolution_on_many_cells_takes_these_steps():
    a, tensor = np.array(_turn), np.array([[0.3, 0.2], [0.2, 0.5]])
    generator = fokker_planck.assemble(linear(a, tensor), plane(48))
    evolution = fokker_planck.evolve(generator, bump(generator.grid), [0.2, 0.7], rtol=1e-7)
    exact = scipy.sparse.linalg.expm_multiply(0.7 * generator.matrix, bump(generator.grid).mass.ravel())
    assert np.abs(evolution.densities[-1].mass.ravel() - exact).sum() < 2e-7
    assert evolution.mass_error < 1e-12


# --- exits ------------------------------------------------------------------------------------------------------------


def _turning(x):
    return -x + 2 * jnp.concatenate([jnp.stack([x[1], -x[0]]), 0 * x[2:]])


_process = Diffusion(lambda t, x: _turning(x), lambda t, x: jnp.sqrt(jnp.asarray(0.4)))


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.slow("3")
def test_exits_agree_with_elimination(d, monkeypatch):
    # In a set that a rotation does not keep, and between two.
    grid = Grid.uniform(*[(-1.3, 1.7, 32 if d == 2 else 14)] * d)
    inside = lambda x: (x[0] - 0.5) ** 2 + 1.5 * jnp.sum((x[1:] - 0.3) ** 2) < 0.64  # noqa: E731
    a, b = (lambda x: (x[0] + 0.5) ** 2 + jnp.sum(x[1:] ** 2) < 0.1), (lambda x: jnp.sum((x - 0.5) ** 2) < 0.1)

    def everything():
        tau = fokker_planck.exit_time(_process, grid, inside)
        qs = fokker_planck.quasi_stationary(_process, grid, inside)
        q = fokker_planck.committor(_process, grid, a, b)
        return tau.values, tau.variance, qs.density.mass, q.values, q.backward, np.array([qs.rate, q.rate])

    exact = everything()
    monkeypatch.setattr(killed_solver, "_many", dict.fromkeys((2, 3), 0))
    for found, right in zip(everything(), exact, strict=True):
        np.testing.assert_allclose(found, right, atol=1e-8 * np.max(right))
        assert np.any(found != right)


@pytest.mark.slow
def test_a_ball_in_space_that_turns():
    # A rotation does not change the distance from the centre; too many cells for elimination.
    grid = Grid.uniform(*[(-1.05, 1.05, 32)] * 3)
    assert np.pi / 6 * (32 / 1.05) ** 3 > killed_solver._many[3]
    tau = fokker_planck.exit_time(_process, grid, ball(1.0))
    r = np.linspace(0, 1, 16)
    times = [radial_time(a, 1.0, 3, lambda y: np.exp(y**2 / 0.4) / 0.2, lambda z: np.exp(-(z**2) / 0.4)) for a in r]
    exact = np.polynomial.Polynomial.fit(r**2, times, 10)
    square = np.sum(grid.points**2, axis=-1)
    error = np.max(np.abs(tau.values - np.where(square < 1, exact(np.minimum(square, 1)), 0)))
    assert error < 1e-2 * times[0]
    assert error < 2 * np.max(tau.error)
