r"""Transitions between two sets: which one is reached first, and how often the stationary process goes from a to b.

q⁺(x), the probability to reach b before a from x, solves L q⁺ = 0 with q⁺ = 0 on a and 1 on b. q⁻(x), the probability
to have come last from a, solves the same equation for the process run backwards in time, with q⁻ = 1 on a and 0 on b;
it is 1 - q⁺ under detailed balance. The paths that come from a and go on to b carry the reactive current

    J_ab = q⁻ q⁺ J + ρ D (q⁻ ∇q⁺ - q⁺ ∇q⁻),

J being the stationary one. The rate is what passes from a to b through any surface between them (E and Vanden-Eijnden,
J. Stat. Phys. 123, 2006; Metzner, Schütte and Vanden-Eijnden, Multiscale Model. Simul. 7, 2009).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Bool, Float
from scipy.special import logsumexp

from ..diagnosis import Diagnosis, accuracy, judged
from ..drawing import draw_field
from ..grid import Grid
from ..provenance import Provenance, made_by, recorded
from ..result import AbstractResult
from .assembly import Boundary, Generator, assemble_checked, checked_boundary, coarsen
from .cut_jumps import DirectedEdges
from .exit_time import coarse_difference
from .killed import Killed, killed
from .killed_solver import Solver, unresolved
from .line import Line, at_cells, lines
from .regions import Regions, members, neighbours
from .stationary import closed_law

# The labels of the sets.
_a, _b = 1, 2

# Rates are given if rounding changes them by less than this fraction.
_largest_noise = 1e-3


# How far from 0 and 1 rounding may take a probability.
_rounding = 1e-9


class _Reactive(NamedTuple):
    # q⁺, q⁻ and the rounding error of q⁺; the rate and its rounding error.
    forward: Float[np.ndarray, "*shape"]
    backward: Float[np.ndarray, "*shape"]
    noise: Float[np.ndarray, "*shape"]
    rate: float
    rate_noise: float
    current: Float[np.ndarray, "d *shape"]


class Committor(AbstractResult):
    """The committor from a to b: `values` is q⁺ at the cell centres, 0 in a and 1 in b; `backward` is q⁻.

    `rate` is the number of transitions from a to b per unit time in the stationary state. Divided by the part of time
    that the process was last in a, Σ q⁻ p, it is the rate constant. `current` is the reactive current at the cell
    centres, shape (d, *shape), in 1 / time and unit of area, averaged over the two faces and zero in a and b.

    `error` and `rate_error` estimate the errors of `values` and `rate`; nan where they are not known.
    """

    values: Float[np.ndarray, "*shape"]
    backward: Float[np.ndarray, "*shape"]
    rate: float
    current: Float[np.ndarray, "d *shape"]
    error: Float[np.ndarray, "*shape"]
    rate_error: float
    grid: Grid | None = None
    provenance: Provenance | None = eqx.field(static=True, default=None)

    def diagnose(self) -> Diagnosis:
        """Whether values are probabilities, and the rate is known to 1 %."""
        low, high = float(np.min(self.values)), float(np.max(self.values))
        inside = -_rounding < low and high < 1 + _rounding
        return Diagnosis(
            (
                judged("probabilities", inside, f"values from {low:.3g} to {high:.3g}", "Use cells half as wide"),
                accuracy("rate", self.rate, self.rate_error, "Use cells half as wide"),
            )
        )

    def plot(self, ax: Any = None) -> Any:
        """Draws the committor over the grid on `ax`, or on new axes, which are returned."""
        if self.grid is None:
            raise ValueError("`plot` needs the grid, but this committor was made without one.")
        return draw_field(self.grid, self.values, "committor", ax)

    def __str__(self) -> str:
        return f"Committor: {self.rate:.8g} ± {self.rate_error:.1g} transitions from a to b per time{made_by(self)}"


@recorded("process")
def committor(
    process: Any, grid: Grid, a: Callable, b: Callable, boundary: str | Sequence[str] = "no-flux"
) -> Committor:
    """The probability to reach the set where `b(x)` is true before that where `a(x)` is, and the rate of transitions.

    Both are JAX functions of one point (d,) with one boolean. `boundary` is "no-flux" or "periodic", or one an axis.
    The process need not be reversible. One to three dimensions.

    Boundaries of sets lie where the functions change between two cell centres, see `exit_time`. In one dimension, under
    detailed balance, all results are exact but for quadrature, of eighth order, with full relative accuracy down to
    1e-300; otherwise they are second order in the width of the cells. D may be any positive semidefinite tensor, as for
    `exit_time`; jumps along its diagonals must not lead from one set straight into the other.

    Raises `ValueError` if one of the sets has no cell, if they overlap or are not separated by free cells, and
    `ArithmeticError` if a result is below its rounding error.
    """
    kinds = checked_boundary(process, grid, boundary, most_axes=3)
    if "absorbing" in kinds:
        raise ValueError(
            f"`boundary` must be 'no-flux' or 'periodic' for a committor, but got {kinds!r}: where mass is lost there "
            "is no stationary state. Make the region where it is lost one of the sets."
        )
    regions = _regions(grid, kinds, a, b)
    generator = assemble_checked(process, grid, kinds)
    if grid.ndim == 1 and generator.reversible:
        return _on_line(process, grid, kinds, regions.labels, regions.axis_cuts()[0])
    found = _in_space(generator, regions)
    error, rate_error = _errors(generator, a, b, found, regions.labels == 0)
    error, rate_error = error + found.noise, rate_error + found.rate_noise
    return Committor(found.forward, found.backward, found.rate, found.current, error, rate_error, grid)


def _regions(grid: Grid, boundary: tuple[Boundary, ...], a: Callable, b: Callable) -> Regions:
    in_a, in_b = members("a", a, grid), members("b", b, grid)
    for name, there in (("a", in_a), ("b", in_b)):
        if not np.any(there):
            raise ValueError(
                f"`{name}` must hold at some cell centre, but holds at none of {grid}. Use more cells or a larger set."
            )
    if np.any(in_a & in_b):
        x = grid.points[in_a & in_b][0]
        raise ValueError(f"`a` and `b` must not overlap, but both hold at x={x}.")
    labels = np.where(in_a, _a, np.where(in_b, _b, 0))
    for k, kind in enumerate(boundary):
        pairs = neighbours(grid, kind, k)
        touch = labels.ravel()[pairs.below] + labels.ravel()[pairs.above] == _a + _b
        touch &= labels.ravel()[pairs.below] * labels.ravel()[pairs.above] > 0
        if np.any(touch):
            x = grid.points.reshape(-1, grid.ndim)[pairs.below[touch][0]]
            raise ValueError(
                f"`a` and `b` must be separated by cells in neither, but both hold next to each other near x={x}. Use "
                "more cells or smaller sets."
            )
    return Regions(grid, boundary, labels, (a, b))


def _on_line(process, grid, kinds, labels, cut) -> Committor:
    whole, fine = lines(process, grid, kinds, labels, cut, (1, 2))
    q, rate, net = _line_committor(fine, grid.size)
    rough_q, rough_rate, _ = _line_committor(whole, grid.size)
    q[labels == _b] = rough_q[labels == _b] = 1.0
    rounding = grid.size * np.finfo(np.float64).eps
    error = np.where(labels == 0, np.abs(q - rough_q) + rounding * q, 0.0)
    return Committor(q, 1 - q, rate, net[None], error, abs(rate - rough_rate) + rounding * rate, grid)


def _line_committor(chain: Line, size: int) -> tuple[Float[np.ndarray, " n"], float, Float[np.ndarray, " n"]]:
    # In a run from a to b, q is the part of the resistance e^(-Φ) R that lies behind, and the current that of one unit
    # of q over all of it. Where both ends are the same, so is q.
    log_resistance = chain.pieces.log_resistance - chain.potential[:-1]
    log_total = logsumexp(chain.log_mass + chain.potential)
    q, net, rate = np.zeros(size), np.zeros(size), 0.0
    for run in chain.components():
        ends = chain.ends(run)
        nodes = run.stop - run.start
        if ends not in ((_a, _b), (_b, _a)):
            at_cells(chain, run, np.full(nodes, float(_b in ends)), q)
            continue
        pieces = log_resistance[run.start - 1 : run.stop]
        behind = np.logaddexp.accumulate(pieces)[:-1]
        if ends == (_b, _a):
            behind = np.logaddexp.accumulate(pieces[::-1])[:-1][::-1]
        log_whole = logsumexp(pieces)
        at_cells(chain, run, np.exp(behind - log_whole), q)
        flux = float(np.exp(-log_whole - log_total))
        at_cells(chain, run, np.full(nodes, flux if ends == (_a, _b) else -flux), net)
        rate += flux
    if rate == 0 and {_a, _b} in [set(chain.ends(run)) for run in chain.components()]:
        raise ArithmeticError("The rate is below 1e-308, the smallest number of float64. Raise the noise.")
    return q, rate, net


def _in_space(generator: Generator, regions: Regions) -> _Reactive:
    chain, labels = killed(generator, regions), regions.labels
    edges = chain.edges
    mass = closed_law(generator).ravel()
    forward, noise = _hitting(generator, chain, mass, labels, _b)
    if generator.reversible:
        backward, backward_noise = 1 - forward, noise
    else:
        backward, backward_noise = _hitting(generator, chain.reversed(mass), mass, labels, _a)
    flow = _flow(edges, mass, forward, backward)
    gain = _at_end(edges, forward, _b) - forward[edges.source]
    # The flow is the same through all surfaces, so that it may be summed over all with the weights of the gain. Each
    # edge between free cells is there from both sides.
    weight = np.where(edges.label == 0, 0.5, 1.0)
    rate = float(np.sum(weight * flow * gain))
    spread = noise + backward_noise + np.finfo(np.float64).eps
    spread = spread[edges.source] + spread[edges.target]
    traffic = mass[edges.source] * edges.rate + mass[edges.target] * edges.back
    rate_noise = float(np.sum(weight * spread * (np.abs(flow) + traffic * (np.abs(gain) + spread))))
    if not rate_noise <= _largest_noise * rate:
        raise ArithmeticError(f"{unresolved} Here the rate is {rate:.2g}, and its rounding error {rate_noise:.2g}.")
    current = _at_centres(generator.grid, edges, flow)
    forward, backward, noise = (q.reshape(labels.shape) for q in (forward, backward, noise))
    return _Reactive(forward, backward, noise, rate, rate_noise, current)


def _hitting(
    generator: Generator, chain: Killed, mass, labels, target: int
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    # The probability to reach the target first, and its rounding error.
    solver = Solver(generator, chain, stretched=True, law=mass)
    found = solver.solve(chain.leaving(target, stretched=True))
    q, noise = (labels.ravel() == target).astype(float), np.zeros(labels.size)
    q[chain.free], noise[chain.free] = found, solver.noise(found)
    return q, noise


def _at_end(edges: DirectedEdges, q: Float[np.ndarray, " n"], target: int) -> Float[np.ndarray, " edges"]:
    # Where an edge ends: in a cell or, if it is cut, in a set.
    return np.where(edges.label == 0, q[edges.target], edges.label == target)


def _flow(edges: DirectedEdges, mass, forward, backward) -> Float[np.ndarray, " edges"]:
    # Net flow along each edge of paths that come from a and go on to b.
    i, j = edges.source, edges.target
    there = mass[i] * edges.rate
    # Over a piece as much returns as leaves, less the stationary current of the whole edge.
    back = mass[i] * (edges.rate - edges.whole) + mass[j] * edges.back
    return there * backward[i] * _at_end(edges, forward, _b) - back * _at_end(edges, backward, _a) * forward[i]


def _at_centres(grid: Grid, edges: DirectedEdges, flow: Float[np.ndarray, " edges"]) -> Float[np.ndarray, "d ..."]:
    current = np.zeros((grid.ndim, grid.size))
    for k in range(grid.ndim):
        current[k] = np.bincount(edges.source, 0.5 * edges.offset[:, k] * flow, grid.size)
    widths = [np.diff(e).reshape(-1, *[1] * (grid.ndim - k - 1)) for k, e in enumerate(grid.edges)]
    return current.reshape(grid.ndim, *grid.shape) * np.stack([w / grid.volumes for w in widths])


def _errors(
    generator: Generator, a: Callable, b: Callable, fine: _Reactive, free: Bool[np.ndarray, "..."]
) -> tuple[Float[np.ndarray, "..."], float]:
    # From cells twice as wide: a third of the change of values, and all of that of the rate, whose error depends on how
    # the boundaries cut the grid.
    unknown = np.where(free, np.nan, 0.0), np.nan
    if any(n % 2 or n < 4 for n in generator.grid.shape):
        return unknown
    try:
        wide = coarsen(generator)
        regions = _regions(wide.grid, wide.boundary, a, b)
        coarse = _in_space(wide, regions)
    except (ValueError, ArithmeticError):
        # The sets are too small for this grid.
        return unknown
    apart = coarse_difference(fine.forward, free, coarse.forward, regions.labels == 0)
    return apart / 3, abs(coarse.rate - fine.rate)
