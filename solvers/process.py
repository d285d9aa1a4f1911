"""The process that every solver reads: an Itô diffusion dX = b(t, X) dt + G(t, X) dB.

Its density obeys ∂tρ = -∂i(b_i ρ) + ∂i∂j(D_ij ρ) with D = G Gᵀ / 2. There is no factor 1/2 in the equation
because D carries it.
"""

import abc
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Float, Shaped

from ._tracing import traceable

NoiseKind = Literal["isotropic", "diagonal", "general"]


class AbstractDiffusion(eqx.Module):
    """An Itô diffusion dX = b(t, X) dt + G(t, X) dB on R^d, driven by m independent Brownian motions.

    Subclass this for a process with a structure of its own; `Diffusion` wraps two functions.
    Numbers that may vary from run to run are array fields, so that changing them does not compile anew.
    """

    @abc.abstractmethod
    def drift(self, t: Shaped[ArrayLike, ""], x: Float[Array, " d"]) -> Float[Array, " d"]:
        """The drift b(t, x), in units of state per time."""

    @abc.abstractmethod
    def noise(self, t: Shaped[ArrayLike, ""], x: Float[Array, " d"]) -> lx.AbstractLinearOperator:
        """The noise G(t, x): R^m -> R^d, in units of state per square root of time."""

    def diffusion(self, t: Shaped[ArrayLike, ""], x: Float[Array, " d"]) -> Float[Array, "d d"]:
        """The diffusion tensor D = G Gᵀ / 2 as a dense matrix; for small d."""
        g = self.noise(t, x).as_matrix()
        return 0.5 * g @ g.T


class AbstractJointDiffusion(AbstractDiffusion):
    """A diffusion whose drift and noise cost less together than one after the other."""

    @abc.abstractmethod
    def euler(
        self, t: Shaped[ArrayLike, ""], x: Float[Array, " d"], dt: Shaped[Array, ""], dw: Float[Array, " m"]
    ) -> Float[Array, " d"]:
        """x + b(t, x) dt + G(t, x) dw: a step of Euler and Maruyama."""


class Diffusion(AbstractDiffusion):
    """The Itô diffusion dX = b dt + G dB given by two JAX functions.

    `drift(t, x)` returns shape (d,). `noise(t, x)` returns

    - a scalar g, for G = g I with m = d;
    - shape (d,), for G = diag(g) with m = d;
    - shape (d, m), for G itself;
    - a lineax operator from R^m to R^d, for a G that is never written down.

    Arrays are cast to the dtype of `x`, which must be real floating point; an operator must have it already. A
    `ValueError` or `TypeError` says which function returned what.
    """

    drift_fn: Callable
    noise_fn: Callable

    def __init__(self, drift: Callable, noise: Callable):
        for name, fn in (("drift", drift), ("noise", noise)):
            if not callable(fn):
                raise TypeError(f"`{name}` must be a function of (t, x), but got {fn!r}.")
        self.drift_fn = drift
        self.noise_fn = noise

    def drift(self, t, x):
        b = _real_array("drift", self.drift_fn(t, x), x)
        if b.shape != x.shape:
            raise ValueError(
                f"`drift(t, x)` must return shape {x.shape} for x of shape {x.shape}, got {b.shape}. "
                "Return one component per coordinate of x."
            )
        return b

    def noise(self, t, x):
        return as_operator(self.noise_fn(t, x), x)


def as_operator(g, x: Float[Array, " d"]) -> lx.AbstractLinearOperator:
    """The noise G at the point x as a lineax operator, from any of the forms that `Diffusion` accepts."""
    (d,) = x.shape
    if isinstance(g, lx.AbstractLinearOperator):
        given = [(getattr(s, "shape", None), getattr(s, "dtype", None)) for s in (g.in_structure(), g.out_structure())]
        if given != [((g.in_size(),), x.dtype), ((d,), x.dtype)]:
            raise ValueError(
                f"`noise(t, x)` returned an operator from {g.in_structure()} to {g.out_structure()}; for x of shape "
                f"{x.shape} and dtype {x.dtype} it must map shape (m,) to shape {x.shape} in that dtype."
            )
        return g
    g = _real_array("noise", g, x)
    if g.ndim == 0:
        return lx.IdentityLinearOperator(jax.eval_shape(lambda: x)) * g
    if g.shape == (d,):
        return lx.DiagonalLinearOperator(g)
    if g.ndim == 2 and g.shape[0] == d and g.shape[1] > 0:
        return lx.MatrixLinearOperator(g)
    raise ValueError(
        f"`noise(t, x)` must return a scalar, shape ({d},), shape ({d}, m) or a lineax operator for x of shape "
        f"{x.shape}, got shape {g.shape}. A scalar g means g times the identity; a vector is the diagonal of G."
    )


def noise_kind(operator: lx.AbstractLinearOperator) -> NoiseKind:
    """What the form of G tells: a multiple of the identity, a diagonal, or neither."""
    # lineax allows an identity between spaces of different size.
    if operator.in_size() != operator.out_size():
        return "general"
    if isinstance(operator, lx.IdentityLinearOperator):
        return "isotropic"
    if isinstance(operator, (lx.MulLinearOperator, lx.NegLinearOperator, lx.DivLinearOperator)):
        return noise_kind(operator.operator)
    if isinstance(operator, lx.TaggedLinearOperator):
        return noise_kind(operator.operator)
    return "diagonal" if lx.is_diagonal(operator) else "general"


def noise_structure(process: Any, x: Float[Array, " d"]) -> tuple[NoiseKind, int]:
    """The kind of noise and the number m of Brownian motions, found without computing anything.

    Traces `drift` and `noise` once at the shape and dtype of `x`, so that a wrong return value is reported here.
    """
    if not isinstance(process, AbstractDiffusion):
        raise TypeError(
            f"`process` must be a `solvers.Diffusion(drift, noise)` or another `AbstractDiffusion`, got {process!r}."
        )
    t = jax.ShapeDtypeStruct((), x.dtype)
    point = jax.ShapeDtypeStruct(x.shape, x.dtype)
    with traceable("`drift(t, x)`, or the loss,"):
        drift = eqx.filter_eval_shape(lambda p, t, x: p.drift(t, x), process, t, point)
    if drift.shape != x.shape or drift.dtype != x.dtype:
        raise ValueError(
            f"`drift(t, x)` must return shape {x.shape} and dtype {x.dtype} for such an x, got {drift.shape} and "
            f"{drift.dtype}."
        )
    with traceable("`noise(t, x)`, or the loss,"):
        operator = eqx.filter_eval_shape(lambda p, t, x: p.noise(t, x), process, t, point)
    if not isinstance(operator, lx.AbstractLinearOperator):
        raise TypeError(
            f"`noise(t, x)` of {type(process).__name__} must return a lineax operator, got {type(operator).__name__}. "
            "Wrap it with `solvers.process.as_operator(g, x)`."
        )
    return noise_kind(operator), operator.in_size()


def _real_array(name: str, value, x: Float[Array, " d"]) -> Float[Array, "..."]:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"`x` must be an array of floating point numbers, but its dtype is {x.dtype}. Use 1.0, not 1.")
    try:
        value = jnp.asarray(value)
    except (TypeError, ValueError):
        raise TypeError(f"`{name}(t, x)` must return a real array, got {type(value).__name__}.") from None
    if not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
        raise TypeError(f"`{name}(t, x)` must return real numbers, got dtype {value.dtype}.")
    return value.astype(x.dtype)
