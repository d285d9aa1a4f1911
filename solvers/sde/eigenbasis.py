"""Linear drift under constant noise, in coordinates in which it is one scalar process for each eigenvalue."""

from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float

from ..process import AbstractDiffusion
from .program import is_constant, trace
from .transform import AbstractTransform

# Beyond that, finding the eigenvectors would cost more than most runs gain.
_most_dimensions = 256

# Off-diagonal elements, in units of the dtype's resolution and of the largest element, that count as rounding.
_rounding = 64


class ScalarProcesses(AbstractDiffusion):
    """dYᵢ = (cᵢ + aᵢ Yᵢ) dt + sᵢ dBᵢ for each component."""

    offset: Float[Array, " d"]
    rate: Float[Array, " d"]
    scale: Float[Array, " d"]

    def drift(self, t, x):
        return self.offset + self.rate * x

    def noise(self, t, x):
        return lx.DiagonalLinearOperator(self.scale)


class Eigenbasis(AbstractTransform):
    """x = V y for the columns of V."""

    vectors: Float[Array, "d d"]

    weighted: ClassVar[bool] = False

    def enter(self, x):
        return jnp.matmul(self.vectors.T, x, precision="highest")

    def leave(self, y):
        return jnp.matmul(self.vectors, y, precision="highest")

    def weight(self, t, x):
        return jnp.ones_like(t)


class _Linear(NamedTuple):
    """dX = (c + A X) dt + G dB."""

    offset: np.ndarray
    matrix: np.ndarray
    noise: np.ndarray


def scalar_processes(process: AbstractDiffusion, x: Float[Array, " d"]) -> tuple[AbstractDiffusion, Eigenbasis] | None:
    """The process in the common eigenvectors of A and G Gᵀ, if it is dX = (c + A X) dt + G dB and they have some.

    The law is that of the process, but the Brownian motions are others: those along the eigenvectors. None for
    processes that are not linear, or not seen to be: this reads their traced code, and proves rather than tries.
    """
    if not 1 < x.size <= _most_dimensions or (linear := _linear(process, x)) is None:
        return None
    A, D = linear.matrix, linear.noise @ linear.noise.T
    if not all(np.isfinite(v).all() for v in linear) or np.abs(A - A.T).max() > _tolerance(A, x.dtype):
        return None
    # Eigenvectors of a sum are those of its terms, if they have any in common and no two eigenvalues of the sum happen
    # to be the same; whether that worked is checked.
    sizes = [max(float(np.abs(m).max()), 1e-300) for m in (A, D)]
    _, vectors = np.linalg.eigh(A / sizes[0] + np.sqrt(2) / np.pi * D / sizes[1])
    vectors = vectors * np.where(vectors[np.abs(vectors).argmax(axis=0), np.arange(x.size)] < 0, -1.0, 1.0)
    turned = [vectors.T @ m @ vectors for m in (A, D)]
    if any(np.abs(m - np.diag(np.diag(m))).max() > _tolerance(m, x.dtype) for m in turned):
        return None
    # Not the root of D's eigenvalue: where that is 0, its rounding would have a root.
    parts = vectors.T @ linear.offset, np.diag(turned[0]), np.linalg.norm(vectors.T @ linear.noise, axis=1)
    return ScalarProcesses(*(jnp.asarray(p, x.dtype) for p in parts)), Eigenbasis(jnp.asarray(vectors, x.dtype))


def _linear(process: AbstractDiffusion, x: Float[Array, " d"]) -> _Linear | None:
    """The process as a linear one; None if its code does not show that it is."""
    t = jnp.zeros((), x.dtype)
    if not is_constant(trace(lambda t, x: _parts(process, t, x), t, x)):
        return None
    return _Linear(*(np.asarray(part, np.float64) for part in _compiled_parts(process, t, x)))


def _parts(process: AbstractDiffusion, t: Float[Array, ""], x: Float[Array, " d"]) -> tuple[Array, Array, Array]:
    """What is constant if the process is linear: the drift at 0, its slope, and the noise."""
    slope = jax.jacfwd(lambda x: process.drift(t, x))(x)
    return process.drift(t, jnp.zeros_like(x)), slope, process.noise(t, x).as_matrix()


_compiled_parts = eqx.filter_jit(_parts)


def _tolerance(matrix: np.ndarray, dtype) -> float:
    return _rounding * float(jnp.finfo(dtype).eps) * float(np.abs(matrix).max())
