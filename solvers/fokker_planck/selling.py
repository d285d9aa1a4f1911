r"""Write a diffusion tensor as jumps between cells: D = Σ λ_e e eᵀ with integer offsets e and weights λ_e ≥ 0.

Selling's decomposition (J. reine angew. Math. 77 (1874) 143). A superbase of Z^d is a basis and minus the sum of its
vectors. It is obtuse if b_i·D b_j ≤ 0 for all i ≠ j, and then λ = -b_i·D b_j, with e orthogonal to the other vectors:
three offsets in the plane, six in space. Any superbase becomes obtuse by flips, each of which lowers Σ b_i·D b_i. The
weights are continuous in D, and no two of the offsets agree modulo 2.
"""

import itertools

import numpy as np
from jaxtyping import Float, Int

# Products b_i·D b_j below this many roundings of their terms count as zero, or flips would not end.
_roundings = 16 * np.finfo(np.float64).eps


def selling(
    tensors: Float[np.ndarray, "n d d"], longest: int
) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k d"]]:
    """Weights λ and offsets e of symmetric positive semidefinite tensors, d = 2 or 3, k = d (d + 1) / 2.

    Offsets with weight 0 mean nothing. Where a vector outgrows `longest`, all weights are nan: the tensor is too
    anisotropic for a stencil of that length, and an irrational direction without diffusion has no decomposition at all.
    """
    d = tensors.shape[1]
    base = np.concatenate([np.eye(d, dtype=np.int64), -np.ones((1, d), dtype=np.int64)])
    bases = np.repeat(base[None], len(tensors), axis=0)
    active = np.arange(len(tensors))
    while active.size:
        products = _products(bases[active], tensors[active])
        worst = np.argmax(products, axis=1)
        acute = products[np.arange(active.size), worst] > _roundings * _terms(bases[active], tensors[active])
        active, worst = active[acute], worst[acute]
        bases[active] = _flipped(bases[active], worst)
        # The vectors of an obtuse superbase are as long as its offsets, or sums of two of them.
        active = active[np.max(np.abs(bases[active]), axis=(1, 2), initial=0) <= 2 * longest]
    weights, offsets = np.maximum(-_products(bases, tensors), 0.0), _offsets(bases)
    far = np.max(np.abs(offsets) * (weights > 0)[..., None], axis=(1, 2)) > longest
    unfinished = np.max(np.abs(bases), axis=(1, 2)) > 2 * longest
    weights[far | unfinished] = np.nan
    return weights, offsets


def _pairs(d: int) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(d + 1), 2))


def _products(bases: Int[np.ndarray, "n b d"], tensors: Float[np.ndarray, "n d d"]) -> Float[np.ndarray, "n k"]:
    gram = bases @ tensors @ bases.swapaxes(1, 2)
    return np.stack([gram[:, i, j] for i, j in _pairs(tensors.shape[1])], axis=1)


def _terms(bases: Int[np.ndarray, "n b d"], tensors: Float[np.ndarray, "n d d"]) -> Float[np.ndarray, " n"]:
    return np.max(np.abs(bases), axis=(1, 2)) ** 2.0 * np.trace(tensors, axis1=1, axis2=2)


def _flipped(bases: Int[np.ndarray, "n b d"], worst: Int[np.ndarray, " n"]) -> Int[np.ndarray, "n b d"]:
    # The superbase in which the product of the pair `worst` has changed sign.
    d, flipped = bases.shape[2], bases.copy()
    for number, (i, j) in enumerate(_pairs(d)):
        here = worst == number
        rest = [k for k in range(d + 1) if k not in (i, j)]
        # -b_i, b_j and the others, which share what is missing to the sum zero.
        flipped[np.ix_(here, rest)] += (2 // (d - 1)) * bases[here, i][:, None]
        flipped[here, i] *= -1
    return flipped


def _offsets(bases: Int[np.ndarray, "n b d"]) -> Int[np.ndarray, "n k d"]:
    d = bases.shape[2]
    found = []
    for pair in _pairs(d):
        rest = [bases[:, k] for k in range(d + 1) if k not in pair]
        found.append(np.stack([-rest[0][:, 1], rest[0][:, 0]], axis=1) if d == 2 else np.cross(rest[0], rest[1]))
    return np.stack(found, axis=1)
