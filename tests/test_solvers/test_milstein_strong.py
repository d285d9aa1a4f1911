"""Milstein has strong order 1 under isotropic noise in d dimensions: with exact Lévy areas, and with those it samples.

The first follows from studies that hand the areas of one Brownian path to all step sizes. What `simulate` samples is
such an area with its Fourier series cut after p terms; it is compared with that of many terms, from the same numbers.
"""

import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import integrate

from solvers import Diffusion, sde
from solvers.sde.brownian import increment, numbers_per_step
from solvers.sde.levy import MatrixArea

# The learning rate: large, so that noise and not drift makes the errors.
_kappa = 1.0


def _loss(x):
    return 0.5 * (1 + jnp.mean(jnp.linspace(0.5, 1.5, x.size) * x**2))


# D = κ f I. The vector v = s ∇s of the Lévy term is κ ∇f.
_process = Diffusion(lambda t, x: -jax.grad(_loss)(x), lambda t, x: jnp.sqrt(2 * _kappa * _loss(x)))


class _WithoutAreas(sde.AbstractMethod):
    """Milstein with its Lévy areas left out."""

    strong_order: ClassVar[float] = 0.5
    weak_order: ClassVar[float] = 1.0
    calculus: ClassVar[Literal["ito", "stratonovich"]] = "ito"

    def needs(self, process, x):
        return "increment"

    def step(self, process, t, x, dt, increment):
        none = MatrixArea(jnp.zeros((x.size, x.size), x.dtype))
        return sde.Milstein().step(process, t, x, dt, sde.Increment(increment.dw, none))


# At t1 = 1 and in 20 dimensions, the errors of order 1 would still hide those of order 1/2.
@pytest.mark.parametrize(("d", "paths"), [(2, 800), (5, 400), (20, 64)])
@pytest.mark.slow("5-400", "20-64")
def test_strong_orders_on_the_same_paths(d, paths):
    orders = {}
    for method in (sde.Milstein(), sde.EulerMaruyama(), _WithoutAreas()):
        # The reference is Milstein at 2^-13. With errors in its limit, no other method would converge to it.
        study = sde.strong_order(
            _process, method, jnp.ones(d), 0.25, dts=[2.0**-k for k in range(5, 9)], key=1, paths=paths
        )
        assert study.reference == f"Milstein at dt={2**-13:g}"
        assert study.interval[1] - study.interval[0] < 0.1, str(study)
        orders[type(method)] = study.order
    assert 0.85 < orders[sde.Milstein] < 1.15
    assert 0.35 < orders[sde.EulerMaruyama] < 0.65
    assert 0.35 < orders[_WithoutAreas] < 0.65


# The area that is sampled: A_1k = H W_k + √V ζ_k, of which p terms leave √V_p in the place of √V.


def _terms(m, dt):
    """The number p of Fourier terms that `simulate` takes."""
    return (numbers_per_step("direction", m, dt) - 2 * m - 1) // 2


