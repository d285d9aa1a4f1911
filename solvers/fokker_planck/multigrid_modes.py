r"""Decay rates and modes of a reversible process on a large grid, by Davidson's method with multigrid."""

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jaxtyping import Float

from .assembly import Generator
from .davidson import slowest
from .gmres import gmres
from .jumps import generator_jumps
from .multigrid import Multigrid

# More starting vectors than modes: one of several equal rates is not missed.
_extra = 3

# The error of the polished modes.
_tolerance = 1e-10

# Steps of polishing, and the change that ends it.
_most_polishing, _settled = 3, 1e-6


def multigrid_rates_and_modes(
    generator: Generator, k: int
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "k n"], Float[np.ndarray, " k"]]:
    """The k slowest rates, their modes, and the mean rates of jumps Σ π φ² k, whose rounding is that of the rates."""
    assert generator.log_weights is not None
    jumps = generator_jumps(generator, np.zeros(generator.grid.shape), generator.log_weights)
    matrix, inverse = jumps.matrix(), Multigrid(jumps)
    mass = np.exp(generator.log_weights.ravel())
    mass /= mass.sum()
    zeros = int(generator.conserving)
    rates, modes = np.zeros(zeros), np.ones((zeros, mass.size))
    if k > zeros:
        found = slowest(matrix, inverse, _start(inverse, mass, k - zeros + _extra), mass, k - zeros, bool(zeros))
        rates, modes = np.append(rates, found[0]), np.concatenate([modes, found[1]])
    for i in range(zeros, k):
        modes[i] = _polished(matrix, inverse, mass, rates[i], modes[i], modes[:i])
        rates[i] = _dirichlet(jumps, mass, modes[i])
    return rates, modes, (modes**2 * mass) @ jumps.leaving.ravel()


def _dirichlet(jumps, mass, mode):
    # Σ π_i k_ij (φ_i - φ_j)² + Σ π_i κ_i φ_i² over Σ π φ². Squares of small differences do not cancel as the terms of
    # -L φ do, where wells are left so rarely that φ is almost constant in each.
    mass, mode = (a.reshape(jumps.killed.shape) for a in (mass, mode))
    rate = jumps.killed * mode**2
    for k, up in enumerate(jumps.up):
        rate = rate + up * (np.roll(mode, -1, axis=k) - mode) ** 2
    return np.sum(mass * rate) / np.sum(mass * mode**2)


def _start(inverse, mass, count):
    # A fixed start: results are the same from run to run. Means are taken off, which are not in the range of -L.
    noise = np.random.default_rng(0).standard_normal((count, mass.size))
    return np.array([inverse(row - mass @ row) for row in noise])


def _polished(matrix, inverse, mass, rate, mode, slower):
    # Inverse iteration, -L φ' = λ φ. The errors of Davidson's method are small where there is mass, those of this one
    # are small as a fraction of 1 + |φ| everywhere, once φ itself is about right there.
    for _ in range(_most_polishing):
        scale = np.maximum(np.abs(mode), 1.0)
        before, mode = mode, _solved(matrix, inverse, scale, rate * mode, mode)
        # What there is of slower modes would grow.
        for other in slower:
            mode = mode - (mass * other) @ mode * other
        if np.max(np.abs(mode - before) / scale) < _settled:
            break
    return mode


def _solved(matrix, inverse, scale, f, start):
    scaled = scipy.sparse.linalg.LinearOperator(matrix.shape, matvec=lambda u: matrix @ (scale * u), dtype=np.float64)  # pyright: ignore
    return scale * gmres(scaled, lambda r: inverse(r) / scale, f, start / scale, _tolerance)[0]
