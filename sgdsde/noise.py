"""Models of the gradient noise: which diffusion D(x) the stochastic gradient has.

Every noise gives an operator G with G Gᵀ / 2 = D in the Itô equation dX = -∇f dt + G dB, on the clock t = ηk of step
k and learning rate η.

What σ means. Here σ is fixed by the diffusion: D = ησ I for `Constant`, ησ f I for `LossProportional`. A minibatch
gradient of covariance Σ has D = ηΣ/2, so D = ησ I means Σ = 2σ I. The other readings of "σ" in the literature:

| says                                                              | ησ here is            |
|-------------------------------------------------------------------|-----------------------|
| Σ = s f I, s the variance of one component (or s I, constant)      | ηs/2                  |
| E|g - ∇f|² ≤ s f, s the trace in d dimensions, isotropic           | ηs/(2d)               |
| single-sample covariance s² I, batch size B (Jastrzebski, Mandt)   | ηs²/(2B), constant    |
| squared loss, Σ = (2f/B) H (Mori, Ziyin, Liu, Ueda)                | ηh/B, per direction h |
"""

import abc
from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float

from solvers.process import as_operator

from ._checks import array, number, scalar_valued, traced
from ._roots import covariance_root, hessian_root


class AbstractGradientNoise(eqx.Module):
    """A rule for the noise of a stochastic gradient. Parameters are array fields, so that a sweep compiles once."""

    @abc.abstractmethod
    def operator(
        self, loss: Callable, learning_rate: Float[Array, ""], x: Float[Array, " d"]
    ) -> lx.AbstractLinearOperator:
        """G at the point x, with G Gᵀ / 2 = D(x), in the dtype of x."""


class Constant(AbstractGradientNoise):
    """The same isotropic noise everywhere: D = ησ I, from a gradient covariance Σ = 2σ I.

    The invariant law is Gibbs, ∝ exp(-f/ησ). If instead the gradient has covariance s I, pass σ = s/2 (module
    docstring). `ValueError` if σ is negative or not finite; σ = 0 is gradient flow.
    """

    sigma: Float[Array, ""]

    def __init__(self, sigma):
        self.sigma = number("sigma", sigma, minimum=0)

    def operator(self, loss, learning_rate, x):
        return as_operator(jnp.sqrt(_twice(learning_rate, self.sigma, x)), x)


class LossProportional(AbstractGradientNoise):
    """Isotropic noise that vanishes with the loss: D = ησ f I, from a gradient covariance Σ = 2σ f I.

    The invariant law, where it exists, is the power law ∝ f^(-1 - 1/ησ). If instead Σ = s f I, pass σ = s/2
    (module docstring).

    Where f < 0 the noise is NaN, which the solvers report; add a constant to the loss. Points with f = 0 absorb.
    `ValueError` if σ is negative or not finite.
    """

    sigma: Float[Array, ""]

    def __init__(self, sigma):
        self.sigma = number("sigma", sigma, minimum=0)

    def operator(self, loss, learning_rate, x):
        f = scalar_valued(loss)(x)
        # At f = 0 the root has no derivative, but G ∂G = ησ ∂f, which Milstein needs, is 0 there.
        root = jnp.where(f == 0, jnp.zeros_like(f), jnp.sqrt(jnp.where(f == 0, jnp.ones_like(f), f)))
        return as_operator(jnp.sqrt(_twice(learning_rate, self.sigma, x)) * root, x)


class HessianMatched(AbstractGradientNoise):
    """Noise with the shape of the Hessian: D = ησ H₊(x), from a gradient covariance Σ = 2σ H₊.

    Away from minima the Hessian H = V diag(λ) Vᵀ is indefinite and has no real root, so H₊ is chosen explicitly:

    - rule "clip": H₊ = V diag(max(λ, floor)) Vᵀ;
    - rule "abs": H₊ = V diag(max(|λ|, floor)) Vᵀ.

    `floor` ≥ 0 keeps D positive definite. With floor = 0 there is no noise along directions of negative ("clip") or
    zero curvature: D is degenerate there, and the invariant law need not be unique. It has the units of a curvature;
    take it small against the curvatures of interest, and check that the answer does not depend on it.

    G is the symmetric root, diagonal when d = 1. One Hessian and one eigendecomposition per call: for d ≲ 100.
    On a quadratic loss with floor below its curvatures the invariant law is the Gaussian of covariance ησ I. If the
    gradient covariance is s H, pass σ = s/2. `ValueError` if σ or floor is negative, or the rule is not known.
    """

    sigma: Float[Array, ""]
    floor: Float[Array, ""]
    rule: Literal["clip", "abs"] = eqx.field(static=True)

    def __init__(self, sigma, *, floor=0.0, rule="clip"):
        if rule not in ("clip", "abs"):
            raise ValueError(f'`rule` must be "clip" or "abs", but got {rule!r}.')
        self.sigma = number("sigma", sigma, minimum=0)
        self.floor = number("floor", floor, minimum=0)
        self.rule = rule

    def operator(self, loss, learning_rate, x):
        hessian = jax.hessian(scalar_valued(loss))(x)
        root = hessian_root(hessian, self.floor.astype(x.dtype), self.rule)
        return _matrix_operator(jnp.sqrt(_twice(learning_rate, self.sigma, x)) * root, x)


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
        return _matrix_operator(scale * root, x)


def _twice(learning_rate: Float[Array, ""], sigma: Float[Array, ""], x: Float[Array, " d"]) -> Float[Array, ""]:
    # 2ησ in the dtype of the state: D = ησ I has G = sqrt(2ησ) I.
    return 2 * learning_rate.astype(x.dtype) * sigma.astype(x.dtype)


def _matrix_operator(g: Float[Array, "d m"], x: Float[Array, " d"]) -> lx.AbstractLinearOperator:
    # In one dimension a matrix is a diagonal, which more methods can use.
    return as_operator(g[:, 0] if g.shape == (1, 1) else g, x)


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
