r"""The decay rates of a process and their modes: Lφ_n = -λ_n φ_n with L the backward generator, the transpose of A.

E[φ_n(X_t) | X_0 = x] = e^(-λ_n t) φ_n(x), and a law relaxes as ρ(t) = ρ_∞ (1 + Σ c_n e^(-λ_n t) φ_n).
"""

import math
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float, Inexact

from .._tracing import Numbers, is_traced, namespace
from ..axes import axes_or_new
from ..density import Density
from ..diagnosis import Diagnosis, accuracy, finite, unknown
from ..drawing import solved
from ..provenance import Provenance, made_by, recorded
from ..result import AbstractResult
from .assembly import Generator, check_generator, coarsen
from .krylov_modes import krylov_rates_and_modes
from .line_modes import line_modes, line_rates
from .stationary import closed_law, truncated_mass
from .tails import box_threshold, warn_above
from .traced_generator import TracedGenerator
from .traced_spectrum import slowest_rates

# Rates of two grids are extrapolated if they differ by less than this fraction: then both are near convergence.
_extrapolation_limit = 0.1

# A box with less than this mass beyond its faces holds the tails: walls closer in are part of the model.
_held = 1e-3

# What walls change in a rate, in units of the share of its mode that they cut off: for an Ornstein-Uhlenbeck process
# between walls at 2.5 to 4.5 standard deviations it was 1.0 to 1.5.
_cut_off_share = 2.0

# Walls beyond which there would be as much mass as this are not there to cut off tails: they are part of the model.
_model = 0.1

# A second step of the extrapolation is made if it changes a rate by at most this fraction of what the first one did.
_shrinks = 0.5

# The sign of a mode is read where |φ| sqrt(π) exceeds this fraction of its largest value.
_sign_fraction = 0.5


class Spectrum(AbstractResult):
    """The slowest decay rates λ_n of a process, in 1 / time, ascending.

    `rates` are extrapolated to cells of width zero from this grid and one with cells twice as wide, wherever these two
    agree to 10 %, and on a line from one with cells four times as wide, too, if its number of cells allows that: fourth
    and sixth order. `matrix_rates` are those of the generator's matrix itself. `error` estimates the error of `rates`
    due to the width of the cells, as the difference that the last step of the extrapolation made, to rounding, and to
    walls that cut off the tails of a mode: twice the rate times the share of E_π φ² that would lie beyond them, by
    `truncated_mass`, unless a tenth of the mass would, as between walls that are part of the model. It is nan if the
    grid could not be coarsened. While JAX traces the process it holds the first part alone, due to the width of the
    cells.

    `modes[n]` is φ_n at the cell centres, normalised to E_π φ² = 1 under `weights`, the stationary law (with absorbing
    faces closed), and positive in the last cell, in C order, at which |φ| sqrt(π) is above half its maximum.
    """

    rates: Inexact[Numbers, " k"]
    matrix_rates: Inexact[Numbers, " k"]
    error: Float[Numbers, " k"]
    _modes: Inexact[np.ndarray, "k ..."] | None
    weights: Float[Numbers, "..."]
    conserving: bool = eqx.field(static=True)
    provenance: Provenance | None = eqx.field(static=True, default=None)

    @property
    def modes(self) -> Inexact[np.ndarray, "k ..."]:
        """φ_n at the cell centres, one after another. `NotImplementedError` while JAX traces the process."""
        if self._modes is None:
            raise NotImplementedError(
                "`modes` have no derivatives, and are not known while JAX traces the process (`jax.grad`, `jit` or "
                "`vmap`). Give `assemble` a process of numbers to see them; `rates` and `gap` have derivatives."
            )
        return self._modes

    @property
    def gap(self) -> Any:
        """The real part of the slowest rate that is not zero: a float, or a traced number."""
        first = int(self.conserving)
        if len(self.rates) <= first:
            raise ValueError("Only the rate 0 was computed. Call `spectrum` with k of at least 2.")
        gap = self.rates[first].real
        return gap if is_traced(gap) else float(gap)

    def diagnose(self) -> Diagnosis:
        """Whether rates are finite, and known to 1 % each."""
        found = [finite("rates", self.rates)]
        for n, (rate, error) in enumerate(zip(self.rates, self.error, strict=True)):
            if n >= int(self.conserving):
                found.append(accuracy(f"rate {n}", abs(rate), float(error), "Use cells half as wide, or a larger box"))
        if len(found) == 1:
            found.append(unknown("gap", "only the rate 0 was computed: call `spectrum` with k of at least 2"))
        return Diagnosis(tuple(found))

    def plot(self, ax: Any = None) -> Any:
        """Draws the real parts of the rates with their errors on `ax`, or on new axes, which are returned."""
        ax = axes_or_new(ax)
        error = np.nan_to_num(np.abs(self.error))
        ax.errorbar(np.arange(len(self.rates)), np.real(self.rates), error, color=solved, marker="s", linestyle="")
        ax.set(xlabel="mode", ylabel="decay rate")
        return ax

    def __str__(self) -> str:
        shown = ", ".join(f"{r:.8g} ± {e:.1g}" for r, e in zip(self.rates, self.error, strict=True))
        return f"Spectrum: rates {shown}{made_by(self)}"


