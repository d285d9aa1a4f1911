r"""What a box cuts off a law: mass and moments beyond its faces, and the box that would hold more.

Beyond a face of axis k the marginal law is continued with drift and noise along the ray x_k = c_k ± r, from the middle
c of the law through the cell of most mass. Where nothing flows along that ray

    d log π / dr = ± b_k / D_kk - d log D_kk / dr,

exactly so at detailed balance if D is diagonal. In several dimensions a marginal falls more slowly than the density on
a ray if the law widens with r, as r^δ with 0 <= δ < d; δ is what the slopes of the two differ by at the face.
"""

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from ..axes import axes_or_new
from ..density import Density
from ..diagnosis import Diagnosis, finite, mass_lost
from ..drawing import solved
from ..provenance import Provenance, made_by, recorded
from ..result import AbstractResult
from .assembly import Generator, check_generator
from .current import check_grid
from .process_values import at_points, drift_and_tensor

# Distances from the middle grow by this factor from one to the next, up to 10^20 times that of the face.
_factor, _steps = 1.02, 2326

# A tail whose mass, or moment, beyond r falls no faster than this power of r at the end of the ray has none.
_no_power = 1e-2
_last = 50


class CutOff(AbstractResult):
    """What lies beyond the low and the high face of each axis, if the law went on as drift and noise have it.

    `mass` is its probability, `second_moment` is ∫ (x_k - c_k)² ρ over it, c the median: `inf` where it does not exist,
    nan where drift or noise are not finite beyond the face, and 0 for faces that are not walls. Walls that are part of
    the model cut nothing off, whatever is written here. `box` holds (low, high) for each axis, beyond which each tail
    has at most the mass `outside`.
    """

    mass: Float[np.ndarray, "d 2"]
    second_moment: Float[np.ndarray, "d 2"]
    box: Float[np.ndarray, "d 2"]
    outside: float
    provenance: Provenance | None = eqx.field(static=True, default=None)

    def diagnose(self) -> Diagnosis:
        """Whether the box holds the law, and second moments exist beyond it."""
        return Diagnosis(
            (
                mass_lost("cut off", float(np.nansum(self.mass)), "beyond the box"),
                finite("second moments beyond the box", self.second_moment),
            )
        )

    def plot(self, ax: Any = None) -> Any:
        """Draws the mass beyond each face on `ax`, or on new axes, which are returned."""
        ax = axes_or_new(ax)
        names = [f"$x_{k + 1}$ {end}" for k in range(len(self.mass)) for end in ("low", "high")]
        ax.bar(names, self.mass.ravel(), color=solved)
        ax.set(ylabel="mass beyond the face", yscale="log" if np.any(self.mass > 0) else "linear")
        return ax

    def __str__(self) -> str:
        spans = " × ".join(f"[{low:.6g}, {high:.6g}]" for low, high in self.box)
        return (
            f"CutOff: about {np.nansum(self.mass):.2g} of the mass is beyond the box; {spans} would leave out "
            f"{self.outside:.2g} at each face{made_by(self)}"
        )


@recorded("generator")
def cut_off(generator: Any, p: Density, outside: float = 1e-9) -> CutOff:
    """Mass and second moments of the stationary law `p` of `generator` beyond its box, and a box that leaves less out.

    An estimate: of second order in the width of the outermost cells for reversible processes with a diagonal D in one
    dimension, and for products; a guide otherwise.

    Raises `ValueError` for densities on another grid, and if `outside` is not a mass between 0 and 1.
    """
    check_generator(generator)
    check_grid("p", p, generator)
    if not 0 < outside < 1:
        raise ValueError(f"`outside` must be a mass between 0 and 1, got {outside!r}.")
    d = p.grid.ndim
    found = np.zeros((3, d, 2))
    for k, kind in enumerate(generator.boundary):
        for side in (0, 1):
            found[2, k, side] = p.grid.edges[k][-side]
            if kind == "no-flux":
                found[:, k, side] = _beyond(generator, p, k, side, outside)
    mass, second_moment, box = found
    return CutOff(mass, second_moment, box, outside)


def _beyond(generator: Generator, p: Density, k: int, side: int, outside: float) -> tuple[float, float, float]:
    marginal, sign = p.marginal(k), 2 * side - 1
    edges, centres = p.grid.edges[k], p.grid.centres[k]
    middle = float(np.interp(0.5 * marginal.mass.sum(), marginal.cdf(), edges))
    face, (outer, inner) = edges[-side], (centres[-side], centres[-2 if side else 1])
    density, before = marginal.pdf[-side], marginal.pdf[-2 if side else 1]
    if density == 0:
        return 0.0, 0.0, face
    r = sign * (face - middle) * _factor ** (0.5 * np.arange(2 * _steps + 1))
    force, diffusion = _along(generator, p, k, middle + sign * r, sign)
    usable = np.isfinite(force) & (diffusion > 0)
    far = (int(np.argmin(usable)) if not np.all(usable) else len(r)) // 2
    if far <= _last:
        return np.nan, np.nan, np.nan
    # Simpson's rule in log r.
    turn = force * r
    steps = np.log(_factor) / 6 * (turn[:-2:2] + 4 * turn[1:-1:2] + turn[2::2])
    log_ray = np.append(0.0, np.cumsum(steps))[:far] - np.log(diffusion[::2][:far] / diffusion[0])
    r = r[::2][:far]
    slope = np.log(before / density) / np.log((outer - middle) / (inner - middle)) if before > 0 else 0.0
    widens = np.clip(slope - (log_ray[0] - log_ray[1]) / np.log(_factor), 1 - p.grid.ndim, 0.0)
    log_tail = log_ray - widens * np.log(r / r[0])
    at_face = density * (sign * (face - middle) / (sign * (outer - middle))) ** -slope
    mass = _integrals(at_face, r, log_tail, 0)
    second = _integrals(at_face, r, log_tail, 2)
    less = np.flatnonzero(mass <= outside)
    reach = r[less[0]] if less.size else np.inf
    return float(mass[0]), float(second[0]), float(middle + sign * reach)


def _along(
    generator: Generator, p: Density, k: int, x: Float[np.ndarray, " n"], sign: int
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    # b_k / D_kk outwards, and D_kk.
    heaviest = np.unravel_index(int(np.argmax(p.mass)), p.grid.shape)
    points = np.repeat(p.grid.points[heaviest][None], len(x), axis=0)
    points[:, k] = x
    drift, tensor = at_points(drift_and_tensor, generator.process, points)
    with np.errstate(all="ignore"):
        return sign * drift[:, k] / tensor[:, k, k], tensor[:, k, k]


def _integrals(
    at_face: float, r: Float[np.ndarray, " n"], log_tail: Float[np.ndarray, " n"], power: int
) -> Float[np.ndarray, " n"]:
    """∫ r^power ρ dr from each r on; inf if it does not exist."""
    log_terms = log_tail + (1 + power) * np.log(r)
    if (log_terms[-1] - log_terms[-1 - _last]) / (_last * np.log(_factor)) > -_no_power:
        return np.full(len(r), np.inf)
    terms = at_face * np.exp(log_terms)
    # What is left beyond the last one of a power law is terms / index.
    pieces = 0.5 * (terms[:-1] + terms[1:]) * np.log(_factor)
    return np.append(np.cumsum(pieces[::-1])[::-1], 0.0)
