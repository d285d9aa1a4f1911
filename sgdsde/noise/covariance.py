"""Gradient noise of a given covariance."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import array, number, traced
from .._roots import covariance_root
from .gradient_noise import AbstractGradientNoise, matrix_operator


class Covariance(AbstractGradientNoise):
    """Noise of a given single-sample gradient covariance C and batch size B: D = ηC/(2B), that is Σ = C/B.

    C is a symmetric positive semi-definite matrix (d, d), or a JAX function x -> (d, d). It may have low rank: a
    matrix of rank r is driven by r Brownian motions. The root comes from an eigendecomposition.

    A matrix that is not square, symmetric and positive semi-definite raises `ValueError`. A function is checked for
    its shape; where its value has a clearly negative eigenvalue the noise is NaN, which the solvers report.
    """

    root: Float[Array, "d r"] | None
    function: Callable | None
    batch_size: Float[Array, ""]

    def __init__(self, C, batch_size):
        self.batch_size = number("batch_size", batch_size, positive=True)
        if callable(C):
            self.function, self.root = C, None
        else:
            self.function, self.root = None, _low_rank_root(array("C", C))

    def operator(self, loss, learning_rate, x):
        if self.function is not None:
            C = jnp.asarray(self.function(x))
            if C.shape != (x.size, x.size):
                raise ValueError(
                    f"`C(x)` must return shape {(x.size, x.size)} for x of shape {x.shape}, got {C.shape}."
                )
            root = covariance_root(C.astype(x.dtype))
        else:
            assert self.root is not None
            root = self.root.astype(x.dtype)
            if root.shape[0] != x.size:
                raise ValueError(f"`C` has shape {(root.shape[0],) * 2}, but x has shape {x.shape}.")
        scale = jnp.sqrt(learning_rate.astype(x.dtype) / self.batch_size.astype(x.dtype))
        return matrix_operator(scale * root, x)


def _low_rank_root(C: Float[Array, "..."]) -> Float[Array, "d r"]:
    if C.ndim != 2 or C.shape[0] != C.shape[1] or C.shape[0] == 0:
        raise ValueError(
            f"`C` must be a square matrix (d, d) or a function of x that returns one, got shape {C.shape}."
        )
    if traced(C):
        return covariance_root(C)
    c = np.asarray(C)
    size, asymmetry = np.max(np.abs(c)), np.max(np.abs(c - c.T))
    tolerance = 10 * len(c) * float(jnp.finfo(C.dtype).eps) * size
    if asymmetry > tolerance:
        raise ValueError(f"`C` must be symmetric, but C - Cᵀ has an entry of size {asymmetry:.3g}. Pass (C + C.T) / 2.")
    values, vectors = np.linalg.eigh(c)
    if values[0] < -tolerance:
        raise ValueError(f"`C` must be positive semi-definite, but has the eigenvalue {values[0]:.6g}.")
    # One column stays when C = 0: an operator needs a Brownian motion.
    kept = (values > tolerance) | (np.arange(len(values)) == len(values) - 1)
    return jnp.asarray(vectors[:, kept] * np.sqrt(np.maximum(values[kept], 0)))
