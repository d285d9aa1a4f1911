"""SK-ROCK: its stability polynomials, its orders, and the invariant law of the postprocessed version."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial import chebyshev
from test_solvers.one_step import local_orders

from solvers import Diffusion, sde

_eta = 0.05


def _first_kind(s, p):
    """A(p) = T_s(ω0 + ω1 p) / T_s(ω0): what a step of length h multiplies x by on dX = λX dt, p = λh."""
    w0, w1 = _omegas(s)
    return np.cos(s * np.arccos(w0 + w1 * p + 0j)).real / np.cosh(s * np.arccosh(w0))


def _second_kind(s, p):
    """B(p) = U_{s-1}(ω0 + ω1 p) / U_{s-1}(ω0) (1 + ω1 p / 2): what it multiplies the noise by."""
    w0, w1 = _omegas(s)
    slope = chebyshev.chebder([0] * s + [1])
    return chebyshev.chebval(w0 + w1 * p, slope) / chebyshev.chebval(w0, slope) * (1 + w1 * p / 2)


def _omegas(s):
    w0 = 1 + _eta / s**2
    angle = np.arccosh(w0)
    return w0, np.cosh(s * angle) * np.sinh(angle) / (s * np.sinh(s * angle))


def _linear_step(method, h, rate, mu, dw):
    """One step from 1 on dX = rate X dt + μ X dW."""
    process = Diffusion(lambda t, x: rate * x, lambda t, x: mu * x)
    one, zero = jnp.ones(1), jnp.asarray(0.0)
    return method.step(process, zero, one, jnp.asarray(h), sde.Increment(jnp.asarray([dw])))[0]


@pytest.mark.parametrize("stages", [1, 2, 3, 7, 20])
def test_a_step_of_a_linear_problem_is_that_of_the_chebyshev_polynomials(stages):
    step = jax.jit(jax.vmap(lambda p, dw: _linear_step(sde.SKROCK(stages), 0.1, p / 0.1, 0.5, dw)))
    p = np.linspace(-1.9 * stages**2, 0.3, 101)
    for dw in (0.0, 0.3, -1.0):
        exact = _first_kind(stages, p) + 0.5 * dw * _second_kind(stages, p)
        np.testing.assert_allclose(step(jnp.asarray(p), jnp.full(101, dw)), exact, atol=1e-11)


@pytest.mark.parametrize("stages", [1, 2, 3, 7, 20])
def test_mean_square_stability_reaches_as_far_as_the_number_of_stages_squared(stages):
    """At the largest noise for which dX = λX dt + μX dW is stable, μ² = -2λ, and at none."""
    step = jax.jit(jax.vmap(lambda p, dw: _linear_step(sde.SKROCK(stages), 1.0, p, jnp.sqrt(-2 * p), dw)))
    reach = (2 - 4 / 3 * _eta) * stages**2
    p = jnp.linspace(-reach, -1e-3, 2001)
    drift, noise = step(p, 0 * p), step(p, 0 * p + 1) - step(p, 0 * p)
    # E x'² = drift² + noise² for a normal dw of variance 1.
    assert np.all(drift**2 + noise**2 <= 1 + 1e-12)
    beyond = jnp.full(1, -1.05 * reach)
    assert step(beyond, 0 * beyond)[0] ** 2 > 1


def test_second_moment_of_a_stiff_run_is_that_of_its_own_recurrence():
    """Curvatures 1 and 400 at dt = 0.1: Euler-Maruyama is stable to 20."""
    rates, mu, dt, steps = np.array([1.0, 400.0]), np.array([0.5, 2.0]), 0.1, 10
    process = Diffusion(lambda t, x: -rates * x, lambda t, x: mu * x)
    stages = sde.SKROCK.stages_for(dt, 400)
    assert stages == 5
    method = sde.SKROCK(stages)
    run = sde.simulate(process, method, np.ones(2), steps * dt, dt, key=1, paths=40_000)
    squares = run.final[:, 0] ** 2
    a, b = _first_kind(stages, -rates * dt), _second_kind(stages, -rates * dt)
    exact = (a**2 + b**2 * mu**2 * dt) ** steps
    sem = squares.std() / np.sqrt(squares.size)
    assert abs(squares.mean() - exact[0]) < 4 * sem
    assert sem < 0.02 * exact[0]
    assert np.mean(run.final[:, 1] ** 2) < 1e-2


@pytest.mark.parametrize("dt", [0.01, 0.1, 3.0])
@pytest.mark.parametrize("radius", [0.0, 1.0, 75.0, 1e4])
def test_stages_for_are_the_fewest(dt, radius):
    stages = sde.SKROCK.stages_for(dt, radius)

    def stable(s):
        return np.all(np.abs(_first_kind(s, np.linspace(-dt * radius, 0, 1001))) <= 1 + 1e-12)

    assert stable(stages)
    # The formula for the reach is a few per cent short of it.
    assert stages == 1 or not stable(int(np.floor(0.97 * stages - 0.1)))


@pytest.mark.parametrize("method", [sde.SKROCK(1), sde.SKROCK(4), sde.PSKROCK(4)])
def test_time_is_another_state(method):
    """A step under a drift that depends on time is the step in which time is a coordinate with the drift 1."""
    timed = Diffusion(lambda t, x: jnp.sin(3 * t) - x**2, lambda t, x: 0.5)
    joint = Diffusion(lambda t, x: jnp.array([1.0, jnp.sin(3 * x[0]) - x[1] ** 2]), lambda t, x: jnp.array([0.0, 0.5]))
    t, h = jnp.asarray(0.3), jnp.asarray(0.7)
    alone = method.step(timed, t, jnp.array([0.4]), h, sde.Increment(jnp.array([0.6])))
    together = method.step(joint, t, jnp.array([0.3, 0.4]), h, sde.Increment(jnp.array([0.0, 0.6])))
    np.testing.assert_allclose(together, [1.0, alone[0]], rtol=1e-13)


def _drift(t, x):
    return jnp.array([jnp.sin(x[1]) - x[0] + 0.3 * t, 0.3 * x[0] * x[1] - jnp.cos(t) * x[1]])


def _functionals(t, x):
    return jnp.array([x[0], x[0] * x[1], jnp.sin(x[0] + 0.5 * x[1])])


@pytest.mark.parametrize(
    ("method", "additive"), [(sde.SKROCK(1), False), (sde.SKROCK(4), False), (sde.PSKROCK(3), True)]
)
def test_weak_order(method, additive):
    noise = jnp.array([[1.0, 0.3], [0.2, 0.5]])
    slope = 0.0 if additive else 0.3
    process = Diffusion(_drift, lambda t, x: noise * (1 + slope * jnp.sin(x[::-1] + t))[:, None])
    orders = local_orders(method, process, _functionals, jnp.asarray(0.3), jnp.array([0.7, -0.4]), order=1, h=0.005)
    np.testing.assert_allclose(orders, 2, atol=0.1)


# A potential on the circle: the invariant law of a method is found there without sampling, as a vector.
_sigma, _points = 0.9, 96
_angles = 2 * np.pi * np.arange(_points) / _points
_ring = Diffusion(
    lambda t, x: jnp.sin(x) - 0.8 * jnp.cos(2 * x) + 0.3 * jnp.sin(x + 1), lambda t, x: jnp.asarray(_sigma)
)


def _potential(x):
    return np.cos(x) + 0.4 * np.sin(2 * x) + 0.3 * np.cos(x + 1)


def _waves(x):
    return np.array([np.cos(x), np.sin(x), np.cos(2 * x)])


def _error_of_invariant_law(method, h):
    """Means of three waves under the invariant law of the method's states, less those of exp(-2V/σ²)."""
    z, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()

    def after(fn):
        def one(y, z):
            return fn(_ring, jnp.asarray(0.0), y[None], jnp.asarray(h), sde.Increment(jnp.sqrt(h) * z[None]))[0]

        return np.asarray(jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(jnp.asarray(_angles), jnp.asarray(z)))

    # Transition of a density of waves e^{ikx}: E e^{ik x'} as a function of x, and its waves.
    k = np.arange(-_points // 2 + 1, _points // 2)
    transition = np.exp(1j * after(method.step)[..., None] * k).transpose(0, 2, 1) @ weights
    to_waves = np.exp(-1j * np.outer(_angles, k)) / _points
    # The waves of the invariant density are a left eigenvector of the transition, to the eigenvalue 1.
    values, vectors = np.linalg.eig((to_waves.T @ transition).T.conj())
    density = np.exp(1j * np.outer(_angles, k)) @ vectors[:, np.argmin(np.abs(values - 1))]
    density = np.real(density / density.sum())
    states = after(method.leave) if hasattr(method, "leave") else np.broadcast_to(_angles[:, None], (_points, z.size))
    return density @ (_waves(states) @ weights).T - _exact_waves()


def _exact_waves():
    x = 2 * np.pi * np.arange(4096) / 4096
    density = np.exp(-2 * _potential(x) / _sigma**2)
    return _waves(x) @ density / density.sum()


@pytest.mark.parametrize("method", [sde.SKROCK(4), sde.PSKROCK(2), sde.PSKROCK(4)])
def test_order_of_the_invariant_law(method):
    errors = [_error_of_invariant_law(method, h) for h in (0.02, 0.01)]
    order = 1 if isinstance(method, sde.SKROCK) else 2
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), order, atol=0.2)
