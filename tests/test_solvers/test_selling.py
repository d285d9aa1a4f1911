"""Selling's decomposition against closed forms, and on random tensors."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from solvers.fokker_planck.selling import selling


def rotations(rng, n, d):
    return np.linalg.qr(rng.standard_normal((n, d, d)))[0]


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.95])
@pytest.mark.parametrize("sign", [-1, 1])
def test_correlated_noise_of_equal_strength(correlation, sign):
    # [[1, r], [r, 1]] = (1 - r) (e₁e₁ᵀ + e₂e₂ᵀ) + r (e₁ + e₂)(e₁ + e₂)ᵀ.
    weights, offsets = selling(np.array([[[1.0, sign * correlation], [sign * correlation, 1.0]]]), 10)
    found = {tuple(np.abs(e)): w for w, e in zip(weights[0], offsets[0], strict=True)}
    assert found[1, 0] == pytest.approx(1 - correlation)
    assert found[0, 1] == pytest.approx(1 - correlation)
    assert found[1, 1] == pytest.approx(correlation)
    if correlation > 0:
        (diagonal,) = offsets[0][np.abs(offsets[0]).sum(axis=1) == 2]
        assert np.prod(diagonal) == sign


def test_the_diagonal_lattice_in_space():
    # 4 I - (ones) = e eᵀ over the six differences and units: the Voronoi form of A₃.
    weights, offsets = selling(4 * np.eye(3)[None] - 1, 10)
    expected = {(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, -1, 0), (1, 0, -1), (0, 1, -1)}
    found = {tuple(e * np.sign(e[np.flatnonzero(e)[0]])) for e in offsets[0]}
    assert {tuple(int(c) for c in e) for e in found} == expected
    np.testing.assert_allclose(weights, 1, rtol=1e-14)


@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 3]), st.floats(0, 4))
@settings(max_examples=60, deadline=None)
def test_random_tensors_are_restored_with_positive_weights(seed, d, log_condition):
    rng = np.random.default_rng(seed)
    q = rotations(rng, 50, d)
    values = 10 ** (log_condition * np.concatenate([np.zeros((50, 1)), rng.random((50, d - 2)), np.ones((50, 1))], 1))
    scale = 10 ** rng.uniform(-30, 30)
    tensors = scale * np.einsum("nij,nj,nkj->nik", q, values, q)
    weights, offsets = selling(tensors, 200)
    assert np.all(weights >= 0)
    restored = np.einsum("nk,nki,nkj->nij", weights, offsets, offsets)
    np.testing.assert_allclose(restored / values.max() / scale, tensors / values.max() / scale, atol=1e-11)
    # Different parities, none of them all even: each midpoint belongs to one edge at most.
    parity = np.sort((offsets % 2) @ 2 ** np.arange(d), axis=1)
    assert np.all(parity > 0)
    assert np.all(np.diff(parity, axis=1) > 0)


@pytest.mark.parametrize("d", [2, 3])
def test_degenerate_tensors_along_short_offsets(d):
    along = np.array([1.0, 2.0, -1.0])[:d]
    tensors = np.stack([np.zeros((d, d)), np.diag(np.eye(d)[0]), np.outer(along, along)])
    weights, offsets = selling(tensors, 10)
    np.testing.assert_allclose(np.einsum("nk,nki,nkj->nij", weights, offsets, offsets), tensors, atol=1e-14)
    assert np.all(np.sum(weights > 0, axis=1) == [0, 1, 1])


def test_weights_are_continuous():
    # Through the point at which the offsets change, D = diag(1, a).
    s = np.linspace(-0.1, 0.1, 2001)
    tensors = np.stack([np.stack([1 + 0 * s, s], -1), np.stack([s, 0.5 + s], -1)], -2)
    weights, offsets = selling(tensors, 10)
    for e in [(1, 0), (0, 1), (1, 1), (1, -1)]:
        same = np.all(offsets == e, axis=2) | np.all(offsets == np.negative(e), axis=2)
        weight = np.sum(weights * same, axis=1)
        assert np.max(np.abs(np.diff(weight))) < 3.1e-4


@pytest.mark.parametrize(
    "tensor", [[[1, np.sqrt(2)], [np.sqrt(2), 2]], [[1e6, 1e6 * np.pi], [1e6 * np.pi, 1e6 * np.pi**2 * (1 + 1e-9)]]]
)
def test_directions_that_need_long_offsets_are_marked(tensor):
    weights, _ = selling(np.array([tensor, np.eye(2)]), 20)
    assert np.all(np.isnan(weights[0]))
    assert np.all(weights[1] >= 0)
