r"""Decay rates of a process that holds tracers, and their first derivatives.

With Lφ = -λφ, A w = -λ w and Σ w φ = 1 the derivative of a simple rate is dλ = -Σ φ (dA) w. On a line it is taken in
logarithms, so that rates of 1e-100 have right derivatives: with conductances g = m_i up = m_j down and normalised φ

    dλ / λ = Σ G dlog g - Σ P dlog m,    G = g (φ_j - φ_i)² / λ,    P = m φ²,

both of sum 1.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jaxtyping import Array, Float, Inexact

from .krylov_modes import krylov_rates_and_modes
from .line_modes import line_modes, line_rates
from .traced_generator import Layout, TracedGenerator
from .traced_law import law
from .traced_rates import Faces, cell_rates, host_generator, rate_of_change

# The shift of inverse iteration from a rate, as a fraction of it: then its matrix can be inverted. Steps of it, each of
# which makes the part of other modes smaller by this fraction.
_shift, _steps = 1e-8, 3


def slowest_rates(generator: TracedGenerator, k: int) -> tuple[Inexact[Array, " k"], Float[Array, "..."]]:
    """The k slowest rates of the matrix, complex unless the process lives on a line, and the stationary law."""
    layout, rates = generator.layout, cell_rates(generator)
    weights = law(layout, rates)
    if layout.is_line:
        return _line(layout, k, rates.up[0], rates.down[0]), weights
    return _slow(layout, k, rates.up, rates.down, rates.log_weights, rates.reversible, weights), weights


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _line(layout: Layout, k: int, up: Float[Array, " faces"], down: Float[Array, " faces"]) -> Float[Array, " k"]:
    host = lambda u, d: line_rates(np.asarray(u), np.asarray(d), k)  # noqa: E731
    return jax.pure_callback(host, jax.ShapeDtypeStruct((k,), jnp.float64), up, down, vmap_method="sequential")


@_line.defjvp
def _line_jvp(layout, k, primals, tangents):
    rates, edge, cell = _line_sensitivity(layout, k, *primals)
    log_up, log_down = (
        jnp.where(r > 0, t / jnp.where(r > 0, r, 1.0), 0.0) for r, t in zip(primals, tangents, strict=True)
    )
    # Changes of log m, from the first cell on, and of the conductances of all faces; at the low end through `down`.
    log_mass = jnp.concatenate([jnp.zeros(1), jnp.cumsum(log_up[1:-1] - log_down[1:-1])])
    log_edge = jnp.concatenate([log_down[:1], log_mass + log_up[1:]])
    return rates, rates * (edge @ log_edge - cell @ log_mass)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _line_sensitivity(layout: Layout, k: int, up, down):
    # λ, and G and P of each.
    n = layout.grid.size
    shapes = tuple(jax.ShapeDtypeStruct(s, jnp.float64) for s in ((k,), (k, n + 1), (k, n)))
    return jax.pure_callback(functools.partial(_host_line, k), shapes, up, down, vmap_method="sequential")


def _host_line(k: int, up: Any, down: Any):
    up, down = np.asarray(up), np.asarray(down)
    rates = line_rates(up, down, k)
    modes = line_modes(up, down, rates)
    with np.errstate(divide="ignore"):
        log_mass = np.concatenate([[0.0], np.cumsum(np.log(up[1:-1]) - np.log(down[1:-1]))])
        log_mass -= np.max(log_mass)
        log_edge = np.concatenate([log_mass[:1] + np.log(down[:1]), log_mass + np.log(up[1:])])
    edge, cell = np.zeros((k, up.size)), np.zeros((k, up.size - 1))
    for i in np.flatnonzero(rates):
        edge[i], cell[i] = _shares(rates[i], modes[i], log_mass, log_edge)
    return rates, edge, cell


def _shares(rate, mode, log_mass, log_edge):
    # The current g Δφ through each face is λ times the sum of m φ on one side, the one with less of it: right where
    # the difference of φ is lost in rounding.
    mass = np.exp(log_mass)
    part = np.where(mass > 0, mass * mode, 0.0)
    first, last = (np.exp(log_edge[end]) * mode[end] for end in (0, -1))
    low = np.append(0.0, np.cumsum(part)) - first / rate
    high = np.append(np.cumsum(part[::-1])[::-1], 0.0) - last / rate
    before = np.append(0.0, np.cumsum(np.abs(part)))
    current = np.where(before <= 0.5 * before[-1], low, -high)
    with np.errstate(all="ignore"):
        edge = np.exp(2 * np.log(np.abs(current)) - log_edge)
    edge = np.where(np.isfinite(edge), edge, 0.0)
    cell = np.where(mass > 0, part * mode, 0.0)
    return edge / edge.sum(), cell / cell.sum()


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _slow(layout: Layout, k: int, up: Faces, down: Faces, log_weights, reversible, weights) -> Inexact[Array, " k"]:
    return _slow_modes(layout, k, up, down, log_weights, reversible, weights)[0]


@_slow.defjvp
def _slow_jvp(layout, k, primals, tangents):
    rates, modes, laws = _slow_modes(layout, k, *primals)
    d_up, d_down = tangents[:2]
    change = jax.vmap(lambda w: rate_of_change(layout, d_up, d_down, w))
    moved = jax.lax.complex(change(laws.real), change(laws.imag))
    return rates, -jnp.sum((modes * moved).reshape(k, -1), axis=1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _slow_modes(layout: Layout, k: int, up, down, log_weights, reversible, weights):
    # λ, φ and w of each.
    shapes = tuple(jax.ShapeDtypeStruct(s, jnp.complex128) for s in ((k,), *[(k, *layout.grid.shape)] * 2))
    host = functools.partial(_host_slow, layout, k)
    return jax.pure_callback(host, shapes, up, down, log_weights, reversible, weights, vmap_method="sequential")


def _once_only(layout, k, primals, tangents):
    raise NotImplementedError(
        "Decay rates have first derivatives only. For a second one take differences of `jax.grad`, as in "
        "(grad(a + h) - grad(a - h)) / (2 * h)."
    )


_line_sensitivity.defjvp(_once_only)
_slow_modes.defjvp(_once_only)


def _host_slow(layout: Layout, k: int, up, down, log_weights, reversible, weights):
    log_weights, weights = np.asarray(log_weights), np.asarray(weights)
    generator = host_generator(layout, up, down, log_weights if reversible else None)
    rates, modes, _ = krylov_rates_and_modes(generator, k, weights)
    laws = np.zeros((k, layout.grid.size), dtype=complex)
    modes = modes.astype(complex)
    for i in range(int(layout.conserving), k):
        laws[i] = weights.ravel() * modes[i].conj()
        if not reversible:
            modes[i], laws[i] = _polished(generator.matrix, rates[i], modes[i], laws[i])
        laws[i] /= np.sum(laws[i] * modes[i])
    shape = (k, *layout.grid.shape)
    # The rate 0 of a process that stays in the grid does not change.
    return rates.astype(complex), modes.reshape(shape), laws.reshape(shape)


def _polished(a: scipy.sparse.csc_matrix, rate, mode, mass):
    # From m φ* the left mode is found that belongs to φ, also if others have the same rate.
    shifted = scipy.sparse.csc_matrix(a + rate * (1 + _shift) * scipy.sparse.identity(mode.size), dtype=complex)
    lu: Any = scipy.sparse.linalg.splu(shifted)
    for _ in range(_steps):
        mode, mass = (v / np.linalg.norm(v) for v in (lu.solve(mode, trans="T"), lu.solve(mass)))
    return mode, mass
