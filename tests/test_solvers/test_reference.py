"""A log-density given as a reference: exact laws without detailed balance, and bad references that do no harm."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_solvers.fokker_planck_problems import gibbs, quadratic
from test_solvers.test_tensor_diffusion import gaussian, linear, log_law_2d, noise_2d, sigmas, stream_2d, with_law

from solvers import Diffusion, Grid, fokker_planck


def centres(grid, log_law):
    """The density at the centres times the volume."""
    heights = jax.vmap(log_law)(grid.points.reshape(-1, grid.ndim)).reshape(grid.shape)
    mass = np.exp(heights) * grid.volumes
    return mass / mass.sum()


def log_gaussian(covariance, precision_times=1.0):
    precision = jnp.asarray(precision_times * np.linalg.inv(covariance))
    return lambda x: -0.5 * x @ precision @ x


def law(process, grid, reference=None, boundary="no-flux"):
    generator = fokker_planck.assemble(process, grid, boundary, reference)
    return generator, fokker_planck.stationary(generator)


def distance(p, mass):
    return np.abs(p.mass - mass).sum()


_turning, _covariance = linear([[1.0, -0.9], [0.7, 2.0]], np.diag([1.0, 0.6]))


@pytest.mark.slow
def test_a_gaussian_law_is_exact_up_to_the_box():
    # Half-widths of k standard deviations leave out e^(-k²/2).
    for reach, bound in ((5, 1e-5), (7, 1e-9)):
        grid = sigmas(_covariance, reach, 24)
        generator, p = law(_turning, grid, log_gaussian(_covariance))
        assert generator.reference.used
        assert not generator.reversible
        assert distance(p, centres(grid, log_gaussian(_covariance))) < bound
    # Without it the error is that of 24 cells, some 1e-3, and is the same as if there had never been one.
    assert distance(law(_turning, grid)[1], centres(grid, log_gaussian(_covariance))) > 1e-3
    flow = fokker_planck.current(generator, p)
    turn = np.diag([1.0, 0.6]) @ np.linalg.inv(_covariance) - np.array([[1.0, -0.9], [0.7, 2.0]])
    production = np.trace(turn.T @ np.diag([1, 1 / 0.6]) @ turn @ _covariance)
    assert flow.entropy_production == pytest.approx(production, rel=0.05)


@pytest.mark.slow
def test_a_correlated_law_is_exact_too():
    process, covariance = linear(np.diag([1.0, 3.0]), [[1.0, 0.95], [0.95, 1.0]])
    grid = sigmas(covariance, 6, 32)
    generator, p = law(process, grid, log_gaussian(covariance))
    assert "reference used: it changes at the rate" in str(generator)
    assert distance(p, centres(grid, log_gaussian(covariance))) < 1e-7
    near, none = law(process, grid, log_gaussian(covariance, 1.1))[1], law(process, grid)[1]
    exact = centres(grid, log_gaussian(covariance))
    assert distance(near, exact) < 0.5 * distance(none, exact)


@pytest.mark.parametrize("kind", ["diagonal", "tensor"])
@pytest.mark.slow("tensor")
def test_a_law_with_varying_noise_is_exact_to_the_quadrature(kind):
    def diagonal(x):
        return jnp.diag(jnp.array([1 + 0.3 * jnp.sin(x[1]), 0.9 + 0.2 * jnp.cos(x[0])]))

    process = with_law(log_law_2d, diagonal if kind == "diagonal" else noise_2d, stream_2d)
    grid = Grid.stretched((5.5, 28, 4.0), (6.0, 30, 4.0))
    p, q = law(process, grid, log_law_2d)[1], law(process, grid)[1]
    exact = centres(grid, log_law_2d)
    assert distance(p, exact) < 1e-5
    assert distance(q, exact) > 300 * distance(p, exact)


@pytest.mark.slow
def test_a_double_well_that_circles():
    # ρ = exp(-V/T) with a current around the wells: the moments are those of exp(-V/T).
    def well(x):
        return -((x[0] ** 2 - 1) ** 2 / 4 + 0.5 * x[1] ** 2) / 0.3 + 0.4 * x[0]

    process = with_law(well, lambda x: jnp.sqrt(0.6) * jnp.eye(2), lambda x: jnp.array([[0.0, 0.15], [-0.15, 0.0]]))
    grid = Grid.uniform((-2.6, 2.6, 40), (-3.2, 3.2, 40))
    generator, p = law(process, grid)
    fine = Grid.uniform((-2.6, 2.6, 400))
    weights = np.exp(-((fine.centres[0] ** 2 - 1) ** 2) / 1.2 + 0.4 * fine.centres[0])
    mean = weights @ fine.centres[0] / weights.sum()
    assert not generator.reversible
    extrapolated = fokker_planck.stationary(generator, extrapolate=True)
    assert float(extrapolated.expect(lambda x: x[0])) == pytest.approx(mean, rel=2e-3)
    assert float(extrapolated.expect(lambda x: x[1] ** 2)) == pytest.approx(0.3, rel=2e-3)
    q = law(process, grid, well)[1]
    assert distance(q, centres(grid, well)) < 1e-6
    assert distance(p, centres(grid, well)) > 1e-3


@pytest.mark.slow
def test_three_dimensions_and_a_circle():
    process, covariance = linear([[1.0, 0.5, 0.0], [-0.5, 1.0, 0.3], [0.0, -0.3, 1.5]], np.diag([1.0, 0.8, 1.2]))
    grid = sigmas(covariance, 5, 10)
    assert distance(law(process, grid, log_gaussian(covariance))[1], centres(grid, log_gaussian(covariance))) < 2e-4
    # b = 1 + c/ρ - sin x with ρ ∝ e^(cos x) and D = 1: a current around the circle.
    tilted = Diffusion(lambda t, x: -jnp.sin(x) + 0.5 * jnp.exp(-jnp.cos(x)), lambda t, x: jnp.sqrt(jnp.asarray(2.0)))
    ring = Grid.uniform((0.0, 2 * np.pi, 20))
    generator, p = law(tilted, ring, lambda x: jnp.cos(x[0]), "periodic")
    assert distance(p, centres(ring, lambda x: jnp.cos(x[0]))) < 1e-13
    current = fokker_planck.current(generator, p).faces[0]
    exact = 0.5 / np.sum(np.exp(np.cos(ring.centres[0])) * ring.volumes)
    np.testing.assert_allclose(current, exact, rtol=1e-12)


@pytest.mark.parametrize("times", [0.4, 2.5])
@pytest.mark.slow("2.5")
def test_a_bad_reference_is_not_used(times):
    grid = sigmas(_covariance, 5, 24)
    generator, p = law(_turning, grid, log_gaussian(_covariance, times))
    assert not generator.reference.used
    assert generator.reference.residual > 0.2 * generator.reference.unaided
    np.testing.assert_array_equal(p.mass, law(_turning, grid)[1].mass)
    assert "reference not used: it changes at the rate" in str(generator)


def test_a_reversible_process_needs_none():
    grid = Grid.uniform((-4.0, 4.0, 20))
    generator = fokker_planck.assemble(gibbs(quadratic, 0.5), grid, reference=lambda x: -3 * x[0] ** 2)
    plain = fokker_planck.assemble(gibbs(quadratic, 0.5), grid)
    assert generator.reversible
    assert "the process is reversible" in str(generator.reference)
    np.testing.assert_array_equal(generator.matrix.toarray(), plain.matrix.toarray())


def test_coarser_grids_and_closed_faces_have_the_same_reference():
    grid = sigmas(_covariance, 6, 16)
    generator = fokker_planck.assemble(_turning, grid, reference=log_gaussian(_covariance))
    wide = fokker_planck.coarsen(generator)
    p = fokker_planck.stationary(wide)
    assert distance(p, centres(wide.grid, log_gaussian(_covariance))) < 1e-6
    assert dataclasses.replace(wide, reference=None).reference is None
    # The error is that of masses of centres against masses of cells.
    q = fokker_planck.stationary(generator)
    assert q.error.sum() == pytest.approx(distance(q, gaussian(grid, _covariance).mass), rel=0.3)
    absorbing = fokker_planck.assemble(_turning, grid, "absorbing", log_gaussian(_covariance))
    sp = fokker_planck.spectrum(absorbing, 1)
    np.testing.assert_allclose(sp.weights, q.mass, rtol=1e-6)


def test_bad_references_are_refused(unchecked):
    grid = sigmas(_covariance, 5, 8)
    for reference, error, text in [
        (1.0, TypeError, "`reference` must be a function of one point"),
        (lambda x: x, ValueError, "`reference` must return one number"),
        (lambda x: jnp.log(x[0]), ValueError, "`reference"),
    ]:
        with pytest.raises(error, match=text):
            fokker_planck.assemble(_turning, grid, reference=reference)
