"""Heun's method for the Stratonovich form of an Itô process, and the drift of that form."""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..process import AbstractDiffusion, noise_kind
from .method import AbstractMethod


class StratonovichHeun(AbstractMethod):
    """Heun: y = x + b̃ dt + G dW, x' = x + ½ (b̃(t, x) + b̃(t + dt, y)) dt + ½ (G(t, x) + G(t + dt, y)) dW.

    It integrates the *Itô* process that it is given: `calculus` says that inside it reads G dB as Stratonovich does,
    for which the drift is corrected to b̃ = b - ½ Σ_j (g_j·∇) g_j (see `stratonovich_drift`).

    Strong order 1/2 for general noise, 1 for noise that commutes, without Lévy areas; weak order 1. For noise that does
    not commute `Milstein` is better, for expectations `WeakRK2`. Needs G differentiable. Two drifts, two noises and two
    corrections a step; a correction takes one gradient for G = s(x) I, d derivatives for a diagonal G, m for a matrix.

    Source: Kloeden and Platen, *Numerical Solution of Stochastic Differential Equations*, 1992.
    """

    strong_order: ClassVar[float] = 0.5
    weak_order: ClassVar[float] = 1.0
    calculus: ClassVar[Literal["ito", "stratonovich"]] = "stratonovich"

    def needs(self, process, x):
        return "increment"

    def step(self, process, t, x, dt, increment):
        def slope(t, x):
            return stratonovich_drift(process, t, x) * dt + process.noise(t, x).mv(increment.dw)

        at_x = slope(t, x)
        return x + 0.5 * (at_x + slope(t + dt, x + at_x))


def stratonovich_drift(process: AbstractDiffusion, t: Float[Array, ""], x: Float[Array, " d"]) -> Float[Array, " d"]:
    """The drift b̃ of the Stratonovich equation dX = b̃ dt + G ∘ dB with the same solution as dX = b dt + G dB in Itô's.

    b̃ = b - ½ Σ_j (g_j·∇) g_j with g_j the columns of G: b - ½ s ∇s for G = s(x) I, b_i - ½ g_i ∂_i g_i for a diagonal
    G. Exact, by forward derivatives of G; for loss-proportional noise D = κ f I it is b - ½ κ ∇f.
    """
    kind = noise_kind(process.noise(t, x))
    correction = {"isotropic": _isotropic, "diagonal": _diagonal, "general": _general}[kind](process, t, x)
    return process.drift(t, x) - 0.5 * correction


def _isotropic(process, t, x):
    s, gradient = jax.value_and_grad(lambda y: process.noise(t, y).mv(jnp.ones_like(y))[0])(x)
    return s * gradient


def _diagonal(process, t, x):
    def g(y):
        return process.noise(t, y).mv(jnp.ones_like(y))

    return g(x) * jnp.diagonal(jax.jacfwd(g)(x))


def _general(process, t, x):
    operator = process.noise(t, x)

    def along(e):
        return jax.jvp(lambda y: process.noise(t, y).mv(e), (x,), (operator.mv(e),))[1]

    return jnp.sum(jax.vmap(along)(jnp.eye(operator.in_size(), dtype=x.dtype)), axis=0)
