"""What holds for every process, grid and boundary: mass, signs, columns and currents; by random examples."""

import jax.numpy as jnp
import numpy as np
from hypothesis import example, given, settings, strategies as st

from solvers import Density, Diffusion, Grid, fokker_planck
from solvers.fokker_planck.stationary import closed_law

_kinds = ["no-flux", "absorbing", "periodic"]


def random_process(rng, d, kind):
    """Drift down a random loss of waves, with noise proportional to it, of a constant tensor, or with a rotation."""
    waves, phase = jnp.asarray(rng.integers(0, 3, (3, d)).astype(float)), jnp.asarray(6 * rng.random(3))
    weights = jnp.asarray(0.2 + 0.3 * rng.random(3))
    tensor = jnp.asarray(np.eye(d) + 0.3 * rng.standard_normal((d, d)))
    spin = rng.standard_normal((d, d))
    spin = jnp.asarray(spin - spin.T) * float(kind == "turning")

    def loss(x):
        return 1.6 + weights @ jnp.sin(waves @ x + phase)

    def drift(t, x):
        slope = (weights * jnp.cos(waves @ x + phase)) @ waves
        return -slope + spin @ jnp.sin(x)

    def noise(t, x):
        return tensor if kind == "tensor" else jnp.sqrt(loss(x))

    return Diffusion(drift, noise)


def random_grid(rng, d, most):
    """Cells of uneven width that span one period of every wave."""
    cells = rng.integers(4, most + 1, d)
    widths = [np.exp(0.4 * rng.standard_normal(n)) for n in cells]
    return Grid([2 * np.pi * np.append(0.0, np.cumsum(w) / w.sum()) for w in widths])


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 3),
    st.sampled_from(["loss", "tensor", "turning"]),
    st.lists(st.sampled_from(_kinds), min_size=3, max_size=3),
)
@settings(max_examples=8, deadline=None, derandomize=True)
def test_generators_evolve_masses(seed, d, kind, kinds):
    rng = np.random.default_rng(seed)
    grid, process = random_grid(rng, d, {1: 30, 2: 12, 3: 7}[d]), random_process(rng, d, kind)
    try:
        generator = fokker_planck.assemble(process, grid, kinds[:d])
    except fokker_planck.LongJumpsError:
        return
    a = generator.matrix
    traffic = np.abs(a.diagonal())
    assert (a - np.diag(a.diagonal())).min() >= 0
    np.testing.assert_allclose((a.sum(axis=0) + generator.exit_rates.ravel()) / traffic, 0, atol=1e-13)
    start = Density(grid, rng.dirichlet(np.ones(grid.size)).reshape(grid.shape))
    solution = fokker_planck.evolve(generator, start, [0.3], rtol=1e-6)
    end = solution.densities[0]
    # Before those below zero were set to zero: no more than rounding and the error in time.
    assert solution.min_mass > -1e-9
    assert solution.mass_error < 1e-12
    assert abs(end.mass.sum() + end.outside - 1) < 1e-12
    assert (end.outside > 1e-12) != generator.conserving


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.sampled_from(["loss", "tensor", "turning"]), st.booleans())
# A coarse grid on which quadrature leaves a cycle defect of 1e-10.
@example(4, 2, "loss", False)
@settings(max_examples=6, deadline=None)
def test_stationary_currents_have_no_divergence(seed, d, kind, periodic):
    rng = np.random.default_rng(seed)
    grid, process = random_grid(rng, d, {1: 30, 2: 12, 3: 7}[d]), random_process(rng, d, kind)
    try:
        generator = fokker_planck.assemble(process, grid, "periodic" if periodic else "no-flux")
    except fokker_planck.LongJumpsError:
        return
    mass = closed_law(generator)
    assert mass.min() > 0
    assert abs(mass.sum() - 1) < 1e-12
    flow = fokker_planck.current(generator, Density(grid, mass))
    gain = np.zeros(grid.shape)
    for k in range(d):
        area = grid.volumes / np.diff(grid.edges[k]).reshape(-1, *[1] * (d - k - 1))
        gain -= np.diff(flow.faces[k], axis=k) * area
    traffic = np.abs(generator.matrix.diagonal()).reshape(grid.shape) * mass
    # Where log ratios are summed, the two flows over an edge differ by its defect, as a fraction of them.
    allowed = 1e-12 + (generator.cycle_defect if generator.reversible else 0.0)
    np.testing.assert_allclose(gain / traffic.max(), 0, atol=allowed)
    assert flow.entropy_production >= 0
