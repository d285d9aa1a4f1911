r"""The law of a process that has not left a set for long: the slowest mode of the generator that is killed outside.

With A that generator, A ν = -λ ν for a law ν ≥ 0 on the set: a process with this law leaves at the rate λ at all times,
and any other law on the set comes close to it if it is connected. For a set that is left rarely, 1 / λ is the mean exit
time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from ..density import Density
from ..diagnosis import Diagnosis, accuracy
from ..drawing import draw_density
from ..grid import Grid
from ..provenance import Provenance, made_by, recorded
from ..result import AbstractResult
from .assembly import Generator, assemble_checked, checked_boundary
from .coefficients import coefficients
from .exit_time import on_wide_cells, outside
from .killed import Killed, killed
from .killed_solver import Solver, by_iterations
from .line import Line, lines, romberg
from .line_modes import line_modes, line_rates
from .regions import Regions
from .stationary import closed_law

# Rates of two grids are extrapolated if they differ by less than this fraction: then both are near convergence.
_extrapolation_limit = 0.1


class QuasiStationary(AbstractResult):
    """The quasi-stationary law of a set: `density`, zero outside, and the `rate` at which it leaves, in 1 / time.

    `error` estimates the error of `rate`; nan where it is not known.
    """

    rate: float
    error: float
    density: Density
    provenance: Provenance | None = eqx.field(static=True, default=None)

    def diagnose(self) -> Diagnosis:
        """Whether the rate is known to 1 %, and what is to be said of the law."""
        return Diagnosis(
            (accuracy("rate", self.rate, self.error, "Use cells half as wide"), *self.density.diagnose().findings)
        )

    def plot(self, ax: Any = None) -> Any:
        """Draws the density on `ax`, or on new axes, which are returned."""
        return draw_density(self.density, ax)

    def __str__(self) -> str:
        return f"QuasiStationary: rate {self.rate:.8g} ± {self.error:.1g}{made_by(self)}"


@recorded("process")
def quasi_stationary(
    process: Any, grid: Grid, inside: Callable, boundary: str | Sequence[str] = "no-flux"
) -> QuasiStationary:
    """The quasi-stationary law of the set in which `inside(x)` is true, and its rate of exit.

    Arguments are those of `exit_time`. If the set has several parts, the law is that of the part that is left slowest.

    In one dimension the rate is the squared singular value of a bidiagonal matrix, extrapolated to sixth order in the
    width of the cells: it keeps full relative accuracy down to 1e-300. In two and three dimensions it is extrapolated
    from this grid and one with cells twice as wide, of about third order for a smooth boundary, and `error` is the
    difference which that made. Masses are those of the density at cell centres, second order. D may be any positive
    semidefinite tensor, as for `exit_time`.

    Raises `ValueError` as `exit_time`, and `ArithmeticError` for rates below rounding, in more than one dimension.
    """
    kinds = checked_boundary(process, grid, boundary, most_axes=3)
    regions = outside(grid, kinds, inside)
    if grid.ndim == 1:
        return _on_line(process, grid, kinds, regions.labels, regions.axis_cuts()[0])
    generator = assemble_checked(process, grid, kinds)
    plain, noise, mass = _in_space(generator, regions)
    rate, error = _extrapolated(generator, inside, plain)
    return QuasiStationary(rate, error + noise, Density(grid, mass))


def _on_line(process, grid, kinds, labels, cut):
    chains = lines(process, grid, kinds, labels, cut)
    rates = np.array([[_chain_rate(c, run) for run in c.components()] for c in chains])
    limits, errors = romberg(rates)
    slowest = int(np.argmin(limits))
    fine = chains[-1]
    mass = _line_mass(process, grid, fine, fine.components()[slowest], rates[-1, slowest])
    return QuasiStationary(float(limits[slowest]), float(errors[slowest]), Density(grid, mass))


def _faces(chain: Line, run: slice) -> tuple[Float[np.ndarray, " faces"], Float[np.ndarray, " faces"]]:
    up, down = chain.rates(run)
    return np.append(0.0, up), np.append(down, 0.0)


def _chain_rate(chain: Line, run: slice) -> float:
    rate = float(line_rates(*_faces(chain, run), 1)[0])
    if not 0 < rate < np.inf:
        raise ArithmeticError(
            f"The rate of exit is {rate:.2g}, beyond what float64 holds: the set is practically never left. Raise the "
            "noise or make the set smaller."
        )
    return rate


def _line_mass(process, grid, chain, run, rate) -> Float[np.ndarray, " n"]:
    # The density e^Φ / D φ at the centres.
    phi = np.abs(line_modes(*_faces(chain, run), np.array([rate]))[0])
    cell, potential = chain.cell[run], chain.potential[run]
    cell, phi, potential = (a[cell >= 0] for a in (cell, phi, potential))
    diffusion = coefficients(process, grid.points[cell])[1][:, 0]
    with np.errstate(divide="ignore"):
        log_mass = np.log(phi) + potential + np.log(grid.volumes[cell] / diffusion)
    mass = np.zeros(grid.size)
    mass[cell] = np.exp(log_mass - np.max(log_mass))
    return mass / mass.sum()


def _in_space(generator: Generator, regions: Regions) -> tuple[float, float, Float[np.ndarray, "..."]]:
    # The rate, its rounding error and the masses.
    edges = killed(generator, regions)
    closed = closed_law(generator) if by_iterations(generator, edges) and not generator.reversible else None
    law = _law(generator, edges, closed)
    solver = Solver(generator, edges, stretched=True, law=closed)
    phi = solver.slowest()
    rate = float(law @ phi / (law @ solver.solve(phi, phi)))
    noise = float(law @ (solver.rounding * phi) / (law @ phi))
    mass = np.zeros(generator.grid.size)
    mass[edges.free] = law
    return rate, noise, mass.reshape(generator.grid.shape)


def _law(generator: Generator, edges: Killed, closed: Float[np.ndarray, "..."] | None) -> Float[np.ndarray, " free"]:
    if generator.log_weights is None:
        return Solver(generator, edges, stretched=False, transposed=True, law=closed).slowest()
    # Under detailed balance the law is the mode times the stationary law.
    log_weights = generator.log_weights.ravel()[edges.free]
    law = np.exp(log_weights - np.max(log_weights)) * Solver(generator, edges, stretched=False).slowest()
    return law / law.sum()


def _extrapolated(generator: Generator, inside: Callable, fine: float) -> tuple[float, float]:
    # To cells of width zero, and the difference that this made.
    found = on_wide_cells(generator, inside, lambda *args: _in_space(*args)[0])
    if found is None:
        return fine, np.nan
    coarse, _ = found
    change = (fine - coarse) / 3
    near = 3 * abs(change) <= _extrapolation_limit * fine
    return (fine + change, abs(change)) if near else (fine, 3 * abs(change))
