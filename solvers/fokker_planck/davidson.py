r"""Davidson's method for the eigenvectors of smallest eigenvalues of A, given an approximate inverse M.

The space is enlarged by M (A x - θ x), x being the best vectors in it so far and θ their Rayleigh quotients, in the
inner product Σ m u v in which A is self-adjoint or nearly so (Davidson, J. Comput. Phys. 17, 1975).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from .gmres import dot

# Vectors that are kept at a restart and those that are added until the next, besides the ones asked for.
_kept, _added = 3, 20

# Steps until it gives up.
_steps = 200

# Errors of an eigenvector that count as none; its eigenvalue has twice as many digits if A is self-adjoint.
_tolerance = 1e-9

# Rounding of a residual, in units of that of the diagonal.
_rounding = 10.0


def slowest(
    matrix: Any,
    inverse: Callable[[Float[np.ndarray, " n"]], Float[np.ndarray, " n"]],
    start: Float[np.ndarray, "s n"],
    mass: Float[np.ndarray, " n"],
    count: int,
    conserving: bool = False,
    symmetric: bool = True,
) -> tuple[Float[np.ndarray, " count"], Float[np.ndarray, "count n"]]:
    """The `count` smallest eigenvalues and their eigenvectors, orthonormal in Σ m u v if A is symmetric there.

    Errors are seen only where there is mass. With `conserving` constants are left out, A 1 = 0. Raises
    `ArithmeticError` if it does not converge.
    """
    one = [np.full(mass.size, 1 / np.sqrt(mass.sum()))] if conserving else []
    space = _Space(matrix, mass, one)
    for vector in start:
        space.add(vector)
    for _ in range(_steps):
        values, weights = _ritz(space.products, symmetric)
        errors, vectors = [], []
        for value, w in zip(values[:count], weights.T, strict=False):
            x, image = space.combined(w)
            vectors.append(x)
            errors.append(inverse(image - value * x))
        limits = [_limit(matrix, mass, value, x) for value, x in zip(values, vectors, strict=False)]
        open_ = [e for e, limit in zip(errors, limits, strict=True) if dot(e, mass * e) > limit**2]
        if not open_ and len(values) >= count:
            return values[:count], np.array(vectors)
        if len(space.basis) + len(open_) > count + _kept + _added:
            space.restrict(weights[:, : count + _kept])
        for error in open_:
            space.add(error)
    raise ArithmeticError(f"The slowest modes were not found in {_steps} steps. Please report this with the process.")


class _Space:
    """An orthonormal basis, its images under A, and the products of both."""

    def __init__(self, matrix, mass, aside):
        self.matrix, self.mass, self.aside = matrix, mass, aside
        self.basis, self.images, self.products = [], [], np.zeros((0, 0))

    def add(self, new):
        # Twice is enough.
        for _ in range(2):
            for old in (*self.aside, *self.basis):
                new = new - dot(old, self.mass * new) * old
            new = new / np.sqrt(dot(new, self.mass * new))
        self.basis.append(new)
        self.images.append(self.matrix @ new)
        heavy, image = self.mass * new, self.mass * self.images[-1]
        n = len(self.basis)
        products = np.zeros((n, n))
        products[:-1, :-1] = self.products
        products[-1] = [dot(heavy, w) for w in self.images]
        products[:, -1] = [dot(v, image) for v in self.basis]
        self.products = products

    def combined(self, weights):
        return _sum(weights, self.basis), _sum(weights, self.images)

    def restrict(self, weights):
        q = np.linalg.qr(weights)[0]
        self.basis, self.images = ([_sum(w, vectors) for w in q.T] for vectors in (self.basis, self.images))
        self.products = q.T @ self.products @ q


def _limit(matrix, mass, value, x):
    # Rounding of the diagonal changes the value by this much, and the vector by that fraction of it.
    noise = np.finfo(np.float64).eps * dot(x, mass * matrix.diagonal() * x)
    return max(_tolerance, _rounding * noise / max(abs(value), noise))


def _ritz(products, symmetric):
    if symmetric:
        return np.linalg.eigh(0.5 * (products + products.T))
    values, weights = (np.real(a) for a in np.linalg.eig(products))
    order = np.argsort(values)
    return values[order], weights[:, order] / np.linalg.norm(weights[:, order], axis=0)


def _sum(weights, vectors):
    total = np.zeros_like(vectors[0])
    for weight, vector in zip(weights, vectors, strict=True):
        total += weight * vector
    return total
