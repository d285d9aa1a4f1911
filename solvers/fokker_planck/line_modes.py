r"""Decay rates and modes on a line, to high relative accuracy.

With detailed balance -A is similar to FᵀF, where F has a row for each face and two entries in it, the square roots of
the jump rates through that face. Its singular values are the eigenvalues of a tridiagonal matrix with zero diagonal
(Golub and Kahan) whose off-diagonal entries are these square roots in turn; they are determined to high relative
accuracy by the relative accuracy of the entries (Demmel and Kahan, SIAM J. Sci. Stat. Comput. 11 (1990) 873), and
bisection finds them so. No small rate is ever the difference of large numbers.
"""

import numpy as np
import scipy.linalg
from jaxtyping import Float


def line_rates(up: Float[np.ndarray, " faces"], down: Float[np.ndarray, " faces"], k: int) -> Float[np.ndarray, " k"]:
    """The k slowest rates of a chain of cells with jump rates `up` and `down` through its faces.

    The first is exactly 0 if mass is conserved: the faces at both ends are closed.
    """
    # In turn down through face f into cell f - 1, up through it, ...; closed ends have rates of zero.
    chain = np.stack([up, down], axis=-1).ravel()[1:-1]
    closed_low, closed_high = down[0] == 0, up[-1] == 0
    chain = np.sqrt(chain[int(closed_low) : len(chain) - int(closed_high)])
    cells = up.size - 1
    faces = cells + 1 - int(closed_low) - int(closed_high)
    zeros = max(0, cells - faces)
    first = cells + faces - min(cells, faces)
    if k == zeros:
        return np.zeros(k)
    singular = scipy.linalg.eigh_tridiagonal(
        np.zeros(cells + faces),
        chain,
        eigvals_only=True,
        select="i",
        select_range=(first, first + k - zeros - 1),
        lapack_driver="stebz",
        # Bisect until the interval is one rounding wide: the default stops at a fraction of the largest value.
        tol=2 * np.finfo(np.float64).tiny,
    )
    return np.concatenate([np.zeros(zeros), np.sort(singular) ** 2])


def line_modes(
    up: Float[np.ndarray, " faces"], down: Float[np.ndarray, " faces"], rates: Float[np.ndarray, " k"]
) -> Float[np.ndarray, "k n"]:
    """The modes of these rates, from recurrences that start at both ends and meet where they fit best.

    Going from a tail to the bulk each recurrence is stable, so that modes are right even where the law underflows.
    """
    modes = np.ones((len(rates), up.size - 1))
    for mode, rate in zip(modes, rates, strict=True):
        if rate == 0:
            continue
        low, low_flux = _from_low_end(up, down, rate)
        high, high_flux = _from_low_end(down[::-1], up[::-1], rate)
        high, high_flux = high[::-1], high_flux[::-1]
        with np.errstate(all="ignore"):
            misfit = np.abs(low_flux / low + high_flux / high + rate)
            misfit[~np.isfinite(misfit)] = np.inf
            meet = int(np.argmin(misfit))
            if misfit[meet] == np.inf:
                raise RuntimeError(
                    f"The mode of rate {rate:.6g} varies by more than float64 holds. Use a smaller box, or fewer modes."
                )
            mode[: meet + 1] = low[: meet + 1] / low[meet]
            mode[meet:] = high[meet:] / high[meet]
    return modes


def _from_low_end(
    up: Float[np.ndarray, " faces"], down: Float[np.ndarray, " faces"], rate: float
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    # φ and h with ψ_f = w_f (φ_f - φ_{f-1}) the flux through face f, w_f = M_{f-1} up_f = M_f down_f the conductance,
    # ψ_{f+1} = ψ_f - λ M_f φ_f, and h_f = ψ_{f+1} / M_f: no weight M is needed. Beyond the bulk it may overflow.
    n = up.size - 1
    phi, h = np.empty(n), np.empty(n)
    phi[0], h[0] = 1.0, down[0] - rate
    with np.errstate(all="ignore"):
        for f in range(1, n):
            phi[f] = phi[f - 1] + h[f - 1] / up[f]
            h[f] = h[f - 1] * (down[f] / up[f]) - rate * phi[f]
    return phi, h
