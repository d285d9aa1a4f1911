r"""A density π that is close to the stationary law, and the rates of a generator that are more accurate for it.

With u = ρ/π the current is J = F u - D π ∇u, where F = π (b - ∇·D - D ∇log π) is the current of π itself. Jumps along
the edges of the grid (`jump_edges`) carry -D π ∇u as in a reversible process with the law π. The flow Φ of F through
a face, integrated over the face, is added to the edge across it: with w the weight of that edge, D π area / dist,

    J_ij = w (B(-P) u_i - B(P) u_j),    P = Φ / w,    B(x) = x / (e^x - 1).

All rates are positive for any P. Since B(-P) - B(P) = P, u = 1 is stationary if the flows through the faces of each
cell add up to zero. If π is the stationary law they do, by Gauss's theorem, to the error of the quadrature: whatever
the tensor D, the law is then exact. If π is only close, u is nearly one, and what is left is the error of a smooth
factor.

Where a full tensor has no edge across a face, Φ goes one way, upwind. That is exact for u = 1, first order for others.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ..grid import Grid, evaluate, evaluate_batched
from ..process import AbstractDiffusion
from .coefficients import central_divergences, check_finite, diffusion_tensors
from .half_steps import HalfSteps
from .jump_edges import JumpEdges, jump_edges
from .tensor_rates import Diagonals, Faces
from .weights import bernoulli, edge_weights

# Gauss-Legendre nodes on a face, along each of its axes.
_nodes = 4

# A reference must be at least so much closer to stationary than a constant density. Of Gaussian laws of wrong width and
# correlation those below this lowered the error of the law, and those above twice this raised it.
_closer = 0.2

# The logarithm of the ratio of π at the ends of an edge counts as this at most: no mass is there.
_steepest = 300.0

# A flow below this fraction of the others is rounding.
_rounding = 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """What became of a reference: whether the generator uses it, and the numbers that decided.

    `residual` is E|∂t log π|, how fast the process would change π, under π itself and in 1 / time; `unaided` is the
    same for a constant density, which the scheme without a reference starts from. Both are nan if neither was needed.
    """

    log_density: Callable
    used: bool
    residual: float
    unaided: float

    def __str__(self) -> str:
        if np.isnan(self.residual):
            return "reference not used: the process is reversible, and its law follows from its rates"
        sizes = f"it changes at the rate {self.residual:.2g}, a constant density at {self.unaided:.2g}"
        return f"reference {'used' if self.used else 'not used'}: {sizes}"


def not_needed(log_density: Callable) -> Reference:
    """The reference of a reversible process."""
    return Reference(log_density, False, np.nan, np.nan)


def check_reference(log_density: Any, grid: Grid) -> None:
    """`TypeError` or `ValueError` for anything but a function of one point with one number."""
    if not callable(log_density):
        raise TypeError(
            f"`reference` must be a function of one point (d,), the logarithm of a density, got {log_density!r}."
        )
    value = jax.eval_shape(log_density, jax.ShapeDtypeStruct((grid.ndim,), jnp.float64))
    if getattr(value, "shape", None) != ():
        raise ValueError(f"`reference` must return one number, log π(x), for x of shape ({grid.ndim},), got {value}.")


def referred_rates(
    process: AbstractDiffusion,
    grid: Grid,
    boundary: tuple[str, ...],
    log_density: Callable,
    resolved: float,
    base: tuple[Faces, Faces, Diagonals | None],
) -> tuple[Reference, Faces, Faces, Faces, Diagonals | None]:
    """The verdict on the reference, and rates up, down, log ratios and diagonals with it, as in `Generator`.

    `base` are rates up, down and diagonals without it, of which those through absorbing faces are kept.
    """
    steps = HalfSteps.of(grid, tuple(kind == "periodic" for kind in boundary))
    log_at = _LogValues(log_density, steps)
    flows = [_face_flows(process, steps, log_density, log_at, k) for k in range(grid.ndim)]
    edges = _edges(process, steps, boundary)
    verdict = _verdict(log_density, steps, flows, log_at)
    up, down, ratios, carried = [a.copy() for a in base[0]], [a.copy() for a in base[1]], [], True
    # What flows over faces without an edge.
    upwind = tuple(tuple(np.zeros_like(a) for a in faces) for faces in base[:2])
    axial = np.sum(np.abs(edges.offset), axis=1) == 1
    for k in range(grid.ndim):
        mine = axial & (edges.offset[:, k] == 1)
        face = _inner_faces(steps, k)
        weight = np.zeros(up[k].shape)
        weight[tuple((edges.middle[mine] // 2).T)] = edges.weight[mine]
        index = tuple((face // 2).T)
        unit = np.eye(grid.ndim, dtype=np.int64)[k]
        w, flow = weight[index], flows[k][1]
        up[k][index], down[k][index], ratio, along = _rates(
            steps, resolved, log_at, face, np.broadcast_to(unit, face.shape), w, flow
        )
        for bare, rates in zip(upwind, (up, down), strict=True):
            bare[k][index] = np.where(w > 0, 0.0, rates[k][index])
        carried = carried and along
        shape = list(grid.shape)
        shape[k] -= int(not steps.periodic[k])
        ratios.append(ratio.reshape(shape))
    diagonals = base[2]
    if diagonals is not None:
        middle, offset, weight = (a[~axial] for a in (edges.middle, edges.offset, edges.weight))
        none = np.zeros(len(weight))
        forth, back, ratio, _ = _rates(steps, resolved, log_at, middle, offset, weight, none)
        source, target = steps.cells(middle - offset), steps.cells(middle + offset)
        lacking = None if carried else (upwind[0], upwind[1])
        leaving, exits = diagonals.leaving, diagonals.exits
        diagonals = Diagonals(source, target, offset, forth, back, ratio, leaving, exits, lacking)
    return verdict, tuple(up), tuple(down), tuple(ratios), diagonals


def _edges(process: AbstractDiffusion, steps: HalfSteps, boundary: tuple[str, ...]) -> JumpEdges:
    # Those between two cells of the grid.
    if steps.grid.ndim == 1:
        face = _inner_faces(steps, 0)
        weight = diffusion_tensors(process, steps.points(face))[:, 0, 0] / steps.sizes(face)[:, 0]
        return JumpEdges(face, np.ones_like(face), weight)
    edges = jump_edges(process, steps, tuple(kind == "absorbing" for kind in boundary))
    inner = (steps.cells(edges.middle - edges.offset) >= 0) & (steps.cells(edges.middle + edges.offset) >= 0)
    return JumpEdges(edges.middle[inner], edges.offset[inner], edges.weight[inner])


def _inner_faces(steps: HalfSteps, k: int) -> Int[np.ndarray, "n d"]:
    # In C order; the last one of a periodic axis leads to cell 0.
    return steps.faces(k, 1, steps.grid.shape[k] + int(steps.periodic[k]))


class _LogValues:
    """The log-density at half-steps, in a program for each power of two of them."""

    def __init__(self, log_density: Callable, steps: HalfSteps):
        self.steps, self.batched = steps, jax.jit(jax.vmap(log_density))

    def __call__(self, q: Int[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        points = self.steps.into_box(self.steps.points(q))
        padding = (1 << (len(points) - 1).bit_length()) - len(points)
        padded = np.pad(points, ((0, padding), (0, 0)), mode="edge")
        values = evaluate_batched(self.batched, padded)[: len(points)].astype(np.float64)
        check_finite("reference", values[:, None], points)
        return values


def _face_flows(
    process: AbstractDiffusion, steps: HalfSteps, log_density: Callable, log_at: _LogValues, k: int
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The flows of b - ∇·D and of F / π(middle) up through the inner faces of axis k, in volume per time."""
    face = _inner_faces(steps, k)
    others = [m for m in range(steps.grid.ndim) if m != k]

    def at(x):
        t = jnp.zeros((), x.dtype)
        tensor = lambda y: process.diffusion(t, y)  # noqa: E731
        divergence = jnp.trace(jax.jacfwd(tensor)(x), axis1=1, axis2=2)
        pull = tensor(x) @ jax.grad(log_density)(x)
        return jnp.stack([process.drift(t, x)[k], divergence[k], pull[k], log_density(x)])

    points, shares = _on_faces(steps, face, others)
    each = points.reshape(-1, steps.grid.ndim)
    drift, divergence, pull, log_pi = evaluate(at, each).T.astype(np.float64)
    rough = ~np.isfinite(divergence)
    if np.any(rough):
        size = np.broadcast_to(steps.sizes(face), points.shape).reshape(each.shape)
        divergence[rough] = central_divergences(process, each[rough], size[rough])[:, k]
    check_finite("reference", (drift - divergence - pull + log_pi)[:, None], each)
    rise = np.minimum(log_pi.reshape(points.shape[:2]) - log_at(face), _steepest)
    plain = shares @ (drift - divergence).reshape(points.shape[:2])
    referred = shares @ ((drift - divergence - pull).reshape(points.shape[:2]) * np.exp(rise))
    index = face // 2
    area = np.prod([np.diff(steps.grid.edges[m])[index[:, m]] for m in others], axis=0) if others else 1.0
    return plain * area, referred * area


