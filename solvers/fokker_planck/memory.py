"""Whether a generator fits in memory, before any of it is computed."""

import os

from ..grid import Grid

# Bytes for each cell while a generator is assembled: the peak of the process rose by 3.4e3 (full tensor) and 3.8e3
# (diagonal) in the plane and by 9.6e3 in space.
_bytes_per_cell = {1: 1e3, 2: 4e3, 3: 1.2e4}

# The share of the machine's memory that a generator may take: its factors need several times as much as the matrix.
_share = 0.5


def check_fits(grid: Grid) -> None:
    """`MemoryError` for a grid whose generator would take more than half of the machine's memory."""
    needed = grid.size * _bytes_per_cell[grid.ndim]
    there = _installed()
    if needed > _share * there:
        raise MemoryError(
            f"A generator on {grid}, {grid.size} cells, takes about {needed / 2**30:.2g} GiB to assemble, more than "
            f"half of this machine's {there / 2**30:.2g} GiB. Use fewer cells along some axis, a stretched grid, or a "
            "process reduced to fewer dimensions."
        )


def _installed() -> float:
    return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")
