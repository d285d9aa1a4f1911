"""The probability current of a density, and how much entropy it produces."""

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from ..density import Density
from ..diagnosis import Diagnosis, finite
from ..drawing import draw_arrows
from ..grid import Grid
from ..provenance import Provenance, made_by, recorded
from ..result import AbstractResult
from . import diagonal_flows
from .assembly import Generator, check_generator

# Traffic below this is the underflow of masses near 1e-300, whose ratios mean nothing.
_negligible_traffic = 1e-280


class Current(AbstractResult):
    """The probability current J = b ρ - ∇·(D ρ), in probability per time and unit of area.

    `faces[k]` is J_k through the faces of axis k, with one entry more than cells along that axis; `vectors` is J at
    the cell centres, shape (d, *shape), averaged over the two faces. Jumps along the diagonals of a full tensor go
    from cell to cell through faces, so that the flows into each cell sum to its gain.

    `entropy_production` is the total rate Σ (k_ij m_i - k_ji m_j) log(k_ij m_i / (k_ji m_j)) over pairs of cells, in
    units of 1 / time; it is zero if and only if there is detailed balance, and infinite if mass meets an empty cell or
    drifts where there is no diffusion. Absorbing faces do not enter it.
    """

    faces: tuple[Float[np.ndarray, "..."], ...]
    vectors: Float[np.ndarray, "d ..."]
    entropy_production: float
    grid: Grid | None = None
    provenance: Provenance | None = eqx.field(static=True, default=None)

    def diagnose(self) -> Diagnosis:
        """Whether the current and the entropy production are finite."""
        return Diagnosis((finite("currents and entropy production", self.vectors, np.array(self.entropy_production)),))

    def plot(self, ax: Any = None) -> Any:
        """Draws the current on `ax`, or on new axes, which are returned; on one or two axes of the state."""
        if self.grid is None:
            raise ValueError("`plot` needs the grid, but this current was made without one.")
        return draw_arrows(self.grid, self.vectors, "probability current", ax)

    def __str__(self) -> str:
        largest = float(np.max(np.linalg.norm(self.vectors, axis=0)))
        return (
            f"Current: at most {largest:.6g} per area, entropy production {self.entropy_production:.6g} per time"
            f"{made_by(self)}"
        )


@recorded("generator")
def current(generator: Any, p: Density) -> Current:
    """The current of the density `p`, which must live on the grid of `generator`.

    In the stationary law of a reversible process it is zero up to rounding.
    """
    check_generator(generator)
    check_grid("p", p, generator)
    grid, diagonals = generator.grid, generator.diagonals
    flows = None if diagonals is None else diagonal_flows.through_faces(diagonals, grid, generator.boundary, p.mass)
    faces, vectors, production = [], [], 0.0
    for k, kind in enumerate(generator.boundary):
        net, rate = _through_faces(generator, k, np.moveaxis(p.mass, k, -1))
        if flows is not None:
            net = net + np.moveaxis(flows[k], k, -1)
        if kind == "periodic":
            net[..., 0] = net[..., -1]
        area = (np.moveaxis(grid.volumes, k, -1) / np.diff(grid.edges[k]))[..., :1]
        density = net / area
        faces.append(np.moveaxis(density, -1, k))
        vectors.append(np.moveaxis(0.5 * (density[..., 1:] + density[..., :-1]), -1, k))
        production += rate
    return Current(tuple(faces), np.stack(vectors), production + _along_diagonals(generator, p.mass), grid)


def check_grid(name: str, p: Density, generator: Generator) -> None:
    """Raise unless the density lives on the generator's grid."""
    same = p.grid.shape == generator.grid.shape and all(
        np.array_equal(a, b)
        for a, b in zip(p.grid.edges + p.grid.centres, generator.grid.edges + generator.grid.centres, strict=True)
    )
    if not same:
        raise ValueError(
            f"`{name}` must be a density on the grid of `generator`, {generator.grid}, but it lives on {p.grid}. "
            "Build both from the same `Grid`."
        )


def _through_faces(
    generator: Generator, k: int, mass: Float[np.ndarray, "..."]
) -> tuple[Float[np.ndarray, "..."], float]:
    # The net flow up through each face of axis k, and the entropy that the flows between cells produce.
    up, down = (np.moveaxis(r[k], k, -1) for r in (generator.up, generator.down))
    below = np.concatenate([mass[..., -1:], mass], axis=-1)
    above = np.concatenate([mass, mass[..., :1]], axis=-1)
    forth, back = up * below, down * above
    net = forth - back
    ratio = np.moveaxis(generator.log_ratios[k], k, -1)
    inner = slice(1, ratio.shape[-1] + 1)
    forth, back, below, above = (a[..., inner] for a in (forth, back, below, above))
    return net, _production(forth, back, below, above, ratio)


def _along_diagonals(generator: Generator, mass: Float[np.ndarray, "..."]) -> float:
    # The entropy that the flows along diagonals produce. Where drift goes one way, no force is large enough.
    diagonals, flat = generator.diagonals, mass.ravel()
    if diagonals is None:
        return 0.0
    if not diagonals.carried:
        return np.inf
    low, high = flat[diagonals.source], flat[diagonals.target]
    return _production(diagonals.forth * low, diagonals.back * high, low, high, diagonals.log_ratio)


def _production(
    forth: Float[np.ndarray, "..."],
    back: Float[np.ndarray, "..."],
    below: Float[np.ndarray, "..."],
    above: Float[np.ndarray, "..."],
    ratio: Float[np.ndarray, "..."],
) -> float:
    # The entropy that flows forth and back between pairs of masses produce; `ratio` is log(above / below) in balance.
    both = (below > 0) & (above > 0)
    force = ratio + np.log(np.where(both, below, 1.0)) - np.log(np.where(both, above, 1.0))
    # forth - back = forth (1 - e^-force): written so that flow and force have the same sign in rounding.
    flow = np.where(force > 0, -forth * np.expm1(-np.abs(force)), back * np.expm1(np.minimum(force, 0.0)))
    production = float(np.sum(np.where(both, flow * force, 0.0)))
    if np.any(~both & (forth + back > _negligible_traffic)):
        production = np.inf
    return production