def _on_faces(
    steps: HalfSteps, face: Int[np.ndarray, "n d"], along: list[int]
) -> tuple[Float[np.ndarray, "nodes n d"], Float[np.ndarray, " nodes"]]:
    """The nodes of a product rule on each face, which lies along those axes, and their shares of its area."""
    x, w = np.polynomial.legendre.leggauss(_nodes)
    x, w = 0.5 * (1 + x), 0.5 * w
    nodes = list(np.ndindex(*[_nodes] * len(along)))
    points = np.repeat(steps.points(face)[None], len(nodes), axis=0)
    for m, i in zip(along, np.transpose(nodes), strict=True):
        low, high = steps.grid.edges[m][face[:, m] // 2], steps.grid.edges[m][face[:, m] // 2 + 1]
        points[:, :, m] = low + x[i][:, None] * (high - low)
    return points, np.array([np.prod([w[i] for i in node]) for node in nodes])


def _verdict(log_density: Callable, steps: HalfSteps, flows: list, log_at: Callable) -> Reference:
    cells = np.stack(np.meshgrid(*[2 * np.arange(n) + 1 for n in steps.grid.shape], indexing="ij"), axis=-1)
    log_pi = log_at(cells.reshape(-1, steps.grid.ndim)).reshape(steps.grid.shape)
    top = np.max(log_pi)
    mass = np.exp(log_pi - top) * steps.grid.volumes
    net = np.zeros((2, *steps.grid.shape))
    for k, (plain, referred) in enumerate(flows):
        face = _inner_faces(steps, k)
        unit = np.eye(steps.grid.ndim, dtype=np.int64)[k]
        below, above = steps.cells(face - unit), steps.cells(face + unit)
        for total, flow in zip(net, (plain, referred * np.exp(log_at(face) - top)), strict=True):
            total += (np.bincount(above, flow, mass.size) - np.bincount(below, flow, mass.size)).reshape(mass.shape)
    # Next to walls, which no flow crosses, the sum is not the divergence.
    inner = tuple(slice(None) if wraps else slice(1, -1) for wraps in steps.periodic)
    total = mass[inner].sum()
    unaided = float(np.sum(mass[inner] / steps.grid.volumes[inner] * np.abs(net[0][inner])) / total)
    residual = float(np.sum(np.abs(net[1][inner])) / total)
    return Reference(log_density, residual <= _closer * unaided, residual, unaided)


def _rates(
    steps: HalfSteps,
    resolved: float,
    log_at: Callable,
    middle: Int[np.ndarray, "n d"],
    offset: Int[np.ndarray, "n d"],
    weight: Float[np.ndarray, " n"],
    flow: Float[np.ndarray, " n"],
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"], bool]:
    """Rates forth and back along edges, log(m_j / m_i) in balance on each, and whether no flow lacks an edge."""
    here, half, there = (log_at(q) for q in (middle - offset, middle, middle + offset))
    right, left = np.clip(half - here, -_steepest, _steepest), np.clip(there - half, -_steepest, _steepest)
    out, _ = edge_weights(right, left, resolved)
    w = weight * out * np.exp(-right)
    some = w > 0
    p = np.where(some, flow / np.where(some, w, 1.0), 0.0)
    forth = np.where(some, w * bernoulli(-p), np.maximum(flow, 0.0))
    back = np.where(some, w * bernoulli(p), np.maximum(-flow, 0.0))
    volumes = steps.grid.volumes.ravel()
    source, target = volumes[steps.cells(middle - offset)], volumes[steps.cells(middle + offset)]
    ratio = right + left + p + np.log(target / source)
    lacking = np.abs(flow[~some]) > _rounding * np.max(np.abs(flow), initial=0.0)
    return np.exp(right) * forth / source, np.exp(-left) * back / target, ratio, not np.any(lacking)
