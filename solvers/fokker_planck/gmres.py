r"""GMRES for A u = f with an approximate inverse M, in the residual M (f - A u), which is about the error itself.

Saad and Schultz, SIAM J. Sci. Stat. Comput. 7 (1986) 856; here preconditioned from the left and restarted from the
residual as it is, so that rounding does not go unseen.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

# Vectors kept at a time, and restarts until it gives up.
_vectors, _restarts = 20, 10


def gmres(
    matrix: Any,
    inverse: Callable[[Float[np.ndarray, " n"]], Float[np.ndarray, " n"]],
    f: Float[np.ndarray, " n"],
    start: Float[np.ndarray, " n"],
    tolerance: float,
) -> tuple[Float[np.ndarray, " n"], float, int]:
    """u, an estimate of its error in the norm Σ u² as a fraction of u, and the number of steps.

    Ends when the error is below `tolerance`, or when a restart does not halve it: then the rest is rounding.
    """
    u, used, size = start, 0, np.inf
    for _ in range(_restarts):
        rest = inverse(f - matrix @ u)
        last, size = size, norm(rest)
        if size <= tolerance * norm(u) or not size < 0.5 * last:
            break
        step, steps = _step(matrix, inverse, rest, size, 0.3 * tolerance * max(norm(u), size))
        u, used = u + step, used + steps
    return u, size / max(norm(u), np.finfo(np.float64).tiny), used


def norm(a: Float[np.ndarray, " n"]) -> float:
    """The square root of Σ a²."""
    return float(np.sqrt(dot(a, a)))


def dot(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Σ a b, on one thread: threads of BLAS wait for each other longer than they work."""
    return float(np.einsum("i,i->", a, b))


def _step(matrix, inverse, rest, size, goal):
    # What is to be added to u, and how many vectors that took.
    basis, h, weights = [rest / size], np.zeros((_vectors + 1, _vectors)), np.zeros(0)
    for j in range(_vectors):
        new = inverse(matrix @ basis[j])
        for i, old in enumerate(basis):
            h[i, j] = dot(old, new)
            new -= h[i, j] * old
        h[j + 1, j] = norm(new)
        first = np.zeros(j + 2)
        first[0] = size
        weights = np.linalg.lstsq(h[: j + 2, : j + 1], first, rcond=None)[0]
        left = np.linalg.norm(h[: j + 2, : j + 1] @ weights - first)
        if left <= goal or h[j + 1, j] <= 1e-14:
            break
        basis.append(new / h[j + 1, j])
    step = np.zeros_like(rest)
    for weight, vector in zip(weights, basis, strict=False):
        step += weight * vector
    return step, len(weights)
