"""A loss on a line, plane or other affine subspace, as a loss of the coordinates in it."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ._checks import scalar_valued
from ._finite_sum import AbstractFiniteSum, AbstractSquaredLoss

# Directions count as dependent if one has less than this part of its length beside the others.
_dependent = 1e-6


class Plane(eqx.Module):
    """The points x = origin + Σ_k y_k v_k with orthonormal v_k, the rows of `directions`, and coordinates y (k,).

    `directions` are made orthonormal in their order: v_1 is the first of them divided by its length, so that y_1 = |u|
    is the point origin + u for the first direction u. Lengths of y are lengths of x. `origin` has shape (d,),
    `directions` (k, d), or (d,) for a line. `ValueError` for other shapes, numbers that are not finite, or directions
    that depend on each other.
    """

    origin: Float[Array, " d"]
    directions: Float[Array, "k d"]

    def __init__(self, origin: Any, directions: Any):
        origin, directions = _real("x", origin), _real("directions", directions)
        if origin.ndim != 1 or origin.size == 0:
            raise ValueError(f"`x` must be one point of shape (d,), but got shape {origin.shape}.")
        if directions.ndim == 1:
            directions = directions[None]
        if directions.ndim != 2 or directions.shape[1] != origin.size or not 1 <= len(directions) <= origin.size:
            raise ValueError(
                f"`directions` must be at most {origin.size} vectors such as `x`, shape (k, {origin.size}), but got "
                f"shape {directions.shape}."
            )
        dtype = jnp.result_type(float)
        self.origin, self.directions = jnp.asarray(origin, dtype), jnp.asarray(_orthonormal(directions), dtype)

    def point(self, y: Float[Array, " k"]) -> Float[Array, " d"]:
        """The point x of the coordinates y, in the dtype of y."""
        return self.origin.astype(y.dtype) + y @ self.directions.astype(y.dtype)

    def coordinates(self, x: Float[Array, " d"]) -> Float[Array, " k"]:
        """The coordinates y of the point of the plane that is nearest to x."""
        return self.directions.astype(x.dtype) @ (x - self.origin.astype(x.dtype))


class Slice(eqx.Module):
    """y ↦ f(x) at the point x of a plane with the coordinates y (k,)."""

    loss: Callable
    plane: Plane

    def __call__(self, y: Float[Array, " k"]) -> Float[Array, ""]:
        return scalar_valued(self.loss)(self.plane.point(y))


class SumSlice(AbstractFiniteSum):
    """A finite sum on a plane, with the same examples: its minibatch gradients are those of the whole, projected."""

    loss: AbstractFiniteSum
    plane: Plane

    @property
    def count(self) -> int:
        return self.loss.count

    def examples(self, x: Float[Array, " k"], index: Int[Array, " b"]) -> Float[Array, " b"]:
        return self.loss.examples(self.plane.point(x), index)

    def __call__(self, x: Float[Array, " k"]) -> Float[Array, ""]:
        return self.loss(self.plane.point(x))


class SquaredSlice(AbstractSquaredLoss):
    """A squared loss on a plane, with the same examples and residuals."""

    loss: AbstractSquaredLoss
    plane: Plane

    @property
    def count(self) -> int:
        return self.loss.count

    def residuals(self, x: Float[Array, " k"], index: Int[Array, " b"]) -> Float[Array, " b"]:
        return self.loss.residuals(self.plane.point(x), index)

    def examples(self, x: Float[Array, " k"], index: Int[Array, " b"]) -> Float[Array, " b"]:
        return self.loss.examples(self.plane.point(x), index)

    def __call__(self, x: Float[Array, " k"]) -> Float[Array, ""]:
        return self.loss(self.plane.point(x))


def on_plane(loss: Callable, plane: Plane) -> Slice | SumSlice | SquaredSlice:
    """The loss of the coordinates y in a plane: a finite sum, or a squared loss, if `loss` is one."""
    if isinstance(loss, AbstractSquaredLoss):
        return SquaredSlice(loss, plane)
    return SumSlice(loss, plane) if isinstance(loss, AbstractFiniteSum) else Slice(loss, plane)


def _real(name: str, value: Any) -> Float[np.ndarray, "..."]:
    try:
        value = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"`{name}` must be real numbers, but got {value!r}.") from None
    if not np.all(np.isfinite(value)):
        raise ValueError(f"`{name}` must be finite, but has {np.sum(~np.isfinite(value))} entries that are not.")
    return value


def _orthonormal(directions: Float[np.ndarray, "k d"]) -> Float[np.ndarray, "k d"]:
    lengths = np.linalg.norm(directions, axis=1)
    if np.any(lengths == 0):
        raise ValueError(f"`directions` must not be zero, but number {int(np.argmin(lengths))} is.")
    q, r = np.linalg.qr((directions / lengths[:, None]).T)
    rest = np.diagonal(r)
    if np.any(np.abs(rest) < _dependent):
        raise ValueError(
            f"`directions` must be independent, but number {int(np.argmin(np.abs(rest)))} lies in the span of those "
            "before it: leave it out."
        )
    return (q * np.sign(rest)).T
