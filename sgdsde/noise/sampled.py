"""The gradient noise of a finite sum itself: from minibatches, and from noise on the labels."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import number, traced
from .._operators import ExampleRoot
from ..losses import AbstractFiniteSum, AbstractSquaredLoss
from .gradient_noise import AbstractGradientNoise


class Minibatch(AbstractGradientNoise):
    """The noise of minibatches of B of N examples: D = ηΣ/2 with their exact covariance Σ, whatever the dimension.

    With C(x) = (1/N) Σ_i (∇l_i - ∇f)(∇l_i - ∇f)ᵀ, the population covariance of the gradients of single examples,
    Σ = C/B with replacement, and Σ = (C/B)(N-B)/(N-1) without.

    G maps R^N to R^d, w ↦ √(η/(BN)) √((N-B)/(N-1)) Σ_i (w_i - w̄) ∇l_i(x): N Brownian motions and one backward pass a
    product, so that neither the matrix nor the gradients of single examples are ever stored. The rank is at most
    N - 1. Where d is much less than N, N random numbers a step may cost more than a root of C:
    `Covariance(Minibatch(loss, B).covariance, 1)` is the same noise from d Brownian motions, but such a root has no
    derivative where C loses rank.

    `loss` is a finite sum, such as `losses.FiniteSum`, and normally the loss of the model; a model whose loss has
    other terms besides, such as weight decay, takes it as well. `TypeError` if it is not a finite sum; `ValueError`
    unless B ≥ 1, and B ≤ N without replacement.
    """

    loss: AbstractFiniteSum
    batch_size: Float[Array, ""]
    replacement: bool = eqx.field(static=True)

    def __init__(self, loss: AbstractFiniteSum, batch_size, replacement: bool = True):
        if not isinstance(loss, AbstractFiniteSum):
            raise TypeError(f"`loss` must be a finite sum, such as `losses.FiniteSum(l, data)`, but got {loss!r}.")
        self.loss = loss
        self.batch_size = number("batch_size", batch_size, minimum=1)
        self.replacement = replacement
        if not replacement and not traced(self.batch_size) and self.batch_size > loss.count:
            raise ValueError(
                f"`batch_size` must be at most the number {loss.count} of examples without replacement, but got "
                f"batch_size={float(self.batch_size):g}."
            )

    def operator(self, loss, learning_rate, x):
        variance = learning_rate.astype(x.dtype) * self._share(x) / self.loss.count
        return ExampleRoot(self.loss.examples, x, jnp.sqrt(variance), self.loss.count, True)

    def covariance(self, x: Float[Array, " d"]) -> Float[Array, "d d"]:
        """The covariance Σ(x) of the gradient of a batch as a matrix, for small d."""
        root = ExampleRoot(self.loss.examples, x, jnp.sqrt(self._share(x) / self.loss.count), self.loss.count, True)
        matrix = root.as_matrix()
        return matrix @ matrix.T

    def _share(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        # Σ in units of C.
        share = 1 / self.batch_size.astype(x.dtype)
        if not self.replacement:
            share = share * (self.loss.count - self.batch_size.astype(x.dtype)) / max(self.loss.count - 1, 1)
        return share


class LabelNoise(AbstractGradientNoise):
    """The noise of labels that are drawn anew in every step: D = ηΣ/2, Σ = (s²/B) (1/N) Σ_i ∇h_i ∇h_iᵀ, s = `std`.

    For a squared loss with l_i = (h_i(x) - y_i)²/2 whose labels are y_i + s ξ with independent ξ of mean 0 and
    variance 1, in batches of B examples. The noise of which examples are in the batch comes on top, uncorrelated, and
    is left out: it vanishes where the model interpolates, unlike label noise. `Sum` adds the two.

    Σ is s²/B times the Gauss-Newton matrix, so D = ησ H with σ = s²/(2B) near minima of zero loss: `HessianMatched`
    for any dimension. One backward pass a product, from N Brownian motions, as in `Minibatch`.

    `loss` is a squared loss, such as `losses.SquaredLoss`. `TypeError` if not; `ValueError` unless s ≥ 0 and B ≥ 1.
    """

    loss: AbstractSquaredLoss
    std: Float[Array, ""]
    batch_size: Float[Array, ""]

    def __init__(self, loss: AbstractSquaredLoss, std, batch_size=1):
        if not isinstance(loss, AbstractSquaredLoss):
            raise TypeError(
                "`loss` must be a squared loss, such as `losses.SquaredLoss(predict, inputs, labels)`, but got "
                f"{loss!r}."
            )
        self.loss = loss
        self.std = number("std", std, minimum=0)
        self.batch_size = number("batch_size", batch_size, minimum=1)

    def operator(self, loss, learning_rate, x):
        variance = learning_rate.astype(x.dtype) / (self.batch_size.astype(x.dtype) * self.loss.count)
        scale = self.std.astype(x.dtype) * jnp.sqrt(variance)
        return ExampleRoot(self.loss.residuals, x, scale, self.loss.count, False)
