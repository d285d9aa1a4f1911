r"""Jumps between neighbours that spread like those along diagonals: multigrid for full tensors has them for a guide.

A jump over e cells at the rate k spreads by k e_k² along axis k, and counts as so many jumps over one cell. What is
left out are the off-diagonal entries of D: with correlation c the two operators differ by factors from 1 - c to 1 + c
in the plane, and GMRES with multigrid for the one takes about sqrt((1 + c) / (1 - c)) times as many steps for the
other.
"""

from typing import Any

import numpy as np
import scipy.sparse
from jaxtyping import Float

from .assembly import Generator
from .jumps import Jumps

# From so many cells on, by the number of axes. Elimination takes longer, but any correlation.
many_full = {1: np.inf, 2: 1_000_000, 3: 20_000}

# The logarithm of the largest ratio of two masses.
_largest_log = 300.0


def axis_jumps(matrix: scipy.sparse.csr_array, periodic: tuple[bool, ...], log_mass: Float[np.ndarray, "..."]) -> Jumps:
    """The jumps for -L = `matrix` on all cells, rows for functions; where `log_mass` is -inf cells are alone.

    Jumps towards cells that are alone count as killed. So does what a row has on its diagonal beyond its jumps, if it
    is positive.
    """
    shape, n = log_mass.shape, log_mass.size
    entries: Any = matrix.tocoo()
    source, target = entries.coords
    off = source != target
    source, target, rate = source[off], target[off], np.maximum(-entries.data[off], 0.0)
    step = np.stack(np.unravel_index(target, shape)) - np.stack(np.unravel_index(source, shape))
    for k, wraps in enumerate(periodic):
        if wraps:
            step[k] = (step[k] + shape[k] // 2) % shape[k] - shape[k] // 2
    killed = np.maximum(matrix.diagonal() - np.bincount(source, rate, n), 0.0).reshape(shape)
    alone, ups, downs = np.isneginf(log_mass), [], []
    for k in range(len(shape)):
        spreads = []
        for sign in (1, -1):
            there = sign * step[k] > 0
            through = np.bincount(source[there], rate[there] * step[k, there] ** 2, n).reshape(shape)
            if not periodic[k]:
                np.moveaxis(through, k, 0)[-1 if sign > 0 else 0] = 0.0
            lost = np.roll(alone, -sign, axis=k)
            killed += np.where(lost, through, 0.0)
            spreads.append(np.where(lost | alone, 0.0, through))
        up, down = _in_balance(spreads[0], np.roll(spreads[1], -1, axis=k), log_mass, np.roll(log_mass, -1, axis=k))
        ups.append(up)
        downs.append(np.roll(down, 1, axis=k))
    return Jumps(tuple(ups), tuple(downs), killed, log_mass)


def _in_balance(up, down, log_mass, log_mass_above):
    # Detailed balance with the geometric mean of both: what circulates is not a matter of neighbours alone, and a rate
    # that is left out one way may leave a coarse cell without any.
    with np.errstate(invalid="ignore"):
        # Cells that are alone have no ratio, and no rates.
        root = np.exp(0.5 * np.clip(log_mass_above - log_mass, -_largest_log, _largest_log))
    both = np.sqrt(up * down)
    return np.where(both > 0, both * root, 0.0), np.where(both > 0, both / root, 0.0)


def reversed_matrix(generator: Generator, log_mass: Float[np.ndarray, "..."]) -> scipy.sparse.csr_array:
    """-L of the process that runs backwards in time in the law π = exp(log_mass): the rates π_j k_ji / π_i."""
    entries: Any = generator.matrix.tocoo()
    log_mass = log_mass.ravel()
    # A ratio of two masses in a first guess may be anything.
    log_ratio = np.minimum(log_mass[entries.col] - log_mass[entries.row], _largest_log)
    data = -entries.data * np.exp(log_ratio)
    return scipy.sparse.csr_array((data, (entries.row, entries.col)), shape=entries.shape)


def wraps(generator: Generator) -> tuple[bool, ...]:
    """Which axes are periodic."""
    return tuple(kind == "periodic" for kind in generator.boundary)
