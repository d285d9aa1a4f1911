r"""A diffusion on a line as a chain of nodes with exact rates, and linear equations on it without subtraction.

With R and M from `pieces`, R⁺ and M⁺ those of the piece above node i, and R⁻ and M⁻ of that below it, both seen from
the node, let the rates of jumps be

    up_i = 1 / (R⁺ (M⁻ + M⁺)),    down_i = 1 / (R⁻ (M⁻ + M⁺)).

If Lu = -1, with u = 0 at an absorbing node or a reflecting end, the values at the nodes solve this three-point scheme
without error (Tikhonov and Samarskii's exact difference scheme): only that of the quadrature remains, which is of order
eight. Nodes are the centres of the cells, reflecting walls, and the points where a set begins.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from .._tracing import Numbers, namespace
from ..grid import Grid
from ..process import AbstractDiffusion
from .assembly import Boundary
from .pieces import Pieces, integrate
from .regions import Cuts, nearest

# The sum of potentials starts anew from the highest one so many times.
_most_origins = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Line:
    """Nodes at `x`, with the index of their `cell` (-1 for other nodes) and the `label` of their set, 0 if free."""

    x: Float[np.ndarray, " n"]
    label: Int[np.ndarray, " n"]
    cell: Int[np.ndarray, " n"]
    pieces: Pieces

    @property
    def potential(self) -> Float[np.ndarray, " n"]:
        """Φ at the nodes, 0 near where it is highest: D times the stationary density is e^Φ."""
        # Summed from there: a sum through the far tails, which may reach -1e24, has no digits left.
        origin = 0
        for _ in range(_most_origins):
            origin = int(np.argmax(_summed(self.pieces.omega, origin)))
        return _summed(self.pieces.omega, origin)

    @property
    def log_mass(self) -> Float[Numbers, " n"]:
        """The logarithm of the nodes' masses, relative to e^Φ there."""
        xp, forth, back = namespace(self.pieces.log_mass), self.pieces.log_mass, self.pieces.log_mass_back
        return xp.concatenate([forth[:1], xp.logaddexp(back[:-1], forth[1:]), back[-1:]])

    def components(self) -> list[slice]:
        """The runs of free nodes."""
        edge = np.flatnonzero(np.diff(np.concatenate([[False], self.label == 0, [False]]).astype(int)))
        return [slice(int(a), int(b)) for a, b in zip(edge[::2], edge[1::2], strict=True)]

    def ends(self, run: slice) -> tuple[int, int]:
        """The labels of the nodes before and after a run; 0 for a reflecting wall."""
        after = self.label[run.stop] if run.stop < len(self.label) else 0
        return int(self.label[run.start - 1]) if run.start else 0, int(after)

    def rates(self, run: slice) -> tuple[Float[Numbers, " m"], Float[Numbers, " m"]]:
        """`up` and `down` of the nodes of a run."""
        xp, log_mass = namespace(self.pieces.log_mass), self.log_mass[run]
        none = np.full(1, -np.inf)
        up = xp.concatenate([-self.pieces.log_resistance, none])[run] - log_mass
        down = xp.concatenate([none, -self.pieces.log_resistance_back])[run] - log_mass
        return xp.exp(up), xp.exp(down)


def _summed(omega: Float[np.ndarray, " pieces"], origin: int) -> Float[np.ndarray, " n"]:
    below, above = -np.cumsum(omega[:origin][::-1])[::-1], np.cumsum(omega[origin:])
    return np.concatenate([below, [0.0], above])


def lines(
    process: AbstractDiffusion,
    grid: Grid,
    boundary: tuple[Boundary, ...],
    labels: Int[np.ndarray, " n"],
    cut: Cuts,
    divisions: Sequence[int] = (1, 2, 4),
) -> list[Line]:
    """Chains of which each piece is divided into so many parts. Absorbing walls count as set 1.

    A ring is opened at a cell that is not free, which is then both first and last.
    """
    place = line_nodes(grid, boundary, labels, cut)
    nodes = [divided(*place, parts) for parts in divisions]
    start, step = (np.concatenate([f(x) for x, _, _ in nodes])[:, None] for f in (lambda x: x[:-1], np.diff))
    integrals = vars(integrate(process, grid, boundary, start, step))
    ends = np.cumsum([len(x) - 1 for x, _, _ in nodes])[:-1]
    parts = zip(*(np.split(a, ends) for a in integrals.values()), strict=True)
    return [Line(*node, Pieces(*part)) for node, part in zip(nodes, parts, strict=True)]


