"""The law at later times: m(t) = exp(t A) m(0), by polynomials in A, or steps axis by axis or of any length."""

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import ArrayLike, Float

from ..density import Density
from ..diagnosis import Diagnosis, mass_conserved, mass_lost, not_negative
from ..drawing import draw_densities
from ..provenance import Provenance, made_by, recorded
from ..result import AbstractResult
from .assembly import Generator, check_generator
from .chebyshev_steps import ChebyshevSteps
from .contour_steps import ContourSteps
from .current import check_grid
from .krylov_steps import KrylovSteps
from .split_steps import SplitSteps

_smallest_rtol = 1e-12

# Below so many cells the factors of a few large systems cost less time than to compile what larger grids need.
_few = 1 << 12

# The same, without detailed balance: from so many cells on a Krylov space is cheaper than those factors.
_few_turning = 1 << 11

# An interval is a polynomial of the generator if it has at most about so many terms. If it would have more, steps axis
# by axis take less time; or, over a plane, the factors of a few large systems: as much as so many of these steps.
_most_products, _patience = 3000, 60


class Evolution(AbstractResult):
    """The law at the times `ts`, in units of the process's time.

    `densities[i]` is the law at `ts[i]`; mass that left through absorbing faces is in its `outside`. Before negative
    masses were set to zero, the smallest of all was `min_mass`; and the largest deviation of the total, in the grid and
    absorbed, from that of the start was `mass_error`.
    """

    ts: Float[np.ndarray, " s"]
    densities: tuple[Density, ...]
    mass_error: float
    min_mass: float
    provenance: Provenance | None = eqx.field(static=True, default=None)

    def diagnose(self) -> Diagnosis:
        """Whether mass was conserved and stayed positive, and how much of it is outside at the end."""
        lost = float(self.densities[-1].outside)
        return Diagnosis(
            (
                mass_conserved(self.mass_error),
                not_negative(self.min_mass),
                mass_lost("outside", lost, "outside at the end, absorbed or not in the grid from the start"),
            )
        )

    def plot(self, ax: Any = None) -> Any:
        """Draws the density of the first coordinate at up to six times on `ax`, or on new axes, which are returned."""
        return draw_densities(self.ts, self.densities, ax)

    def __str__(self) -> str:
        return (
            f"Evolution at {len(self.ts)} times from {self.ts[0]:.6g} to {self.ts[-1]:.6g}: mass error "
            f"{self.mass_error:.2g}, smallest mass {self.min_mass:.2g}, {self.densities[-1].outside:.3g} outside at "
            "the end"
        ) + made_by(self)


@recorded("generator")
def evolve(generator: Any, p0: Density, ts: ArrayLike | list | tuple, rtol: float = 1e-6) -> Evolution:
    """The law at the times `ts` of the process that starts from `p0` at time 0.

    `rtol` bounds the error in time, as the sum of |mass error| over the cells in each interval from `ts[i]` to
    `ts[i + 1]`; the grid's own error, second order in the cells, comes on top: at late times the law is that of
    `stationary` without `extrapolate`. It is largest far from equilibrium, where drift moves mass against the noise:
    with Ω = e·D⁻¹b for the step e to a neighbouring cell, drift is too strong by Ω²/24 (see `weights`), 6 % at Ω = 1.2.
    Compare with cells half as wide. Any interval is one step for a reversible process in one dimension, once a start
    far from equilibrium has come near it. In more dimensions it is one polynomial of the generator, compiled by JAX for
    the shape of the grid, if it is at most some million times the shortest time scale; beyond, steps are as long as
    `rtol` lets them, and grow as the law settles. Without detailed balance, and with a full D, a Krylov space grows
    until the result settles to `rtol`, and an interval is divided if it gets too large (on one axis, or below 2048
    cells: until two results agree). Equal intervals are cheapest: they share their matrix factors.

    Masses below zero, which the approximation may give, are set to zero and the rest rescaled, if all of them together
    are smaller than `rtol`; otherwise a `RuntimeError` is raised. `ValueError` for times that do not increase, an
    `rtol` out of [1e-12, 0.1] and a `p0` on another grid.
    """
    check_generator(generator)
    check_grid("p0", p0, generator)
    times = _checked_times(ts)
    if not _smallest_rtol <= rtol <= 0.1:
        raise ValueError(f"`rtol` must be from {_smallest_rtol:.0e} to 0.1, but got {rtol!r}.")
    mass, outside, last = p0.mass.ravel(), p0.outside, 0.0
    longest = float(np.max(np.diff(times, prepend=0.0)))
    stepper = _stepper(generator, rtol, mass, longest)
    total = mass.sum() + outside
    densities, mass_error, min_mass = [], 0.0, np.inf
    for t in times:
        if t > last:
            mass, outside, _ = stepper.advance(mass, outside, t - last)
        last = t
        mass_error = max(mass_error, abs(mass.sum() + outside - total))
        min_mass = min(min_mass, float(mass.min()))
        densities.append(_projected(generator, mass, outside, total, t, rtol))
    return Evolution(times, tuple(densities), float(mass_error), min_mass)


