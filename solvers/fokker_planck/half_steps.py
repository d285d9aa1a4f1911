"""Points of a grid counted in half cells: the centre of cell i at q = 2i + 1, the face between cells i - 1 and i at 2i.

On periodic axes q goes on beyond the box; on others it stops at the walls.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Num

from ..grid import Grid


@dataclasses.dataclass(frozen=True, eq=False)
class HalfSteps:
    """A grid in half steps, with a True for each axis that is periodic.

    `positions[k]` are the coordinates of q = 0, 1, ..., 2 cells on axis k, and `widths[k]` how much x changes from
    q - 1 to q + 1: of a cell at its centre, from centre to centre at a face, and of two half cells at a wall.
    """

    grid: Grid
    periodic: tuple[bool, ...]
    positions: tuple[Float[np.ndarray, "..."], ...]
    widths: tuple[Float[np.ndarray, "..."], ...]

    @staticmethod
    def of(grid: Grid, periodic: tuple[bool, ...]) -> "HalfSteps":
        """The half steps of a grid."""
        positions, widths = [], []
        for e, c, wraps in zip(grid.edges, grid.centres, periodic, strict=True):
            x = np.empty(2 * c.size + 1)
            x[::2], x[1::2] = e, c
            width = np.empty_like(x)
            width[1:-1] = x[2:] - x[:-2]
            first, last = c[0] - e[0], e[-1] - c[-1]
            width[[0, -1]] = (first + last, first + last) if wraps else (2 * first, 2 * last)
            positions.append(x)
            widths.append(width)
        return HalfSteps(grid, periodic, tuple(positions), tuple(widths))

    def points(self, q: Num[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """The points at half steps q, linear in between; beyond the box on periodic axes."""
        return np.stack([self._point(k, q[:, k]) for k in range(self.grid.ndim)], axis=1)

    def _point(self, k: int, q: Num[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        x = self.positions[k]
        turns, within = np.divmod(q, x.size - 1) if self.periodic[k] else (0, q)
        return np.interp(within, np.arange(x.size), x) + turns * (x[-1] - x[0])

    def sizes(self, q: Int[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """The widths at half steps q."""
        within = self.inside(q)
        return np.stack([self.widths[k][within[:, k]] for k in range(self.grid.ndim)], axis=1)

    def inside(self, q: Int[np.ndarray, "n d"]) -> Int[np.ndarray, "n d"]:
        """The same half steps on periodic axes, and the nearest ones on others, from 0 to 2 cells."""
        last = 2 * np.array(self.grid.shape)
        return np.where(self.periodic, q % last, np.clip(q, 0, last))

    def cells(self, q: Int[np.ndarray, "n d"]) -> Int[np.ndarray, " n"]:
        """The flat indices of the cells with centres at q, -1 outside the box."""
        last = 2 * np.array(self.grid.shape)
        here = np.all(self.periodic | ((q > 0) & (q < last)), axis=1)
        index = np.where(self.periodic, q % last, np.clip(q, 1, last - 1)) // 2
        return np.where(here, np.ravel_multi_index(tuple(index.T), self.grid.shape), -1)

    def into_box(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """Points beyond the faces of periodic axes, brought back."""
        low = np.array([e[0] for e in self.grid.edges])
        span = np.array([e[-1] for e in self.grid.edges]) - low
        return np.where(self.periodic, low + (x - low) % span, x)

    def faces(self, k: int, first: int, stop: int) -> Int[np.ndarray, "n d"]:
        """The middles of the faces `first` to `stop` - 1 of axis k, in C order; face i is below cell i."""
        along = [2 * np.arange(n) + 1 for n in self.grid.shape]
        along[k] = 2 * np.arange(first, stop)
        return lattice(along)


def lattice(along: Sequence[Int[np.ndarray, " _"]]) -> Int[np.ndarray, "n d"]:
    """All points with coordinates from these lists, one an axis, in C order."""
    return np.stack(np.meshgrid(*along, indexing="ij"), axis=-1).reshape(-1, len(along))