def line_nodes(grid: Grid, boundary: tuple[Boundary, ...], labels: Int[np.ndarray, " n"], cut: Cuts):
    """The places, labels and cells, -1 for none, of the nodes of `lines`."""
    kind = boundary[0]
    order = np.arange(len(labels))
    x = grid.centres[0]
    if kind == "periodic":
        first = int(np.flatnonzero(labels)[0])
        order = np.append(np.roll(order, -first), first)
        x = x[order] + (grid.edges[0][-1] - grid.edges[0][0]) * (np.arange(len(order)) >= len(labels) - first)
    place = np.empty(len(labels), int)
    place[order[: len(labels)]] = np.arange(len(labels))
    # A crossing at the other centre is that node. Two between two centres do not occur: one of these is not free.
    own = np.flatnonzero(cut.fraction < 1 - nearest)
    own = own[np.argsort(place[cut.start[own]] + 0.5 * cut.sign[own])]
    at = place[cut.start[own]]
    between = at + (cut.sign[own] > 0)
    x = np.insert(x, between, x[at] + cut.sign[own] * cut.fraction[own] * cut.dist[own])
    label = np.insert(labels[order], between, cut.label[own])
    cell = np.insert(order, between, -1)
    if kind != "periodic":
        wall = int(kind == "absorbing")
        x = np.concatenate([grid.edges[0][:1], x, grid.edges[0][-1:]])
        label, cell = np.pad(label, 1, constant_values=wall), np.pad(cell, 1, constant_values=-1)
    return x, label, cell


def divided(x, label, cell, parts):
    """The nodes with each piece between two divided into so many parts."""
    share = np.arange(parts) / parts
    inner = np.append((x[:-1, None] + np.diff(x)[:, None] * share).ravel(), x[-1])
    between = np.minimum(label[:-1], label[1:])[:, None].repeat(parts, axis=1)
    between[:, 0] = label[:-1]
    cells = np.full((len(x) - 1, parts), -1)
    cells[:, 0] = cell[:-1]
    return inner, np.append(between.ravel(), label[-1]), np.append(cells.ravel(), cell[-1])


def solve_chain(
    up: Float[np.ndarray, " m"], down: Float[np.ndarray, " m"], source: Float[np.ndarray, " m"]
) -> Float[np.ndarray, " m"]:
    """u with (up_i + down_i) u_i = source_i + up_i u_(i+1) + down_i u_(i-1), and u = 0 beyond the ends.

    Nodes are eliminated from below without a subtraction (Grassmann, Taksar and Heyman): where all is positive, every
    u_i has full relative accuracy. `stop` is the rate at which a node is left for good through the low end, and `given`
    what comes together below it before it is left upwards or for good, per unit of its own source.
    """
    ups, downs, sources = up.tolist(), down.tolist(), source.tolist()
    stop, given, u = [downs[0]], [sources[0]], [0.0]
    try:
        for i in range(1, len(ups)):
            back = downs[i] / (stop[-1] + ups[i - 1])
            given.append(sources[i] + back * given[-1])
            stop.append(back * stop[-1])
        for i in reversed(range(len(ups))):
            u.append((given[i] + ups[i] * u[-1]) / (stop[i] + ups[i]))
    except ZeroDivisionError:
        u.append(np.inf)
    result = np.array(u[:0:-1])
    if not np.all(np.isfinite(result)):
        raise ArithmeticError(
            "A mean time exceeds 1e308, the largest number of float64: the set is practically never left. Raise the "
            "noise or make the set smaller."
        )
    return result


def romberg(values: Float[Numbers, "3 *n"]) -> tuple[Float[Numbers, "*n"], Float[Numbers, "*n"]]:
    """The limit of values of even order on chains of one, two and four parts a piece, and an estimate of its error."""
    one, two, four = values
    first, second = two + (two - one) / 3, four + (four - two) / 3
    limit = second + (second - first) / 15
    return limit, abs(limit - second)


def at_cells(chain: Line, run: slice, u: Float[np.ndarray, " m"], into: Float[np.ndarray, " n"]) -> None:
    """Copies the values of a run of nodes to the cells whose centres are among them."""
    cell = chain.cell[run]
    into[cell[cell >= 0]] = u[cell >= 0]
