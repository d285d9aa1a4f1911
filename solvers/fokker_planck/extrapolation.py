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

from .._tracing import Numbers, namespace

# Corrections of log m beyond this are in tails that neither grid resolves: the expansion means nothing there.
_largest = 0.5

# Laws of two grids are extrapolated if that changes at most this much mass: then both are near convergence.
_limit = 0.1

# A further correction is made if it changes at most this fraction of the mass that the one before changed: where the
# error is not smooth it is no smaller, and means nothing.
_shrinks = 0.5

# Each step of the extrapolation divides the logarithm of the ratio by 2^p - 1, p the order that it removes.
_divisors = (3.0, 15.0)

# Grids need some cells along each axis for a comparison.
_fewest_cells = 8

_tiny = np.finfo(np.float64).tiny


def extrapolate(
    laws: Sequence[Float[Numbers, "..."]], periodic: tuple[bool, ...], smooth: bool
) -> tuple[Float[Numbers, "..."], Float[Numbers, "..."], Float[Numbers, "..."]]:
    """The extrapolated masses on the fine grid, and estimates of the errors of `laws[0]` and of these masses.

    `laws` are the masses on the grid and on grids with cells 2 and, if there is a third, 4 times as wide. If the first
    two are too far from each other the extrapolated masses are `laws[0]`, and both estimates their whole difference.
    Masses corrected once have no estimate of their own, and get that of `laws[0]`; those corrected twice get what the
    second correction changed, if the error is `smooth`, and the former otherwise.
    """
    fine, once = laws[0], [_corrected(a, b, _divisors[0], periodic) for a, b in itertools.pairwise(laws)]
    # The choices are made by values, which JAX may not know yet.
    xp, change = namespace(*laws), namespace(*laws).abs(once[0] - fine)
    far = change.sum() > _limit
    mass, error = xp.where(far, fine, once[0]), xp.where(far, 3 * change, change)
    if len(once) < 2:
        return mass, error, error
    twice = _corrected(once[0], once[1], _divisors[1], periodic)
    further = xp.abs(twice - once[0])
    closer = ~far & (further.sum() <= _shrinks * change.sum())
    left = further if smooth else change
    return (
        xp.where(closer, twice, mass),
        xp.where(closer, xp.abs(twice - fine), error),
        xp.where(closer, left, error),
    )


def coarser_grids(shape: tuple[int, ...], most: int) -> int:
    """How many grids with cells 2, 4, ... times as wide, up to `most`, have enough cells to be compared with."""
    count = 0
    while count < most and all(n % 2 ** (count + 1) == 0 and n // 2**count >= _fewest_cells for n in shape):
        count += 1
    return count


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
    fine: Float[Numbers, "..."], coarse: Float[Numbers, "..."], divisor: float, periodic: tuple[bool, ...]
) -> Float[Numbers, "..."]:
    xp = namespace(fine, coarse)
    change = xp.clip(_log_ratio(fine, coarse) / divisor, -_largest, _largest)
    mass = fine * xp.exp(_between(change, periodic))
    return mass / mass.sum()


def _log_ratio(fine: Float[Numbers, "..."], coarse: Float[Numbers, "..."]) -> Float[Numbers, "..."]:
    # Of the masses of coarse cells; 0 where there is none.
    xp, joined = namespace(fine, coarse), fine
    for k, n in enumerate(fine.shape):
        joined = joined.reshape(*joined.shape[:k], n // 2, 2, *joined.shape[k + 1 :]).sum(k + 1)
    both = (joined > 0) & (coarse > 0)
    return xp.log(xp.where(both, joined, 1.0)) - xp.log(xp.where(both, coarse, 1.0))


def _between(values: Float[Numbers, "..."], periodic: tuple[bool, ...]) -> Float[Numbers, "..."]:
    """Values at the centres of coarse cells, interpolated linearly in the number of the cell to those of fine ones.

    They are small themselves, of the order that is removed, and the error of the interpolation is two orders higher.
    """
    xp = namespace(values)
    for k, wraps in enumerate(periodic):
        pads = [(int(m == k),) * 2 for m in range(values.ndim)]
        values = (
            xp.pad(values, pads, mode="wrap") if wraps else xp.pad(values, pads, mode="reflect", reflect_type="odd")
        )
        along = xp.moveaxis(values, k, -1)
        low, here, high = along[..., :-2], along[..., 1:-1], along[..., 2:]
        both = xp.stack([0.75 * here + 0.25 * low, 0.75 * here + 0.25 * high], axis=-1)
        values = xp.moveaxis(both.reshape(*here.shape[:-1], -1), -1, k)
    return values
