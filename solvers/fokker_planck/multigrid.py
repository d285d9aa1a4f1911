r"""Multigrid: an approximate inverse of -L, for jumps between neighbours on a grid, in a number of operations ∝ cells.

The system is (-L u)_i = Σ_j k_ij (u_i - u_j) + κ_i u_i = f_i, with rates k_ij >= 0 of jumps and κ_i >= 0 of being
killed (or a shift). Coarse cells are made of two along each axis. With p_i the share of cell i in the mass of its
coarse cell I, u is constant on I, and equations are averaged with p, and rates from one coarse cell to another, too,
times 1/2: an edge is twice as long there. Only ratios of neighbouring masses occur, so that masses may be as small as
they like; -L stays an M-matrix.

Errors are smoothed by solving for all lines of cells along one axis, then along the next: that copes with rates that
are much larger along one axis than along the others.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float

from .jumps import Jumps, coarsened, paired, spread

# Of the change that solving for lines makes, this part is kept: it damps all errors that vary from line to line.
_damping = 0.7

# A level of so many cells is inverted.
_coarsest = 120

# A line is coupled to others at least by this fraction of its diagonal, so that its matrix is not singular.
_least_coupling = 1e-12


class Multigrid:
    """One V-cycle with smoothing before and after. Under detailed balance it is self-adjoint in the masses.

    If nothing is killed -L is singular: then it is for right sides f whose mean with the masses is zero.
    """

    def __init__(self, jumps: Jumps):
        singular = not np.any(jumps.killed > 0)
        self.levels: list[_Level] = []
        widths = tuple(np.ones(n) for n in jumps.killed.shape)
        while jumps.killed.size > _coarsest:
            coarse, share, widths = coarsened(jumps, widths)
            self.levels.append(_Level(jumps, share))
            jumps = coarse
        self.coarsest = _inverse(jumps, singular)

    def __call__(self, f: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """An approximate solution of -L u = f."""
        return self._cycle(0, f)

    def _cycle(self, depth: int, f: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        if depth == len(self.levels):
            return self.coarsest @ f
        level = self.levels[depth]
        u = level.smooth(level.lines, f, np.zeros_like(f), rest=f)
        coarse = self._cycle(depth + 1, level.average(f - level.matrix @ u))
        u += level.extend(coarse)
        return level.smooth(reversed(level.lines), f, u)


class _Level:
    def __init__(self, jumps: Jumps, share: Float[np.ndarray, "..."]):
        self.matrix, self.share = jumps.matrix(), share
        # A cell without neighbours has a coarse one whose values are not its own.
        self.coupled = np.isfinite(jumps.log_mass)
        self.lines = [Lines(jumps, k) for k, n in enumerate(share.shape) if n > 1]

    def smooth(self, lines: Iterable["Lines"], f, u, rest=None):
        for along in lines:
            u += _damping * along.solve(f - self.matrix @ u if rest is None else rest)
            rest = None
        return u

    def average(self, f):
        mean = self.share * f.reshape(self.share.shape)
        for k, n in enumerate(self.share.shape):
            mean = paired(mean, k) if n > 1 else mean
        return mean.ravel()

    def extend(self, u):
        shape = self.share.shape
        return (self.coupled * spread(u.reshape([(n + 1) // 2 for n in shape]), shape)).ravel()


class Lines:
    """-L with jumps along axis k only, the rates of others kept on the diagonal.

    Elimination without a subtraction: pivots are the rate up plus that of getting lost, which is summed along the line.
    """

    def __init__(self, jumps: Jumps, k: int):
        along = lambda a: np.moveaxis(a, k, 0).reshape(a.shape[k], -1).copy()  # noqa: E731
        self.k, self.shape = k, jumps.killed.shape
        up, down, leaving = along(jumps.up[k]), along(jumps.down[k]), along(jumps.leaving)
        others = [r for rates in (jumps.up, jumps.down) for j, r in enumerate(rates) if j != k]
        lost = np.maximum(along(np.sum([*others, jumps.killed], axis=0)), _least_coupling * leaving)
        low, high = down[0].copy(), up[-1].copy()
        down[0], up[-1] = 0.0, 0.0
        self.closed = bool(np.any(low > 0) or np.any(high > 0))
        if self.closed:
            # The two entries that close a ring are part of a matrix of rank one, which is taken off.
            lost[0] += low + leaving[0]
            lost[-1] += high + low * high / leaving[0]
        self._eliminate(up, down, lost)
        if self.closed:
            ends = np.zeros_like(up)
            ends[0], ends[-1] = leaving[0], high
            self.end = low / leaving[0]
            self.ring = self._sweep(ends)
            self.ring /= 1 - (self.ring[0] + self.end * self.ring[-1])

    def solve(self, f: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The solution for all lines."""
        moved = np.moveaxis(f.reshape(self.shape), self.k, 0)
        u = self._sweep(moved.reshape(len(moved), -1))
        if self.closed:
            # Sherman and Morrison.
            u += self.ring * (u[0] + self.end * u[-1])
        return np.moveaxis(u.reshape(moved.shape), 0, self.k).ravel()

    def _eliminate(self, up, down, lost):
        pivot, excess = np.empty_like(up), lost[0]
        pivot[0] = up[0] + excess
        for i in range(1, len(up)):
            excess = lost[i] + down[i] * (excess / pivot[i - 1])
            pivot[i] = up[i] + excess
        self.inverse = 1 / pivot
        # Rows, in the order in which the two sweeps take them.
        self.below, self.above = list(down * self.inverse)[1:], list(up * self.inverse)[-2::-1]

    def _sweep(self, f):
        u = self.inverse * f
        rows, part = list(u), np.empty(u.shape[1])
        for order, factors in ((rows, self.below), (rows[::-1], self.above)):
            for factor, before, row in zip(factors, order[:-1], order[1:], strict=True):
                np.multiply(factor, before, out=part)
                row += part
        return u


def _inverse(jumps: Jumps, singular: bool) -> Float[np.ndarray, "n n"]:
    a = jumps.matrix().toarray()
    if singular:
        mass = np.exp(jumps.log_mass.ravel() - np.max(jumps.log_mass))
        # Constants get a rate, too: that does not change solutions whose mean is zero.
        a += np.sum(mass * a.diagonal()) / np.sum(mass) ** 2 * mass
    return np.linalg.inv(a)
