r"""Davidson's method for the eigenvectors of smallest eigenvalues of A, given an approximate inverse M.

The space is enlarged by M (A x - θ x), x being the best vectors in it so far and θ their Rayleigh quotients, in the
inner product Σ m u v (Davidson, J. Comput. Phys. 17, 1975). Under detailed balance A is self-adjoint there. If not, the
real part of Σ m u A u still is what jumps dissipate, Σ m_i k_ij |u_i - u_j|² / 2 for a stationary m, so that no θ has a
real part below the smallest of A's symmetric part: values are sorted by it. A complex x stands for a pair, and its real
and imaginary parts are two vectors of the space.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Inexact

from .gmres import dot

# Vectors that are kept at a restart and those that are added until the next, besides the ones asked for.
_kept, _added = 3, 20

# Steps until it gives up.
_steps = 200

# Errors of an eigenvector that count as none; its eigenvalue has twice as many digits if A is self-adjoint.
_tolerance = 1e-9

# Rounding of a residual, in units of that of the diagonal.
_rounding = 10.0

# What is left of a new vector, as a fraction, is nothing new below this.
_dependent = 1e-12

# Imaginary parts below this fraction of a value are rounding.
_real_tolerance = 1e-8


def slowest(
    matrix: Any,
    inverse: Callable[[Float[np.ndarray, " n"]], Float[np.ndarray, " n"]],
    start: Float[np.ndarray, "s n"],
    mass: Float[np.ndarray, " n"],
    count: int,
    conserving: bool = False,
    symmetric: bool = True,
) -> tuple[Inexact[np.ndarray, " count"], Inexact[np.ndarray, "count n"]]:
    """The `count` smallest eigenvalues and their eigenvectors, orthonormal in Σ m u v if A is symmetric there.

    Errors are seen only where there is mass. With `conserving` constants are left out, A 1 = 0. Without symmetry values
    are complex if one of them is. Raises `ArithmeticError` if it does not converge.
    """
    one = [np.full(mass.size, 1 / np.sqrt(mass.sum()))] if conserving else []
    space = _Space(matrix, mass, one)
    for vector in start:
        space.add(vector)
    for _ in range(_steps):
        values, weights = _ritz(space.products, symmetric)
        pairs = [_Pair(space, inverse, value, w) for value, w in zip(values[:count], weights.T, strict=False)]
        open_ = [p for p in pairs if p.size > p.limit]
        if not open_ and len(values) >= count:
            return _real(values[:count], np.array([p.vector for p in pairs]))
        # Of two conjugate vectors one will do.
        new = [part for p in open_ if np.imag(p.value) >= 0 for part in p.parts]
        if len(space.basis) + len(new) > count + _kept + _added:
            space.restrict(_parts(values, weights, count + _kept))
        for error in new:
            space.add(error)
    raise ArithmeticError(
        f"The slowest modes were not found in {_steps} steps: the drift circulates too fast for the approximate inverse"
        " of a large generator, or a rate lies in a continuous spectrum. Ask for fewer modes, or use fewer cells."
    )


class _Pair:
    """A vector of the space, its value, and the error that the approximate inverse sees."""

    def __init__(self, space, inverse, value, weights):
        self.value = value
        self.vector, image = space.combined(weights)
        rest = image - value * self.vector
        complex_ = np.iscomplexobj(rest) and np.imag(value) != 0
        self.parts = [
            space.beside(inverse(np.ascontiguousarray(part)))
            for part in ((rest.real, rest.imag) if complex_ else (rest.real,))
        ]
        self.size = np.sqrt(sum(dot(e, space.mass * e) for e in self.parts))
        self.limit = _limit(space.matrix, space.mass, abs(value), np.abs(self.vector))


class _Space:
    """An orthonormal basis, its images under A, and the products of both."""

    def __init__(self, matrix, mass, aside):
        self.matrix, self.mass, self.aside = matrix, mass, aside
        self.basis, self.images, self.products = [], [], np.zeros((0, 0))

    def beside(self, u):
        for old in self.aside:
            u = u - dot(old, self.mass * u) * old
        return u

    def add(self, new):
        # Twice is enough.
        for _ in range(2):
            before = np.sqrt(dot(new, self.mass * new))
            for old in (*self.aside, *self.basis):
                new = new - dot(old, self.mass * new) * old
            left = np.sqrt(dot(new, self.mass * new))
            if left <= _dependent * before:
                return
            new = new / left
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
    found: Any = np.linalg.eig(products)
    values, weights = found
    # Conjugate pairs have equal real parts up to rounding: the one above the axis comes first.
    order = np.lexsort((-values.imag, [float(f"{r:.9e}") for r in values.real]))
    return values[order], weights[:, order] / np.linalg.norm(weights[:, order], axis=0)


def _parts(values, weights, count):
    # A real basis of the first vectors.
    first = weights[:, :count]
    turns = np.imag(values[:count]) > 0
    return np.concatenate([first.real[:, np.imag(values[:count]) >= 0], first.imag[:, turns]], axis=1)


def _real(values, vectors):
    if not np.iscomplexobj(values) or np.any(np.abs(values.imag) > _real_tolerance * np.abs(values)):
        return values, vectors
    return values.real, vectors.real


def _sum(weights, vectors):
    total = np.zeros(vectors[0].shape, np.result_type(weights, vectors[0]))
    for weight, vector in zip(weights, vectors, strict=True):
        total += weight * vector
    return total
