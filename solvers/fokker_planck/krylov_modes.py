r"""Decay rates and modes of smallest modulus of a large sparse generator.

In variables v = φ sqrt(π) the backward generator is -S with S = -diag(sqrt π) Aᵀ diag(1 / sqrt π), symmetric under
detailed balance. Its null vector sqrt(π) is known, so that the pseudo-inverse of S is one pinned solve between two
projections: its largest eigenvalues 1 / λ are the slowest rates, without a shift to choose. With many cells multigrid
takes the place of elimination.
"""

from collections.abc import Callable

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jaxtyping import Bool, Float, Inexact

from .assembly import Generator
from .axis_jumps import many_full
from .elimination import m_matrix_lu
from .multigrid_modes import multigrid_rates_and_modes

# Below this fraction of its largest entry an eigenvector loses digits to rounding.
_tail = 1e-6

# Rounding of the diagonal of S, which holds sums of four rates, changes a rate by this fraction of them, averaged over
# the mode.
_rounding = 4 * np.finfo(np.float64).eps

# From so many cells on multigrid is faster than elimination; without detailed balance it takes more steps.
_many = 20_000
_many_irreversible = {1: np.inf, 2: 60_000, 3: 8_000}

# Imaginary parts below this fraction of a rate are rounding.
_real_tolerance = 1e-8

# Without detailed balance this many more modes are computed than asked for, and sorted by their real part.
_extra = 10


def krylov_rates_and_modes(
    generator: Generator, k: int, weights: Float[np.ndarray, "..."]
) -> tuple[Inexact[np.ndarray, " k"], Inexact[np.ndarray, "k n"], Float[np.ndarray, " k"]]:
    """The k slowest rates, their modes and the rounding error of the rates.

    `weights` is the stationary law, with absorbing faces closed. Raises `RuntimeError` if a rate is nothing but
    rounding.
    """
    n, zeros = generator.grid.size, int(generator.conserving)
    many = _many if generator.reversible else _many_irreversible[generator.grid.ndim]
    if generator.diagonals is not None:
        many = many_full[generator.grid.ndim]
    if n >= many:
        log_law = generator.log_weights
        if log_law is None:
            log_law = np.log(np.maximum(weights, np.finfo(np.float64).tiny))
        rates, modes, jumps = multigrid_rates_and_modes(generator, k, log_law)
        noise = np.where(np.arange(k) < zeros, 0.0, _rounding * jumps)
        _check_resolved(rates[zeros:], noise[zeros:])
        return rates, modes, noise
    # Any positive scaling is a similarity; masses that underflowed get the smallest number there is.
    log_root = 0.5 * np.log(np.maximum(weights.ravel(), np.finfo(np.float64).tiny))
    root = np.exp(log_root) / np.linalg.norm(np.exp(log_root))
    s = _scaled(generator, log_root)
    rates, vectors = np.zeros(zeros), root[:, None][:, :zeros]
    if k > zeros:
        inverse = _inverse(s, root if zeros else None)
        found = _symmetric(inverse, n, k - zeros) if generator.reversible else _general(inverse, n, k - zeros)
        rates, vectors = np.concatenate([rates, found[0]]), np.concatenate([vectors, found[1]], axis=1)
    noise = _rounding * np.abs(s.diagonal()) @ np.abs(vectors) ** 2
    noise[:zeros] = 0.0
    _check_resolved(rates[zeros:], noise[zeros:])
    modes = vectors.T * np.exp(-log_root)
    modes[:zeros] = 1.0
    for i in range(zeros, k):
        _extend(generator, rates[i], modes[i], np.abs(vectors[:, i]) < _tail * np.max(np.abs(vectors[:, i])))
    return rates, modes, noise


def _check_resolved(rates: Inexact[np.ndarray, " k"], noise: Float[np.ndarray, " k"]) -> None:
    lost = np.real(rates) <= noise
    if np.any(lost):
        raise RuntimeError(
            f"A rate of {rates[lost][0]:.2g} is below its rounding error, {noise[lost][0]:.2g}: transitions this rare "
            "can't be told from none by an eigensolver in two dimensions. Raise the noise, use a one-dimensional "
            "reduction (which is exact to 1e-100 and below), or look at `stationary`, which is right."
        )


