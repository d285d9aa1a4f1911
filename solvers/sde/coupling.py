"""Simulations with steps dt and 2 dt of the same Brownian paths, of which step-size effects are estimated.

Used by `extrapolated` and `multilevel`.
"""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int32, UInt32

from .._tracing import traceable
from ..process import AbstractDiffusion, noise_structure
from .brownian import Increment, Need, increment, joined, numbers_per_step
from .levy import AbstractLevyArea, MatrixArea
from .method import AbstractMethod, AbstractPostprocessed, check_method
from .random import normal_pairs, unpaired

# Numbers of one block that are in flight in a step.
_block_numbers = 1 << 13

Runs = Literal["fine", "pair", "twins"]


class Coupling(eqx.Module):
    """What simulations of one Brownian path have in common. Which of them there are is said by `runs`:

    - "fine": one with steps dt;
    - "pair": also one with steps 2 dt;
    - "twins": and another with steps dt in which the two increments of each longer step have changed places.

    Without `areas`, all Lévy areas are set to 0.
    """

    process: AbstractDiffusion
    method: AbstractMethod
    functional: Callable
    x0: Float[Array, " d"]
    t0: Float[Array, ""]
    runs: Runs = eqx.field(static=True)
    areas: bool = eqx.field(static=True)
    need: Need = eqx.field(static=True)
    motions: int = eqx.field(static=True)
    numbers: int = eqx.field(static=True)

    @property
    def block(self) -> int:
        """How many paths are computed at a time."""
        fitting = max(64, _block_numbers // max(self.x0.size, self.numbers))
        return 1 << (fitting.bit_length() - 1)


def couple(
    process: AbstractDiffusion,
    method: AbstractMethod,
    functional: Callable,
    x0: Any,
    t0: float,
    dt: float,
    runs: Runs,
    areas: bool = True,
) -> Coupling:
    """A `Coupling` for steps down to dt; `ValueError` or `TypeError` if there is none for these arguments.

    With `areas=False` it is one without Lévy areas if the method asks for any.
    """
    check_method(method)
    x0 = np.asarray(x0)
    if x0.ndim != 1 or not np.issubdtype(x0.dtype, np.floating) or not np.all(np.isfinite(x0)):
        raise ValueError(
            f"`x0` must be one finite point of shape (d,) and floating dtype, got shape {x0.shape}, {x0.dtype}."
        )
    point = jnp.asarray(x0)
    _, m = noise_structure(process, point)
    with traceable("`functional(x)`"):
        value = eqx.filter_eval_shape(functional, point)
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"`functional(x)` must return a real scalar of floating dtype, got {value}.")
    need = method.needs(process, point[None])
    if need == "three-point":
        raise ValueError(
            f"`method` must step with increments that can be summed to those of a longer step, but those of {method} "
            "take three values only. Use normal increments."
        )
    areas = areas or need not in ("direction", "matrix")
    if need == "direction" and areas:
        # A sampled direction is good for one step only; here two steps must see parts of one area.
        need = "matrix"
    numbers = numbers_per_step(need, m, dt) if areas else m
    return Coupling(process, method, functional, point, jnp.asarray(t0, point.dtype), runs, areas, need, m, numbers)


@eqx.filter_jit
def values(
    coupling: Coupling,
    words: UInt32[Array, "2"],
    path: UInt32[Array, " n"],
    dt: Float[Array, ""],
    steps: Int32[Array, ""],
) -> Float[Array, "runs n"]:
    """The functional at the end of each run, after so many of the longest steps; NaN for paths that became non-finite.

    One program serves all step sizes.
    """
    together = 1 if coupling.runs == "fine" else 2
    count = together * coupling.numbers

    def draw(k):
        return normal_pairs(words, path, k.astype(jnp.uint32), -(-count // 2), coupling.x0.dtype)

    def time(k):
        return coupling.t0 + together * k.astype(dt.dtype) * dt

    def on_paths(fn, pairs, *states):
        """fn(run, state) for the runs of all paths."""

        def one(z, *states):
            return [fn(run, x) for run, x in zip(_runs(coupling, dt, z), states, strict=True)]

        return jax.vmap(one)(unpaired(pairs, count).reshape(path.size, together, -1), *states)

    def advance(k, carry):
        states, pairs = carry
        states = on_paths(lambda run, x: _advance(coupling, time(k), x, run), pairs, *states)
        # Drawn a step ahead, as in `engine`: computed once.
        return states, draw(k + 1)

    pairs = draw(jnp.zeros_like(steps))
    starts = [jnp.broadcast_to(coupling.x0, (path.size, coupling.x0.size))] * _counts[coupling.runs]
    states = on_paths(lambda run, x: _enter(coupling, x, run), pairs, *starts)
    states, pairs = lax.fori_loop(0, steps, advance, (states, pairs))
    return jnp.stack(on_paths(lambda run, x: _value(coupling, time(steps), x, run), pairs, *states))


class _NoArea(AbstractLevyArea):
    """A Lévy area left out, where one along a direction is asked for."""

    def along(self, v):
        return jnp.zeros_like(v)


# A run's share of one of the longest steps: its increments and their length.
_Run = tuple[list[Increment], Float[Array, ""]]
_counts: dict[Runs, int] = {"fine": 1, "pair": 2, "twins": 3}


def _runs(coupling: Coupling, dt: Float[Array, ""], z: Float[Array, "steps numbers"]) -> list[_Run]:
    parts = [_increment(coupling, dt, numbers) for numbers in z]
    if coupling.runs == "fine":
        return [(parts, dt)]
    first, second = parts
    both = joined(first, second, dt) if coupling.areas else Increment(first.dw + second.dw, first.area)
    return [([first, second], dt), ([both], 2 * dt), ([second, first], dt)][: _counts[coupling.runs]]


def _increment(coupling: Coupling, dt: Float[Array, ""], z: Float[Array, " numbers"]) -> Increment:
    if coupling.areas:
        return increment(coupling.need, coupling.motions, dt, z)
    m = coupling.motions
    none = _NoArea() if coupling.need == "direction" else MatrixArea(jnp.zeros((m, m), z.dtype))
    return Increment(jnp.sqrt(dt) * z, none)


def _enter(coupling: Coupling, x: Float[Array, " d"], run: _Run) -> Float[Array, " d"]:
    (dw, *_), h = run
    method = coupling.method
    return method.enter(coupling.process, coupling.t0, x, h, dw) if isinstance(method, AbstractPostprocessed) else x


def _advance(coupling: Coupling, t: Float[Array, ""], x: Float[Array, " d"], run: _Run) -> Float[Array, " d"]:
    increments, h = run
    for i, dw in enumerate(increments):
        x = coupling.method.step(coupling.process, t + i * h, x, h, dw)
    return x


def _value(coupling: Coupling, t: Float[Array, ""], x: Float[Array, " d"], run: _Run) -> Float[Array, ""]:
    (dw, *_), h = run
    method = coupling.method
    x = method.leave(coupling.process, t, x, h, dw) if isinstance(method, AbstractPostprocessed) else x
    # A functional such as x > 1 would hide a NaN.
    return jnp.where(jnp.all(jnp.isfinite(x)), coupling.functional(x), jnp.nan)
