r"""The stationary law of an irreversible process on a large grid, improved by factors that multigrid finds.

With a law π that is nearly stationary, masses m = π u solve A m = 0 where u, nearly one, solves Σ_j k̂_ij (u_i - u_j) +
κ_i u_i = 0. Here k̂_ij = π_j k_ji / π_i are the jumps of the process that runs backwards in time in π, and κ = -A π / π
vanishes when π is right: then this is the system that multigrid is for. The first π comes from cells twice as wide.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from .assembly import Generator, coarsen
from .axis_jumps import axis_jumps, reversed_matrix, wraps
from .gmres import dot, gmres
from .jumps import Jumps, generator_jumps
from .multigrid import Multigrid

# Improvements at most; they end when no mass above exp(-700) changes by more than this fraction.
_most, _settled, _least_log = 40, 1e-6, -700.0

# The error of u, as a fraction of it; and the largest factor by which a mass changes at a time.
_tolerance, _largest_factor = 1e-4, 4.0

# A ratio of two masses in a first guess may be anything; it counts as this at most, as a logarithm.
_largest_log = 300.0


def multilevel_log_law(
    generator: Generator, solve: Callable[[Generator], Float[np.ndarray, " n"]], many: int
) -> Float[np.ndarray, "..."]:
    """The logarithm of the stationary masses. Below `many` cells, or if these can't be halved, `solve` gives masses."""
    grid = generator.grid
    if grid.size < many or not halves(generator):
        return np.log(np.maximum(solve(generator), np.finfo(np.float64).tiny)).reshape(grid.shape)
    wide = coarsen(generator)
    density = multilevel_log_law(wide, solve, many) - np.log(wide.grid.volumes)
    for k in range(grid.ndim):
        density = _between(density, k)
    return balanced(generator, density + np.log(grid.volumes))


def reversed_jumps(generator: Generator, log_mass: Float[np.ndarray, "*shape"]) -> Jumps:
    """The jumps of the process that runs backwards in time in the law π = exp(log_mass): rates π_j k_ji / π_i.

    What the rates out of a cell then lack counts as killed: what faces absorb and, if π is not quite stationary,
    -A π / π.
    """
    return _reversed(generator_jumps(generator, np.zeros(generator.grid.shape), log_mass), log_mass)


def halves(generator: Generator) -> bool:
    """Whether there is a grid with cells twice as wide."""
    return all(n % 2 == 0 and n >= 4 for n in generator.grid.shape)


def balanced(generator: Generator, log_mass: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """The logarithm of the stationary masses, up to a constant, from a guess."""
    forward = generator_jumps(generator, np.zeros(generator.grid.shape), log_mass)
    for _ in range(_most):
        if generator.diagonals is None:
            back = _reversed(forward, log_mass)
            change = _correction(back.matrix(), back, back.killed)
        else:
            matrix = reversed_matrix(generator, log_mass)
            back = axis_jumps(matrix, wraps(generator), log_mass)
            change = _correction(matrix, back, (matrix @ np.ones(log_mass.size)).reshape(log_mass.shape))
        log_mass = log_mass + np.log(np.clip(1 + change, 1 / _largest_factor, _largest_factor))
        log_mass = log_mass - np.max(log_mass)
        if np.max(np.abs(change), where=log_mass > _least_log, initial=0.0) <= _settled:
            break
    return log_mass


def _between(a, k):
    # Linear between the middles of cells twice as wide.
    a = np.moveaxis(a, k, 0)
    steps = np.diff(a, axis=0)
    fine = np.empty((2 * len(a), *a.shape[1:]))
    fine[::2] = a - 0.25 * np.concatenate([steps[:1], steps])
    fine[1::2] = a + 0.25 * np.concatenate([steps, steps[-1:]])
    return np.moveaxis(fine, 0, k)


def _correction(matrix, back: Jumps, killed: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    # u - 1. For multigrid what is lost and what is won are left out: it needs an M-matrix.
    inverse = Multigrid(Jumps(back.up, back.down, np.zeros_like(back.killed), back.log_mass))
    mass = np.exp(back.log_mass.ravel())
    mass /= mass.sum()
    # Constants are neither in the range of the matrix nor of interest.
    centred = lambda u: u - dot(mass, u)  # noqa: E731
    f = -killed.ravel()
    change, _, _ = gmres(matrix, lambda r: centred(inverse(centred(r))), f, np.zeros_like(f), _tolerance)
    return change.reshape(killed.shape)


def _reversed(forward: Jumps, log_mass: Float[np.ndarray, "..."]) -> Jumps:
    up, down = [], []
    for k, (u, d) in enumerate(zip(forward.up, forward.down, strict=True)):
        ratio = np.roll(log_mass, -1, axis=k) - log_mass
        # Where nothing jumps the ratio has no say: it may be that of two ends.
        up.append(_times(np.roll(d, -1, axis=k), ratio))
        down.append(_times(np.roll(u, 1, axis=k), -np.roll(ratio, 1, axis=k)))
    lost = forward.leaving - np.sum([*up, *down], axis=0)
    return Jumps(tuple(up), tuple(down), lost, log_mass)


def _times(rate, log_factor):
    there = rate > 0
    log_rate = np.log(np.where(there, rate, 1.0)) + log_factor
    return np.where(there, np.exp(np.minimum(log_rate, _largest_log)), 0.0)