@recorded("generator")
def spectrum(generator: Any, k: int = 5) -> Spectrum:
    """The `k` slowest decay rates of the process and their modes; the first is 0 unless mass can leave.

    In one dimension (not periodic) rates are the squared singular values of a bidiagonal matrix of square roots of
    jump rates, found by bisection to high relative accuracy however small: gaps of 1e-28 are right to many digits.
    In two and three dimensions a Krylov method finds the eigenvalues of smallest modulus; a rate that is nothing but
    rounding there (about 1e-15 of the jump rates, averaged over the mode) raises a `RuntimeError`. Rates are complex
    only for a process without detailed balance that oscillates; they are sorted by their real part among those of
    smallest modulus, so that a slow mode that turns fast may be missed: ask for more. On large grids (from 6e4 cells in
    the plane and 8e3 in space, D diagonal) the method is Davidson's with multigrid, which looks for the smallest real
    parts; its modes are right where there is mass, and it raises `ArithmeticError` if a mode is not found or has a
    residual above 1e-9 of its traffic.

    If JAX traces the process (`jax.grad`, `jit`, `vmap`), `rates` and `gap` have first derivatives with respect to the
    numbers it holds; rates are then complex but on a line with two ends, and there are no `modes` and no warning. The
    derivative of a rate is defined where it is simple. For equal rates it is right if they change alike, as the rates
    of equal and independent coordinates; where they cross, `gap` has none.

    A continuous spectrum (heavy tails) shows up as close rates that depend on the reach of the grid. In one dimension
    its threshold is found from the tails, and a `UserWarning` says which rates are at or above it.

    Raises `ValueError` if k is below 1 or above half the number of cells.
    """
    traced = isinstance(generator, TracedGenerator)
    if not traced:
        check_generator(generator)
    size = generator.grid.size
    if int(k) != k or not 1 <= k <= size // 2:
        raise ValueError(f"`k` must be a whole number from 1 to {size // 2}, half the number of cells, but got {k!r}.")
    if traced:
        return _traced(generator, int(k))
    weights = closed_law(generator)
    matrix_rates, modes, noise = _rates_and_modes(generator, int(k), weights)
    rates, error = _extrapolated(generator, matrix_rates)
    if (
        _is_line(generator)
        and generator.conserving
        and np.max(truncated_mass(Density(generator.grid, weights))) < _held
    ):
        warn_above(rates, box_threshold(generator.process, generator.grid))
    modes = _normalised(modes, weights)
    error = error + noise + _cut_off_share * np.abs(rates) * _cut_off(generator, modes, weights)
    return Spectrum(rates, matrix_rates, error, modes, weights, generator.conserving)


def _rates_and_modes(
    generator: Generator, k: int, weights: Float[np.ndarray, "..."]
) -> tuple[Inexact[np.ndarray, " k"], Inexact[np.ndarray, "k ..."], Float[np.ndarray, " k"]]:
    if _is_line(generator):
        up, down = generator.up[0], generator.down[0]
        rates = line_rates(up, down, k)
        return rates, line_modes(up, down, rates), generator.grid.size * np.finfo(np.float64).eps * rates
    rates, modes, noise = krylov_rates_and_modes(generator, k, weights)
    return rates, modes.reshape(k, *generator.grid.shape), noise