def _stepper(generator: Generator, rtol: float, start: Float[np.ndarray, " n"], longest: float) -> Any:
    fits = ChebyshevSteps.fits(generator)
    if generator.grid.ndim > 1 and not fits and generator.grid.size >= _few_turning:
        return KrylovSteps(generator, rtol)
    if generator.grid.ndim == 1 or not fits or generator.grid.size < _few:
        return ContourSteps(generator, rtol, start, longest)
    return _ByLength(generator, rtol, start, longest)


class _ByLength:
    """A polynomial for an interval; if it is too long for that, steps axis by axis; over a plane only so many of them,
    and then one of any length."""

    def __init__(self, generator: Generator, rtol: float, start: Float[np.ndarray, " n"], longest: float):
        self.arguments = generator, rtol, start, longest
        self.polynomials = ChebyshevSteps(generator, rtol)
        self.split: SplitSteps | None = None
        self.contour: ContourSteps | None = None

    def advance(
        self, mass: Float[np.ndarray, " n"], outside: float, h: float
    ) -> tuple[Float[np.ndarray, " n"], float, float]:
        """The mass in the cells and outside after an interval h, of which nothing is left to do."""
        if self.polynomials.products(h) <= _most_products:
            mass, outside, h = self.polynomials.advance(mass, outside, h)
        generator, rtol, *_ = self.arguments
        if h > 0 and self.contour is None:
            self.split = self.split or SplitSteps(generator, rtol, _patience if generator.grid.ndim == 2 else np.inf)
            mass, outside, h = self.split.advance(mass, outside, h)
        if h > 0:
            self.contour = self.contour or ContourSteps(*self.arguments)
            mass, outside, h = self.contour.advance(mass, outside, h)
        return mass, outside, h


def _checked_times(ts) -> Float[np.ndarray, " s"]:
    times = np.asarray(ts, dtype=np.float64)
    if times.ndim != 1 or times.size == 0 or not np.all(np.isfinite(times)):
        raise ValueError(f"`ts` must be a list of finite times, but got {ts!r}.")
    if times[0] < 0 or np.any(np.diff(times) <= 0):
        raise ValueError(f"`ts` must start at 0 or later and increase, but got {times}. The start `p0` is at time 0.")
    return times


def _projected(
    generator: Generator, mass: Float[np.ndarray, " n"], outside: float, total: float, t: float, rtol: float
) -> Density:
    # The nearest density: masses below zero are errors of the approximation, and so is any change of the total.
    below = -mass[mass < 0].sum()
    if not below <= rtol or outside < -rtol:
        raise RuntimeError(
            f"At t={t:.6g} the masses below zero sum to {-below:.2g} and {outside:.2g} is outside, beyond rtol={rtol}. "
            "Please report this with the process and the grid; a smaller `rtol` may help."
        )
    mass, outside = np.maximum(mass, 0.0), max(outside, 0.0)
    scale = total / (mass.sum() + outside)
    return Density(generator.grid, (mass * scale).reshape(generator.grid.shape), outside * scale)
