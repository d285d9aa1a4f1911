r"""Jump rates of a process some of whose numbers JAX traces, as functions of these numbers.

The formulas are those of `assemble`, and JAX differentiates them. What a solver of NumPy and SciPy finds from the rates
enters JAX as a callback with a derivative of its own. Choices that depend on values, such as which edges are resolved
and whether there is detailed balance, are made when the values are there.
"""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..process import Diffusion
from .assembly import Generator, face_rates, rate_matrix
from .coefficients import by_axis, edge_limit, half_edge_points, integrals_at, off_diagonal
from .detailed_balance import cycle_tolerance, potential
from .process_values import at_points, drift_and_tensor
from .traced_generator import Layout, TracedGenerator

Faces = tuple[Float[Array, "..."], ...]


class Rates(NamedTuple):
    """Jump rates `up` and `down` through the faces of each axis, as in `Generator`.

    `log_weights` is the logarithm of the stationary law if the process is `reversible`, and of no use if not.
    """

    up: Faces
    down: Faces
    log_weights: Float[Array, "..."]
    reversible: Any


def cell_rates(generator: TracedGenerator) -> Rates:
    """The rates of a generator whose masses are those of the cells where `assemble` would choose them."""
    points = half_edge_points(generator.grid)
    return _rates(generator.layout, *at_points(drift_and_tensor, generator.process, points))


def point_rates(generator: TracedGenerator) -> tuple[Faces, Faces]:
    """`up` and `down` for functions, which are values at the centres."""
    points = half_edge_points(generator.grid)
    return _point_rates(generator.layout, *at_points(drift_and_tensor, generator.process, points))


def rate_of_change(layout: Layout, up: Faces, down: Faces, mass: Float[Array, "..."]) -> Float[Array, "..."]:
    """A m, face by face; linear in the rates and in m."""
    total = jnp.zeros_like(mass)
    for k, kind in enumerate(layout.boundary):
        m, through_up, through_down = (jnp.moveaxis(a, k, 0) for a in (mass, up[k], down[k]))
        # Rates through the outer faces are zero where they would come from the other end.
        flow = through_up * jnp.concatenate([m[-1:], m]) - through_down * jnp.concatenate([m, m[:1]])
        change = flow[:-1] - flow[1:]
        if kind == "periodic":
            change = change.at[0].add(flow[-1])
        total = total + jnp.moveaxis(change, 0, k)
    return total


def closed(layout: Layout, faces: Faces) -> Faces:
    """The rates with absorbing faces closed."""
    result = []
    for k, kind in enumerate(layout.boundary):
        inner = np.ones(faces[k].shape[k], dtype=bool)
        inner[[0, -1]] = kind != "absorbing"
        result.append(jnp.where(inner.reshape(-1, *[1] * (faces[k].ndim - k - 1)), faces[k], 0.0))
    return tuple(result)


def host_generator(layout: Layout, up: Any, down: Any, log_weights: Any = None) -> Generator:
    """A generator of numbers, for the solvers: its process is known through its rates alone."""
    up, down = (tuple(np.asarray(a) for a in faces) for faces in (up, down))
    matrix = rate_matrix(up, down, None, layout.boundary, layout.grid.shape)
    return Generator(
        _unknown, layout.grid, layout.boundary, matrix, up, down, (), log_weights, np.nan, layout.resolved, "points"
    )


def _no_value(t, x):
    raise NotImplementedError("This process is known through its jump rates alone.")


_unknown = Diffusion(_no_value, _no_value)


def _integrals(layout: Layout, drift, tensor):
    d = tensor.shape[1]
    diffusion = jnp.diagonal(tensor, axis1=1, axis2=2)
    bad = ~jnp.all(jnp.isfinite(drift)) | ~jnp.all(diffusion > 0) | ~jnp.all(jnp.isfinite(diffusion))
    if d > 1:
        bad = bad | jnp.any(off_diagonal(tensor, diffusion))
    # Under `jit` values are known only when the program runs.
    drift = eqx.error_if(drift, bad, unusable)
    return integrals_at(layout.grid, *by_axis(layout.grid, drift, diffusion), layout.resolved)


unusable = (
    "Derivatives, `vmap` and `jit` of what `fokker_planck` computes need a finite drift and a noise that is diagonal "
    "and nowhere zero, and at some point of the grid this process has another. Call `fokker_planck.assemble` with "
    "numbers to see where; for a full tensor D take differences, or coordinates in which it is diagonal."
)


@functools.partial(jax.jit, static_argnums=0)
def _rates(layout: Layout, drift: Float[Array, "n d"], tensor: Float[Array, "n d d"]) -> Rates:
    found, limit = _integrals(layout, drift, tensor), edge_limit(None, layout.grid, layout.resolved)
    up, down, log_ratios = face_rates(layout.grid, layout.boundary, found, "cells", limit)
    log_weights, defect = potential(log_ratios, layout.grid.shape)
    if layout.is_line:
        return Rates(up, down, log_weights, True)
    reversible = defect <= cycle_tolerance
    others = face_rates(layout.grid, layout.boundary, found, "points", limit)
    up, down = jax.tree.map(functools.partial(jnp.where, reversible), (up, down), others[:2])
    return Rates(up, down, log_weights, reversible)


@functools.partial(jax.jit, static_argnums=0)
def _point_rates(layout: Layout, drift, tensor) -> tuple[Faces, Faces]:
    found, limit = _integrals(layout, drift, tensor), edge_limit(None, layout.grid, layout.resolved)
    return face_rates(layout.grid, layout.boundary, found, "points", limit)[:2]
