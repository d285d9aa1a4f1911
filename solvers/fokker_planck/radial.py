r"""Rotationally symmetric processes in any number of dimensions d, by the law of the distance r from the origin.

If b = b(r) x/r and D = D_r(r) x xᵀ/r² + D_t(r) (I - x xᵀ/r²), then r is a diffusion on the half line,

    dr = (b + (d - 1) D_t / r) dt + √(2 D_r) dB,

and functions φ(r) Y(x/r), with Y a spherical harmonic of angular number l, stay of this form: φ decays under the
generator of r with a killing term l (l + d - 2) D_t / r². The spectrum of the process is that of all l together.
"""

import dataclasses
import math
import time
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..axes import axes_or_new
from ..diagnosis import Diagnosis, accuracy, finite, judged
from ..drawing import solved
from ..grid import Grid, evaluate
from ..process import AbstractDiffusion, as_operator, noise_structure
from ..provenance import Provenance, made_by, provenance_of
from ..result import AbstractResult
from .assembly import Generator, assemble_checked, checked_boundary
from .line import romberg
from .line_modes import line_modes, line_rates
from .radial_exit import exit_times
from .tails import essential_threshold, warn_above
from .weights import resolved_edge

# Drift and noise must agree in two directions to this fraction of their size.
_symmetry_tolerance = 1e-9

# Radii and directions at which symmetry is tested.
_probed_radii, _probed_directions = 7, 4

# Area over volume of the innermost shell is 2^(d - 1) times that of its centre: beyond this, it overflows.
_most_dimensions = 1000


class RadialPart(AbstractDiffusion):
    """The diffusion of r = |x| on the half line, for a rotationally symmetric process in R^d."""

    process: AbstractDiffusion
    along: Float[Array, " d"]
    across: Float[Array, " d"]

    @property
    def dimension(self) -> int:
        """d."""
        return self.along.size

    @property
    def surface_power(self) -> int:
        """Near 0, the drift over D is this over r."""
        return self.dimension - 1

    def parts(self, t, r) -> tuple[Array, Array, Array]:
        """b, D_r and D_t at the distance r."""
        x = r * self.along
        transpose = self.process.noise(t, x).T
        radial, tangential = (0.5 * jnp.sum(transpose.mv(e) ** 2) for e in (self.along, self.across))
        return self.process.drift(t, x) @ self.along, radial, tangential

    def drift(self, t, x):
        b, _, tangential = self.parts(t, x[0])
        return jnp.array([b + (self.dimension - 1) * tangential / x[0]])

    def noise(self, t, x):
        return as_operator(jnp.sqrt(2 * self.parts(t, x[0])[1]), x)


class RadialExitTime(NamedTuple):
    """Mean times `values` to reach a distance, from the centres of the cells, and estimates `error` of their errors."""

    values: Float[np.ndarray, " n"]
    error: Float[np.ndarray, " n"]


class RadialSpectrum(AbstractResult):
    """The slowest decay rates among functions φ(r) Y(x/r) of one angular number l, ascending; l = 0 starts with 0.

    `rates` are extrapolated to cells of width zero from this grid and those with cells two and four times as wide, to
    sixth order; `error` is the difference that the last step made, and far larger than the error as a rule. `threshold`
    is where the continuous spectrum of these functions starts: rates above belong to the box. `multiplicity` is the
    number of such functions Y. `modes[n]` is φ_n at the centres, largest value 1.
    """

    rates: Float[np.ndarray, " k"]
    error: Float[np.ndarray, " k"]
    modes: Float[np.ndarray, "k n"]
    angular: int = eqx.field(static=True)
    multiplicity: int = eqx.field(static=True)
    threshold: float = eqx.field(static=True)
    provenance: Provenance | None = eqx.field(static=True, default=None)

    def diagnose(self) -> Diagnosis:
        """Whether rates are finite, known to 1 % each, and below the continuous spectrum."""
        found = [finite("rates", self.rates)]
        for n, (rate, error) in enumerate(zip(self.rates, self.error, strict=True)):
            if n > 0 or self.angular > 0:
                found.append(accuracy(f"rate {n}", float(rate), float(error), "Use cells half as wide"))
        above = int(np.sum(self.rates >= self.threshold))
        text = f"{above} of {len(self.rates)} rates are at or above {self.threshold:.6g}, where it starts"
        return Diagnosis(
            (*found, judged("continuous spectrum", above == 0, text, "Those belong to the box: ask for fewer"))
        )

    def plot(self, ax: Any = None) -> Any:
        """Draws the rates with their errors on `ax`, or on new axes, which are returned."""
        ax = axes_or_new(ax)
        ax.errorbar(np.arange(len(self.rates)), self.rates, self.error, color=solved, marker="s", linestyle="")
        ax.set(xlabel="mode", ylabel="decay rate")
        return ax

    def __str__(self) -> str:
        shown = ", ".join(f"{r:.8g} ± {e:.1g}" for r, e in zip(self.rates, self.error, strict=True))
        return f"RadialSpectrum, l = {self.angular}: rates {shown}; continuous from {self.threshold:.6g}{made_by(self)}"


