"""Closed forms in the plane: an Ornstein-Uhlenbeck process that turns, and a valley of zero loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import betainc
from test_solvers.test_tensor_diffusion import linear, sigmas

from solvers import Density, Diffusion, Grid, fokker_planck

# SGD on xᵀHx/2 with gradient noise C, learning rate .1 and batches of 4: HP + PH = .1 C / 4.
_hessian, _noise = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.3], [-0.3, 2.0]])
_process, _covariance = linear(_hessian, 0.0125 * _noise)


def test_covariance_and_entropy_production_of_a_quadratic():
    exact = np.array([[0.008452380952381, -0.0088095238095238], [-0.0088095238095238, 0.029404761904762]])
    np.testing.assert_allclose(_covariance, exact, rtol=1e-12)
    production = []
    for n in (32, 64):
        generator = fokker_planck.assemble(_process, sigmas(_covariance, 6, n))
        p = fokker_planck.stationary(generator, extrapolate=True)
        production.append(fokker_planck.current(generator, fokker_planck.stationary(generator)).entropy_production)
    found = p.expect(lambda x: jnp.outer(x, x))
    np.testing.assert_allclose(found, exact, atol=2e-4 * exact[1, 1])
    # E L = η tr C / 4S and E|∇L|² = η tr(CH) / 2S.
    h = jnp.asarray(_hessian)
    assert float(p.expect(lambda x: 0.5 * x @ h @ x)) == pytest.approx(0.01875, rel=1e-3)
    assert float(p.expect(lambda x: jnp.sum((h @ x) ** 2))) == pytest.approx(0.04625, rel=1e-3)
    assert (4 * production[1] - production[0]) / 3 == pytest.approx(0.006980802792321, rel=0.05)
    assert abs(production[1] - 0.006980802792321) < 0.5 * abs(production[0] - 0.006980802792321)


def test_rates_of_a_quadratic():
    # n₁ l₁ + n₂ l₂ with the curvatures l.
    sp = fokker_planck.spectrum(fokker_planck.assemble(_process, sigmas(_covariance, 5, 48)), 4)
    low, high = 0.792893218813, 2.20710678119
    wrong = np.abs(sp.rates - np.array([0, low, 2 * low, high]))
    np.testing.assert_allclose(wrong[1:] / sp.rates[1:], 0, atol=5e-3)
    assert np.all(wrong <= 2 * sp.error)


@pytest.mark.filterwarnings("ignore:The box is too small")
def test_mass_gathers_where_a_valley_of_zero_loss_is_flat():
    # f = λ(φ)(r²/2 + r⁴/4) on S¹ × R³, λ = 1 + .9 cos φ, D = κ f with κ = 4: ρ = λ^-p g(r)^-p, p = 5/4, and r²/2 = y
    # with y/(1 + y) of law Beta(3/2 - p, 2p - 3/2). φ and r = |z| are a diffusion of their own.
    kappa, p = 4.0, 1.25

    def loss(x):
        return (1 + 0.9 * jnp.cos(x[0])) * (x[1] ** 2 / 2 + x[1] ** 4 / 4)

    def drift(t, x):
        return -jax.grad(loss)(x) + jnp.array([0.0, 2.0]) * kappa * loss(x) / x[1]

    process = Diffusion(drift, lambda t, x: jnp.sqrt(2 * kappa * loss(x)))
    radii = np.geomspace(1e-12, 1e5, 160)
    grid = Grid(
        [np.linspace(-np.pi / 2, 3 * np.pi / 2, 61), radii],
        [(np.arange(60) + 0.5) * np.pi / 30 - np.pi / 2, np.sqrt(radii[1:] * radii[:-1])],
    )
    generator = fokker_planck.assemble(process, grid, ["periodic", "no-flux"])
    assert generator.reversible
    law = fokker_planck.stationary(generator)
    assert law.mass[30:].sum() == pytest.approx(0.9090466838702, abs=1e-9)
    y = radii**2 / 2
    below = betainc(1.5 - p, 2 * p - 1.5, y / (1 + y))
    exact = np.diff(below) / (below[-1] - below[0])
    np.testing.assert_allclose(law.marginal(1).mass, exact, rtol=1e-7, atol=1e-12)
    assert isinstance(law, Density)
