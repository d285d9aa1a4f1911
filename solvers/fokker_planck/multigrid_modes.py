r"""Decay rates and modes of a process on a large grid, by Davidson's method with multigrid."""

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jaxtyping import Float, Inexact

from .assembly import Generator
from .axis_jumps import axis_jumps, wraps
from .davidson import slowest
from .gmres import gmres
from .jumps import generator_jumps
from .multigrid import Multigrid

# More starting vectors than modes: one of several equal rates is not missed.
_extra = 3

# The error of the approximate inverse of a full D.
_near = 1e-2

# The error of the polished modes.
_tolerance = 1e-10

# The largest residual of a mode, as a fraction of the mean rate of jumps.
_residual = 1e-9

# Steps of polishing, and the change that ends it.
_most_polishing, _settled = 3, 1e-6


def multigrid_rates_and_modes(
    generator: Generator, k: int, log_law: Float[np.ndarray, "..."]
) -> tuple[Inexact[np.ndarray, " k"], Inexact[np.ndarray, "k n"], Float[np.ndarray, " k"]]:
    """The k slowest rates, their modes, and the mean rates of jumps Σ π |φ|² k, whose rounding is that of the rates.

    `log_law` is the logarithm of the stationary law, with absorbing faces closed. Raises `ArithmeticError` if a mode is
    not found, or its residual does not vanish.
    """
    if generator.diagonals is None:
        jumps = generator_jumps(generator, np.zeros(generator.grid.shape), log_law)
        matrix = jumps.matrix()
    else:
        matrix = scipy.sparse.csr_array(-generator.matrix.T)
        jumps = axis_jumps(matrix, wraps(generator), log_law)
    inverse = Multigrid(jumps)
    mass = np.exp(log_law.ravel() - np.max(log_law))
    mass /= mass.sum()
    zeros = int(generator.conserving)
    if k == zeros:
        return np.zeros(zeros), np.ones((zeros, mass.size)), np.zeros(zeros)
    nearer = inverse if generator.diagonals is None else _nearer(matrix, inverse, mass, bool(zeros))
    start = _start(nearer, mass, k - zeros + _extra)
    found, modes = slowest(matrix, nearer, start, mass, k - zeros, bool(zeros), generator.reversible)
    rates = np.append(np.zeros(zeros), found)
    modes = np.concatenate([np.ones((zeros, mass.size)), modes])
    for i in range(zeros, k):
        if not generator.reversible and np.imag(rates[i]) < 0:
            # The other one of a pair.
            rates[i], modes[i] = np.conj(rates[i - 1]), np.conj(modes[i - 1])
            continue
        if generator.reversible:
            modes[i] = _polished(matrix, inverse, mass, rates[i], modes[i], modes[:i])
            rates[i] = _dirichlet(matrix, generator.exit_rates.ravel(), mass, modes[i])
        else:
            rates[i], modes[i] = _better(matrix, inverse, mass, rates[i], modes[i], modes[:zeros])
    return rates, modes, (np.abs(modes) ** 2 * mass) @ matrix.diagonal()


def _nearer(matrix, inverse, mass, singular):
    # For a full D, to which multigrid is a guide only, some steps of GMRES in L²(π) are the approximate inverse.
    root = np.sqrt(np.maximum(mass, np.finfo(np.float64).tiny))
    centred = (lambda u: u - mass @ u) if singular else (lambda u: u)
    scaled = _operator(matrix.shape, lambda v: root * (matrix @ (v / root)))

    def nearer(f):
        v = gmres(scaled, lambda r: root * centred(inverse(centred(r / root))), root * f, np.zeros_like(f), _near)[0]
        return v / root

    return nearer


def _better(matrix, inverse, mass, rate, mode, constants):
    # Polished, unless that fails where the drift dominates the cells of the tails, which have no mass. Modes are not
    # orthogonal here, and slower ones but constants are left in.
    polished = _polished(matrix, inverse, mass, rate, mode, constants)
    left, rate = _quotient(matrix, mass, mode)
    better, same = _quotient(matrix, mass, polished)
    if better <= left and abs(same - rate) <= _settled * abs(rate):
        left, rate, mode = better, same, polished
    if not left <= _residual:
        raise ArithmeticError(
            f"The residual of a mode of rate {rate:.4g} is {left:.2g} of its traffic, more than rounding. Use fewer "
            "cells."
        )
    return rate, mode


def _quotient(matrix, mass, mode):
    # The residual as a fraction of the mean rate of jumps, and the Rayleigh quotient. A sparse matrix of reals takes
    # Re and Im apart.
    image = matrix @ mode.real + (1j * (matrix @ mode.imag) if np.iscomplexobj(mode) else 0.0)
    square = np.sum(mass * np.abs(mode) ** 2)
    rate = np.sum(mass * np.conj(mode) * image) / square
    left = np.sqrt(np.sum(mass * np.abs(image - rate * mode) ** 2) / square)
    return left / (np.sum(mass * matrix.diagonal() * np.abs(mode) ** 2) / square), rate


def _dirichlet(matrix, exit_rates, mass, mode):
    # Σ π_i k_ij (φ_i - φ_j)² + Σ π_i κ_i φ_i² over Σ π φ². Squares of small differences do not cancel as the terms of
    # -L φ do, where wells are left so rarely that φ is almost constant in each.
    entries = matrix.tocoo()
    i, j = entries.coords
    # The diagonal has no difference; every pair is there from both sides.
    traffic = -0.5 * mass[i] * entries.data * (mode[j] - mode[i]) ** 2
    return (np.sum(traffic) + np.sum(mass * exit_rates * mode**2)) / np.sum(mass * mode**2)


def _start(inverse, mass, count):
    # A fixed start: results are the same from run to run. Means are taken off, which are not in the range of -L.
    noise = np.random.default_rng(0).standard_normal((count, mass.size))
    return np.array([inverse(row - mass @ row) for row in noise])


def _polished(matrix, inverse, mass, rate, mode, slower):
    # Inverse iteration, -L φ' = λ φ. The errors of Davidson's method are small where there is mass, those of this one
    # are small as a fraction of 1 + |φ| everywhere, once φ itself is about right there.
    for _ in range(_most_polishing):
        scale = np.maximum(np.abs(mode), 1.0)
        before, f = mode, rate * mode
        if np.iscomplexobj(mode):
            real, imaginary = (
                _solved(matrix, inverse, scale, a, b) for a, b in ((f.real, mode.real), (f.imag, mode.imag))
            )
            mode = real + 1j * imaginary
        else:
            mode = _solved(matrix, inverse, scale, f, mode)
        # What there is of slower modes would grow.
        for other in slower:
            mode = mode - (mass * other) @ mode * other
        if np.max(np.abs(mode - before) / scale) < _settled:
            break
    return mode


def _solved(matrix, inverse, scale, f, start):
    f, start = np.ascontiguousarray(f), np.ascontiguousarray(start)
    scaled = _operator(matrix.shape, lambda u: matrix @ (scale * u))
    return scale * gmres(scaled, lambda r: inverse(r) / scale, f, start / scale, _tolerance)[0]


def _operator(shape: tuple[int, int], product: Callable) -> Any:
    make: Any = scipy.sparse.linalg.LinearOperator
    return make(shape, matvec=product, dtype=np.float64)