@dataclasses.dataclass(frozen=True, eq=False)
class Radial:
    """The law of r = |x| on a half line: `generator` is for `stationary`, `evolve` and `current`, in masses of shells.

    The density of x itself is that of r divided by the surface of the sphere.
    """

    generator: Generator
    part: RadialPart

    @property
    def dimension(self) -> int:
        """The number d of dimensions of the process."""
        return self.part.dimension

    def spectrum(self, l: int = 0, k: int = 3) -> RadialSpectrum:  # noqa: E741
        """The `k` slowest rates of angular number `l`, to high relative accuracy however small.

        Warns (`UserWarning`) of rates at or above the threshold of the continuous spectrum. Raises `ValueError` if l is
        negative, or the grid has not 4 k cells and a number that can be divided by 4.
        """
        began, d, grid = time.perf_counter(), self.dimension, self.generator.grid
        if int(l) != l or l < 0:
            raise ValueError(f"`l` must be a whole number from 0 on, got {l!r}.")
        if grid.size % 4 or int(k) != k or not 1 <= k <= grid.size // 4:
            raise ValueError(
                f"`k` must be from 1 to a quarter of the number of cells, and that number a multiple of 4, for the "
                f"extrapolation; got k={k!r} and {grid.size} cells."
            )
        chains = [_chain(self.part, g, wide, int(l)) for g, wide in _wider(grid)]
        rates, error = romberg(np.stack([line_rates(up, down, int(k)) for up, down, _ in chains]))
        up, down, scale = chains[-1]
        modes = line_modes(up, down, line_rates(up, down, int(k))) * scale
        modes /= np.max(np.abs(modes), axis=1, keepdims=True)
        threshold = self._threshold(int(l))
        warn_above(rates, threshold)
        seconds = time.perf_counter() - began
        made = provenance_of("solvers.fokker_planck.Radial.spectrum", self.part.process, d, np.float64, None, seconds)
        return RadialSpectrum(rates, error, modes, int(l), _multiplicity(d, int(l)), threshold, made)

    def exit_time(self, radius: float) -> "RadialExitTime":
        """Mean times to reach |x| = `radius` from the centres of the cells, 0 for those beyond it, and their errors.

        By quadrature on panels of their own: the grid tells only from where. Raises `ArithmeticError` beyond 1e308.
        """
        centres = self.generator.grid.centres[0]
        if not centres[0] < radius < np.inf:
            raise ValueError(
                f"`radius` must be finite and above the first centre of the grid, {centres[0]:.6g}, got {radius!r}."
            )
        inside = int(np.searchsorted(centres, radius))
        values, errors = np.zeros((2, centres.size))
        values[:inside], errors[:inside] = exit_times(self.part, centres[:inside], float(radius))
        return RadialExitTime(values, errors)

    def _threshold(self, l: int) -> float:  # noqa: E741
        edge = essential_threshold(self.part, scale=self.generator.grid.edges[0][-1] * _far)
        if not l or edge == np.inf:
            return edge
        far = self.generator.grid.edges[0][-1:] * _farther
        return edge + float(_killing(self.part, far, l)[0])

    def __str__(self) -> str:
        return f"Radial part of a process in {self.dimension} dimensions; {self.generator}"


# The tail is looked at from this fraction of the reach of the grid on; D_t / r² is taken that much farther out.
_far, _farther = 0.1, 1e4


def radial(process: Any, grid: Grid, d: int) -> Radial:
    """The radial part of a rotationally symmetric process in R^`d`, on a `grid` of one axis that starts at r = 0.

    `Grid.half_line`, or another grid whose points are the images of equal steps under an odd function, keeps the order
    of the extrapolation. The outer end reflects. Symmetry is tested in random directions at several
    radii.

    Raises `ValueError` for a process without this symmetry and for grids and `d` that do not fit.
    """
    if int(d) != d or not 2 <= d <= _most_dimensions:
        raise ValueError(f"`d` must be a whole number from 2 to {_most_dimensions}, got {d!r}.")
    if grid.ndim != 1 or grid.edges[0][0] != 0:
        raise ValueError(f"`grid` must have one axis, that of r, and start at r = 0, but got {grid}.")
    noise_structure(process, jnp.zeros(int(d)))
    part = RadialPart(process, *jnp.asarray(_directions(int(d), 2, seed=0)[0]))
    _check_symmetry(process, grid, int(d))
    kinds = checked_boundary(part, grid, "no-flux")
    return Radial(assemble_checked(part, grid, kinds, masses="cells"), part)


