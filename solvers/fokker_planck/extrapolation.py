r"""The stationary law extrapolated from two or three grids, as corrections to log m that keep masses positive.

With masses m = V (ρ + h² E) of a scheme of second order, on cells of width h and 2h, 2^d fine cells and the coarse one
around them have masses in the ratio of ρ + h² (Δρ / 8 + E) to ρ + 4 h² E. A third of its logarithm, added to log m,
leaves V (ρ + h² Δρ / 24): up to fourth order the mass in the cell. Two laws so corrected, on cells of width h and 2h,
have masses of the same cells in a ratio that is 1 to fourth order, and a fifteenth of its logarithm removes that order.
Where the offsets of a varying tensor change from place to place, the second-order error is not smooth, and what is left
is smaller, but of second order.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

# Corrections of log m beyond this are in tails that neither grid resolves: the expansion means nothing there.
_largest = 0.5

# Laws of two grids are extrapolated if that changes at most this much mass: then both are near convergence.
_limit = 0.1

# A further correction is made if it changes at most this fraction of the mass that the one before changed: where the
# error is not smooth it is no smaller, and means nothing.
_shrinks = 0.5

# Each step of the extrapolation divides the logarithm of the ratio by 2^p - 1, p the order that it removes.
_divisors = (3.0, 15.0)

_tiny = np.finfo(np.float64).tiny


def extrapolate(
    laws: Sequence[Float[np.ndarray, "..."]], periodic: tuple[bool, ...], smooth: bool
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """The extrapolated masses on the fine grid, and estimates of the errors of `laws[0]` and of these masses.

    `laws` are the masses on the grid and on grids with cells 2 and, if there is a third, 4 times as wide. If the first
    two are too far from each other the extrapolated masses are `laws[0]`, and both estimates their whole difference.
    Masses corrected once have no estimate of their own, and get that of `laws[0]`; those corrected twice get what the
    second correction changed, if the error is `smooth`, and the former otherwise.
    """
    fine, once = laws[0], [_corrected(a, b, _divisors[0], periodic) for a, b in itertools.pairwise(laws)]
    change = np.abs(once[0] - fine)
    if change.sum() > _limit:
        return fine, 3 * change, 3 * change
    if len(once) < 2:
        return once[0], change, change
    twice = _corrected(once[0], once[1], _divisors[1], periodic)
    further = np.abs(twice - once[0])
    if further.sum() > _shrinks * change.sum():
        return once[0], change, change
    return twice, np.abs(twice - fine), further if smooth else change


def cell_errors(
    fine: Float[np.ndarray, "..."], coarse: Float[np.ndarray, "..."], floor: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """Estimates of the errors of masses of cells, from those of cells twice as wide.

    At least the fraction `floor` of them. Of fourth order, or of second where `floor` is not zero; in one dimension the
    order is eight, and this on the safe side. The rounding of log m, which is a sum, is part of it.
    """
    apart = np.minimum(np.abs(_log_ratio(fine, coarse)), 1.0)
    for k in range(fine.ndim):
        apart = np.repeat(apart, 2, axis=k)
    rounding = np.finfo(np.float64).eps * (np.sum(fine.shape) + np.abs(np.log(np.maximum(fine, _tiny))))
    return fine * (np.maximum(apart / np.where(floor > 0, *_divisors), floor) + rounding)


def _corrected(
    fine: Float[np.ndarray, "..."], coarse: Float[np.ndarray, "..."], divisor: float, periodic: tuple[bool, ...]
) -> Float[np.ndarray, "..."]:
    change = np.clip(_log_ratio(fine, coarse) / divisor, -_largest, _largest)
    mass = fine * np.exp(_between(change, periodic))
    return mass / mass.sum()


def _log_ratio(fine: Float[np.ndarray, "..."], coarse: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    # Of the masses of coarse cells; 0 where there is none.
    joined = fine
    for k in range(fine.ndim):
        joined = np.add.reduceat(joined, np.arange(0, fine.shape[k], 2), axis=k)
    both = (joined > 0) & (coarse > 0)
    return np.log(np.where(both, joined, 1.0)) - np.log(np.where(both, coarse, 1.0))


def _between(values: Float[np.ndarray, "..."], periodic: tuple[bool, ...]) -> Float[np.ndarray, "..."]:
    """Values at the centres of coarse cells, interpolated linearly in the number of the cell to those of fine ones.

    They are small themselves, of the order that is removed, and the error of the interpolation is two orders higher.
    """
    for k, wraps in enumerate(periodic):
        pads = [(int(m == k),) * 2 for m in range(values.ndim)]
        values = (
            np.pad(values, pads, mode="wrap") if wraps else np.pad(values, pads, mode="reflect", reflect_type="odd")
        )
        along = np.moveaxis(values, k, -1)
        low, here, high = along[..., :-2], along[..., 1:-1], along[..., 2:]
        both = np.stack([0.75 * here + 0.25 * low, 0.75 * here + 0.25 * high], axis=-1)
        values = np.moveaxis(both.reshape(*here.shape[:-1], -1), -1, k)
    return values
