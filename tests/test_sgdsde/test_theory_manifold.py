"""Limit laws on manifolds of minimisers: two forms that agree, exact marginals at finite temperature, corrections."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from scipy.integrate import quad

from sgdsde import losses, theory
from sgdsde.theory import fibre, manifold
from solvers import Grid

circle = Grid.uniform((-np.pi, np.pi, 60))


def ring(phi):
    return jnp.stack([jnp.cos(phi[0]), jnp.sin(phi[0])])


def test_a_ring_of_varying_curvature():
    p = theory.limit_density(losses.RingValley(), ring, circle)
    assert p.expect(lambda phi: jnp.where(jnp.cos(phi[0]) < 0, 1.0, 0.0)) == pytest.approx(0.5848335929228, rel=1e-6)
    density = p.pdf[30], p.pdf[0]
    assert np.mean(density[0]) == pytest.approx(0.12321588920215411, rel=1e-3)
    assert np.mean(density[1]) == pytest.approx(0.21341618039790833, rel=1e-3)


def line_segment(phi):
    return jnp.stack([phi[0], 0 * phi[0]])


def ellipsoid_valley(x):
    """Minima on an ellipse in the plane (x₀, x₁), with curvatures that vary along it in the four directions across."""
    ellipse = x[0] ** 2 / 4 + x[1] ** 2 - 1
    stiff = jnp.array([1.0, 2.0, 0.5]) * jnp.exp(x[0] * jnp.array([1.0, -0.3, 0.2]))
    return 0.3 * ellipse**2 + 0.5 * jnp.sum(stiff * x[2:] ** 2) + 0.2 * x[2] * x[3]


def ellipse(phi):
    return jnp.concatenate([jnp.stack([2 * jnp.cos(phi[0]), jnp.sin(phi[0])]), jnp.zeros(3)])


def test_the_sphere_integral_and_the_determinant_give_one_law():
    p = theory.limit_density(ellipsoid_valley, ellipse, circle)
    q = manifold.sphere_density(ellipsoid_valley, ellipse, circle)
    np.testing.assert_allclose(p.mass, q.mass, rtol=1e-11)
    assert p.mass.max() / p.mass.min() > 3
    # By hand: length element times det^{-1/2}, with the normal curvature 0.6 |∇ellipse|².
    phi = np.linspace(-np.pi, np.pi, 4001)[:-1]
    x, y = 2 * np.cos(phi), np.sin(phi)
    normal = 0.6 * (x**2 / 4 + 4 * y**2)
    a, b, c = (s * np.exp(x * e) for s, e in ((1.0, 1.0), (2.0, -0.3), (0.5, 0.2)))
    weight = np.sqrt(4 * np.sin(phi) ** 2 + np.cos(phi) ** 2) / np.sqrt(normal * (a * b - 0.04) * c)
    assert p.expect(lambda phi: jnp.cos(phi[0])) == pytest.approx(
        np.sum(weight * np.cos(phi)) / np.sum(weight), rel=1e-4
    )


def test_the_law_does_not_depend_on_the_chart():
    def warped(phi):
        return ellipse(phi + 0.5 * jnp.sin(phi))

    edges = np.linspace(-np.pi, np.pi, 41)
    p = theory.limit_density(ellipsoid_valley, warped, Grid([edges]))
    q = theory.limit_density(ellipsoid_valley, ellipse, Grid([edges + 0.5 * np.sin(edges)]))
    np.testing.assert_allclose(p.mass, q.mass, rtol=1e-6)


def test_a_surface_of_minimisers():
    # The unit sphere in R³ with curvature e^{z} across: weight sin θ e^{-z/2}.
    def loss(x):
        return 0.125 * jnp.exp(x[2]) * (x @ x - 1) ** 2

    def chart(a):
        return jnp.stack([jnp.sin(a[0]) * jnp.cos(a[1]), jnp.sin(a[0]) * jnp.sin(a[1]), jnp.cos(a[0])])

    p = theory.limit_density(loss, chart, Grid.uniform((0.0, np.pi, 24), (0.0, 2 * np.pi, 6)))
    exact = quad(lambda z: z * np.exp(-z / 2), -1, 1)[0] / quad(lambda z: np.exp(-z / 2), -1, 1)[0]
    assert p.expect(lambda a: jnp.cos(a[0])) == pytest.approx(exact, rel=1e-3)
    np.testing.assert_allclose(p.marginal(1).mass, 1 / 6, rtol=1e-12)


def two_points(kappa):
    """The metric-tube weight of H = diag(1, 1, 0.01) against H = I."""

    def loss(x):
        return 0.5 * (x[1] ** 2 + x[2] ** 2 + jnp.where(x[0] > 0, 0.01, 1.0) * x[3] ** 2)

    p = manifold.tube_density(loss, lambda phi: jnp.concatenate([phi, jnp.zeros(3)]), Grid.uniform((-1, 1, 2)), kappa)
    return p.mass[1] / p.mass[0]


def test_tubes_prefer_flat_minima_less_at_higher_temperature():
    assert two_points(2.1) == pytest.approx(9.337444871, rel=1e-9)
    assert two_points(4.0) == pytest.approx(5.141612755, rel=1e-9)
    assert two_points(2.0001) == pytest.approx(10, rel=1e-3)


def cylinder(phi_and_z):
    phi, z = phi_and_z[0], phi_and_z[1:]
    y = 0.5 * z @ z
    return (1 + 0.9 * jnp.cos(phi)) * (y + y**2)


@pytest.mark.parametrize(
    ("k", "kappa", "at_pi", "flat_half", "limit_half"),
    [
        (3, 2.25, 0.989739865700939, 0.938086091553996, 0.9447490207153821),
        (3, 4.0, None, 0.9090466838702, 0.9447490207153821),
        (4, 1.2, 1.225678978606046, 0.9729054652469246, 0.9813069632657507),
    ],
)
def test_marginals_on_a_cylinder(k, kappa, at_pi, flat_half, limit_half):
    # A thin cell at φ = -π shows the density there.
    quarters = np.concatenate(
        [[-2], np.linspace(-2 + 1e-4, -1, 8), np.linspace(-1, 1, 15)[1:], np.linspace(1, 2, 8)[1:]]
    )
    grid = Grid([quarters * np.pi / 2])
    p = fibre.fibre_density(cylinder, grid, k, kappa)
    assert 1 - p.mass[8:22].sum() == pytest.approx(flat_half, rel=1e-5)
    if at_pi is not None:
        assert p.pdf[0] == pytest.approx(at_pi, rel=1e-6)
    limit = theory.limit_density(cylinder, lambda phi: jnp.concatenate([phi, jnp.zeros(k)]), grid)
    assert 1 - limit.mass[8:22].sum() == pytest.approx(limit_half, rel=1e-5)


def anisotropic(x):
    y = 0.5 * (x[1] ** 2 + (1 + x[0] ** 2) * x[2] ** 2 + 0.3 * x[3] ** 2)
    return y + (1 + x[0]) * y**2


def test_fibre_mass_is_exact_for_a_function_of_the_quadratic_form():
    # f = y + b y² with y = zᵀHz/2: det^{-1/2} b^{p-k/2} times a constant, so R = -log b.
    p, grid = 1.4, Grid([[0.0, 1e-6, 1.0, 1.0 + 1e-6]])
    law = fibre.fibre_density(anisotropic, grid, 3, 1 / (p - 1))
    expected = 2**-0.5 * 2 ** (p - 1.5)
    assert law.pdf[2] / law.pdf[0] == pytest.approx(expected, rel=1e-4)
    R = [fibre.fibre_correction(anisotropic, phi, 3) for phi in (0.0, 1.0)]
    assert R[1] - R[0] == pytest.approx(-np.log(2), rel=1e-3)
    # The constant: (√det/c_k) ∫ f^{-3/2} dz = ∫_δ^∞ y^{-1}(1 + y)^{-3/2} dy = -log δ - ψ(3/2) + ψ(1) + O(δ).
    assert R[0] == pytest.approx(-special.digamma(1.5) + special.digamma(1.0), rel=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: theory.limit_density(losses.RadialWell(), lambda p: 1.1 * ring(p), circle), "must follow minimisers"),
        (lambda: theory.limit_density(lambda x: x[1] ** 4, line_segment, circle), "must be curved across"),
        (lambda: theory.limit_density(losses.RadialWell(), lambda p: ring(0 * p), circle), "must be regular"),
        (lambda: theory.limit_density(losses.RadialWell(), lambda p: p, circle), "d > n = 1"),
        (lambda: manifold.tube_density(losses.RadialWell(), ring, circle, 5.0), r"above κ_c = 2/\(k-2\) = inf"),
        (lambda: fibre.fibre_density(cylinder, circle, 3, 1.5), "above κ_c .* = 2 for minimisers of codimension 3"),
        (lambda: fibre.fibre_density(lambda x: 0.5 * x[1:] @ x[1:], circle, 3, 2.5), "cannot be integrated far out"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
