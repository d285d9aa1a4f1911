"""Steps axis by axis, against dense exponentials and closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest
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
    """Masses by a dense exponential of the symmetric form, in which it is well conditioned."""
    root = np.exp(0.5 * (generator.log_weights.ravel() - generator.log_weights.max()))
    a = generator.matrix.toarray() * root / root[:, None]
    assert np.allclose(a, a.T)
    values, vectors = np.linalg.eigh(0.5 * (a + a.T))
    return root * (vectors @ (np.exp(t * values) * (vectors.T @ (mass.ravel() / root))))


def test_the_approximation_of_the_exponential_has_order_four_and_damps():
    z = -np.logspace(-4, 8, 200)
    r = sum(2 * (c / (p - z)).real for p, c in split_steps._poles_and_weights)
    error = np.abs(r - np.exp(z))
    small = (z > -1) & (z < -0.01)
    assert np.all(error[small] <= np.abs(z[small]) ** 5 / 120)
    assert np.all((r > 0) & (r < 1 + 1e-15))
    assert r[-1] < 1e-30


@pytest.mark.parametrize("rtol", [1e-2, 1e-5, 1e-9])
@pytest.mark.parametrize("t", [1e-3, 1.0, 40.0])
@pytest.mark.parametrize(
    ("grid", "boundary"),
    [
        (Grid.uniform((-2.5, 2.5, 20), (-2.0, 2.0, 15)), ("no-flux", "no-flux")),
        (Grid.stretched((20.0, 16, 1.0), (5.0, 17, 0.5)), ("no-flux", "absorbing")),
        (Grid.uniform((-2.5, 2.5, 9), (-2.0, 2.0, 7), (-1.5, 1.5, 8)), ("absorbing", "no-flux", "no-flux")),
    ],
    ids=["plane", "stretched", "space"],
)
@pytest.mark.parametrize("start", ["point", "law"])
def test_errors_are_below_rtol(grid, boundary, t, rtol, start):
    process = _well(grid.ndim, 0.2)
    generator = _generator(process, grid, boundary)
    p0 = Density.point(grid, np.full(grid.ndim, 1.3))
    if start == "law":
        p0 = Density.from_function(grid, lambda x: jnp.exp(-4 * jnp.sum((x - 0.3) ** 2)))
    p = fokker_planck.evolve(generator, p0, [t], rtol).densities[0]
    exact = _exact(generator, p0.mass, t)
    assert np.abs(p.mass.ravel() - exact).sum() < rtol
    assert p.outside == pytest.approx(1 - exact.sum(), abs=rtol)


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
        assert np.average(grid.centres[k], weights=p.marginal(k).mass) == pytest.approx(mean, abs=1e-6)


def test_long_horizons_cost_what_their_smoothness_costs(monkeypatch):
    steps = []
    strang = SplitSteps._strang
    monkeypatch.setattr(SplitSteps, "_strang", lambda self, v, tau, n: steps.append(tau) or strang(self, v, tau, n))
    generator = fokker_planck.assemble(_well(2, 0.2), Grid.uniform((-2.5, 2.5, 24), (-2.0, 2.0, 24)))
    p0 = Density.point(generator.grid, [1.3, 1.0])
    p = fokker_planck.evolve(generator, p0, [1e6], rtol=1e-6).densities[0]
    law = fokker_planck.stationary(generator)
    assert np.abs(p.mass - law.mass).sum() < 1e-6
    assert len(steps) < 3 * 300


def test_the_stationary_law_stays_to_rounding():
    generator = fokker_planck.assemble(_well(2, 0.02), Grid.uniform((-2.5, 2.5, 40), (-2.0, 2.0, 40)))
    law = fokker_planck.stationary(generator)
    assert law.mass.min() < 1e-100
    p = fokker_planck.evolve(generator, law, [1e3], rtol=1e-6).densities[0]
    np.testing.assert_allclose(p.mass, law.mass, rtol=1e-11, atol=1e-300)


def test_more_than_it_can_do_is_said():
    generator = fokker_planck.assemble(_well(2, 0.2), Grid.uniform((-2.5, 2.5, 12), (-2.0, 2.0, 12)))
    stepper = SplitSteps(generator, 1e-25)
    mass = Density.point(generator.grid, [1.3, 1.0]).mass.ravel()
    with pytest.raises(RuntimeError, match="did not settle to rtol=1e-25"):
        stepper.advance(mass, 0.0, 1.0)
    assert not SplitSteps.fits(
        fokker_planck.assemble(_well(2, 0.2), Grid.uniform((0, 1, 4), (0, 1, 4)), ("no-flux", "periodic"))
    )
