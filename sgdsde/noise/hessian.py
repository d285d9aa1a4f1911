"""Gradient noise with the shape of the Hessian."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import number, scalar_valued
from .._roots import hessian_root
from .gradient_noise import AbstractGradientNoise, matrix_operator, root_of, twice


class HessianMatched(AbstractGradientNoise):
    """Noise with the shape of the Hessian: D = ησ H₊(x), from a gradient covariance Σ = 2σ H₊.

    Away from minima the Hessian H = V diag(λ) Vᵀ is indefinite and has no real root, so H₊ is chosen explicitly:

    - rule "clip": H₊ = V diag(max(λ, floor)) Vᵀ;
    - rule "abs": H₊ = V diag(max(|λ|, floor)) Vᵀ.

    `floor` ≥ 0 keeps D positive definite. With floor = 0 there is no noise along directions of negative ("clip") or
    zero curvature: D is degenerate there, and the invariant law need not be unique. It has the units of a curvature;
    take it small against the curvatures of interest, and check that the answer does not depend on it.

    G is the symmetric root, diagonal when d = 1. One Hessian and one eigendecomposition per call: for d ≲ 100. The
    Gauss-Newton matrix in the place of H₊, of any dimension and semi-definite by itself, is `LabelNoise`.
    On a quadratic loss with floor below its curvatures the invariant law is the Gaussian of covariance ησ I. If the
    gradient covariance is s H, pass σ = s/2. `ValueError` if σ or floor is negative, or the rule is not known.
    """

    sigma: Float[Array, ""]
    floor: Float[Array, ""]
    rule: Literal["clip", "abs"] = eqx.field(static=True)

    def __init__(self, sigma, *, floor=0.0, rule="clip"):
        self.sigma = number("sigma", sigma, minimum=0)
        self.floor, self.rule = number("floor", floor, minimum=0), _known(rule)

    def operator(self, loss, learning_rate, x):
        root = hessian_root(_hessian(loss, x), self.floor.astype(x.dtype), self.rule)
        return matrix_operator(jnp.sqrt(twice(learning_rate, self.sigma, x)) * root, x)


class LossHessian(AbstractGradientNoise):
    """Noise proportional to the loss, with the shape of the Hessian: D = ησ f H₊(x), from Σ = 2σ f H₊.

    Near interpolation a squared loss f = (1/2N) Σ r_i² has Σ ≈ (2f/B) H with batches of B examples, if residuals are
    independent of the gradients of the model: σ = 1/B. H₊ is H made positive by `rule` and `floor`, and restrictions
    are as in `HessianMatched`. The noise is NaN where f < 0, and points with f = 0 absorb, as in `LossProportional`.

    Source: Mori, Ziyin, Liu and Ueda, *Power-law escape rate of SGD*, ICML 2022.
    """

    sigma: Float[Array, ""]
    floor: Float[Array, ""]
    rule: Literal["clip", "abs"] = eqx.field(static=True)

    def __init__(self, sigma, *, floor=0.0, rule="clip"):
        self.sigma = number("sigma", sigma, minimum=0)
        self.floor, self.rule = number("floor", floor, minimum=0), _known(rule)

    def operator(self, loss, learning_rate, x):
        root = hessian_root(_hessian(loss, x), self.floor.astype(x.dtype), self.rule)
        height = root_of(scalar_valued(loss)(x))
        return matrix_operator(jnp.sqrt(twice(learning_rate, self.sigma, x)) * height * root, x)


def _hessian(loss: Callable, x: Float[Array, " d"]) -> Float[Array, "d d"]:
    return jax.hessian(scalar_valued(loss))(x)


def _known(rule: Any) -> Any:
    if rule not in ("clip", "abs"):
        raise ValueError(f'`rule` must be "clip" or "abs", but got {rule!r}.')
    return rule
