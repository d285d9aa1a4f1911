r"""Jumps between neighbours on a grid, and those between cells twice as wide: the systems that multigrid solves."""

import dataclasses

import numpy as np
import scipy.sparse
from jaxtyping import Float

from .assembly import Generator


@dataclasses.dataclass(frozen=True, eq=False)
class Jumps:
    """Rates of jumps `up[k]` and `down[k]` from each cell to its neighbours along axis k, and of being `killed`.

    All have the shape of the grid; in a periodic axis the last cell jumps up to the first. `log_mass` is the logarithm
    of masses, up to a constant, that make averages of rates: best the stationary law. It is -inf for cells without
    neighbours.
    """

    up: tuple[Float[np.ndarray, "*shape"], ...]
    down: tuple[Float[np.ndarray, "*shape"], ...]
    killed: Float[np.ndarray, "*shape"]
    log_mass: Float[np.ndarray, "*shape"]

    @property
    def leaving(self) -> Float[np.ndarray, "*shape"]:
        """The rate at which each cell is left, on the diagonal of -L."""
        return np.sum([*self.up, *self.down, self.killed], axis=0)

    def matrix(self) -> scipy.sparse.dia_array:
        """-L, cells in C order: (-L u)_i = Σ_j k_ij (u_i - u_j) + κ_i u_i."""
        shape, n = self.killed.shape, self.killed.size
        diagonals = {0: self.leaving.ravel()}
        for k in range(len(shape)):
            stride = int(np.prod(shape[k + 1 :]))
            for rate, step, end in ((self.up[k], stride, -1), (self.down[k], -stride, 0)):
                inner, around = rate.copy(), np.zeros(shape)
                np.moveaxis(inner, k, 0)[end] = 0.0
                np.moveaxis(around, k, 0)[end] = np.moveaxis(rate, k, 0)[end]
                for offset, part in ((step, inner), (step * (1 - shape[k]), around)):
                    if np.any(part):
                        # A diagonal is kept by columns.
                        diagonals[offset] = diagonals.get(offset, 0.0) - np.roll(part.ravel(), offset)
        return scipy.sparse.dia_array((np.stack(list(diagonals.values())), list(diagonals)), shape=(n, n))


def generator_jumps(
    generator: Generator, killed: Float[np.ndarray, "..."], log_mass: Float[np.ndarray, "..."]
) -> Jumps:
    """The jumps of a generator; `killed` is added to what its faces absorb."""
    ups, downs = [], []
    for k, kind in enumerate(generator.boundary):
        # Face f lies between the cells f - 1 and f.
        up, down = (np.moveaxis(r, k, 0) for r in (generator.up[k], generator.down[k]))
        up, down = up[1:].copy(), down[:-1].copy()
        up[-1] = up[-1] if kind == "periodic" else 0.0
        down[0] = generator.down[k].take(-1, axis=k) if kind == "periodic" else 0.0
        ups.append(np.moveaxis(up, 0, k))
        downs.append(np.moveaxis(down, 0, k))
    return Jumps(tuple(ups), tuple(downs), killed + generator.exit_rates, log_mass)


def coarsened(
    jumps: Jumps, widths: tuple[Float[np.ndarray, " _"], ...]
) -> tuple[Jumps, Float[np.ndarray, "..."], tuple[Float[np.ndarray, " _"], ...]]:
    """Jumps between cells made of two along each axis; the share of each cell in the mass of its coarse one; widths.

    `widths` are in numbers of the finest cells. The last cell of an odd number stays alone.
    """
    share, wide = np.ones(jumps.killed.shape), list(widths)
    for k, width in enumerate(widths):
        if len(width) > 1:
            jumps, part, wide[k] = _coarsened_axis(jumps, k, width)
            share = share * spread(part, tuple(len(w) for w in widths[:k]))
    return jumps, share, tuple(wide)


def paired(a: Float[np.ndarray, "..."], k: int) -> Float[np.ndarray, "..."]:
    """Sums of two neighbours along axis k."""
    a = np.moveaxis(a, k, 0)
    total = a[::2].copy()
    total[: len(a) // 2] += a[1::2]
    return np.moveaxis(total, 0, k)


def spread(a: Float[np.ndarray, "..."], shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """The values of coarse cells on the fine ones; `shape` is that of the fine ones along the first axes."""
    for k, n in enumerate(shape):
        if n > 1:
            a = np.repeat(a, 2, axis=k)
            a = a[(slice(None),) * k + (slice(n),)] if n % 2 else a
    return a


def _coarsened_axis(
    jumps: Jumps, k: int, width: Float[np.ndarray, " n"]
) -> tuple[Jumps, Float[np.ndarray, "..."], Float[np.ndarray, " m"]]:
    share, log_mass = _shares(np.moveaxis(jumps.log_mass, k, 0))
    first, last = np.arange(0, len(width), 2), np.minimum(np.arange(0, len(width), 2) + 1, len(width) - 1)
    wide = paired(width, 0)
    # Edges are longer between wide cells, and their rates smaller. There is none from a single cell to itself.
    stretch = (width + np.roll(width, -1))[last] / (wide + np.roll(wide, -1)) * (len(wide) > 1)
    stretch = stretch.reshape(-1, *[1] * (log_mass.ndim - 1))
    up, down = (
        [
            paired(share * np.moveaxis(r, k, 0), 0) if j != k else share * np.moveaxis(r, k, 0)
            for j, r in enumerate(rates)
        ]
        for rates in (jumps.up, jumps.down)
    )
    # Of a pair, the second jumps up and the first down.
    up[k], down[k] = _longer(up[k][last], down[k][first], log_mass, stretch)
    killed = paired(share * np.moveaxis(jumps.killed, k, 0), 0)
    up, down = (tuple(np.moveaxis(r, 0, k) for r in rates) for rates in (up, down))
    back = [np.moveaxis(a, 0, k) for a in (killed, log_mass, share)]
    return Jumps(up, down, back[0], back[1]), back[2], wide


def _longer(up, down, log_mass, factor):
    # Over a longer edge there is less exchange s, but the net flow a remains; the flows are s + a up and s - a down.
    high = np.roll(log_mass, -1, axis=0)
    top = np.maximum(log_mass, high)
    with np.errstate(invalid="ignore"):
        low_mass, high_mass = (np.where(np.isfinite(top), np.exp(m - top), 0.5) for m in (log_mass, high))
    forth, back = low_mass * up, high_mass * np.roll(down, -1, axis=0)
    net = np.where(factor > 0, 0.5 * (forth - back), 0.0)
    exchange = np.maximum(0.5 * (forth + back) * factor, np.abs(net))
    upward, downward = exchange + net, exchange - net
    # Flows that underflow, where neighbours differ by e^700, can't be compared: they count as balanced.
    known = (forth > 0) & (back > 0)
    up = up * np.where(known, upward / np.where(known, forth, 1.0), factor)
    down = np.roll(down, -1, axis=0) * np.where(known, downward / np.where(known, back, 1.0), factor)
    return up, np.roll(down, 1, axis=0)


def _shares(log_mass: Float[np.ndarray, "n ..."]) -> tuple[Float[np.ndarray, "n ..."], Float[np.ndarray, "m ..."]]:
    # The part of each cell in the mass of its pair; halves of a pair without mass.
    n = len(log_mass)
    total = log_mass[::2].copy()
    total[: n // 2] = np.logaddexp(total[: n // 2], log_mass[1::2])
    whole = np.repeat(total, 2, axis=0)[:n]
    there = np.isfinite(whole)
    share = np.exp(log_mass - np.where(there, whole, 0.0))
    return np.where(there, share, 0.5), total
