"""Sharpness-aware minimisation in continuous time.

To first order in the radius ρ, a step of SAM is a step of SGD on the losses l + ρ|∇l| of single batches, and one of
USAM a step on l + (ρ/2)|∇l|². So both are the diffusion of SGD for another finite sum.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._checks import number, traced
from .._operators import ExampleRoot
from ..losses import AbstractFiniteSum
from .model import AbstractMemoryless, checked_sum


class SAM(AbstractMemoryless):
    """SAM in continuous time: dX = -∇(f + ρ E|∇f_γ|) dt + sqrt(η Cov u) dB (Itô), u = ∇f_γ + ρ ∇²f_γ ∇f_γ/|∇f_γ|.

    The limit of X ← X - η∇f_γ(X + ρ∇f_γ(X)/|∇f_γ(X)|) for ρ = O(√η); step k is at t = ηk, ρ is `radius`. The two
    gradients of a step are of the same batch γ, and that adds ρ(S + Sᵀ), S = Cov(∇f_γ, ∇²f_γ∇f_γ/|∇f_γ|), to the
    covariance Σ of the gradient. Cov u is that to first order in ρ, and positive semi-definite for every ρ.

    A batch is a single example, drawn at random, or one of `batches`, an array (K, B) of indices of examples: all
    batches there are, or a sample of them. One row of all indices is SAM on the whole loss, without noise. The
    gradients of all K batches are computed at once. Where ∇f_γ = 0 the direction uphill is taken to be 0.

    The equation is no guide to where SAM ends: with constant ρ and no noise it jumps to and fro, on f = hx²/2 between
    ±ηhρ/(2-ηh), where the equation slides to 0.

    `TypeError` if the loss is not a finite sum, `ValueError` for indices out of range or ρ < 0. Source: Monzio
    Compagnoni, Biggio, Orvieto, Proske, Kersting and Lucchi, *An SDE for modeling SAM*, ICML 2023.
    """

    loss: AbstractFiniteSum
    learning_rate: Float[Array, ""]
    radius: Float[Array, ""]
    batches: Int[Array, "K B"]

    def __init__(self, loss: AbstractFiniteSum, learning_rate, radius, batches=None):
        self.loss = checked_sum(loss)
        self.learning_rate = number("learning_rate", learning_rate, positive=True)
        self.radius = number("radius", radius, minimum=0)
        self.batches = _checked_batches(loss, batches)

    def drift(self, t, x):
        return -_mean_gradient(_Batches(self.loss, self.batches, self.radius, True), x)

    def noise(self, t, x):
        return _root(_Batches(self.loss, self.batches, self.radius, True), self.learning_rate, x)

    @property
    def clock(self) -> Float[Array, ""]:
        """η: step k is at t = ηk."""
        return self.learning_rate


class USAM(AbstractMemoryless):
    """SAM without normalisation: dX = -∇(f + (ρ/2) E|∇f_γ|²) dt + sqrt(η Cov u) dB (Itô), u = ∇f_γ + ρ∇²f_γ∇f_γ.

    The limit of X ← X - η∇f_γ(X + ρ∇f_γ(X)); ρ has the units of a learning rate. On a quadratic of curvature h with
    constant noise the gradient noise is that of SGD times 1 + ρh, and the stationary variance grows with ρ:
    ηc(1 + ρh)/(2h). For the rest see `SAM`.
    """

    loss: AbstractFiniteSum
    learning_rate: Float[Array, ""]
    radius: Float[Array, ""]
    batches: Int[Array, "K B"]

    def __init__(self, loss: AbstractFiniteSum, learning_rate, radius, batches=None):
        self.loss = checked_sum(loss)
        self.learning_rate = number("learning_rate", learning_rate, positive=True)
        self.radius = number("radius", radius, minimum=0)
        self.batches = _checked_batches(loss, batches)

    def drift(self, t, x):
        return -_mean_gradient(_Batches(self.loss, self.batches, self.radius, False), x)

    def noise(self, t, x):
        return _root(_Batches(self.loss, self.batches, self.radius, False), self.learning_rate, x)

    @property
    def clock(self) -> Float[Array, ""]:
        """η: step k is at t = ηk."""
        return self.learning_rate


class DNSAM(AbstractMemoryless):
    """SAM normalised by the whole gradient: dX = -E u dt + sqrt(η Cov u) dB (Itô), u = ∇f_γ + ρ∇²f_γ∇f_γ/|∇f|.

    The limit of X ← X - η∇f_γ(X + ρ∇f_γ(X)/|∇f(X)|). The drift is -∇f - ρ∇E|∇f_γ|²/(2|∇f|), which is -∇(f + ρ|∇f|)
    where the noise does not depend on x, and in general no gradient: tr Σ adds -ρ∇tr Σ/(2|∇f|). It is singular where
    ∇f = 0, as the algorithm is. For the rest see `SAM`.
    """

    loss: AbstractFiniteSum
    learning_rate: Float[Array, ""]
    radius: Float[Array, ""]
    batches: Int[Array, "K B"]

    def __init__(self, loss: AbstractFiniteSum, learning_rate, radius, batches=None):
        self.loss = checked_sum(loss)
        self.learning_rate = number("learning_rate", learning_rate, positive=True)
        self.radius = number("radius", radius, minimum=0)
        self.batches = _checked_batches(loss, batches)

    def drift(self, t, x):
        return -_mean_gradient(self._sharp(x), x)

    def noise(self, t, x):
        return _root(self._sharp(x), self.learning_rate, x)

    @property
    def clock(self) -> Float[Array, ""]:
        """η: step k is at t = ηk."""
        return self.learning_rate

    def _sharp(self, x):
        # That of USAM, with the radius ρ/|∇f| of this point.
        plain = _Batches(self.loss, self.batches, jnp.zeros_like(self.radius), False)
        radius = self.radius.astype(x.dtype) / _norm(_mean_gradient(plain, x))
        return _Batches(self.loss, self.batches, radius, False)


class _Batches(eqx.Module):
    """The losses l + ρ|∇l|, or l + (ρ/2)|∇l|², of batches, as functions of the point and the numbers of batches."""

    loss: AbstractFiniteSum
    batches: Int[Array, "K B"]
    radius: Float[Array, ""]
    normalised: bool = eqx.field(static=True)

    def __call__(self, x: Float[Array, " d"], index: Int[Array, " b"]) -> Float[Array, " b"]:
        return jax.vmap(lambda batch: self._one(x, batch))(self.batches[index])

    def _one(self, x, batch):
        value, slope = jax.value_and_grad(lambda y: jnp.mean(self.loss.examples(y, batch)))(x)
        radius = self.radius.astype(x.dtype)
        return value + radius * (_norm(slope) if self.normalised else 0.5 * slope @ slope)


def _mean_gradient(sharp: _Batches, x: Float[Array, " d"]) -> Float[Array, " d"]:
    return jax.grad(lambda y: jnp.mean(sharp(y, jnp.arange(len(sharp.batches)))))(x)


def _root(sharp: _Batches, learning_rate: Float[Array, ""], x: Float[Array, " d"]) -> ExampleRoot:
    count = len(sharp.batches)
    return ExampleRoot(sharp, x, jnp.sqrt(learning_rate.astype(x.dtype) / count), count, True)


def _norm(g: Float[Array, " d"]) -> Float[Array, ""]:
    # |g|, with the derivative 0 at g = 0.
    square = g @ g
    zero = square == 0
    return jnp.where(zero, jnp.zeros_like(square), jnp.sqrt(jnp.where(zero, jnp.ones_like(square), square)))


def _checked_batches(loss: AbstractFiniteSum, batches) -> Int[Array, "K B"]:
    if batches is None:
        return jnp.arange(loss.count)[:, None]
    batches = batches if traced(batches) else np.asarray(batches)
    if batches.ndim != 2 or batches.size == 0 or not jnp.issubdtype(batches.dtype, jnp.integer):
        raise ValueError(
            f"`batches` must be whole numbers of shape (K, B), the examples of K batches, but got shape "
            f"{batches.shape} and dtype {batches.dtype}."
        )
    if not traced(batches) and (batches.min() < 0 or batches.max() >= loss.count):
        raise ValueError(
            f"`batches` must hold numbers of examples from 0 to {loss.count - 1}, but they are from "
            f"{batches.min()} to {batches.max()}."
        )
    return jnp.asarray(batches)