def _cut(z, m, p):
    """The numbers of a step for p terms. Those beyond become the tail of H, so that H, W and ζ stay what they are."""
    known, tail, a, b = jnp.split(z, [2 * m, 2 * m + 1, (z.size + 2 * m + 1) // 2])
    r = np.arange(1.0, a.size + 1)
    beyond = math.pi**2 / 6 - np.cumsum(1 / r**2)
    tail = (jnp.sum(a[p:] / r[p:]) + math.sqrt(beyond[-1]) * tail) / math.sqrt(beyond[p - 1])
    return jnp.concatenate([known, tail, a[:p], b[:p]])


def _limit():
    """The c in E (√V - √V_p)² → c/(π⁴p³), for a step of length 1.

    Given W, V - V_p has the variance (1 + 2W²) Σ_{r>p} r⁻⁴ / (4π⁴). Divided by 4V, that is c = E[(1 + 2W²)/V] / 48. And
    1/V = ∫ e^{-λV} dλ, where E[e^{-λV} | W] = (y/sinh y) exp(-(y coth y - 1) W²/2) with λ = 2y².
    """

    def integrand(y):
        q = y / np.tanh(y)
        return 4 * y * (y / np.sinh(y)) * (1 + 2 / q) / np.sqrt(q)

    return integrate.quad(integrand, 1e-9, 100)[0] / 48


def _mean_square(p):
    """E (√V - √V_p)² for a step of length 1, to a relative O(p⁻²)."""
    fourth_powers = math.pi**4 / 90 - sum(r**-4.0 for r in range(1, p + 1))
    return 3 * _limit() * fourth_powers / math.pi**4


def _squares(cases, n, many=2000):
    """|A_pᵀv - Aᵀv|² / |v|² for each component across an oblique v, for pairs (dt, p) and n steps, in units of dt²."""
    v = jnp.asarray([0.6, -0.8, 0.5, 1.1, -0.3])
    m = v.size

    @jax.jit
    @jax.vmap
    def squares(z):
        def along(dt, z):
            area = increment("direction", m, jnp.asarray(dt), z).area
            assert area is not None
            return area.along(v) / dt

        differences = jnp.stack([along(dt, _cut(z, m, p)) - along(dt, z) for dt, p in cases])
        return jnp.sum(differences**2, axis=1) / ((v @ v) * (m - 1))

    random = np.random.default_rng(0)
    chunks = [squares(jnp.asarray(random.normal(size=(1000, 2 * m + 1 + 2 * many)))) for _ in range(n // 1000)]
    return np.concatenate(chunks).T


@pytest.mark.slow
def test_the_error_of_a_sampled_area_is_that_of_the_cut_series():
    counts = [8, 16, 32, 64]
    squares = _squares([(0.3, p) for p in counts], 10_000)
    means, sem = squares.mean(axis=1), squares.std(axis=1) / 100
    expected = np.array([_mean_square(p) for p in counts])
    assert np.all(np.abs(means - expected) < 4 * sem), means / expected
    assert np.all(sem < 0.025 * means)
    slope = np.polyfit(np.log(counts), np.log(means), 1)[0]
    assert abs(slope + 3) < 0.15


@pytest.mark.slow
def test_the_error_of_the_area_that_simulate_samples_is_of_order_three_halves():
    dts = 10.0 ** -np.arange(1, 9)
    squares = _squares([(dt, _terms(5, dt)) for dt in dts], 4000)
    ratios, sem = squares.mean(axis=1) / dts, squares.std(axis=1) / np.sqrt(4000) / dts
    # The count p³ ≥ 1/(2π⁴dt) makes c/(π⁴p³) at most 2c dt.
    assert np.all(ratios < 2 * _limit() + 4 * sem)
    assert ratios[-1] > 1.8 * _limit()


@jax.jit(static_argnames=("d", "p", "many", "paths"))
def _path_squares(d, p, many, paths, dt, steps):
    """|x_p - x|² at the end for each path, with p terms and with many; and ∫|v|² dt."""

    def one(z, x_p, x):
        def step(x, z):
            return sde.Milstein().step(_process, jnp.zeros(()), x, dt, increment("direction", d, dt, z))

        return step(x_p, _cut(z, d, p)), step(x, z)

    def advance(k, carry):
        x_p, x, integral = carry
        z = jax.random.normal(jax.random.fold_in(jax.random.key(2), k), (paths, 2 * d + 1 + 2 * many))
        v = _kappa * jax.vmap(jax.grad(_loss))(x)
        return *jax.vmap(one)(z, x_p, x), integral + dt * jnp.sum(v**2, axis=1)

    x0 = jnp.ones((paths, d))
    x_p, x, integral = lax.fori_loop(0, steps, advance, (x0, x0, jnp.zeros(paths)))
    return jnp.sum((x_p - x) ** 2, axis=1), integral


def _path_error(d, paths, t1, steps):
    """The root-mean-square of x_p - x at t1 and its standard error; what the steps add up to, and its bound C dt."""
    dt = t1 / steps
    p = _terms(d, dt)
    squares, integral = map(np.asarray, _path_squares(d, p, 4 * p, paths, jnp.asarray(dt), jnp.asarray(steps)))
    error = np.sqrt(squares.mean())
    # The errors of the steps are uncorrelated, and each has d - 1 components across v.
    scale = np.sqrt((d - 1) * integral.mean())
    sums, bound = scale * np.sqrt(_mean_square(p) * dt), scale * np.sqrt(2 * _limit()) * dt
    return error, squares.std() / (2 * error * np.sqrt(paths)), sums, bound


_paths = [(2, 400), (20, 50)]


@pytest.mark.parametrize(("d", "paths"), _paths)
@pytest.mark.slow("2-800")
def test_sampled_areas_cost_an_error_of_order_one(d, paths):
    # Steps for which p terms are just enough, over a time so short that the flow hardly changes a difference.
    t1, counts = 1 / 64, (2, 8)
    steps = [math.floor(2 * math.pi**4 * p**3 * t1) for p in counts]
    assert [_terms(d, t1 / n) for n in steps] == list(counts)
    errors, sem, sums, bounds = np.array([_path_error(d, paths, t1, n) for n in steps]).T
    # Σ_{r>p} r⁻⁴ is below 1/(3p³) still, the more so at p = 2: an order of 0.93 is expected.
    assert 0.9 < np.log(errors[0] / errors[1]) / np.log(steps[1] / steps[0]) < 1
    assert np.all(np.abs(errors - sums) < 4 * sem + 0.05 * sums), errors / sums
    assert np.all(errors < bounds)


@pytest.mark.parametrize(("d", "paths"), _paths)
@pytest.mark.slow("20-100")
def test_at_long_steps_one_term_is_more_than_enough(d, paths):
    # The difference falls as √dt only while p = 1, from far below the bound C dt.
    for dt in 2.0 ** -np.arange(3, 8):
        assert _terms(d, dt) == 1
        error, _, sums, bound = _path_error(d, paths, 1.0, round(1 / dt))
        # The drift contracts.
        assert 0.7 * sums < error < sums
        assert error < bound
