"""Gibbs and power laws against closed forms, and the conditions under which they exist."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgdsde import losses
from sgdsde.losses import rosenbrock
from sgdsde.theory import gibbs, power_law, student
from solvers import Grid


@pytest.mark.parametrize("temperature", [0.5, 3.0, 20.0])
def test_student(temperature):
    grid = Grid.uniform((-3, 5, 50))
    p = power_law(losses.Student(), temperature, grid)
    np.testing.assert_allclose(p.mass, np.diff(student.cdf(grid.edges[0], temperature)), rtol=1e-9)
    cdf = student.cdf(np.array([-3.0, 5.0]), temperature)
    np.testing.assert_allclose(p.outside, 1 - cdf[1] + cdf[0], rtol=1e-9)


def test_student_in_the_far_tail():
    grid = Grid.stretched((1e6, 80, 1.0))
    p = power_law(losses.Student(), 0.5, grid)
    left = grid.edges[0][:41]
    np.testing.assert_allclose(p.mass[:40], np.diff(student.cdf(left, 0.5)), rtol=1e-9)


@pytest.mark.slow
def test_student_in_the_plane():
    # The marginal of f^(-p) in the plane is the law in one dimension with p - 1/2.
    grid = Grid([np.linspace(-3, 3, 13), np.concatenate([[-1e7], np.linspace(-5, 5, 5), [1e7]])])
    p = power_law(losses.Student(), 0.5, grid)
    np.testing.assert_allclose(p.marginal(0).mass, np.diff(student.cdf(grid.edges[0], 1 / 1.5)), rtol=1e-9)
    box = power_law(losses.Student(), 3.0, Grid.uniform((-3, 3, 12), (-3, 3, 12)))
    finer = power_law(losses.Student(), 3.0, Grid.uniform((-3, 3, 17), (-3, 3, 11)))
    np.testing.assert_allclose(box.outside, finer.outside, rtol=1e-9)


def test_double_wells():
    # Density at 0, 1 from a cell of width 2e-3 around it: curvature is 1e-6 of it.
    p = gibbs(losses.DoubleWell(), 0.25, Grid([[-4.0, -1e-3, 1e-3, 1 - 1e-3, 1 + 1e-3, 4.0]]))
    np.testing.assert_allclose(p.pdf[[1, 3]], [0.18638772295151612, 0.5066543603469652], rtol=1e-5)
    q = power_law(losses.DoubleWell(0.05), 0.25, Grid([[-3.0, -2.0, 0.0, 1.0, 2.0, 3.0]]))
    np.testing.assert_allclose(q.outside + q.mass[0] + q.mass[-1], 2.0351040495822454e-09, rtol=1e-8)


@pytest.mark.slow
def test_tilted_double_well():
    grid = Grid([[-9.0, 0.10103125788101082, 9.0]])
    loss = losses.DoubleWell(0.3, 0.1)
    for kappa, power, boltzmann in (
        (0.25, 0.050559972553725796, 0.3229737704259425),
        (0.5, 0.16476312669795054, 0.3936331868486081),
    ):
        p, q = power_law(loss, kappa, grid), gibbs(loss, kappa, grid)
        # f^(-5) beyond 9 weighs 1e-11.
        np.testing.assert_allclose(p.mass[1], power, rtol=1e-9)
        np.testing.assert_allclose(q.mass[1], boltzmann, rtol=1e-9)


def test_a_tail_beyond_the_reach_of_integration():
    # f^(-2) = (1 + |x|)^(-1.2): 2 % of the mass is beyond 4e8, where the integration ends.
    p = power_law(lambda x: (1 + jnp.abs(x[0])) ** 0.6, 1.0, Grid([[-3.0, 0.0, 1.0, 3.0]]))
    np.testing.assert_allclose(p.mass, [(1 - 4**-0.2) / 2, (1 - 2**-0.2) / 2, (2**-0.2 - 4**-0.2) / 2], rtol=1e-8)


@pytest.mark.slow
def test_ring_valley():
    # Half-planes: the mass beyond |x| = 1000 is 1e-18.
    grid = Grid([[-1e3, -4, -2, 0, 2, 4, 1e3], [-1e3, -4, -2, 0, 2, 4, 1e3]])
    p = power_law(losses.RingValley(0.1), 2.0, grid).marginal(0).mass
    q = gibbs(losses.RingValley(0.1), 2.0, grid).marginal(0).mass
    np.testing.assert_allclose(p[:3].sum(), 0.5682039021412161, rtol=1e-8)
    np.testing.assert_allclose(q[:3].sum(), 0.5678974603229485, rtol=1e-8)


def test_gaussian_in_the_plane():
    from scipy.special import erf

    grid = Grid.uniform((-2, 2, 7), (-1, 3, 5))
    p = gibbs(losses.Quadratic([2.0, 1.0]), 0.3, grid)
    ex, ey = (np.diff(erf(e / np.sqrt(2 * 0.3 / h))) / 2 for e, h in zip(grid.edges, (2.0, 1.0), strict=True))
    np.testing.assert_allclose(p.mass, np.outer(ex, ey), rtol=1e-9)
    np.testing.assert_allclose(p.outside, 1 - ex.sum() * ey.sum(), rtol=1e-9)


def test_a_peak_that_no_node_sees_is_found():
    # A width of 0.01 at 0.3 in one cell of width 2000.
    p = gibbs(losses.Quadratic(1.0, centre=0.3), 1e-4, Grid([[-1000.0, 0.3, 1000.0]]))
    np.testing.assert_allclose(p.mass, [0.5, 0.5], rtol=1e-9)


def test_kinks_and_narrow_floors():
    p = gibbs(lambda x: jnp.abs(x[0] - 0.01), 0.5, Grid.uniform((-1, 1, 3)))
    np.testing.assert_allclose(p.outside, 0.5 * (np.exp(-2 * 0.99) + np.exp(-2 * 1.01)), rtol=1e-9)
    p = power_law(losses.Quadratic(2.0, floor=1e-8), 0.5, Grid([[-1.0, 0.0, 1e-4, 1.0]]))
    scale = student.cdf(np.array([0.0, 1e-4, 1.0]), 0.5, scale=1e-4)
    np.testing.assert_allclose(p.mass[1:], np.diff(scale), rtol=1e-9)


def one(loss, temperature=0.25):
    return power_law(loss, temperature, Grid.uniform((-3, 3, 20)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: one(losses.DoubleWell()),
            r"loss is 0 at x = .*1\.?.*order 2 in 1 of 1 directions.*p < k/2.*no invariant",
        ),
        (lambda: one(lambda x: x[0] ** 4), r"loss is 0 .* needs p < 1/4"),
        (lambda: one(losses.Quadratic(1.0, floor=-0.5)), r"must not be negative.*f = -0.5 at x.*constant above 0.5"),
        (lambda: one(losses.Student(), 0.0), "`temperature` must be positive and finite, but got temperature=0"),
        (lambda: one(lambda x: 1 + jnp.tanh(x[0]) ** 2), "does not grow gives no invariant law at any κ"),
        (lambda: one(lambda x: 1 + jnp.sqrt(jnp.abs(x[0])), 2.0), r"γ ≈ 0.5. Reduce κ = ησ below .* ≈ 1\b"),
        (lambda: one(lambda x: jnp.log(x[0] - 4)), "finite nowhere on the grid"),
        (lambda: one(lambda x: x[0] ** 3), "must not be negative"),
        (lambda: gibbs(lambda x: -(x[0] ** 2), 0.5, Grid.uniform((-2, 2, 6))), "loss falls without bound"),
        (lambda: gibbs(lambda x: jnp.exp(x[0]), 0.5, Grid.uniform((-2, 2, 6))), "must grow in every direction"),
        (lambda: one(lambda x: jnp.log(x[0])), "must be finite on the grid, but f = nan at x"),
        (
            lambda: power_law(losses.RadialWell(), 0.5, Grid.uniform((-2, 2, 8), (-2, 2, 8))),
            "order 2 in 1 of 2 directions",
        ),
        (
            lambda: gibbs(lambda x: x[0] ** 2, 0.5, Grid.uniform((-2, 2, 6), (-2, 2, 6))),
            "cannot be normalised: .*must grow in every direction",
        ),
        (
            lambda: gibbs(lambda x: 1 + jnp.tanh(x[0]) ** 2, 1e-3, Grid.uniform((-2, 2, 6))),
            "T=0.001 cannot be normalised",
        ),
        (lambda: gibbs(lambda x: x**2, 0.5, Grid.uniform((-2, 2, 6))), r"returned shape \(1,\)"),
    ],
)
def test_laws_that_do_not_exist(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_tail_condition_at_equality():
    # f ~ |x| in the plane: p = 2 is just too small.
    with pytest.raises(ValueError, match=r"pγ > d .* γ ≈ 1. Reduce κ = ησ below γ/\(d - γ\) ≈ 1,"):
        power_law(lambda x: jnp.sqrt(1 + x @ x), 1.0, Grid.uniform((-3, 3, 2), (-3, 3, 2)))


def test_needs_64_bits():
    with jax.enable_x64(False), pytest.raises(ValueError, match=r'jax.config.update\("jax_enable_x64", True\)'):
        gibbs(losses.Quadratic(1.0), 0.5, Grid.uniform((-1, 1, 4)))


@pytest.mark.parametrize("temperature", [0.05, 0.5, 5.0])
@pytest.mark.slow("0.5", "5.0")
def test_a_curved_valley_is_normalisable(temperature):
    # Rosenbrock: far shells are missed or hit by the valley, and fall by hundreds of digits all the same. In the
    # plane ∫ exp(-f/T) = πT/10 exactly.
    grid = Grid.uniform((-2.0, 2.0, 50), (-1.0, 3.0, 50))
    p = gibbs(rosenbrock, temperature, grid)
    density = np.exp(-float(rosenbrock(jnp.ones(2))) / temperature) / (np.pi * temperature / 10)
    exact = grid.cell_averages(lambda x: density * jnp.exp(-rosenbrock(x) / temperature), nodes=20) * grid.volumes
    assert np.allclose(p.mass, exact, atol=1e-7)


@pytest.mark.parametrize(("temperature", "law"), [(0.02, gibbs), (0.3, gibbs), (0.05, power_law)])
@pytest.mark.slow("0.02-gibbs", "0.05-power_law")
def test_valleys_that_narrow_without_end_are_not_normalisable(temperature, law):
    # The minima uw = 1 are a hyperbola, whose width falls like 1/|x|: as much mass in every doubling of |x|.
    with pytest.raises(ValueError, match="does not fall off along the valley through x = "):
        law(losses.TwoLayerLinear(floor=0.1), temperature, Grid.uniform((-3, 3, 24), (-3, 3, 24)))


def test_valleys_that_end_are_normalisable():
    def loss(x):
        return losses.TwoLayerLinear()(x) + 0.05 * (x @ x)

    p = gibbs(loss, 0.05, Grid.uniform((-1.5, 1.5, 12), (-1.5, 1.5, 12)))
    assert 1e-3 < p.outside < 0.5
