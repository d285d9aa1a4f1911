"""Tridiagonal systems in blocks, against dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from test_solvers.fokker_planck_problems import gibbs, quadratic

from solvers import Density, Grid, fokker_planck
from solvers.fokker_planck import contour_steps, tridiagonal
from solvers.fokker_planck.tridiagonal import blocks_for, factor, folded, solve, unfolded


def _system(size, kind, rng):
    """The diagonals of a matrix whose columns sum to 0.01, or of a symmetric one plus i; and the dense matrix."""
    lower, upper = rng.uniform(0.1, 1, (2, size))
    if kind == "complex":
        upper[:-1] = lower[1:]
    diagonal = 0.01 + np.append(lower[1:], 0) + np.append(0, upper[:-1]) + (1j if kind == "complex" else 0)
    dense = np.diag(diagonal) - np.diag(lower[1:], -1) - np.diag(upper[:-1], 1)
    diagonals = [jnp.asarray(v, diagonal.dtype) for v in (-lower, diagonal, -upper)]
    return diagonals, dense


@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize(("size", "blocks"), [(7, 1), (37, 4), (64, 8)])
@pytest.mark.slow("64-8-complex", "37-4-complex", "37-4-real")
def test_the_system_is_solved(size, blocks, kind):
    rng = np.random.default_rng(size)
    diagonals, dense = _system(size, kind, rng)
    factors = factor(*diagonals, blocks)
    for _ in range(2):
        exact = rng.normal(size=size).astype(dense.dtype)
        b = folded(jnp.asarray(dense @ exact), blocks)
        np.testing.assert_allclose(unfolded(solve(factors, b), size), exact, rtol=0, atol=3e-12)


def test_the_order_of_the_blocks():
    x = jnp.arange(10.0)
    order = folded(x, 4)
    np.testing.assert_array_equal(order, [[0, 3, 6, 9], [1, 4, 7, 0], [2, 5, 8, 0]])
    np.testing.assert_array_equal(unfolded(order, 10), x)
    assert [blocks_for(n) for n in (50, 10_000, 1_000_000)] == [1, 128, 1024]


def test_long_systems_keep_their_digits():
    """No entry of this M-matrix's inverse is negative: errors are relative, here of a sum of 10⁴ terms."""
    size = 10_007
    lower, upper = np.random.default_rng(0).uniform(0.1, 1, (2, size))
    lower[0] = upper[-1] = 0
    exact = np.random.default_rng(1).uniform(size=size)
    b = (lower + upper + 1) * exact - lower * np.roll(exact, 1) - upper * np.roll(exact, -1)
    blocks = blocks_for(size)
    factors = factor(*(jnp.asarray(v) for v in (-lower, lower + upper + 1, -upper)), blocks)
    np.testing.assert_allclose(unfolded(solve(factors, folded(jnp.asarray(b), blocks)), size), exact, atol=1e-14)


def test_equal_intervals_on_a_line_come_to_use_factors_in_blocks(monkeypatch):
    generator = fokker_planck.assemble(gibbs(quadratic, 0.3), Grid.uniform((-3.0, 3.0, 300)))
    start, ts = Density.point(generator.grid, [1.0]), np.arange(1, 9) / 8
    monkeypatch.setattr(contour_steps, "_patience", 99)
    by_lapack = fokker_planck.evolve(generator, start, ts).densities[-1]
    monkeypatch.setattr(contour_steps, "_long", 1)
    monkeypatch.setattr(contour_steps, "_patience", 4)
    calls = []
    monkeypatch.setattr(tridiagonal, "solve", lambda *args: calls.append(1) or solve(*args))
    in_blocks = fokker_planck.evolve(generator, start, ts).densities[-1]
    # Half the nodes of the contour, in each interval after four.
    assert len(calls) >= 4 * 5
    np.testing.assert_allclose(in_blocks.mass, by_lapack.mass, rtol=0, atol=1e-13)


def test_lowers_for_a_gpu():
    v = jax.ShapeDtypeStruct((10_000,), jnp.float64)
    both = lambda a, d, c, b: unfolded(solve(factor(a, d, c, 64), folded(b, 64)), 10_000)  # noqa: E731
    exported = export.export(
        jax.jit(both),
        platforms=["cuda"],
        disabled_checks=[export.DisabledSafetyCheck.custom_call("cusparse_gtsv2_ffi")],
    )(v, v, v, v)
    assert exported.platforms == ("cuda",)
