r"""The generator on the free cells of a grid, killed where its edges meet a set.

An edge from a free centre that meets a set after the fraction θ of its length keeps the generator's rate, times the
ratio of the resistances ∫ e^(-Φ) of the whole edge and of the piece. That alone is the conservative scheme of Gibou,
Fedkiw, Cheng and Kang (J. Comput. Phys. 176, 2002), for masses. For functions, the currents of a cut cell are divided
by the width that reaches half way to the crossings, not to the faces (Shortley and Weller, J. Appl. Phys. 9, 1938):
then -L is still an M-matrix, and exact for quadratic functions under constant coefficients. Both are second order.
"""

import dataclasses

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from .assembly import Generator
from .jumps import Jumps
from .pieces import integrate
from .regions import Cuts, neighbours, steps


@dataclasses.dataclass(frozen=True, eq=False)
class Killed:
    """Directed edges from free cells: `source` to `target`, flat indices, -1 beyond an absorbing face.

    `rate` is the rate of jumps, up to the crossing where the target is in the set `label` > 0; `whole` is that of the
    whole edge and `back` that of its reverse. `stretch` is the width of the source over that of its pieces. Edges go
    along `axis`, up (`sign` 1) or down (-1).
    """

    free: Int[np.ndarray, " free"]
    axis: Int[np.ndarray, " edges"]
    sign: Int[np.ndarray, " edges"]
    source: Int[np.ndarray, " edges"]
    target: Int[np.ndarray, " edges"]
    label: Int[np.ndarray, " edges"]
    rate: Float[np.ndarray, " edges"]
    whole: Float[np.ndarray, " edges"]
    back: Float[np.ndarray, " edges"]
    stretch: Float[np.ndarray, " edges"]

    def reversed(self, mass: Float[np.ndarray, " n"]) -> "Killed":
        """The edges of the process that runs backwards in time in its stationary law `mass`; `back` is not kept.

        Jumps from i to j have the rate m_j k_ji / m_i. A piece carries the stationary current of its whole edge.
        """
        # A cell whose mass is below 1e-308 has no say, whatever its rates.
        there = mass[self.source]
        known = there > 0
        whole = np.where(known, mass[self.target] * self.back / np.where(known, there, 1.0), self.whole)
        return dataclasses.replace(
            self, rate=self.rate - self.whole + whole, whole=whole, back=np.full_like(whole, np.nan)
        )

    def leaving(self, label: int, stretched: bool) -> Float[np.ndarray, " free"]:
        """The rate at which each free cell leaves into a set."""
        there = self.label == label
        rate = (self.rate * self.stretch if stretched else self.rate)[there]
        return np.bincount(self._place[self.source[there]], rate, minlength=len(self.free))

    def matrix(self, stretched: bool) -> scipy.sparse.csc_matrix:
        """-L on the free cells, u being zero in all sets: rows for functions, columns for masses."""
        rate = self.rate * self.stretch if stretched else self.rate
        row = self._place[self.source]
        inner = self.label == 0
        diagonal = np.bincount(row, rate, minlength=len(self.free))
        column = self._place[self.target[inner]]
        off = scipy.sparse.csc_matrix((-rate[inner], (row[inner], column)), shape=(len(self.free),) * 2)
        return scipy.sparse.csc_matrix(off + scipy.sparse.diags(diagonal))

    def jumps(self, stretched: bool, log_mass: Float[np.ndarray, "*shape"]) -> Jumps:
        """The same -L on all cells of the grid. Those in the sets are alone, with 1 on the diagonal."""
        rate = self.rate * self.stretch if stretched else self.rate
        shape, n = log_mass.shape, log_mass.size
        inner = self.label == 0
        rates = np.zeros((2, len(shape), n))
        rates[np.where(self.sign > 0, 0, 1)[inner], self.axis[inner], self.source[inner]] = rate[inner]
        up, down = (tuple(r.reshape(len(shape), *shape)) for r in rates)
        killed = np.bincount(self.source[~inner], rate[~inner], minlength=n)
        alone = np.ones(n, dtype=bool)
        alone[self.free] = False
        killed[alone] = 1.0
        return Jumps(up, down, killed.reshape(shape), np.where(alone.reshape(shape), -np.inf, log_mass))

    @property
    def _place(self) -> Int[np.ndarray, " n"]:
        place = np.full(max(int(self.source.max()), int(self.target.max()), int(self.free.max())) + 1, -1)
        place[self.free] = np.arange(len(self.free))
        return place


