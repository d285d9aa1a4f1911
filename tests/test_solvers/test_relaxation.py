"""Distances from the stationary law along the way, against closed forms of the Ornstein-Uhlenbeck process."""

import jax.numpy as jnp
import numpy as np
import pytest

from solvers import Density, Diffusion, Grid, fokker_planck

_ou = Diffusion(lambda t, x: -x, lambda t, x: jnp.full(x.shape, jnp.sqrt(2.0)))
_ts = np.array([0.1, 0.5, 1.0, 2.0, 4.0, 8.0])


def _relaxed(reach, cells):
    generator = fokker_planck.assemble(_ou, Grid.uniform((-reach, reach, cells)))
    start = Density.from_function(generator.grid, lambda x: jnp.exp(-0.5 * ((x[0] - 1) / 0.5) ** 2))
    return fokker_planck.relaxation(generator, fokker_planck.evolve(generator, start, _ts, rtol=1e-9))


def _closed_form():
    """Relative entropy and χ² of N(μ, v) with respect to N(0, 1)."""
    mean, variance = np.exp(-_ts), 1 - 0.75 * np.exp(-2 * _ts)
    chi2 = np.exp(mean**2 / (2 - variance)) / np.sqrt(variance * (2 - variance)) - 1
    return 0.5 * (variance + mean**2 - 1 - np.log(variance)), chi2


@pytest.mark.parametrize("reach", [7.0, 30.0])
def test_distances_are_those_of_gaussians_to_second_order(reach):
    """In the large box the law is 1e-195 at the faces, and any rounding there would decide χ²."""
    cells = round(30 * reach)
    coarse, fine = _relaxed(reach, cells), _relaxed(reach, 2 * cells)
    for name, exact in zip(["relative_entropy", "chi2"], _closed_form(), strict=True):
        errors = [np.abs(getattr(r, name) / exact - 1) for r in (coarse, fine)]
        assert np.all(errors[1] < 2e-3)
        assert np.all(errors[1][2:] < 0.3 * errors[0][2:])
    np.testing.assert_allclose(fine.l2**2, fine.chi2)
    assert np.all(fine.relative_entropy <= np.log1p(fine.chi2))


def test_the_distance_decays_no_slower_than_the_gap():
    r = _relaxed(7.0, 420)
    assert r.gap == pytest.approx(1, abs=1e-6)
    assert r.gap_error < 1e-4
    # The first mode decays like e^-t, the next like e^-2t.
    assert np.all(r.decay_rates >= r.gap * (1 - 1e-3))
    assert r.decay_rates[-1] == pytest.approx(1, rel=1e-3)
    assert "gap 1" in str(r)


def test_a_cell_that_is_empty_counts():
    generator = fokker_planck.assemble(_ou, Grid.uniform((-4.0, 4.0, 40)))
    start = Density.point(generator.grid, [0.1])
    r = fokker_planck.relaxation(generator, fokker_planck.evolve(generator, start, [0.0, 1.0]))
    law = fokker_planck.stationary(generator).mass
    there = law[start.mass > 0].item()
    assert r.relative_entropy[0] == pytest.approx(-np.log(there))
    assert r.chi2[0] == pytest.approx(1 / there - 1)


def test_a_process_that_circles_relaxes_too():
    a = jnp.asarray([[1.0, 2.0], [-2.0, 1.0]])
    process = Diffusion(lambda t, x: -a @ x, lambda t, x: jnp.full(2, jnp.sqrt(2.0)))
    generator = fokker_planck.assemble(process, Grid.uniform((-4.0, 4.0, 24), (-4.0, 4.0, 24)))
    start = Density.from_function(generator.grid, lambda x: jnp.exp(-((x[0] - 1) ** 2) - x[1] ** 2))
    r = fokker_planck.relaxation(generator, fokker_planck.evolve(generator, start, [0.0, 0.5, 1.0, 2.0]))
    assert np.all(np.diff(r.relative_entropy) < 0)
    assert np.all(np.diff(r.chi2) < 0)
    assert r.gap == pytest.approx(1, rel=0.05)


def test_bad_input():
    grid = Grid.uniform((-4.0, 4.0, 20))
    generator = fokker_planck.assemble(_ou, grid)
    evolution = fokker_planck.evolve(generator, Density.point(grid, [0.1]), [1.0])
    with pytest.raises(ValueError, match="absorbed has no stationary law"):
        fokker_planck.relaxation(fokker_planck.assemble(_ou, grid, "absorbing"), evolution)
    with pytest.raises(TypeError, match=r"`evolution` must come from `fokker_planck.evolve`"):
        fokker_planck.relaxation(generator, evolution.densities)
    with pytest.raises(ValueError, match="`evolution` must be a density on the grid"):
        fokker_planck.relaxation(fokker_planck.assemble(_ou, Grid.uniform((-4.0, 4.0, 30))), evolution)
