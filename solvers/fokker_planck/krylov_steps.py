r"""Time steps by a rational Krylov method with one pole, for processes without detailed balance and full tensors.

With π the stationary law and v = m / sqrt(π), v(t) = e^(-tS) v(0). Vectors Z v, Z² v, ... with Z = (1 + γ S)⁻¹ span a
space with an orthonormal basis V in which Z is T = Vᵀ Z V, and

    v(h) ≈ |v| V exp(-h (T⁻¹ - 1) / γ) e₁

(van den Eshof and Hochbruck, SIAM J. Sci. Comput. 27 (2006) 1438). The real part of S is not negative, so that the
error does not depend on the width of the cells; vectors are added until the result settles, and steps halved if that
takes too many. The stationary law itself is taken off first, which keeps it, and the total mass, to rounding. Systems
are solved by elimination, or by multigrid if large.

What leaves is ∫ leaving·m dt = h leaving·sqrt(π) |v| V φ₁(-h (T⁻¹ - 1) / γ) e₁ with φ₁(x) = (e^x - 1) / x.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
from jaxtyping import Float

from .assembly import Generator
from .axis_jumps import axis_jumps, many_full, reversed_matrix, wraps
from .balance import reversed_jumps
from .elimination import m_matrix_lu
from .gmres import dot, gmres, norm
from .multigrid import Multigrid
from .uniformization import Uniformization, root_law

# γ as a fraction of the step: about the best for 15 to 30 vectors.
_pole = 0.1

# Vectors at most, and by how many the result must not have changed: the error is about that of the shorter one.
_vectors, _lookback = 36, 3

# A step that took no more vectors than this is doubled.
_easy = 18

# The distance from equilibrium |v| that is left to this method; from farther away laws are carried jump by jump.
_allowed_distance = 1e4

# Halvings of an interval at most.
_halvings = 20

# From so many cells on multigrid is faster than elimination, by the number of axes.
_many = {1: np.inf, 2: 250_000, 3: 10_000}

# The error of a solution, as a fraction of what is asked of the step.
_solved = 1e-2


class KrylovSteps:
    """exp(h A) for intervals h, with an error in the sum of |mass error| below `rtol` in each."""

    def __init__(self, generator: Generator, rtol: float):
        self.generator, self.rtol = generator, rtol
        self.jumps = Uniformization(generator)
        self.root = root_law(self.jumps.log_law)
        self.leaving = generator.exit_rates.ravel() * self.root
        self.fraction, self.solvers = 1.0, {}

    def advance(
        self, mass: Float[np.ndarray, " n"], outside: float, h: float
    ) -> tuple[Float[np.ndarray, " n"], float, float]:
        """The mass in the cells and outside after an interval h, of which nothing is left to do."""
        mass, outside, left = self.jumps.carry(mass, outside, h, _allowed_distance)
        still = mass.sum() if self.generator.conserving else 0.0
        v = mass / self.root - still * self.root
        while left > 1e-12 * h:
            step = min(h * self.fraction, left)
            found = self._step(v, step, self.rtol * step / h)
            if found is None:
                self.fraction /= 2
                if self.fraction < 0.5**_halvings:
                    raise RuntimeError(
                        f"The law did not settle to rtol={self.rtol} in {_vectors} vectors, even in steps of "
                        f"{step:.2g}. Ask for a larger `rtol`, or for closer times."
                    )
                continue
            v, left = found[0], left - step
            outside += found[1]
            if found[2] <= _easy:
                self.fraction = min(2 * self.fraction, 1.0)
        return (v + still * self.root) * self.root, outside, 0.0

    def _step(self, v, h, tolerance):
        # v after h, what leaves in it, and the number of vectors; None if the result does not settle.
        size, gamma = norm(v), _pole * h
        if size <= tolerance:
            return np.zeros_like(v), 0.0, 0
        solve = self._solver(gamma)
        basis, t = [v / size], np.zeros((_vectors + 1, _vectors))
        results = []
        for j in range(_vectors):
            new = self._beside(solve(basis[j], _solved * tolerance / size))
            for _ in range(2):
                for i, old in enumerate(basis):
                    part = dot(old, new)
                    t[i, j] += part
                    new -= part * old
            t[j + 1, j] = norm(new)
            results.append(_small(t[: j + 1, : j + 1], _pole))
            before = results[-1 - _lookback] if j >= _lookback else None
            if before is not None and size * _apart(results[-1], before) <= tolerance / 2:
                break
            if t[j + 1, j] <= 1e-14:
                break
            basis.append(new / t[j + 1, j])
        else:
            return None
        after, during = results[-1]
        moved, leaving = np.zeros_like(v), 0.0
        for weight, share, vector in zip(after, during, basis, strict=False):
            moved += size * weight * vector
            leaving += size * share * h * float(self.leaving @ vector)
        return moved, leaving, len(results)

    def _beside(self, v):
        # Z keeps the total mass, up to the error of its solution.
        return v - dot(self.root, v) * self.root if self.generator.conserving else v

    def _solver(self, gamma: float) -> Callable:
        key = float(f"{gamma:.12e}")
        if key not in self.solvers:
            if len(self.solvers) >= 2:
                self.solvers.pop(next(iter(self.solvers)))
            grid = self.generator.grid
            many = _many if self.generator.diagonals is None else many_full
            make = self._iterations if grid.size >= many[grid.ndim] else self._elimination
            self.solvers[key] = make(key)
        return self.solvers[key]

    def _elimination(self, gamma):
        a: Any = self.generator.matrix
        lu = m_matrix_lu(scipy.sparse.identity(a.shape[0]) - gamma * a)
        return lambda v, _: lu.solve(v * self.root) / self.root

    def _iterations(self, gamma):
        # The process that runs backwards in time, for which m / π is a function.
        generator, root = self.generator, self.root
        log_law = 2 * np.log(root).reshape(generator.grid.shape)
        back = reversed_matrix(generator, log_law)
        shift = scipy.sparse.diags_array(np.full(root.size, 1 / gamma))
        # Where the law is too small for float64 rates backwards in time are not right, and more may seem to be won than
        # lost. For multigrid that is left out.
        if generator.diagonals is None:
            jumps = reversed_jumps(generator, log_law)
            jumps = dataclasses.replace(jumps, killed=np.maximum(jumps.killed, 0.0) + 1 / gamma)
        else:
            jumps = axis_jumps(scipy.sparse.csr_array(back + shift), wraps(generator), log_law)
        inverse = Multigrid(jumps)
        scale = scipy.sparse.diags_array(root)
        matrix = scipy.sparse.csr_array(scale @ back @ scipy.sparse.diags_array(1 / root) + shift)
        apply = lambda r: root * inverse(r / root)  # noqa: E731

        def solve(v, tolerance):
            found, left, _ = gmres(matrix, apply, v / gamma, v, tolerance)
            if not left <= np.sqrt(tolerance):
                raise RuntimeError(f"A step did not converge: iterations ended with an error of {left:.2g}.")
            return found

        return solve


def _small(t, pole):
    # exp(-(T⁻¹ - 1) / pole) e₁ and φ₁ of the same, from one exponential.
    n = len(t)
    whole = np.zeros((n + 1, n + 1))
    whole[:n, :n] = (np.identity(n) - np.linalg.inv(t)) / pole
    whole[0, n] = 1.0
    exponential = scipy.linalg.expm(whole)
    return exponential[:n, 0], exponential[:n, n]


def _apart(new, old):
    return max(np.linalg.norm(a - np.pad(b, (0, len(a) - len(b)))) for a, b in zip(new, old, strict=True))
