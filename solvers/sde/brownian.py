"""What one step is told of the Brownian motion, and how it is made of independent numbers.

A method names what it needs beyond W(t + dt) - W(t). The numbers behind it are addressed by (key, path, step,
component), see `random`; so every part of an increment is.
"""

from typing import Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .levy import (
    AbstractLevyArea,
    DirectionalArea,
    MatrixArea,
    chain,
    directional_count,
    matrix_count,
    sample_matrix,
)

Need = Literal["increment", "three-point", "direction", "matrix", "time", "signs"]


class Increment(eqx.Module):
    """The Brownian motion W over one step from t to t + dt; parts that the method did not ask for are None.

    - `dw`: W(t + dt) - W(t), or for the need "three-point" a variable with the same first five moments that takes the
      values 0 and ±√(3 dt) only;
    - `area`: the Lévy area, for the needs "direction" (one product Aᵀv) and "matrix";
    - `dz`: ∫ (W(s) - W(t)) ds over the step, for the need "time";
    - `signs`: m(m-1)/2 independent signs ±1 for the pairs j < k in the order of `numpy.triu_indices(m, 1)`, for the
      need "signs": what weak methods of order 2 take in the place of Lévy areas.
    """

    dw: Float[Array, " m"]
    area: AbstractLevyArea | None = None
    dz: Float[Array, " m"] | None = None
    signs: Float[Array, " pairs"] | None = None


def numbers_per_step(need: Need, motions: int, dt: float) -> int:
    """How many independent numbers one step of one path takes."""
    if need == "direction":
        return motions + directional_count(motions, dt)
    if need == "matrix":
        return motions + matrix_count(motions, dt)
    if need == "time":
        return 2 * motions
    if need == "signs":
        return motions + motions * (motions - 1) // 2
    return motions


def increment(need: Need, motions: int, dt: Float[Array, ""], z: Float[Array, " numbers"]) -> Increment:
    """The increment over one step from standard normal numbers, or three-point ones for that need."""
    dw, rest = jnp.sqrt(dt) * z[:motions], z[motions:]
    if need == "direction":
        return Increment(dw, DirectionalArea(dt, dw, rest))
    if need == "matrix":
        return Increment(dw, sample_matrix(dt, dw, rest))
    if need == "time":
        # The integral given the increment is normal with mean dw dt / 2 and variance dt³ / 12.
        return Increment(dw, dz=0.5 * dt * (dw + jnp.sqrt(dt / 3) * rest))
    if need == "signs":
        return Increment(dw, signs=jnp.where(rest < 0, jnp.asarray(-1, rest.dtype), jnp.asarray(1, rest.dtype)))
    return Increment(dw)


def joined(first: Increment, second: Increment, dt: Float[Array, ""]) -> Increment:
    """The increment over two successive intervals, the second of length `dt`.

    Signs belong to no Brownian motion: any that are independent of `dw` will do, here those of the first interval.
    """
    area, dz = None, None
    if isinstance(first.area, MatrixArea) and isinstance(second.area, MatrixArea):
        area = MatrixArea(chain(first.dw, first.area.matrix, second.dw, second.area.matrix)[1])
    if first.dz is not None and second.dz is not None:
        dz = first.dz + first.dw * dt + second.dz
    return Increment(first.dw + second.dw, area, dz, first.signs)
