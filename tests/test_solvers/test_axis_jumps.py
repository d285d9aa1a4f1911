"""Multigrid for full tensors, by jumps between neighbours that spread like those along diagonals."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from test_solvers.test_tensor_transitions import brownian, ellipse, squares, turning

from solvers import Diffusion, Grid, fokker_planck
from solvers.fokker_planck.axis_jumps import axis_jumps, many_full, reversed_matrix, wraps

_tensor = np.array([[1.0, 0.5, 0.2], [0.5, 1.0, -0.3], [0.2, -0.3, 0.8]])


def test_jumps_spread_as_the_tensor_does():
    # Away from walls Σ k e² over both directions is 2 D_kk / width²; the axis that closes has no wall.
    grid = Grid.uniform((-1.0, 1.0, 12), (0.0, 3.0, 15))
    generator = fokker_planck.assemble(brownian(), grid, ("no-flux", "periodic"))
    jumps = axis_jumps(scipy.sparse.csr_array(-generator.matrix.T), wraps(generator), generator.log_weights)
    for k, (width, d) in enumerate(zip((1 / 6, 1 / 5), (1.0, 1.5), strict=True)):
        np.testing.assert_allclose((jumps.up[k] + jumps.down[k])[3:-3], 2 * d / width**2, rtol=1e-12)
    assert np.max(jumps.killed) < 1e-9


def test_backwards_in_time():
    # The rates of leaving are those forwards, if the law is stationary.
    grid = Grid.uniform((-2.0, 2.0, 16), (-2.4, 2.4, 16))
    generator = fokker_planck.assemble(turning(1.0), grid)
    log_mass = np.log(fokker_planck.stationary(generator).mass)
    back = reversed_matrix(generator, log_mass)
    np.testing.assert_allclose(back @ np.ones(256), 0, atol=1e-8 * np.max(back.diagonal()))


@pytest.mark.slow
def test_an_ellipsoid_by_iterations(monkeypatch):
    monkeypatch.setitem(many_full, 3, 0)
    precision = np.linalg.inv(_tensor)
    grid = Grid.uniform(*[(-1.2, 1.2, 13)] * 3)
    tau = fokker_planck.exit_time(brownian(_tensor), grid, ellipse(1.0, precision))
    square = np.minimum(squares(grid, precision), 1)
    np.testing.assert_allclose(tau.values, (1 - square) / 6, atol=1e-9)


@pytest.mark.slow
def test_rates_and_laws_by_iterations(monkeypatch):
    # n₁ (1 + i) + n₂ (1 - i), with the law of elimination.
    generator = fokker_planck.assemble(turning(1.0), Grid.uniform((-2.0, 2.0, 24), (-2.4, 2.4, 24)))
    law = fokker_planck.stationary(generator).mass
    exact = fokker_planck.spectrum(generator, 4).matrix_rates
    monkeypatch.setitem(many_full, 2, 400)
    found = fokker_planck.spectrum(generator, 4)
    np.testing.assert_allclose(found.weights, law, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(found.matrix_rates, exact, rtol=1e-8, atol=1e-12)
    assert abs(found.rates[1] - (1 + 1j)) < 0.02


@pytest.mark.slow
def test_real_rates_of_a_reversible_process(monkeypatch):
    # Drift -x and any constant D: n₁ + n₂.
    noise = jnp.asarray(np.sqrt(0.4) * np.linalg.cholesky(np.array([[1.0, 0.6], [0.6, 1.0]])))
    grid = Grid.uniform((-2.4, 2.4, 32), (-2.4, 2.4, 32))
    generator = fokker_planck.assemble(Diffusion(lambda t, x: -x, lambda t, x: noise), grid)
    assert generator.reversible
    exact = fokker_planck.spectrum(generator, 4).matrix_rates
    monkeypatch.setitem(many_full, 2, 200)
    found = fokker_planck.spectrum(generator, 4)
    np.testing.assert_allclose(found.matrix_rates, exact, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.rates, [0, 1, 1, 2], rtol=2e-2, atol=1e-12)
