"""Steps axis by axis, against dense exponentials and closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from scipy.special import ndtr

from solvers import Density, Diffusion, Grid, fokker_planck
from solvers.fokker_planck import assembly, split_steps
from solvers.fokker_planck.split_steps import SplitSteps


def _well(d, temperature):
    """The loss (x₀² - 1)²/4 + 3 x₁²/2 + ... + x₀ x₁ / 5 under constant noise."""

    def drift(t, x):
        slope = jnp.concatenate([(x[:1] ** 3 - x[:1]), 3 * x[1:]])
        return -slope - 0.2 * jnp.concatenate([x[1:2], x[:1], jnp.zeros(d - 2)])

    return Diffusion(drift, lambda t, x: jnp.full(d, jnp.sqrt(2 * temperature)))


def _generator(process, grid, boundary):
    kinds = assembly.checked_boundary(process, grid, boundary, most_axes=3)
    return assembly.assemble_checked(process, grid, kinds)


def _exact(generator, mass, t):
    """Masses by a dense exponential, whose squarings keep the digits of matrices of positive jumps."""
    return scipy.linalg.expm(t * generator.matrix.toarray()) @ mass.ravel()


def test_the_approximation_of_the_exponential_has_order_four_and_damps():
    z = -np.logspace(-4, 8, 200)
    r = sum(2 * (c / (p - z)).real for p, c in split_steps._poles_and_weights)
    error = np.abs(r - np.exp(z))
    small = (z > -1) & (z < -0.01)
    assert np.all(error[small] <= np.abs(z[small]) ** 5 / 120)
    assert np.all((r > -1e-15) & (r < 1 + 1e-15))
    assert abs(r[-1]) < 1e-15


@pytest.mark.parametrize(("t", "rtol"), [(1e-3, 1e-9), (1.0, 1e-2), (1.0, 1e-8), (40.0, 1e-4)])
@pytest.mark.parametrize(
    ("grid", "boundary"),
    [
        (Grid.uniform((-2.5, 2.5, 20), (-2.0, 2.0, 15)), ("no-flux", "no-flux")),
        (Grid.stretched((4.0, 16, 1.0), (3.0, 17, 0.5)), ("no-flux", "absorbing")),
        (Grid.uniform((-2.5, 2.5, 9), (-2.0, 2.0, 7), (-1.5, 1.5, 8)), ("absorbing", "no-flux", "no-flux")),
    ],
    ids=["plane", "stretched", "space"],
)
@pytest.mark.parametrize("start", ["point", "law"])
@pytest.mark.slow(
    "point-space-1.0-1e-08",
    "point-plane-1.0-1e-08",
    "point-stretched-1.0-1e-08",
    "law-space-1.0-1e-08",
    "law-space-40.0-0.0001",
    "point-stretched-40.0-0.0001",
    "point-space-0.001-1e-09",
    "point-plane-40.0-0.0001",
)
def test_errors_are_below_rtol(grid, boundary, t, rtol, start):
    process = _well(grid.ndim, 0.2)
    generator = _generator(process, grid, boundary)
    p0 = Density.point(grid, np.full(grid.ndim, 1.3))
    if start == "law":
        p0 = Density.from_function(grid, lambda x: jnp.exp(-4 * jnp.sum((x - 0.3) ** 2)))
    mass, outside, left = SplitSteps(generator, rtol).advance(p0.mass.ravel(), 0.0, t)
    exact = _exact(generator, p0.mass, t)
    assert left == 0
    assert np.abs(mass - exact).sum() < rtol
    assert outside == pytest.approx(1 - exact.sum(), rel=0, abs=rtol)


def test_a_gaussian_in_space_spreads_as_it_should():
    """An Ornstein-Uhlenbeck process in 30³ cells, whose coordinates do not see each other."""
    rates, temperature, t = np.array([1.0, 2.0, 0.5]), 0.5, 0.7
    process = Diffusion(lambda t, x: -jnp.asarray(rates) * x, lambda t, x: jnp.full(3, jnp.sqrt(2 * temperature)))
    grid = Grid.uniform(*[(-5.0, 5.0, 30)] * 3)
    start = np.array([0.8, -0.5, 0.3])
    p0 = Density.from_function(grid, lambda x: jnp.exp(-0.5 * jnp.sum((x - start) ** 2) / 0.3))
    p = fokker_planck.evolve(_generator(process, grid, "no-flux"), p0, [t], rtol=1e-8).densities[0]
    for k, rate in enumerate(rates):
        decay = np.exp(-rate * t)
        mean = start[k] * decay
        variance = 0.3 * decay**2 + temperature / rate * (1 - decay**2)
        exact = np.diff(ndtr((grid.edges[k] - mean) / np.sqrt(variance)))
        assert np.abs(p.marginal(k).mass - exact).sum() < 2e-2
        assert np.average(grid.centres[k], weights=p.marginal(k).mass) == pytest.approx(mean, abs=3e-3)


@pytest.mark.slow
def test_long_horizons_cost_what_their_smoothness_costs():
    """The steps grow, and where there would be many, a step of any length takes over."""
    generator = fokker_planck.assemble(_well(2, 0.2), Grid.uniform((-2.5, 2.5, 48), (-2.0, 2.0, 48)))
    start = Density.from_function(generator.grid, lambda x: jnp.exp(-8 * jnp.sum((x - 0.7) ** 2)))
    law = fokker_planck.stationary(generator)
    steps = SplitSteps(generator, 1e-3)
    mass, _, left = steps.advance(start.mass.ravel(), 0.0, 1e6)
    assert left == 0
    assert np.abs(mass - law.mass.ravel()).sum() < 1e-3
    assert steps.halvings < 3
    mass, _, left = SplitSteps(generator, 1e-3, most=30).advance(start.mass.ravel(), 0.0, 1e6)
    assert 0 < left < 1e6
    p = fokker_planck.evolve(generator, start, [1e6], rtol=1e-8).densities[0]
    assert np.abs(p.mass - law.mass).sum() < 1e-8


def test_both_ways_of_evolve_agree():
    generator = fokker_planck.assemble(_well(2, 0.2), Grid.uniform((-2.5, 2.5, 48), (-2.0, 2.0, 48)))
    start = Density.from_function(generator.grid, lambda x: jnp.exp(-8 * jnp.sum((x - 0.7) ** 2)))
    exact = _exact(generator, start.mass, 1.0)
    for rtol in (1e-3, 1e-6, 1e-10):
        p = fokker_planck.evolve(generator, start, [0.3, 1.0], rtol=rtol).densities[1]
        assert np.abs(p.mass.ravel() - exact).sum() < 2 * rtol


def test_the_stationary_law_stays_to_rounding():
    generator = fokker_planck.assemble(_well(2, 0.02), Grid.uniform((-2.5, 2.5, 40), (-2.0, 2.0, 40)))
    law = fokker_planck.stationary(generator)
    assert law.mass.min() < 1e-100
    mass, _, _ = SplitSteps(generator, 1e-6).advance(law.mass.ravel(), 0.0, 1e3)
    np.testing.assert_allclose(mass, law.mass.ravel(), rtol=1e-11, atol=1e-300)


def test_more_than_it_can_do_is_said():
    generator = fokker_planck.assemble(_well(2, 0.2), Grid.uniform((-2.5, 2.5, 12), (-2.0, 2.0, 12)))
    stepper = SplitSteps(generator, 1e-18)
    stepper.distance = np.inf
    mass = Density.point(generator.grid, [1.3, 1.0]).mass.ravel()
    with pytest.raises(RuntimeError, match="did not settle to rtol=1e-18"):
        stepper.advance(mass, 0.0, 1.0)
    assert not SplitSteps.fits(
        fokker_planck.assemble(_well(2, 0.2), Grid.uniform((0, 1, 4), (0, 1, 4)), ("no-flux", "periodic"))
    )


def test_one_step_is_of_order_five():
    """Its error falls with τ⁶, with that of each part: the product, r, and both extrapolations."""
    generator = fokker_planck.assemble(_well(2, 0.2), Grid.uniform((-2.0, 2.0, 10), (-1.5, 1.5, 8)))
    start = Density.from_function(generator.grid, lambda x: jnp.exp(-2 * jnp.sum((x - 0.5) ** 2))).mass
    steps = SplitSteps(generator, 1e-6)
    errors = []
    for tau in (0.05, 0.025, 0.0125):
        v, estimate = steps._step(start / steps.scale, tau)
        errors.append(np.abs((v * steps.scale).ravel() - _exact(generator, start, tau)).sum())
        assert errors[-1] < estimate
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(orders > 5)
