r"""Davidson's method for the eigenvector of smallest eigenvalue of A, given an approximate inverse M.

The space is enlarged by M (A x - θ x), x being the best vector in it so far and θ its Rayleigh quotient, in the inner
product Σ m u v in which A is self-adjoint or nearly so (Davidson, J. Comput. Phys. 17, 1975).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from .gmres import dot

# Vectors kept at a time, those kept at a restart, and steps until it gives up.
_vectors, _kept, _steps = 20, 3, 200

# Errors of the eigenvector that count as none; its eigenvalue has twice as many digits.
_tolerance = 1e-8


def slowest(
    matrix: Any,
    inverse: Callable[[Float[np.ndarray, " n"]], Float[np.ndarray, " n"]],
    start: Float[np.ndarray, " n"],
    mass: Float[np.ndarray, " n"],
) -> Float[np.ndarray, " n"]:
    """The eigenvector, normalised to Σ m u² = 1; its error is seen only where there is mass.

    Raises `ArithmeticError` if it does not converge.
    """
    basis, images = [], []
    new = start
    for _ in range(_steps):
        new = _normal(new, basis, mass)
        basis.append(new)
        images.append(matrix @ new)
        h = np.array([[dot(v, mass * w) for w in images] for v in basis])
        values, vectors = (np.real(a) for a in np.linalg.eig(h))
        order = np.argsort(values)
        best = vectors[:, order[0]]
        x, image = (_sum(best / np.linalg.norm(best), vs) for vs in (basis, images))
        new = inverse(image - values[order[0]] * x)
        if dot(new, mass * new) <= _tolerance**2:
            return x
        if len(basis) == _vectors:
            chosen = np.linalg.qr(vectors[:, order[:_kept]])[0].T
            basis, images = ([_sum(c, vs) for c in chosen] for vs in (basis, images))
    raise ArithmeticError(f"The slowest mode was not found in {_steps} steps. Please report this with the process.")


def _normal(new, basis, mass):
    for _ in range(2):
        for old in basis:
            new = new - dot(old, mass * new) * old
    return new / np.sqrt(dot(new, mass * new))


def _sum(weights, vectors):
    return np.sum([w * v for w, v in zip(weights, vectors, strict=True)], axis=0)
