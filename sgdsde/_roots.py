"""Roots of symmetric matrices that can be differentiated where eigenvalues coincide.

Milstein's method differentiates the noise. The derivative that JAX has for `eigh` is NaN at coinciding eigenvalues
(any multiple of the identity); the Daleckii-Krein formula for a function of a matrix has no such singularity.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def hessian_root(h: Float[Array, "d d"], floor: Float[Array, ""], rule: str) -> Float[Array, "d d"]:
    """The symmetric root of V diag(max(λ, floor)) Vᵀ for rule "clip", of V diag(max(|λ|, floor)) Vᵀ for "abs"."""
    return _root(rule, _symmetric(h), floor)


def covariance_root(c: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """The symmetric root of a positive semi-definite matrix; NaN where it has a clearly negative eigenvalue.

    Eigenvalues within rounding of zero count as zero: low rank is the normal case.
    """
    values = jnp.linalg.eigvalsh(jax.lax.stop_gradient(_symmetric(c)))
    tolerance = 10 * c.shape[0] * jnp.finfo(c.dtype).eps * jnp.max(jnp.abs(values))
    root = _root("clip", _symmetric(c), jnp.zeros((), c.dtype))
    return jnp.where(values[0] < -tolerance, jnp.full_like(root, jnp.nan), root)


def _symmetric(a: Float[Array, "d d"]) -> Float[Array, "d d"]:
    return 0.5 * (a + a.T)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _root(rule: str, h: Float[Array, "d d"], floor: Float[Array, ""]) -> Float[Array, "d d"]:
    values, vectors = jnp.linalg.eigh(h)
    return (vectors * jnp.sqrt(_raised(rule, values, floor))) @ vectors.T


@_root.defjvp
def _root_jvp(rule, primals, tangents):
    # Daleckii-Krein: dF = V (Γ ∘ Vᵀ dH V) Vᵀ with Γ_ij the divided difference of the function of the eigenvalues.
    h, floor = primals
    dh, dfloor = tangents
    values, vectors = jnp.linalg.eigh(h)
    raised = _raised(rule, values, floor)
    roots = jnp.sqrt(raised)
    total = roots[:, None] + roots[None, :]
    # The root has no derivative at 0; like |x| there, it is given the derivative 0.
    inverse = jnp.where(total > 0, 1 / jnp.where(total > 0, total, jnp.ones_like(total)), jnp.zeros_like(total))
    slope = _divided_difference(rule, values, raised, floor)
    middle = slope * inverse * (vectors.T @ dh @ vectors)
    at_floor = (raised == floor).astype(h.dtype) * jnp.diagonal(inverse) * dfloor
    root = (vectors * roots) @ vectors.T
    return root, vectors @ (middle + jnp.diag(at_floor)) @ vectors.T


def _raised(rule: str, values: Float[Array, " d"], floor: Float[Array, ""]) -> Float[Array, " d"]:
    return jnp.maximum(jnp.abs(values) if rule == "abs" else values, floor)


def _divided_difference(rule, values, raised, floor) -> Float[Array, "d d"]:
    slopes = (raised > floor).astype(values.dtype) * (jnp.sign(values) if rule == "abs" else 1)
    gap = values[:, None] - values[None, :]
    near = jnp.abs(gap) <= jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))
    quotient = (raised[:, None] - raised[None, :]) / jnp.where(near, jnp.ones_like(gap), gap)
    return jnp.where(near, jnp.broadcast_to(slopes[:, None], gap.shape), quotient)
