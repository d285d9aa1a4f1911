"""Linear systems of generators by elimination: the masses with A m = 0, and factors of M-matrices."""

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jaxtyping import Float

from .assembly import Generator

# The cell that is pinned must hold a mass within this factor of the largest: each factor 10 costs a digit. A cell from
# which mass only leaves would leave none. If it does not, the heaviest is pinned instead, so many times at most.
_pin_ratio = 1e3
_most_pins = 3

# The step that finds a heavy cell, in units of the fastest time scale: half of float64's digits remain.
_long_step = 1e8


def eliminated(generator: Generator) -> Float[np.ndarray, " n"]:
    """Positive masses with A m = 0, by elimination; not normalised."""
    a = generator.matrix
    mass = _pinned(a, _heavy_cell(a))
    for _ in range(_most_pins - 1):
        heaviest = int(np.argmax(np.abs(mass)))
        if np.abs(mass[heaviest]) <= _pin_ratio:
            break
        mass = _pinned(a, heaviest)
    return mass


def _heavy_cell(a: scipy.sparse.csc_matrix) -> int:
    # The heaviest cell after one long implicit step from equal masses. That system is strictly dominant, and safe.
    n = len(a.diagonal())
    step = _long_step / np.max(np.abs(a.diagonal()))
    return int(np.argmax(m_matrix_lu(scipy.sparse.identity(n) - step * a).solve(np.full(n, 1 / n))))


def _pinned(a: scipy.sparse.csc_matrix, pin: int) -> Float[np.ndarray, " n"]:
    # A m = 0 with m[pin] = 1. Without the row and the column of one cell, -A is a nonsingular M-matrix: elimination
    # on the diagonal is stable and its solution positive.
    mass = np.ones(len(a.diagonal()))
    rest = np.delete(np.arange(mass.size), pin)
    inflow = a[:, [pin]].toarray().ravel()[rest]
    mass[rest] = m_matrix_lu(-a[rest][:, rest]).solve(inflow)
    return mass


def m_matrix_lu(a) -> scipy.sparse.linalg.SuperLU:
    """The factors of an M-matrix, eliminated on the diagonal in an order for symmetric patterns."""
    return scipy.sparse.linalg.splu(
        a.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
    )