def _directions(d: int, vectors: int, seed: int, sets: int = 1) -> Float[np.ndarray, "sets vectors d"]:
    # Sets of orthonormal vectors.
    normal = np.random.default_rng(seed).standard_normal((sets, d, vectors))
    return np.linalg.qr(normal)[0].swapaxes(1, 2)


def _check_symmetry(process: AbstractDiffusion, grid: Grid, d: int) -> None:
    """Drift along x, D x along x, and the same values in other directions."""
    frames = _directions(d, min(d, 3), 1, _probed_directions)
    radii = grid.centres[0][np.linspace(0, grid.size - 1, _probed_radii).astype(int)]
    t = jnp.zeros(())
    axes = frames.shape[1]
    for r in radii:
        found = []
        for frame in frames:
            x = jnp.asarray(r * frame[0])
            transpose = process.noise(t, x).T
            images = np.stack([np.asarray(transpose.mv(jnp.asarray(e))) for e in frame])
            tensor = 0.5 * images @ images.T
            b = np.asarray(process.drift(t, x))
            found.append(np.concatenate([frame @ b, [np.linalg.norm(b - (frame[0] @ b) * frame[0])], tensor.ravel()]))
        found = np.array(found)
        wanted = found[0].copy()
        wanted[1 : axes + 1] = 0.0
        tangential = wanted[-1]
        wanted[axes + 1 :] = np.diag([wanted[axes + 1], *[tangential] * (axes - 1)]).ravel()
        size = np.repeat(
            [np.max(np.abs(found[:, : axes + 1])), np.max(np.abs(found[:, axes + 1 :]))], [axes + 1, axes * axes]
        )
        if np.any(np.abs(found - wanted) > _symmetry_tolerance * size):
            raise ValueError(
                f"`process` is not rotationally symmetric: at r = {r:.6g} drift or noise are not the same in all "
                "directions, or the drift is not along x. Use a grid of as many axes as the process has, or simulate "
                "particles with `solvers.sde.simulate`."
            )


def _wider(grid: Grid) -> list[tuple[Grid, int]]:
    half = grid.coarsen()
    return [(half.coarsen(), 4), (half, 2), (grid, 1)]


def _chain(
    part: RadialPart,
    grid: Grid,
    wide: int,
    l: int,  # noqa: E741
) -> tuple[Float[np.ndarray, " faces"], Float[np.ndarray, " faces"], Float[np.ndarray, " n"]]:
    r"""Jump rates of a chain without killing inside, with the rates of the killed one, and h: its modes are h φ.

    -L + κ is FᵀF for the factor that elimination from below gives without a subtraction: with σ_0 = κ_0 and

        σ_{i+1} = κ_{i+1} + down_{i+1} σ_i / (up_i + σ_i)

    it is that of a chain with rates up_i + σ_i and down_{i+1} up_i / (up_i + σ_i), absorbed at its upper end.
    """
    generator = assemble_checked(part, grid, ("no-flux",), wide * resolved_edge, "points")
    up, down = generator.up[0].copy(), generator.down[0].copy()
    if not l:
        return up, down, np.ones(grid.size)
    killing = _killing(part, grid.centres[0], l)
    sigma, log_h = killing[0], np.zeros(grid.size)
    for i in range(grid.size - 1):
        total = up[i + 1] + sigma
        log_h[i + 1] = log_h[i] + np.log(total / up[i + 1])
        sigma = killing[i + 1] + down[i + 1] * (sigma / total)
        up[i + 1], down[i + 1] = total, down[i + 1] * (up[i + 1] / total)
    up[-1] = sigma
    return up, down, np.exp(log_h - np.max(log_h))


def _killing(part: RadialPart, r: Float[np.ndarray, " n"], l: int) -> Float[np.ndarray, " n"]:  # noqa: E741
    tangential = evaluate(lambda x: part.parts(jnp.zeros(()), x[0])[2], r[:, None])
    return l * (l + part.dimension - 2) * tangential / r / r


def _multiplicity(d: int, l: int) -> int:  # noqa: E741
    # Spherical harmonics: homogeneous polynomials of degree l without multiples of r².
    return math.comb(d + l - 1, l) - (math.comb(d + l - 3, l - 2) if l > 1 else 0)
