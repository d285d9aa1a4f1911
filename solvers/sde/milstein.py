"""The Milstein method, of strong order 1 for every form of noise."""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from ..process import noise_structure
from .levy import AbstractLevyArea, MatrixArea
from .method import AbstractMethod
from .probing import is_separable

# The Lévy area of m motions costs m² numbers a step, and the derivatives of G cost m times one evaluation of it.
_most_motions = 32


class Milstein(AbstractMethod):
    """Milstein: x' = x + b dt + Σ_j g_j dW_j + Σ_jk (g_j·∇) g_k I_jk, with g_j the columns of G.

    I_jk = ½ (dW_j dW_k - δ_jk dt) + A_jk, where A is the Lévy area. What is computed depends on the noise:

    - one Brownian motion, or a diagonal G whose i-th entry depends on x_i alone: no Lévy area;
    - G = s(x) I with d ≥ 2, as in loss-proportional noise: this noise does *not* commute. With v = s ∇s the last term
      is ½ ((v·dW) dW - v dt) + Aᵀv, and Aᵀv is sampled at d + 2p + 1 normal numbers (see `levy`);
    - any other G: the whole Lévy area, at most 32 motions.

    Strong order 1, weak order 1. It does not improve the invariant law over Euler-Maruyama: use it for pathwise
    questions. Needs G differentiable; for a G that is never written down with many motions, use `EulerMaruyama`.

    Source: Kloeden and Platen, *Numerical Solution of Stochastic Differential Equations*, 1992, chapter 10.
    """

    strong_order: ClassVar[float] = 1.0
    weak_order: ClassVar[float] = 1.0
    calculus: ClassVar[Literal["ito", "stratonovich"]] = "ito"

    def needs(self, process, x):
        kind, m = noise_structure(process, x[0])
        if m == 1:
            return "increment"
        if kind == "isotropic":
            return "direction"
        if kind == "diagonal" and is_separable(process, x):
            return "increment"
        if m > _most_motions:
            raise ValueError(
                f"`Milstein` needs the Lévy areas of all {m} Brownian motions for this noise, and is limited to "
                f"{_most_motions}. Use `EulerMaruyama`, or return the noise as a scalar if it is a multiple of the "
                "identity."
            )
        return "matrix"

    def step(self, process, t, x, dt, increment):
        operator = process.noise(t, x)
        euler = x + process.drift(t, x) * dt + operator.mv(increment.dw)
        kind, m = noise_structure(process, x)
        if m == 1:
            correction = _single(process, t, x, dt, increment)
        elif kind == "isotropic":
            correction = _isotropic(process, t, x, dt, increment)
        elif kind == "diagonal":
            correction = _diagonal(process, t, x, dt, increment)
        else:
            correction = _general(process, t, x, dt, increment)
        return euler + correction


def _single(process, t, x, dt, increment):
    def g(y):
        return process.noise(t, y).as_matrix()[:, 0]

    g_x, pull = jax.linearize(g, x)
    return 0.5 * pull(g_x) * (increment.dw[0] ** 2 - dt)


def _isotropic(process, t, x, dt, increment):
    def s(y):
        return process.noise(t, y).mv(jnp.ones_like(y))[0]

    s_x, gradient = jax.value_and_grad(s)(x)
    v = s_x * gradient
    dw = increment.dw
    return 0.5 * ((v @ dw) * dw - v * dt) + _area(increment).along(v)


def _diagonal(process, t, x, dt, increment):
    def g(y):
        return lx.diagonal(process.noise(t, y))

    dw = increment.dw
    if increment.area is None:
        g_x, slope = jax.jvp(g, (x,), (jnp.ones_like(x),))
        return 0.5 * g_x * slope * (dw**2 - dt)
    # ((g_j e_j)·∇) g_k e_k = g_j ∂_j g_k e_k, so component k is Σ_j ∂_j g_k g_j I_jk.
    return jnp.einsum("kj,j,jk->k", jax.jacfwd(g)(x), g(x), _iterated_integrals(dt, increment))


def _general(process, t, x, dt, increment):
    def g(y):
        return process.noise(t, y).as_matrix()

    g_x, push = jax.linearize(g, x)
    derivatives = jax.vmap(push, in_axes=1)(g_x)
    return jnp.einsum("jdk,jk->d", derivatives, _iterated_integrals(dt, increment))


def _iterated_integrals(dt, increment) -> Float[Array, "m m"]:
    """I_jk = ∫∫ dW_j dW_k over the step, the inner integral being that of j."""
    dw, area = increment.dw, _area(increment)
    if not isinstance(area, MatrixArea):
        raise TypeError(
            f"`Milstein` needs the whole Lévy area of this noise, a `MatrixArea`, got {type(area).__name__}."
        )
    return 0.5 * (jnp.outer(dw, dw) - dt * jnp.eye(dw.size, dtype=dw.dtype)) + area.matrix


def _area(increment) -> AbstractLevyArea:
    if increment.area is None:
        raise ValueError(
            "`Milstein` needs the Lévy area of this noise, but `increment.area` is None. `simulate` and the order "
            "studies supply it; for a single step, pass Increment(dw, area) of the kind that `Milstein().needs` names."
        )
    return increment.area
