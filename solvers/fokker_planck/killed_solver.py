"""Solves -L u = f on the free cells, and tells what rounding does to u: by elimination, or by multigrid if large."""

from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jaxtyping import Float

from .assembly import Generator
from .axis_jumps import axis_jumps, many_full, wraps
from .davidson import slowest
from .elimination import m_matrix_lu
from .gmres import gmres
from .killed import Killed
from .multigrid import Multigrid
from .stationary import closed_law

# Rounding of a diagonal, which holds the sum of six rates, as a fraction of it.
_rounding = 4 * np.finfo(np.float64).eps

# Results are given if rounding changes them by less than this fraction.
_largest_noise = 1e-3

# From so many free cells on multigrid is faster than elimination, by the number of axes.
_many = {1: np.inf, 2: 250_000, 3: 10_000}

# The error of iterations, and of those that only estimate an error.
_tolerance, _rough = 1e-10, 1e-3

# Steps of inverse iteration after an eigenvector was found: it becomes positive, and right where it is small.
_polishing = 3

unresolved = (
    "The set is left, or the sets are reached, too rarely for float64 on a grid of more than one axis: the rate is lost"
    " in the rounding of the jump rates, about 1e-16 of them. Raise the noise, or use a one-dimensional reduction,"
    " which is exact down to 1e-300."
)


class Solver:
    """Solves -L u = f and, in the same way, tells what the rounding of -L does to u.

    `stretched` rates are for functions; `transposed` stands for masses instead. `law` are the stationary masses, with
    absorbing faces closed, if they are known. Raises `ArithmeticError` if rounding may change u by more than a fraction
    of 1e-3, because sets are reached too rarely.
    """

    def __init__(
        self,
        generator: Generator,
        edges: Killed,
        stretched: bool,
        transposed: bool = False,
        law: Float[np.ndarray, "..."] | None = None,
    ):
        matrix = edges.matrix(stretched)
        self.rounding = rounding(matrix)
        # Masses are the law times a function, for which time runs backwards.
        self.density = 1.0
        if by_iterations(generator, edges):
            log_law = _log_law(generator, law)
            if transposed:
                mass = np.exp(log_law - np.max(log_law)).ravel()
                edges, self.density = edges.reversed(mass), np.maximum(mass[edges.free], np.finfo(np.float64).tiny)
            self._method = _Iterations(generator, edges, stretched, log_law)
        else:
            self._method = _Elimination(scipy.sparse.csc_matrix(matrix.T) if transposed else matrix)
        check_resolved(self._method.solve(self.rounding, None, _rough))

    def solve(
        self, f: Float[np.ndarray, " free"], start: Float[np.ndarray, " free"] | None = None
    ) -> Float[np.ndarray, " free"]:
        """u, which is not negative where f is not; a guess may help."""
        start = None if start is None else start / self.density
        return self.density * self._method.solve(f / self.density, start, _tolerance)

    def noise(self, u: Float[np.ndarray, " free"]) -> Float[np.ndarray, " free"]:
        """The change of u when every diagonal entry of -L is changed by its rounding, to first order.

        The inverse has no negative entry: this bounds what such changes of either sign do. What iterations left undone
        is added.
        """
        return self._method.solve(self.rounding * np.abs(u), None, _rough) + self._method.left * np.max(np.abs(u))

    def slowest(self) -> Float[np.ndarray, " free"]:
        """The positive eigenvector of the smallest eigenvalue, with sum 1."""
        vector = self.density * self._method.slowest()
        vector, rate = vector / vector.sum(), 1.0
        for _ in range(_polishing):
            # The guess is exact for an exact eigenvector.
            better = self.solve(vector, vector / rate if rate > 0 else None)
            rate, vector = vector.sum() / better.sum(), better / better.sum()
        return vector


def rounding(matrix: Any) -> Float[np.ndarray, " free"]:
    """What rounding may change in the diagonal of -L."""
    return _rounding * matrix.diagonal()


def check_resolved(jumps: Float[np.ndarray, " free"]) -> None:
    """`ArithmeticError` unless -L u = `rounding` has small solutions: jumps that are nothing but rounding.

    Of the inverse of a matrix that rounding has made singular all that is known is that these come out large, or
    negative.
    """
    if not np.all((jumps > 0) & (jumps <= _largest_noise)):
        raise ArithmeticError(unresolved)


def by_iterations(generator: Generator, edges: Killed) -> bool:
    """Whether multigrid takes the place of elimination; then the stationary law is of use."""
    many = _many if generator.diagonals is None else many_full
    return len(edges.free) >= many[generator.grid.ndim]


def _log_law(generator: Generator, law: Float[np.ndarray, "..."] | None) -> Float[np.ndarray, "..."]:
    if generator.log_weights is not None:
        return generator.log_weights
    law = closed_law(generator) if law is None else law.reshape(generator.grid.shape)
    return np.log(np.maximum(law, np.finfo(np.float64).tiny))


class _Elimination:
    def __init__(self, matrix: scipy.sparse.csc_matrix):
        self.left = 0.0
        try:
            self.lu = m_matrix_lu(matrix)
        except RuntimeError as error:
            raise ArithmeticError(f"{unresolved} SuperLU says: {error}.") from error

    def solve(self, f, start, tolerance):
        return self.lu.solve(f)

    def slowest(self):
        n = self.lu.shape[0]
        if n <= 2:
            return np.ones(n)
        inverse = scipy.sparse.linalg.LinearOperator((n, n), matvec=self.lu.solve, dtype=np.float64)  # pyright: ignore
        return np.abs(scipy.sparse.linalg.eigs(inverse, 1, v0=np.ones(n))[1][:, 0])


class _Iterations:
    """On the whole grid, where cells in the sets are alone; `left` is the largest error of a solution so far."""

    def __init__(self, generator: Generator, edges: Killed, stretched: bool, log_law: Float[np.ndarray, "..."]):
        if generator.diagonals is None:
            jumps = edges.jumps(stretched, log_law)
            self.matrix = jumps.matrix()
        else:
            self.matrix = edges.whole_matrix(stretched, log_law.size)
            alone = np.ones(log_law.size, dtype=bool)
            alone[edges.free] = False
            log_mass = np.where(alone.reshape(log_law.shape), -np.inf, log_law)
            jumps = axis_jumps(self.matrix, wraps(generator), log_mass)
        self.free, self.mass = edges.free, np.exp(jumps.log_mass.ravel() - np.max(jumps.log_mass))
        self.inverse, self.left = Multigrid(jumps), 0.0

    def solve(self, f, start, tolerance):
        start = np.zeros_like(f) if start is None else start
        u, left, _ = gmres(self.matrix, self.inverse, self._whole(f), self._whole(start), tolerance)
        if not left <= np.sqrt(tolerance):
            raise ArithmeticError(f"{unresolved} Iterations ended with an error of {left:.2g}.")
        if tolerance < _rough:
            self.left = max(self.left, left)
        u = u[self.free]
        # What is below zero is error.
        return np.maximum(u, 0.0) if np.all(f >= 0) else u

    def slowest(self):
        start = self._whole(np.ones(len(self.free)))[None]
        # Stretched rates are not quite self-adjoint, and others need not be.
        _, found = slowest(self.matrix, self.inverse, start, self.mass, 1, symmetric=False)
        return np.abs(found[0, self.free])

    def _whole(self, u):
        whole = np.zeros(self.mass.size)
        whole[self.free] = u
        return whole
