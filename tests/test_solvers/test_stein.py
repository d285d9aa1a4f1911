"""The Stein certificate: laws that are stationary pass, others do not, whatever they come from."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from test_solvers.fokker_planck_problems import brownian, gibbs, loss_proportional, quadratic

from solvers import Density, Diffusion, Grid, fokker_planck

# f = (1 + x²)/2 under noise proportional to it, κ = 1/2, has f^-3 and not e^(-2f); under constant noise the reverse.
_grid = Grid.stretched((1e3, 160, 0.5))
_power, _gibbs = lambda x: quadratic(x) ** -3.0, lambda x: jnp.exp(-2 * quadratic(x))


@pytest.mark.parametrize(
    ("process", "right", "wrong"),
    [(loss_proportional(quadratic, 0.5), _power, _gibbs), (gibbs(quadratic, 0.5), _gibbs, _power)],
    ids=["power law", "Gibbs"],
)
@pytest.mark.slow("power law")
def test_the_right_law_passes_and_the_other_does_not(process, right, wrong):
    certificate = fokker_planck.stein(process, Density.from_function(_grid, right))
    assert certificate.holds
    # It is sharp: most residuals are known to a hundredth of their scale.
    assert np.median(certificate.error / certificate.scale) < 1e-2
    refused = fokker_planck.stein(process, Density.from_function(_grid, wrong))
    assert not refused.holds
    assert np.max(np.abs(refused.residual) / refused.scale) > 0.1
    assert "not shown to be stationary" in str(refused)
    assert "beyond its error" in str(refused)


def test_a_law_that_was_computed_passes_for_its_process_alone():
    process = loss_proportional(quadratic, 0.5)
    p = fokker_planck.stationary(fokker_planck.assemble(process, _grid))
    assert fokker_planck.stein(process, p).holds
    assert not fokker_planck.stein(loss_proportional(quadratic, 0.55), p).holds
    assert "nothing speaks against" in str(fokker_planck.stein(process, p))


@pytest.mark.parametrize(("scale", "holds"), [(1.0, True), (1.05, False)])
@pytest.mark.slow("1.05-False")
def test_samples_are_judged_by_their_standard_errors(scale, holds):
    # Student: t with 5 degrees of freedom over √5. Some lie outside the grid.
    xs = scale * np.random.default_rng(1).standard_t(5, 100_000) / np.sqrt(5)
    p = Density.from_samples(Grid.stretched((6.0, 60, 0.5)), xs)
    assert p.outside > 0
    assert fokker_planck.stein(loss_proportional(quadratic, 0.5), p).holds == holds


def _gaussian(grid, precision):
    return Density.from_function(grid, lambda x: jnp.exp(-0.5 * x @ precision @ x))


@pytest.mark.slow
def test_a_law_without_detailed_balance():
    matrix, diffusion = np.array([[1.0, -0.8], [0.8, 1.5]]), np.array([[1.0, 0.5], [0.5, 1.0]])
    a, g = jnp.asarray(matrix), jnp.asarray(np.linalg.cholesky(2 * diffusion))
    process = Diffusion(lambda t, x: -a @ x, lambda t, x: g)
    precision = np.linalg.inv(scipy.linalg.solve_continuous_lyapunov(matrix, 2 * diffusion))
    grid = Grid.uniform((-6.0, 6.0, 48), (-6.0, 6.0, 48))
    # The covariance, and that of the process without its rotation.
    symmetric = np.linalg.inv(diffusion) @ np.diag([1.0, 1.5])
    for q, holds in ((precision, True), (0.5 * (symmetric + symmetric.T), False)):
        assert fokker_planck.stein(process, _gaussian(grid, jnp.asarray(q))).holds == holds
    p = fokker_planck.stationary(fokker_planck.assemble(process, grid))
    assert fokker_planck.stein(process, p).holds


def test_a_law_between_walls():
    # Uniform between walls that reflect: x and x² do not judge, functions that vanish at the walls do.
    grid = Grid.uniform((0.0, 1.0, 40))
    flat = fokker_planck.stein(brownian(0.5), Density(grid, np.full(40, 1 / 40)))
    assert flat.holds
    assert np.all(flat.error[:2] > 0.5 * flat.scale[:2])
    assert not fokker_planck.stein(brownian(0.5), Density.from_function(grid, lambda x: 1 + x[0])).holds


def test_too_few_cells_prove_nothing():
    p = Density(Grid.uniform((-2.0, 2.0, 3)), [0.2, 0.6, 0.2])
    assert not fokker_planck.stein(gibbs(quadratic, 0.5), p).holds


def test_other_arguments_are_refused(unchecked):
    with pytest.raises(TypeError, match=r"`p` must be a `Density`, got ndarray\. For samples"):
        fokker_planck.stein(gibbs(quadratic, 0.5), np.zeros(3))
    process = Diffusion(lambda t, x: jnp.zeros(3), lambda t, x: jnp.ones(()))
    with pytest.raises(ValueError, match="one axis for each coordinate"):
        fokker_planck.stein(process, Density(Grid.uniform((0.0, 1.0, 2)), [0.5, 0.5]))