def killed(generator: Generator, labels: Int[np.ndarray, "..."], cuts: list[Cuts]) -> Killed:
    """The directed edges from the cells with label 0. Absorbing faces count as set 1.

    `NotImplementedError` for D that is full or degenerate somewhere.
    """
    if generator.diagonals is not None:
        raise NotImplementedError(
            "Exit times, quasi-stationary laws and committors are implemented for diagonal, nowhere degenerate D, and "
            "this process has another. Choose coordinates in which D is diagonal (for a constant D, its eigenvectors), "
            "or simulate particles with `solvers.sde.simulate` and `FirstPassage`."
        )
    flat = labels.ravel()
    shorter = _shortened(generator, cuts)
    edges = [
        _axis_edges(generator, k, flat, cut, ratio) for k, (cut, ratio) in enumerate(zip(cuts, shorter, strict=True))
    ]
    return Killed(np.flatnonzero(flat == 0), *(np.concatenate(column) for column in zip(*edges, strict=True)))


def _axis_edges(
    generator: Generator, k: int, labels: Int[np.ndarray, " n"], cut: Cuts, shorter: Float[np.ndarray, " cuts"]
):
    grid, kind = generator.grid, generator.boundary[k]
    pairs = neighbours(grid, kind, k)
    up, down = generator.up[k].ravel()[pairs.face], generator.down[k].ravel()[pairs.face]
    forth, back = labels[pairs.below] == 0, labels[pairs.above] == 0
    source = np.concatenate([pairs.below[forth], pairs.above[back]])
    target = np.concatenate([pairs.above[forth], pairs.below[back]])
    whole = np.concatenate([up[forth], down[back]])
    reverse = np.concatenate([down[forth], up[back]])
    sign = np.repeat([1, -1], [forth.sum(), back.sum()])
    label = labels[target]
    rate = whole.copy()
    # Cut edges come in the same order on both sides.
    rate[label > 0] *= shorter
    if kind == "absorbing":
        for side, outer, through in _outer_faces(generator, k):
            free = labels[outer] == 0
            ends = np.full(int(free.sum()), -1)
            sign = np.append(sign, 0 * ends + side)
            source, target = np.append(source, outer[free]), np.append(target, ends)
            whole, rate = np.append(whole, through[free]), np.append(rate, through[free])
            reverse, label = np.append(reverse, 0.0 * through[free]), np.append(label, 0 * ends + 1)
    axis = np.full(len(source), k)
    return axis, sign, source, target, label, rate, whole, reverse, _stretch(generator, k, cut)[source]


def _shortened(generator: Generator, cuts: list[Cuts]) -> list[Float[np.ndarray, " cuts"]]:
    # The resistance of the whole edge over that of its piece, for each axis.
    grid = generator.grid
    start = grid.points.reshape(-1, grid.ndim)[np.concatenate([c.start for c in cuts])]
    whole = np.concatenate([steps(c, grid, k) for k, c in enumerate(cuts)])
    piece = whole * np.concatenate([c.fraction for c in cuts])[:, None]
    if len(start) == 0:
        return [np.ones(0) for _ in cuts]
    both = integrate(
        generator.process, grid, generator.boundary, np.concatenate([start, start]), np.concatenate([whole, piece])
    )
    resistance = both.log_resistance.reshape(2, -1)
    return np.split(np.exp(resistance[0] - resistance[1]), np.cumsum([len(c.start) for c in cuts])[:-1])


def _stretch(generator: Generator, k: int, cut: Cuts) -> Float[np.ndarray, " n"]:
    grid = generator.grid
    e, c = grid.edges[k], grid.centres[k]
    low, high = c - e[:-1], e[1:] - c
    if generator.boundary[k] == "absorbing":
        low[0], high[-1] = 0.5 * low[0], 0.5 * high[-1]
    along = lambda a: np.broadcast_to(a.reshape(-1, *[1] * (grid.ndim - k - 1)), grid.shape).ravel()  # noqa: E731
    low, high, width = along(low).copy(), along(high).copy(), along(np.diff(e))
    above = cut.sign > 0
    half = 0.5 * cut.fraction * cut.dist
    high[cut.start[above]], low[cut.start[~above]] = half[above], half[~above]
    return width / (low + high)


def _outer_faces(generator: Generator, k: int):
    cells = np.moveaxis(np.arange(generator.grid.size).reshape(generator.grid.shape), k, 0)
    up, down = np.moveaxis(generator.up[k], k, 0), np.moveaxis(generator.down[k], k, 0)
    return [(-1, cells[0].ravel(), down[0].ravel()), (1, cells[-1].ravel(), up[-1].ravel())]
