r"""The jumps of a full diffusion tensor from the free cells, cut where they meet a set.

On an edge from cell i with the offset e and the weight W (`jump_edges`), which meets a set after the fraction θ of its
length, let Ω and Ω_θ be the integrals of the thermodynamic force a over the whole and over the piece, and let g be
e·S⁻¹DS⁻¹e in the middle of either. The rate of the piece is that of the whole edge times

    (g_θ / g) B(-Ω_θ) / (θ B(-Ω)),   B(x) = x / (e^x - 1),

the ratio of their resistances for a constant force. For functions, both edges of one direction ±e are stretched by
2 / (θ₊ + θ₋), as the second difference with unequal arms has it: under constant coefficients -L is exact for quadratic
functions, whatever the set. Drift in a direction without diffusion goes upwind over faces, and reaches a set over a
distance θ times as long.

Long edges may meet a set between two free cells. They are cut from both sides.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from .assembly import Generator
from .coefficients import diffusion_tensors
from .half_steps import HalfSteps
from .regions import Regions, neighbours
from .tensor_rates import Diagonals
from .thermodynamic_force import Force
from .weights import bernoulli

# Rounding of a sum of two rates, as a fraction.
_rounding = 1e-13


@dataclasses.dataclass(frozen=True, eq=False)
class DirectedEdges:
    """Edges from free cells: `source` to `target`, flat indices, -1 beyond an absorbing face, `offset` cells away.

    `rate` is the rate of jumps, up to the crossing where the edge meets the set `label` > 0; `whole` is that of the
    whole edge and `back` that of its reverse. For functions rates are `stretch` times as large.
    """

    source: Int[np.ndarray, " edges"]
    target: Int[np.ndarray, " edges"]
    offset: Int[np.ndarray, "edges d"]
    label: Int[np.ndarray, " edges"]
    rate: Float[np.ndarray, " edges"]
    whole: Float[np.ndarray, " edges"]
    back: Float[np.ndarray, " edges"]
    stretch: Float[np.ndarray, " edges"]

    @staticmethod
    def joined(parts: list["DirectedEdges"]) -> "DirectedEdges":
        """All edges of several lists."""
        return DirectedEdges(
            *(np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(parts[0]))
        )


def jump_edges_cut(generator: Generator, diagonals: Diagonals, regions: Regions) -> DirectedEdges:
    """The directed edges from the cells with label 0. Absorbing faces count as set 1.

    `ValueError` if an edge joins two different sets directly.
    """
    ends, arms = _both_ways(generator, diagonals, regions)
    steps = HalfSteps.of(generator.grid, tuple(kind == "periodic" for kind in regions.boundary))
    start = 2 * np.stack(np.unravel_index(ends.source, generator.grid.shape), axis=1) + 1
    x = steps.points(start)
    step = arms[:, None] * (steps.points(start + 2 * ends.offset) - x)
    # An arm ends in a face or in a cell.
    inner = ends.target >= 0
    cells = np.where(inner, np.max(np.abs(ends.offset), axis=1), 1)
    label, fraction = regions.crossings(x, step, cells, ends.label)
    rate = ends.rate.copy()
    cut = fraction < 1
    sizes = steps.sizes(start + ends.offset)[cut]
    rate[cut] *= _shorter(Force(generator.process), steps, x[cut], step[cut], fraction[cut], sizes, ends.offset[cut])
    edges = dataclasses.replace(
        ends, label=label, rate=rate, stretch=_stretch(ends.source, ends.offset, arms * fraction)
    )
    if diagonals.upwind is None:
        return edges
    return DirectedEdges.joined([edges, _upwind(generator, diagonals.upwind, regions, steps)])


def _both_ways(
    generator: Generator, diagonals: Diagonals, regions: Regions
) -> tuple[DirectedEdges, Float[np.ndarray, " edges"]]:
    # Uncut, from free cells, and the part of each that lies in the box.
    faces = [_over_faces(generator, diagonals, k) for k in range(generator.grid.ndim)]
    diagonal = (diagonals.source, diagonals.target, diagonals.offset, diagonals.forth, diagonals.back)
    below, above, offset, up, down = (np.concatenate(a) for a in zip(*faces, diagonal, strict=True))
    _check_apart(regions, below, above)
    exits = diagonals.exits
    outside, never = np.full(len(exits.source), -1), np.zeros(len(exits.source))
    source, target = np.concatenate([below, above, exits.source]), np.concatenate([above, below, outside])
    whole, back = np.concatenate([up, down, exits.rate]), np.concatenate([down, up, never])
    offset = np.concatenate([offset, -offset, exits.offset])
    arms = np.concatenate([np.ones(2 * len(below)), exits.fraction])
    labels = regions.labels.ravel()
    label = np.where(target >= 0, labels[target], 1)
    mine = labels[source] == 0
    source, target, offset, label, whole, back, arms = (
        a[mine] for a in (source, target, offset, label, whole, back, arms)
    )
    return DirectedEdges(source, target, offset, label, whole, whole, back, np.ones(len(whole))), arms


def _over_faces(generator: Generator, diagonals: Diagonals, k: int):
    # Pairs of neighbours along axis k, and the rates between them that diffusion has, where it has any.
    pairs = neighbours(generator.grid, generator.boundary[k], k)
    up, down = (rates[k].ravel()[pairs.face] for rates in (generator.up, generator.down))
    there = (up > 0) & (down > 0)
    if diagonals.upwind is not None:
        drift = [rates[k].ravel()[pairs.face] for rates in diagonals.upwind]
        # The rest of a rate that is all drift is rounding.
        there = (up > (1 + _rounding) * drift[0]) & (down > (1 + _rounding) * drift[1])
        up, down = up - drift[0], down - drift[1]
    offset = np.zeros((len(up), generator.grid.ndim), np.int64)
    offset[:, k] = 1
    return tuple(a[there] for a in (pairs.below, pairs.above, offset, up, down))


def _check_apart(regions: Regions, source: Int[np.ndarray, " n"], target: Int[np.ndarray, " n"]) -> None:
    labels = regions.labels.ravel()
    touch = (labels[source] != labels[target]) & (labels[source] > 0) & (labels[target] > 0)
    if np.any(touch):
        x = regions.grid.points.reshape(-1, regions.grid.ndim)[source[touch][0]]
        raise ValueError(
            f"The sets must be separated by cells in neither, but a jump of the diffusion tensor leads from one to the "
            f"other near x={x}. Use more cells or smaller sets."
        )


def _shorter(
    force: Force,
    steps: HalfSteps,
    x: Float[np.ndarray, "n d"],
    step: Float[np.ndarray, "n d"],
    fraction: Float[np.ndarray, " n"],
    sizes: Float[np.ndarray, "n d"],
    offset: Int[np.ndarray, "n d"],
) -> Float[np.ndarray, " n"]:
    """The resistance of the whole edge over that of its piece."""
    if len(x) == 0:
        return np.zeros(0)
    piece = fraction[:, None] * step
    both = np.concatenate([step, piece])
    start = np.concatenate([x, x])
    omega, _ = force.integrals(start, start + both, np.concatenate([sizes, sizes]), steps.into_box)
    omega, omega_piece = np.split(omega, 2)
    tensor = diffusion_tensors(force.process, steps.into_box(start + 0.5 * both))
    along = np.concatenate([offset / sizes] * 2)
    whole, part = np.split(np.einsum("na,nab,nb->n", along, tensor, along), 2)
    return part / whole * bernoulli(-omega_piece) / (fraction * bernoulli(-omega))


def _stretch(
    source: Int[np.ndarray, " n"], offset: Int[np.ndarray, "n d"], arm: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    # 2 over the sum of the arms of both edges of a direction; one that is not there counts as whole.
    reach = int(np.max(np.abs(offset), initial=1))
    base = (2 * reach + 1) ** np.arange(offset.shape[1])
    key = lambda sign: source * base[-1] * (2 * reach + 1) + (reach + sign * offset) @ base  # noqa: E731
    (short,) = np.nonzero(arm < 1)
    order = short[np.argsort(key(1)[short])]
    keys = np.append(key(1)[order], -1)
    place = np.searchsorted(keys[:-1], key(-1))
    opposite = np.where(keys[place] == key(-1), np.append(arm[order], 1.0)[place], 1.0)
    return 2 / (arm + opposite)


def _upwind(generator: Generator, upwind, regions: Regions, steps: HalfSteps) -> DirectedEdges:
    """The drift that no diffusion carries, over faces. Most rates are zero one way, and not backwards in time."""
    parts = []
    for k, kind in enumerate(generator.boundary):
        pairs = neighbours(generator.grid, kind, k)
        up, down = (rates[k].ravel()[pairs.face] for rates in upwind)
        parts += [(pairs.below, pairs.above, 1, k, up, down), (pairs.above, pairs.below, -1, k, down, up)]
        if kind == "absorbing":
            cells = np.moveaxis(np.arange(generator.grid.size).reshape(generator.grid.shape), k, 0)
            for sign, end, rates in ((-1, 0, upwind[1]), (1, -1, upwind[0])):
                cell, rate = cells[end].ravel(), np.moveaxis(rates[k], k, 0)[end].ravel()
                parts.append((cell, np.full(len(cell), -1), sign, k, rate, 0 * rate))
    return DirectedEdges.joined([_drifting(steps, regions, *part) for part in parts])


def _drifting(steps: HalfSteps, regions: Regions, source, target, sign, k, rate, back) -> DirectedEdges:
    labels = regions.labels.ravel()
    mine = (labels[source] == 0) & ((rate > 0) | (back > 0))
    source, target, rate, back = source[mine], target[mine], rate[mine], back[mine]
    offset = np.zeros((len(source), regions.grid.ndim), np.int64)
    offset[:, k] = sign
    start = 2 * np.stack(np.unravel_index(source, regions.grid.shape), axis=1) + 1
    arm = np.where(target >= 0, 1.0, 0.5)
    x = steps.points(start)
    step = arm[:, None] * (steps.points(start + 2 * offset) - x)
    label = np.where(target >= 0, labels[target], 1)
    label, fraction = regions.crossings(x, step, np.ones(len(x), int), label)
    return DirectedEdges(source, target, offset, label, rate, rate, back, 1 / (arm * fraction))
