"""The flows of a density along the diagonals of a generator, as flows through faces."""

import itertools

import numpy as np
from jaxtyping import Float, Int

from ..grid import Grid
from .tensor_rates import Diagonals


def through_faces(
    diagonals: Diagonals, grid: Grid, boundary: tuple[str, ...], mass: Float[np.ndarray, "..."]
) -> tuple[Float[np.ndarray, "..."], ...]:
    """The net flow up through the faces of each axis, in probability per time.

    A jump along a diagonal goes cell by cell along one axis after the other, an equal part of it in each order of the
    axes: then what flows into a cell minus what flows out is its gain, exactly, and the flow is second order. What
    leaves through an absorbing face goes straight to it.
    """
    net = [np.zeros([n + int(m == k) for m, n in enumerate(grid.shape)]) for k in range(grid.ndim)]
    flow = _net_flow(diagonals, mass)
    orders = list(itertools.permutations(range(grid.ndim)))
    for order in orders:
        cell = np.stack(np.unravel_index(diagonals.source, grid.shape), axis=1)
        for k in order:
            _walk(net[k], k, cell, diagonals.offset[:, k], flow / len(orders), boundary[k] == "periodic")
    for k, leaving in enumerate(diagonals.leaving):
        # Each face towards the wall carries what leaves from all cells before it.
        low, high = np.moveaxis(leaving * mass, k + 1, -1)
        along = np.moveaxis(net[k], k, -1)
        along[..., 1:] += np.cumsum(high, axis=-1)
        along[..., :-1] -= np.cumsum(low[..., ::-1], axis=-1)[..., ::-1]
    return tuple(net)


def _net_flow(diagonals: Diagonals, mass: Float[np.ndarray, "..."]) -> Float[np.ndarray, " n"]:
    """Mass per time from the source to the target of each diagonal."""
    flat = mass.ravel()
    return diagonals.forth * flat[diagonals.source] - diagonals.back * flat[diagonals.target]


def _walk(
    net: Float[np.ndarray, "..."],
    k: int,
    cell: Int[np.ndarray, "n d"],
    steps: Int[np.ndarray, " n"],
    flow: Float[np.ndarray, " n"],
    periodic: bool,
) -> None:
    # Moves the cells by so many steps along axis k, and adds the flow to the faces on the way.
    cells, sign = net.shape[k] - 1, np.sign(steps)
    for step in range(int(np.max(np.abs(steps), initial=0))):
        on = np.abs(steps) > step
        face = cell[on]
        face[:, k] += sign[on] > 0
        if periodic:
            # Face 0 is the last one, as in the rates of the generator.
            face[:, k] = np.where(face[:, k] == 0, cells, face[:, k])
        np.add.at(net, tuple(face.T), (sign * flow)[on])
        cell[on, k] += sign[on]
        if periodic:
            cell[on, k] %= cells
