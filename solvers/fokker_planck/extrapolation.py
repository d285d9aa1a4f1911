r"""The stationary law extrapolated from two grids, as a correction to log m that keeps masses positive.

With masses m = V (ρ + h² E) of a scheme of second order, on cells of width h and 2h, 2^d fine cells and the coarse one
around them have masses in the ratio of ρ + h² (Δρ / 8 + E) to ρ + 4 h² E. A third of its logarithm, added to log m,
leaves V (ρ + h² Δρ / 24): up to fourth order the mass in the cell. Where the offsets of a varying tensor change from
place to place, the second-order error is not smooth, and what is left is smaller, but of second order.
"""

from jaxtyping import Float

from .._tracing import Numbers, namespace

# Corrections of log m beyond this are in tails that neither grid resolves: the expansion means nothing there.
_largest = 0.5

# Laws of two grids are extrapolated if that changes at most this much mass: then both are near convergence.
_limit = 0.1


def extrapolate(
    fine: Float[Numbers, "..."], coarse: Float[Numbers, "..."], periodic: tuple[bool, ...]
) -> tuple[Float[Numbers, "..."], Float[Numbers, "..."]]:
    """The extrapolated masses on the fine grid, and an estimate of the error of the masses `fine`.

    If the laws are too far from each other the masses are `fine` itself, and the estimate is their whole difference.
    """
    xp, joined = namespace(fine), fine
    for k, n in enumerate(fine.shape):
        joined = joined.reshape(*joined.shape[:k], n // 2, 2, *joined.shape[k + 1 :]).sum(k + 1)
    both = (joined > 0) & (coarse > 0)
    ratio = xp.log(xp.where(both, joined, 1.0)) - xp.log(xp.where(both, coarse, 1.0))
    correction = _between(xp.clip(ratio / 3, -_largest, _largest), periodic)
    mass = fine * xp.exp(correction)
    mass = mass / mass.sum()
    change = xp.abs(mass - fine)
    near = change.sum() <= _limit
    return xp.where(near, mass, fine), xp.where(near, change, 3 * change)


def _between(values: Float[Numbers, "..."], periodic: tuple[bool, ...]) -> Float[Numbers, "..."]:
    """Values at the centres of coarse cells, interpolated linearly in the number of the cell to those of fine ones.

    They are of second order themselves, and so is the error of the interpolation: of fourth order together.
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
