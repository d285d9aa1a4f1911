r"""The stationary law of a process that holds tracers, and its derivatives to any order.

With detailed balance log m is a sum of log ratios, which JAX differentiates. Without, A m = 0 is solved by elimination,
and dm solves A dm = -(dA) m with Σ dm = 0.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..density import Density
from .elimination import eliminated, m_matrix_lu
from .extrapolation import coarser_grids, extrapolate
from .traced_generator import Layout, TracedGenerator
from .traced_rates import Faces, Rates, cell_rates, closed, host_generator, rate_of_change


def traced_stationary(generator: TracedGenerator, extrapolated: bool) -> Density:
    """`stationary` of a traced generator; no estimate of the error and no warning."""
    if not generator.layout.conserving:
        raise ValueError(
            "A process that is absorbed has no stationary law, but `generator` has boundary "
            f"{generator.boundary!r}. Assemble it with boundary='no-flux', or look at `spectrum`."
        )
    rates = cell_rates(generator)
    mass = law(generator.layout, rates)
    count = 0 if generator.layout.is_line or not extrapolated else coarser_grids(generator.grid.shape, 2)
    if count:
        wider = list(itertools.accumulate(range(count), lambda wide, _: wide.coarsen(), initial=generator))[1:]
        laws = [mass, *(law(wide.layout, cell_rates(wide)) for wide in wider)]
        better, *_ = extrapolate(laws, tuple(kind == "periodic" for kind in generator.boundary), smooth=True)
        mass = jnp.where(rates.reversible, mass, better)
    return Density(generator.grid, mass)


@functools.partial(jax.jit, static_argnums=0)
def law(layout: Layout, rates: Rates) -> Float[Array, "..."]:
    """The masses of the stationary law, after absorbing faces have been closed."""
    direct = lambda: _normalised(rates.log_weights)  # noqa: E731
    if layout.is_line:
        return direct()
    up, down = closed(layout, rates.up), closed(layout, rates.down)
    return jax.lax.cond(rates.reversible, direct, lambda: _balanced(layout, up, down))


def _normalised(log_weights):
    return jax.nn.softmax(log_weights.ravel()).reshape(log_weights.shape)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _balanced(layout: Layout, up: Faces, down: Faces) -> Float[Array, "..."]:
    # Without detailed balance: the law of generators all of whose faces are closed.
    shape = jax.ShapeDtypeStruct(layout.grid.shape, jnp.float64)
    return jax.pure_callback(functools.partial(_host_law, layout), shape, up, down, vmap_method="sequential")


@_balanced.defjvp
def _balanced_jvp(layout, primals, tangents):
    (up, down), (more_up, more_down) = primals, tangents
    mass = _balanced(layout, up, down)
    return mass, _response(layout, up, down, mass, -rate_of_change(layout, more_up, more_down, mass))


def _response(layout: Layout, up: Faces, down: Faces, mass, source):
    # x with A x = source and Σ x = 0, if Σ source = 0. With -m Σ x added the operator can be inverted.
    operator = lambda x: rate_of_change(layout, up, down, x) - mass * jnp.sum(x)  # noqa: E731

    def solve(transposed):
        host = functools.partial(_host_response, layout, transposed)
        return lambda _, b: jax.pure_callback(
            host, jax.ShapeDtypeStruct(b.shape, b.dtype), up, down, mass, b, vmap_method="sequential"
        )

    return jax.lax.custom_linear_solve(operator, source, solve(False), solve(True))


def _host_law(layout: Layout, up: Any, down: Any) -> Float[np.ndarray, "..."]:
    mass = eliminated(host_generator(layout, up, down))
    return (mass / mass.sum()).reshape(layout.grid.shape)


def _host_response(layout: Layout, transposed: bool, up: Any, down: Any, mass: Any, source: Any):
    mass, source = np.asarray(mass).ravel(), np.asarray(source).ravel()
    pin = int(np.argmax(mass))
    rest = np.delete(np.arange(mass.size), pin)
    lu = _pinned_factors(layout, pin, *(b"".join(np.asarray(a).tobytes() for a in faces) for faces in (up, down)))
    x = np.zeros_like(source)
    if transposed:
        # Aᵀ y = source - <source>, with <y> = -<source>.
        total = mass @ source
        x[rest] = lu.solve((source - total)[rest], trans="T")
        x -= mass @ x + total
    else:
        total = source.sum()
        x[rest] = lu.solve((source - mass * total)[rest])
        x -= mass * (x.sum() + total)
    return x.reshape(layout.grid.shape)


@functools.lru_cache(maxsize=1)
def _pinned_factors(layout: Layout, pin: int, up: bytes, down: bytes):
    # A value and its derivatives are asked for one after another, with the same rates.
    shapes = [tuple(n + (k == axis) for k, n in enumerate(layout.grid.shape)) for axis in range(layout.grid.ndim)]
    ends = np.cumsum([np.prod(shape) for shape in shapes])[:-1]
    faces = [
        tuple(part.reshape(shape) for part, shape in zip(np.split(np.frombuffer(b), ends), shapes, strict=True))
        for b in (up, down)
    ]
    a = host_generator(layout, *faces).matrix
    rest = np.delete(np.arange(layout.grid.size), pin)
    return m_matrix_lu(a[rest][:, rest])
