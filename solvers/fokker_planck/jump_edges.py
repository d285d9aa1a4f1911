r"""Pairs of cells between which a full diffusion tensor moves mass, and how strongly.

In half steps q (`half_steps`), with S the diagonal matrix of the widths and V their product, ∂tρ = ∇·(D ∇ρ) is
V ∂tρ = ∇_s·(V Dˢ ∇_s ρ), Dˢ = S⁻¹ D S⁻¹. Written as V Dˢ = Σ W_e e eᵀ (`selling`), the weak form Σ_e ∫ W_e ∂_eρ ∂_eφ ds
becomes a sum over the edges from cell i to cell i + e, with W_e taken in the middle of the edge: second order, because
W_e is continuous, and without a negative weight.

The middle of an edge lies at a point of the half-step lattice whose parity is that of e. No two offsets of one
decomposition have the same parity, so that each such point carries at most one edge; all edges are found by one
decomposition at each point.
"""

import dataclasses

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
from jaxtyping import Float, Int

from ..grid import Grid
from ..process import AbstractDiffusion
from .coefficients import diffusion_tensors, show
from .half_steps import HalfSteps, lattice
from .selling import selling
from .thermodynamic_force import null

# The longest offset that is used: at an anisotropy of 10^4 between neighbouring cells, half of all directions need more
# than 10, and one in 10^4 more than 50.
_longest = 50


class LongJumpsError(ValueError):
    """The diffusion is too anisotropic, in units of the cells, for jumps between near cells."""


@dataclasses.dataclass(frozen=True, eq=False)
class JumpEdges:
    """Edges with their middles at half steps `middle`, from `middle - offset` to `middle + offset` in half steps.

    `weight` is W_e > 0, in volume per time. At least one end is in the box.
    """

    middle: Int[np.ndarray, "n d"]
    offset: Int[np.ndarray, "n d"]
    weight: Float[np.ndarray, " n"]


_fields = ("middle", "offset", "weight")


def jump_edges(process: AbstractDiffusion, steps: HalfSteps, absorbing: tuple[bool, ...]) -> JumpEdges:
    """All edges with an end in the box; D beyond an absorbing face is that of the nearest point of the face.

    Raises `LongJumpsError` where an offset would be longer than half the cells of an axis, or than 50.
    """
    reach = np.zeros(len(absorbing), dtype=np.int64)
    while True:
        edges = _edges(process, steps, absorbing, reach)
        # The middle of an edge that leaves may lie beyond the face, too.
        beyond = np.where(absorbing, np.max(np.abs(edges.offset), axis=0, initial=1) - 1, 0)
        if np.all(beyond <= reach):
            return _joined(process, steps, edges)
        reach = beyond


def _edges(
    process: AbstractDiffusion, steps: HalfSteps, absorbing: tuple[bool, ...], reach: Int[np.ndarray, " d"]
) -> JumpEdges:
    middle = _middles(steps, absorbing, reach)
    size = steps.sizes(middle)
    x = steps.points(steps.inside(middle))
    tensor = diffusion_tensors(process, x) / (size[:, :, None] * size[:, None, :])
    weights, offsets = selling(tensor, _longest_on(steps.grid))
    _check_short(weights, tensor, x, steps.grid)
    # From centre to centre: an odd number of half steps from a face, an even one from a centre.
    fits = np.all((offsets + middle[:, None]) % 2 == 1, axis=2) & (weights > 0)
    point, which = np.nonzero(fits)
    middle, offset = middle[point], offsets[point, which]
    # The sign of an offset has no meaning: the first entry that is not zero is positive.
    offset = offset * np.sign(offset[np.arange(len(offset)), np.argmax(offset != 0, axis=1)])[:, None]
    there = (steps.cells(middle - offset) >= 0) | (steps.cells(middle + offset) >= 0)
    weight = weights[point, which] * np.prod(size[point], axis=1)
    return JumpEdges(middle[there], offset[there], weight[there])


def _joined(process: AbstractDiffusion, steps: HalfSteps, edges: JumpEdges) -> JumpEdges:
    """With edges across the faces between cells that the others do not connect.

    In a corner of the box all edges of a cell may lead out, and cells from which nothing leads have laws of their own.
    The weight of these edges is that of diffusion along the axis when the other coordinates are free; a law with
    detailed balance is the same for any weight. Where D is degenerate cells may well be apart, and stay so.
    """
    source, target = steps.cells(edges.middle - edges.offset), steps.cells(edges.middle + edges.offset)
    inner = (source >= 0) & (target >= 0)
    size = steps.grid.size
    graph = scipy.sparse.coo_matrix((np.ones(inner.sum()), (source[inner], target[inner])), shape=(size, size))
    count, part = scipy.sparse.csgraph.connected_components(graph, directed=False)
    if count == 1:
        return edges
    for k, unit in enumerate(np.eye(steps.grid.ndim, dtype=np.int64)):
        face = steps.faces(k, 1, steps.grid.shape[k])
        face = face[part[steps.cells(face - unit)] != part[steps.cells(face + unit)]]
        if len(face) == 0:
            continue
        widths = steps.sizes(face)
        tensor = diffusion_tensors(process, steps.points(face)) / (widths[:, :, None] * widths[:, None, :])
        values = np.linalg.eigvalsh(tensor)
        full = values[:, 0] > null * values[:, -1]
        weight = np.prod(widths[full], axis=1) / np.linalg.inv(tensor[full])[:, k, k]
        new = JumpEdges(face[full], np.broadcast_to(unit, face[full].shape), weight)
        edges = JumpEdges(*(np.concatenate([getattr(e, f) for e in (edges, new)]) for f in _fields))
    return edges


def _middles(steps: HalfSteps, absorbing: tuple[bool, ...], reach: Int[np.ndarray, " d"]) -> Int[np.ndarray, "n d"]:
    # All half steps but centres, which are the middle of no edge, as the offsets of a basis are not all even.
    along = []
    for k, cells in enumerate(steps.grid.shape):
        if absorbing[k]:
            along.append(np.arange(-reach[k], 2 * cells + reach[k] + 1))
        else:
            # A wall is the middle of no edge; where an axis closes, its last face is the first one.
            along.append(np.arange(1, 2 * cells + int(steps.periodic[k])))
    q = lattice(along)
    return q[np.any(q % 2 == 0, axis=1)]


def _check_short(
    weights: Float[np.ndarray, "n k"], tensor: Float[np.ndarray, "n d d"], x: Float[np.ndarray, "n d"], grid: Grid
) -> None:
    bad = np.isnan(weights).any(axis=1)
    if not np.any(bad):
        return
    values, vectors = np.linalg.eigh(tensor[bad][0])
    ratio = values[-1] / values[0] if values[0] > 0 else np.inf
    raise LongJumpsError(
        f"At x={show(x[bad][0])} the diffusion, in units of the cells, is {ratio:.2g} times stronger along the "
        f"direction {show(vectors[:, -1])} than across it, and jumps of more than "
        f"{_longest_on(grid)} cells would be needed on {grid}. Change the number of cells along an "
        "axis so that this direction runs along an axis or a diagonal of the cells, choose coordinates in which D is "
        "nearly diagonal (for a constant D, its eigenvectors), or add isotropic noise."
    )


def _longest_on(grid: Grid) -> int:
    return min(_longest, min(grid.shape) // 2)
