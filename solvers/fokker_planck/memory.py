"""Whether a generator fits in memory, before any of it is computed."""

import os

from ..grid import Grid

# Bytes for each cell while a generator is assembled, by the number of axes. The peak of the process rose by 1.8e3 and
# 1.5e3 in the plane (512², 1024²), and by 2.3e3 and 1.8e3 in space (64³, 128³); with a full tensor by 3.4e3 in the
# plane and 7e3 to 9.6e3 in space.
_bytes_per_cell = {1: 1e3, 2: 2e3, 3: 2.5e3}
_bytes_per_cell_of_full_tensors = {1: 1e3, 2: 4e3, 3: 1.2e4}

# The share of the machine's memory that a generator may take: its factors need several times as much as the matrix.
_share = 0.5


def check_fits(grid: Grid, full_tensor: bool = False) -> None:
    """`MemoryError` for a grid whose generator would take more than half of the machine's memory."""
    needed = grid.size * (_bytes_per_cell_of_full_tensors if full_tensor else _bytes_per_cell)[grid.ndim]
    there = _installed()
    if needed > _share * there:
        raise MemoryError(
            f"A generator on {grid}, {grid.size} cells, takes about {needed / 2**30:.2g} GiB to assemble, more than "
            f"half of this machine's {there / 2**30:.2g} GiB. Use fewer cells along some axis, a stretched grid, or a "
            "process reduced to fewer dimensions."
        )


def _installed() -> float:
    return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")
