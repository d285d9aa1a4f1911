r"""The generator on the free cells of a grid, killed where its edges meet a set.

An edge from a free centre that meets a set after the fraction θ of its length keeps the generator's rate, times the
ratio of the resistances ∫ e^(-Φ) of the whole edge and of the piece. That alone is the conservative scheme of Gibou,
Fedkiw, Cheng and Kang (J. Comput. Phys. 176, 2002), for masses. For functions, the currents of a cut cell are divided
by the width that reaches half way to the crossings, not to the faces (Shortley and Weller, J. Appl. Phys. 9, 1938):
then -L is still an M-matrix, and exact for quadratic functions under constant coefficients. Both are second order.

With a full D (`cut_jumps`) this holds for each direction of the decomposition.
"""

import dataclasses

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from .assembly import Generator
from .cut_jumps import DirectedEdges, jump_edges_cut
from .jumps import Jumps
from .pieces import integrate
from .regions import Cuts, Regions, neighbours, steps


@dataclasses.dataclass(frozen=True, eq=False)
class Killed:
    """The cells `free`, flat indices, and the directed edges that leave them."""

    free: Int[np.ndarray, " free"]
    edges: DirectedEdges

    def reversed(self, mass: Float[np.ndarray, " n"]) -> "Killed":
        """The edges of the process that runs backwards in time in its stationary law `mass`; `back` is not kept.

        Jumps from i to j have the rate m_j k_ji / m_i. A piece carries the stationary current of its whole edge. What
        an absorbing face takes stays: `mass` is the law after it has been closed.
        """
        edges = self.edges
        # A cell whose mass is below 1e-308 has no say, whatever its rates.
        there = mass[edges.source]
        known = (there > 0) & (edges.target >= 0)
        whole = np.where(known, mass[edges.target] * edges.back / np.where(known, there, 1.0), edges.whole)
        rate = np.maximum(edges.rate - edges.whole + whole, 0.0)
        return Killed(self.free, dataclasses.replace(edges, rate=rate, whole=whole, back=np.full_like(whole, np.nan)))

    def leaving(self, label: int, stretched: bool) -> Float[np.ndarray, " free"]:
        """The rate at which each free cell leaves into a set."""
        there = self.edges.label == label
        return np.bincount(
            self._place[self.edges.source[there]], self._rate(stretched)[there], minlength=len(self.free)
        )

    def matrix(self, stretched: bool) -> scipy.sparse.csc_matrix:
        """-L on the free cells, u being zero in all sets: rows for functions, columns for masses."""
        rate = self._rate(stretched)
        row = self._place[self.edges.source]
        inner = self.edges.label == 0
        diagonal = np.bincount(row, rate, minlength=len(self.free))
        column = self._place[self.edges.target[inner]]
        off = scipy.sparse.csc_matrix((-rate[inner], (row[inner], column)), shape=(len(self.free),) * 2)
        return scipy.sparse.csc_matrix(off + scipy.sparse.diags(diagonal))

    def jumps(self, stretched: bool, log_mass: Float[np.ndarray, "*shape"]) -> Jumps:
        """The same -L on all cells of the grid, if all edges lead to neighbours. Cells in the sets are alone, with 1 on
        the diagonal."""
        edges, rate = self.edges, self._rate(stretched)
        shape, n = log_mass.shape, log_mass.size
        inner = edges.label == 0
        axis, up = np.argmax(edges.offset != 0, axis=1), edges.offset.sum(axis=1) > 0
        rates = np.zeros((2, len(shape), n))
        rates[np.where(up, 0, 1)[inner], axis[inner], edges.source[inner]] = rate[inner]
        up, down = (tuple(r.reshape(len(shape), *shape)) for r in rates)
        killed = np.bincount(edges.source[~inner], rate[~inner], minlength=n)
        alone = np.ones(n, dtype=bool)
        alone[self.free] = False
        killed[alone] = 1.0
        return Jumps(up, down, killed.reshape(shape), np.where(alone.reshape(shape), -np.inf, log_mass))

    def whole_matrix(self, stretched: bool, size: int) -> scipy.sparse.csr_array:
        """`matrix` on all cells of the grid, of which those in the sets have 1 on the diagonal."""
        rate, inner = self._rate(stretched), self.edges.label == 0
        alone = np.setdiff1d(np.arange(size), self.free)
        diagonal = np.bincount(self.edges.source, rate, size)
        diagonal[alone] = 1.0
        entries = (-rate[inner], (self.edges.source[inner], self.edges.target[inner]))
        off = scipy.sparse.csr_array(entries, shape=(size, size))
        return scipy.sparse.csr_array(off + scipy.sparse.diags_array(diagonal))

    def _rate(self, stretched: bool) -> Float[np.ndarray, " edges"]:
        return self.edges.rate * self.edges.stretch if stretched else self.edges.rate

    @property
    def _place(self) -> Int[np.ndarray, " n"]:
        ends = (self.edges.source, self.edges.target, self.free)
        place = np.full(max(int(a.max(initial=0)) for a in ends) + 1, -1)
        place[self.free] = np.arange(len(self.free))
        return place


def killed(generator: Generator, regions: Regions) -> Killed:
    """The directed edges from the cells with label 0. Absorbing faces count as set 1."""
    if generator.diagonals is not None:
        edges = jump_edges_cut(generator, generator.diagonals, regions)
    else:
        cuts = regions.axis_cuts()
        shorter = _shortened(generator, cuts)
        edges = DirectedEdges.joined(
            [
                _axis_edges(generator, k, regions.labels.ravel(), cut, ratio)
                for k, (cut, ratio) in enumerate(zip(cuts, shorter, strict=True))
            ]
        )
    return Killed(np.flatnonzero(regions.labels.ravel() == 0), edges)


def _axis_edges(
    generator: Generator, k: int, labels: Int[np.ndarray, " n"], cut: Cuts, shorter: Float[np.ndarray, " cuts"]
) -> DirectedEdges:
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
    offset = sign[:, None] * np.eye(grid.ndim, dtype=np.int64)[k]
    return DirectedEdges(source, target, offset, label, rate, whole, reverse, _stretch(generator, k, cut)[source])


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