def _cut_off(
    generator: Generator, modes: Inexact[np.ndarray, "k ..."], weights: Float[np.ndarray, "..."]
) -> Float[np.ndarray, " k"]:
    """The share of each mode's E_π φ² beyond the no-flux faces, if it went on as it ends there."""
    tails = truncated_mass(Density(generator.grid, weights)) < _model
    tails &= np.array([kind == "no-flux" for kind in generator.boundary])[:, None]
    squares = [np.where(weights > 0, np.abs(mode), 0.0) ** 2 * weights for mode in modes]
    return np.array([truncated_mass(Density(generator.grid, s / s.sum()))[tails].sum() for s in squares])


def _is_line(generator: Generator) -> bool:
    return generator.grid.ndim == 1 and generator.boundary != ("periodic",)


def _extrapolated(
    generator: Generator, fine: Inexact[np.ndarray, " k"]
) -> tuple[Inexact[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    found = [fine]
    for _ in range(_coarser_grids(generator.grid.shape, len(fine), _is_line(generator))):
        generator = coarsen(generator)
        found.append(_matrix_rates(generator, len(fine)))
    return _limit(found)


def _matrix_rates(generator: Generator, k: int) -> Inexact[np.ndarray, " k"]:
    if _is_line(generator):
        return line_rates(generator.up[0], generator.down[0], k)
    return krylov_rates_and_modes(generator, k, closed_law(generator))[0]


def _coarser_grids(shape: tuple[int, ...], k: int, is_line: bool) -> int:
    # How many grids with cells 2 and, on a line, 4 times as wide there are for k rates.
    if any(n % 2 or n < 4 for n in shape) or k > math.prod(shape) // 2 ** (len(shape) + 1):
        return 0
    return 2 if is_line and shape[0] % 4 == 0 and k <= shape[0] // 8 else 1


def _limit(found: list[Inexact[Numbers, " k"]]) -> tuple[Inexact[Numbers, " k"], Float[Numbers, " k"]]:
    """Rates extrapolated from those on the grid and on grids with cells 2 and 4 times as wide, and their error."""
    fine = found[0]
    if len(found) < 2:
        return fine, np.full(len(fine), np.nan)
    xp, coarse = namespace(fine), found[1]
    change = fine - coarse
    near = xp.abs(change) <= _extrapolation_limit * xp.abs(fine)
    rates = xp.where(near, fine + change / 3, fine)
    error = xp.where(near, xp.abs(change) / 3, xp.abs(change))
    if len(found) < 3:
        return rates, error
    further = (rates - coarse - (coarse - found[2]) / 3) / 15
    small = xp.abs(further) <= _shrinks * error
    return xp.where(small, rates + further, rates), xp.where(small, xp.abs(further), error)


def _traced(generator: TracedGenerator, k: int) -> Spectrum:
    layout = generator.layout
    fine, weights = slowest_rates(generator, k)
    found = [fine]
    for _ in range(_coarser_grids(generator.grid.shape, k, layout.is_line)):
        generator = generator.coarsen()
        found.append(slowest_rates(generator, k)[0])
    rates, error = _limit(found)
    return Spectrum(rates, fine, error, None, weights, layout.conserving)


def _normalised(modes: Inexact[np.ndarray, "k ..."], weights: Float[np.ndarray, "..."]) -> Inexact[np.ndarray, "k ..."]:
    result = np.empty_like(modes)
    for n, mode in enumerate(modes):
        # A cell without mass has no say, even where the mode overflows it.
        weighted = np.where(weights > 0, np.abs(mode), 0.0) * np.sqrt(weights)
        there = np.flatnonzero(weighted > _sign_fraction * weighted.max())[-1]
        phase = mode.flat[there] / np.abs(mode.flat[there])
        result[n] = mode / (phase * np.sqrt(np.sum(weighted**2)))
    return result