def _scaled(generator: Generator, log_root: Float[np.ndarray, " n"]) -> scipy.sparse.csc_matrix:
    a = generator.matrix
    if generator.reversible:
        # Entries sqrt(k_ij k_ji): symmetric to the last bit.
        return scipy.sparse.csc_matrix(scipy.sparse.diags(2 * np.abs(a.diagonal())) - np.sqrt(a.multiply(a.T)))
    entries = a.T.tocoo()
    scale = np.exp(log_root[entries.row] - log_root[entries.col])
    return scipy.sparse.csc_matrix((-entries.data * scale, (entries.row, entries.col)), shape=a.shape)


def _inverse(s: scipy.sparse.csc_matrix, null: Float[np.ndarray, " n"] | None) -> Callable:
    # S⁻¹, or its pseudo-inverse if both null vectors of S are `null`.
    if null is None:
        return m_matrix_lu(s).solve
    pin = int(np.argmax(null))
    rest = np.delete(np.arange(null.size), pin)
    lu = m_matrix_lu(s[rest][:, rest])

    def solve(b):
        b = b - null * (null @ b)
        x = np.zeros_like(b)
        x[rest] = lu.solve(b[rest])
        return x - null * (null @ x)

    return solve


def _symmetric(inverse: Callable, n: int, k: int) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "n k"]]:
    # To full precision (tol=0): rounding is what brings in the other vectors of a multiple eigenvalue. The largest of
    # either sign: a rate lost in rounding may come out negative, and must not be passed over.
    values, vectors = scipy.sparse.linalg.eigsh(
        _operator(inverse, n), k, which="LM", v0=_start(n), ncv=min(n - 1, max(2 * k + 1, 20)), tol=0
    )
    order = np.argsort(-np.abs(values))
    return 1 / values[order], vectors[:, order]


def _general(inverse: Callable, n: int, k: int) -> tuple[Inexact[np.ndarray, " k"], Inexact[np.ndarray, "n k"]]:
    more = min(k + _extra, n - 3)
    values, vectors = scipy.sparse.linalg.eigs(  # pyright: ignore[reportAssignmentType]
        _operator(inverse, n), more, v0=_start(n), ncv=min(n - 1, 2 * more + 10)
    )
    rates = 1 / values
    # Conjugate pairs have equal real parts up to rounding: the one above the axis comes first.
    order = np.lexsort((-rates.imag, np.array([float(f"{r:.9e}") for r in rates.real])))[:k]
    rates, vectors = rates[order], vectors[:, order]
    if np.all(np.abs(rates.imag) <= _real_tolerance * np.abs(rates)):
        # A real eigenvector comes times a complex number.
        heaviest = vectors[np.argmax(np.abs(vectors), axis=0), np.arange(k)]
        return rates.real, (vectors / (heaviest / np.abs(heaviest))).real
    return rates, vectors


def _operator(matvec: Callable, n: int) -> scipy.sparse.linalg.LinearOperator:
    return scipy.sparse.linalg.LinearOperator((n, n), matvec=matvec, dtype=np.float64)  # pyright: ignore


def _start(n: int) -> Float[np.ndarray, " n"]:
    # A fixed start: results are the same from run to run, and no symmetry of the problem is built in.
    return np.random.default_rng(0).standard_normal(n)


def _extend(generator: Generator, rate: complex, mode: Inexact[np.ndarray, " n"], tail: Bool[np.ndarray, " n"]) -> None:
    # In the tail the eigenvector is small and its division by sqrt(π) magnifies rounding. There Lφ = -λφ is solved once
    # more, with the values of the other cells as boundary condition.
    if not np.any(tail):
        return
    backward = generator.matrix.T.tocsr()[tail]
    inside = backward[:, tail]
    shifted = -inside - rate * scipy.sparse.identity(int(tail.sum()))
    mode[tail] = scipy.sparse.linalg.splu(shifted.tocsc()).solve(backward[:, ~tail] @ mode[~tail])
