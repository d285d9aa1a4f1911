r"""Jump rates of a process with a full or degenerate diffusion tensor, over faces and along diagonals.

On an edge of weight W (`jump_edges`) from cell i to cell j, with Ω = ∫ a·dx from i to j (`thermodynamic_force`),

    k_ij = W w(Ω) / V_i,      k_ji = W w(Ω) e^(-Ω) / V_j,      log(m_j / m_i) = Ω + log(V_j / V_i) at detailed balance,

with w as in `weights`, but for densities ρ in place of D ρ: the divergence of D is in a. All rates are positive, and
their drift is D a = b - ∇·D + ∇·D as Itô has it. Drift in directions without diffusion jumps over faces, upwind: first
order in the width of the cells, and one way only.

Edges that would leave through a no-flux wall are left out: the law is not touched by this, but diffusion within half a
cell from the wall is too weak, which is of first order where there is mass at the wall. An edge that leaves through an
absorbing face ends there, after the fraction θ of its length, at density 0: k = W B(-Ω_θ) / (θ V_i).
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from ..grid import Grid
from ..process import AbstractDiffusion
from .half_steps import HalfSteps
from .jump_edges import JumpEdges, jump_edges
from .thermodynamic_force import Force
from .weights import bernoulli, edge_weights


@dataclasses.dataclass(frozen=True, eq=False)
class Exits:
    """Edges from the cells `source` with the offsets `offset` which meet an absorbing face after `fraction` of them."""

    source: Int[np.ndarray, " n"]
    offset: Int[np.ndarray, "n d"]
    fraction: Float[np.ndarray, " n"]
    rate: Float[np.ndarray, " n"]


Faces = tuple[Float[np.ndarray, "..."], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Diagonals:
    """Jumps between cells that share no face, by flat indices of cells: `forth` from `source` to `target` and `back`.

    `offset` leads from the source to the target, in cells (across the last face of a periodic axis, too), and
    `log_ratio` is log(m_target / m_source) at detailed balance. `leaving[k][side]` is the rate at which cells lose mass
    along diagonals through the absorbing low (0) and high (1) face of axis k; `exits` are all edges that end there,
    those along axes, too. `upwind` is the part of the rates up and down over faces that drift in directions without
    diffusion has; None if there is no such drift.
    """

    source: Int[np.ndarray, " n"]
    target: Int[np.ndarray, " n"]
    offset: Int[np.ndarray, "n d"]
    forth: Float[np.ndarray, " n"]
    back: Float[np.ndarray, " n"]
    log_ratio: Float[np.ndarray, " n"]
    leaving: tuple[Float[np.ndarray, "2 ..."], ...]
    exits: Exits
    upwind: tuple[Faces, Faces] | None

    @property
    def carried(self) -> bool:
        """Whether diffusion carries all of the drift."""
        return self.upwind is None

    @property
    def longest(self) -> int:
        """The most cells that a jump crosses along an axis."""
        return int(np.max(np.abs(self.offset), initial=1))


def tensor_rates(
    process: AbstractDiffusion, grid: Grid, boundary: tuple[str, ...], resolved: float
) -> tuple[Faces, Faces, Faces, Diagonals]:
    """Rates up and down over the faces of each axis, log(m_j / m_i) across them, and the jumps along diagonals.

    The arrays of faces are as in `Generator`. Raises `LongJumpsError` for a diffusion that is too anisotropic.
    """
    steps = HalfSteps.of(grid, tuple(kind == "periodic" for kind in boundary))
    edges = jump_edges(process, steps, tuple(kind == "absorbing" for kind in boundary))
    return _Rates(process, steps, boundary, resolved, edges).all()


class _Rates:
    def __init__(
        self,
        process: AbstractDiffusion,
        steps: HalfSteps,
        boundary: tuple[str, ...],
        resolved: float,
        edges: JumpEdges,
    ):
        self.steps, self.boundary, self.resolved = steps, boundary, resolved
        self.grid = steps.grid
        self.force = Force(process)
        self.volumes = self.grid.volumes.ravel()
        source, target = steps.cells(edges.middle - edges.offset), steps.cells(edges.middle + edges.offset)
        inner = (source >= 0) & (target >= 0)
        axial = np.sum(np.abs(edges.offset), axis=1) == 1
        self.axial, self.diagonal = _only(edges, inner & axial), _only(edges, inner & ~axial)
        self.outer = _only(edges, ~inner)

    def all(self) -> tuple[Faces, Faces, Faces, Diagonals]:
        faces = [self._inner_faces(k) for k in range(self.grid.ndim)]
        # One call, so that the process is compiled once. All faces, for the log ratios, though some have no weight.
        units = np.repeat(np.eye(self.grid.ndim, dtype=np.int64), [len(f) for f in faces], axis=0)
        middle = np.concatenate([*faces, self.diagonal.middle])
        right, left, carried = self._halves(middle, np.concatenate([units, self.diagonal.offset]))
        ends = np.cumsum([len(f) for f in faces])
        up, down, ratios = [], [], []
        for k, face in enumerate(faces):
            mine = slice(ends[k] - len(face), ends[k])
            rates = self._face_rates(k, face, right[mine], left[mine])
            for found, rate in zip((up, down, ratios), rates, strict=True):
                found.append(rate)
        leaving, exits, outer_carried = self._leave(up, down)
        upwind = None if carried and outer_carried else self._upwind()
        if upwind is not None:
            up, down = ([a + b for a, b in zip(*both, strict=True)] for both in zip((up, down), upwind, strict=True))
        diagonals = self._diagonals(right[ends[-1] :], left[ends[-1] :], leaving, exits, upwind)
        return tuple(up), tuple(down), tuple(ratios), diagonals

    def _inner_faces(self, k: int) -> Int[np.ndarray, "n d"]:
        # In C order; the last one of a periodic axis leads to cell 0.
        return self.steps.faces(k, 1, self.grid.shape[k] + int(self.steps.periodic[k]))

    def _halves(self, middle: Int[np.ndarray, "n d"], offset: Int[np.ndarray, "n d"]):
        # ∫ a·dx from the source to the middle of edges, and from there to the target.
        x = [self.steps.points(q) for q in (middle - offset, middle, middle + offset)]
        size = self.steps.sizes(middle)
        total, carried = self._integrals(np.concatenate(x[:2]), np.concatenate(x[1:]), np.concatenate([size, size]))
        return total[: len(middle)], total[len(middle) :], carried

    def _integrals(self, start, end, sizes):
        return self.force.integrals(start, end, sizes, self.steps.into_box)

    def _face_rates(self, k, face, right, left):
        below, above = self.steps.cells(face - _unit(self.grid, k)), self.steps.cells(face + _unit(self.grid, k))
        weight = np.zeros(self._on_faces(k).shape)
        mine = self.axial.offset[:, k] == 1
        weight[self._face_index(k, self.axial.middle[mine])] = self.axial.weight[mine]
        w = weight[self._face_index(k, face)]
        out, back = edge_weights(right, left, self.resolved)
        up, down = np.zeros_like(weight), np.zeros_like(weight)
        up[self._face_index(k, face)] = w * out / self.volumes[below]
        down[self._face_index(k, face)] = w * back / self.volumes[above]
        ratio = right + left + np.log(self.volumes[above] / self.volumes[below])
        shape = list(self.grid.shape)
        shape[k] -= int(not self.steps.periodic[k])
        return up, down, ratio.reshape(shape)

    def _on_faces(self, k: int) -> Float[np.ndarray, "..."]:
        return np.zeros([n + int(m == k) for m, n in enumerate(self.grid.shape)])

    def _face_index(self, k: int, face: Int[np.ndarray, "n d"]) -> tuple:
        return tuple((face // 2).T)

    def _diagonals(self, right, left, leaving, exits, upwind) -> Diagonals:
        edges = self.diagonal
        source = self.steps.cells(edges.middle - edges.offset)
        target = self.steps.cells(edges.middle + edges.offset)
        out, back = edge_weights(right, left, self.resolved)
        forth, back = edges.weight * out / self.volumes[source], edges.weight * back / self.volumes[target]
        ratio = right + left + np.log(self.volumes[target] / self.volumes[source])
        return Diagonals(source, target, edges.offset, forth, back, ratio, leaving, exits, upwind)

    def _leave(self, up: list, down: list) -> tuple[tuple[Float[np.ndarray, "2 ..."], ...], Exits, bool]:
        """Adds the rates of jumps over absorbing faces, and returns those along diagonals, and all of them."""
        leaving = tuple(np.zeros((2, self.grid.size)) for _ in self.boundary)
        inside, offset, weight = self._outward()
        wall, axis, side = self._first_wall(inside, offset)
        absorbed = np.array([kind == "absorbing" for kind in self.boundary])[axis]
        inside, offset, weight, wall = inside[absorbed], offset[absorbed], weight[absorbed], wall[absorbed]
        axis, side = axis[absorbed], side[absorbed]
        start, end = self.steps.points(inside), self.steps.points(inside + 2 * wall[:, None] * offset)
        omega, carried = self._integrals(start, end, self.steps.sizes(inside))
        cells = self.steps.cells(inside)
        rate = weight * bernoulli(-omega) / (wall * self.volumes[cells])
        axial = np.sum(np.abs(offset), axis=1) == 1
        for k in range(self.grid.ndim):
            for s, through in enumerate((down[k], up[k])):
                mine = (axis == k) & (side == s)
                face = inside[mine & axial] + offset[mine & axial]
                through[self._face_index(k, face)] += rate[mine & axial]
                np.add.at(leaving[k][s], cells[mine & ~axial], rate[mine & ~axial])
        exits = Exits(cells, offset, wall, rate)
        return tuple(a.reshape(2, *self.grid.shape) for a in leaving), exits, carried

    def _outward(self):
        # The centres from which edges leave, in half steps, and the offsets outwards.
        edges = self.outer
        first = self.steps.cells(edges.middle - edges.offset) >= 0
        offset = np.where(first[:, None], edges.offset, -edges.offset)
        return edges.middle - offset, offset, edges.weight

    def _first_wall(self, inside: Int[np.ndarray, "n d"], offset: Int[np.ndarray, "n d"]):
        # After which fraction of its length an edge meets a wall, of which axis, and on which side.
        last = 2 * np.array(self.grid.shape)
        room = np.where(offset > 0, last - inside, inside)
        meets = (offset != 0) & ~np.array(self.steps.periodic)
        fraction = np.where(meets, room / (2 * np.maximum(np.abs(offset), 1)), np.inf)
        axis = np.argmin(fraction, axis=1)
        row = np.arange(len(axis))
        return fraction[row, axis], axis, (offset[row, axis] > 0).astype(np.int64)

    def _upwind(self) -> tuple[Faces, Faces]:
        """The rates up and down of drift in directions without diffusion."""
        up, down = (tuple(self._on_faces(k) for k in range(self.grid.ndim)) for _ in range(2))
        faces = []
        for k, kind in enumerate(self.boundary):
            n = self.grid.shape[k]
            low, high = (0 if kind == "absorbing" else 1), (n if kind == "no-flux" else n + 1)
            faces.append(self.steps.faces(k, low, high))
        q = np.concatenate(faces)
        _, drift = self.force(self.steps.points(q), self.steps.sizes(q))
        axis = np.repeat(np.arange(len(faces)), [len(f) for f in faces])
        flow = drift[np.arange(len(q)), axis] * np.prod(self.steps.sizes(q), axis=1)
        for k in range(len(faces)):
            face, through = q[axis == k], flow[axis == k]
            index = self._face_index(k, face)
            below, above = (self.steps.cells(face + sign * _unit(self.grid, k)) for sign in (-1, 1))
            up[k][index] += np.where(below >= 0, np.maximum(through, 0.0) / self.volumes[below], 0.0)
            down[k][index] += np.where(above >= 0, np.maximum(-through, 0.0) / self.volumes[above], 0.0)
        return up, down


def _only(edges: JumpEdges, which: Bool[np.ndarray, " n"]) -> JumpEdges:
    return JumpEdges(edges.middle[which], edges.offset[which], edges.weight[which])


def _unit(grid: Grid, k: int) -> Int[np.ndarray, " d"]:
    return np.eye(grid.ndim, dtype=np.int64)[k]
