"""Lévy areas against the laws that are known of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from solvers.sde.levy import DirectionalArea, chain, directional_count, matrix_count, sample_matrix

_n = 200_000
_dt = 0.3


def _normals(count, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(_n, count)))


def _area_12(kind, m=2):
    """W and A_12 for many steps of length _dt, by either sampler."""
    dt = jnp.asarray(_dt)
    dw = jnp.sqrt(dt) * _normals(m, 1)
    if kind == "matrix":
        z = _normals(matrix_count(m, _dt))
        return dw, jax.vmap(lambda w, z: sample_matrix(dt, w, z).matrix[0, 1])(dw, z)
    z = _normals(directional_count(m, _dt))
    e = jnp.zeros(m).at[0].set(1.0)
    return dw, jax.vmap(lambda w, z: DirectionalArea(dt, w, z).along(e)[1])(dw, z)


@pytest.mark.parametrize("kind", ["matrix", "direction"])
@pytest.mark.slow("matrix")
def test_levy_area_has_the_hyperbolic_secant_law(kind):
    # P(A ≤ a) = (2/π) arctan exp(πa/h): Lévy 1951.
    _, a = _area_12(kind)
    cdf = lambda a: 2 / np.pi * np.arctan(np.exp(np.pi * a / _dt))  # noqa: E731
    # The samplers truncate a series; at these 2e5 samples the difference in law must not show.
    assert stats.kstest(np.asarray(a), cdf).pvalue > 1e-3


@pytest.mark.parametrize("kind", ["matrix", "direction"])
def test_levy_area_given_the_increment(kind):
    # E[exp(iλA) | W] = y/sinh y · exp(-(|W|²/2h)(y coth y - 1)), y = λh/2: its average against cos of both.
    w, a = _area_12(kind)
    r2 = np.sum(np.asarray(w) ** 2, axis=1) / _dt
    for scaled in (1.0, 3.0):
        y = scaled / 2
        exact = y / np.sinh(y) * np.exp(-r2 / 2 * (y / np.tanh(y) - 1))
        for weight in (np.ones(_n), r2):
            difference = weight * (np.cos(scaled * np.asarray(a) / _dt) - exact)
            assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(_n) + 1e-3 * weight.mean()


@pytest.mark.parametrize("m", [2, 3])
@pytest.mark.slow("3")
def test_directional_area_has_the_joint_law_of_the_fine_path(m):
    # Along an oblique direction: moments of (Aᵀv, W) against the matrix sampler, which another test pins to Lévy's law.
    v = jnp.asarray([0.6, -0.8, 0.5][:m])
    dt = jnp.asarray(_dt)
    dw = jnp.sqrt(dt) * _normals(m, 1)
    sampled = jax.vmap(lambda w, z: DirectionalArea(dt, w, z).along(v))(dw, _normals(directional_count(m, _dt), 2))
    full = jax.vmap(lambda w, z: sample_matrix(dt, w, z).along(v))(dw, _normals(matrix_count(m, _dt), 3))
    assert np.max(np.abs(sampled @ v)) < 1e-12  # A is antisymmetric
    for fn in (
        lambda a, w: a[:, 0] ** 2,
        lambda a, w: a[:, 0] * a[:, -1],
        lambda a, w: a[:, 0] ** 2 * w[:, 0] ** 2,
        lambda a, w: a[:, 0] * a[:, 1] * w[:, 0] * w[:, 1],
        lambda a, w: a[:, 1] ** 4,
    ):
        x, y = (np.asarray(fn(a, dw)) for a in (sampled, full))
        assert abs(x.mean() - y.mean()) < 4 * np.hypot(x.std(), y.std()) / np.sqrt(_n)


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.slow("4")
def test_second_moment_of_the_area(m):
    dt = jnp.asarray(_dt)
    z, w = _normals(matrix_count(m, _dt)), jnp.sqrt(dt) * _normals(m, 1)
    a = np.asarray(jax.vmap(lambda w, z: sample_matrix(dt, w, z).matrix)(w, z))
    assert np.array_equal(a, -np.swapaxes(a, 1, 2))
    for j in range(m):
        for k in range(j):
            assert abs(np.mean(a[:, j, k] ** 2) - _dt**2 / 4) < 4 * np.std(a[:, j, k] ** 2) / np.sqrt(_n)


def test_zero_direction_gives_zero():
    z = jnp.ones(directional_count(3, 0.1))
    assert not np.any(DirectionalArea(jnp.asarray(0.1), jnp.ones(3), z).along(jnp.zeros(3)))


def test_terms_grow_as_the_step_shrinks():
    # p ~ dt^(-1/2) for the matrix and dt^(-1/3) for one direction keep the error at O(dt^(3/2)).
    assert matrix_count(2, 1e-6) == pytest.approx(10 * matrix_count(2, 1e-4), rel=0.1)
    assert directional_count(2, 1e-7) - 3 == pytest.approx(10 * (directional_count(2, 1e-4) - 3), rel=0.2)


def test_chain_is_associative_and_has_the_law_of_one_step():
    random = np.random.default_rng(0)
    w, a = jnp.asarray(random.normal(size=(3, 2))), jnp.asarray(random.normal(size=(3, 2, 2)))
    a = a - jnp.swapaxes(a, 1, 2)
    left = chain(*chain(w[0], a[0], w[1], a[1]), w[2], a[2])
    right = chain(w[0], a[0], *chain(w[1], a[1], w[2], a[2]))
    assert np.allclose(left[1], right[1], atol=1e-14)
    # A polygon through three points: the area is that of the polygon against the chord.
    w, a = chain(jnp.array([1.0, 0.0]), jnp.zeros((2, 2)), jnp.array([0.0, 1.0]), jnp.zeros((2, 2)))
    assert np.array_equal(w, [1, 1])
    assert a[0, 1] == 0.5
