"""Steps that are polynomials of the generator, against dense exponentials and the law at rest."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax import export
from test_solvers.fokker_planck_problems import gibbs, loss_proportional, quadratic

from solvers import Density, Grid, fokker_planck
from solvers.fokker_planck import chebyshev_steps, uniformization
from solvers.fokker_planck.chebyshev_steps import ChebyshevSteps, chebyshev_sum, coefficients, fastest_rate
from solvers.fokker_planck.jumps import generator_jumps


def _well(x):
    return (x[0] ** 2 - 1) ** 2 / 4 + 1.5 * jnp.sum(x[1:] ** 2) + 0.2 * x[0] * x[1]


_plane = Grid.uniform((-2.5, 2.5, 16), (-2.0, 2.0, 11))
_space = Grid.uniform((-2.5, 2.5, 7), (-2.0, 2.0, 5), (-1.5, 1.5, 6))


def _exact(generator, mass, t):
    return scipy.linalg.expm(t * generator.matrix.toarray()) @ mass.ravel()


@pytest.mark.parametrize("z", [1e-3, 1.0, 40.0, 5000.0])
@pytest.mark.parametrize("error", [1e-2, 1e-7, 1e-13])
def test_the_polynomial_is_as_close_to_the_exponential_as_it_says(z, error):
    c = coefficients(z, error)
    assert c is not None
    assert len(c) % 2 == 1
    x = np.cos(np.linspace(0, np.pi, 2000))
    polynomial = np.polynomial.chebyshev.chebval(x, c)
    assert polynomial[0] == pytest.approx(1, abs=1e-13)
    assert np.max(np.abs(polynomial - np.exp(z * (x - 1)))) < error + 1e-13
    assert len(c) < np.sqrt(2 * z * (np.log(1 / error) + 4)) + np.log(1 / error) + 12


def test_too_long_an_interval_is_divided():
    assert coefficients(1e9, 1e-6) is None


@pytest.mark.parametrize(
    ("grid", "boundary"),
    [
        (Grid.stretched((20.0, 40, 1.0)), "absorbing"),
        (_plane, "no-flux"),
        (Grid.stretched((4.0, 12, 1.0), (3.0, 13, 0.5)), ("no-flux", "absorbing")),
        (_space, ("absorbing", "no-flux", "no-flux")),
    ],
    ids=["line", "plane", "stretched", "space"],
)
@pytest.mark.parametrize("start", ["point", "law"])
@pytest.mark.slow("point-space", "point-stretched", "point-plane")
def test_errors_are_below_rtol(grid, boundary, start):
    process = gibbs(_well, 0.2) if grid.ndim > 1 else loss_proportional(quadratic, 0.5)
    generator = fokker_planck.assemble(process, grid, boundary)
    p0 = Density.point(grid, np.full(grid.ndim, 1.3))
    if start == "law":
        p0 = Density.from_function(grid, lambda x: jnp.exp(-4 * jnp.sum((x - 0.3) ** 2)))
    for t, rtol in [(1e-3, 1e-9), (1.0, 1e-2), (1.0, 1e-11), (10.0, 1e-4)]:
        mass, outside, left = ChebyshevSteps(generator, rtol).advance(p0.mass.ravel(), 0.0, t)
        exact = _exact(generator, p0.mass, t)
        assert left == 0
        assert np.abs(mass - exact).sum() < rtol
        assert outside == pytest.approx(1 - exact.sum(), rel=0, abs=rtol)
        assert mass[mass < 0].sum() > -rtol


def test_the_bound_on_the_spectrum_is_one_and_not_far():
    generator = fokker_planck.assemble(gibbs(_well, 0.05), _plane, ("no-flux", "absorbing"))
    jumps = generator_jumps(generator, np.zeros(_plane.shape), np.zeros(_plane.shape))
    fastest = -np.linalg.eigvals(generator.matrix.toarray()).real.min()
    assert fastest <= fastest_rate(jumps) < 1.3 * fastest


def test_a_law_at_rest_stays_to_rounding_in_every_cell():
    generator = fokker_planck.assemble(gibbs(_well, 0.02), Grid.uniform((-2.5, 2.5, 40), (-2.0, 2.0, 40)))
    law = fokker_planck.stationary(generator)
    assert law.mass.min() < 1e-100
    mass, _, _ = ChebyshevSteps(generator, 1e-6).advance(law.mass.ravel(), 0.0, 1e3)
    np.testing.assert_allclose(mass, law.mass.ravel(), rtol=1e-11, atol=1e-300)


def test_divided_intervals_give_the_same(monkeypatch):
    generator = fokker_planck.assemble(gibbs(_well, 0.2), _plane)
    start = Density.point(_plane, [1.3, 0.2]).mass.ravel()
    whole, _, _ = ChebyshevSteps(generator, 1e-10).advance(start, 0.0, 2.0)
    monkeypatch.setattr(chebyshev_steps, "_most_terms", 24)
    divided, _, _ = ChebyshevSteps(generator, 1e-10).advance(start, 0.0, 2.0)
    assert 0 < np.abs(whole - divided).sum() < 2e-10


def test_a_law_that_is_too_far_is_left_to_others(monkeypatch):
    generator = fokker_planck.assemble(gibbs(_well, 0.02), _plane)
    start = Density.point(_plane, [2.3, 1.8])
    monkeypatch.setattr(uniformization, "_most_work", 0.0)
    mass, _, left = ChebyshevSteps(generator, 1e-6).advance(start.mass.ravel(), 0.0, 0.1)
    assert left == 0.1
    np.testing.assert_array_equal(mass, start.mass.ravel())


def test_other_rates_intervals_and_tolerances_compile_nothing():
    compiled: Any = chebyshev_sum
    before = compiled._cache_size()
    for temperature, rtol, t in [(0.2, 1e-3, 0.1), (0.3, 1e-3, 0.1), (0.2, 1e-8, 5.0)]:
        generator = fokker_planck.assemble(gibbs(_well, temperature), Grid.uniform((-2.5, 2.5, 11), (-2.0, 2.0, 13)))
        start = Density.point(generator.grid, [1.3, 0.2])
        ChebyshevSteps(generator, rtol).advance(start.mass.ravel(), 0.0, t)
    assert compiled._cache_size() <= before + 1


def test_lowers_for_a_gpu():
    u = jax.ShapeDtypeStruct((64, 48), jnp.float64)
    coefficients, terms = jax.ShapeDtypeStruct((512,), jnp.float64), jax.ShapeDtypeStruct((), jnp.int64)
    exported = export.export(chebyshev_sum, platforms=["cuda"])([u] * 4, u, coefficients, terms, u)
    assert exported.platforms == ("cuda",)
    assert "custom_call" not in exported.mlir_module()


def test_large_grids_of_reversible_processes_are_advanced_this_way(monkeypatch):
    generator = fokker_planck.assemble(gibbs(_well, 0.2), Grid.uniform((-2.5, 2.5, 64), (-2.0, 2.0, 64)))
    start = Density.from_function(generator.grid, lambda x: jnp.exp(-8 * jnp.sum((x - 0.7) ** 2)))
    calls = []
    advance = ChebyshevSteps.advance
    monkeypatch.setattr(ChebyshevSteps, "advance", lambda *args: calls.append(args[-1]) or advance(*args))
    solution = fokker_planck.evolve(generator, start, [0.1, 0.3])
    assert calls == pytest.approx([0.1, 0.2])
    assert solution.mass_error < 1e-13
    assert solution.min_mass > -1e-12
