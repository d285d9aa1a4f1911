"""The stochastic modified equation of second order of SGD."""

from collections.abc import Callable

from jaxtyping import Array, Float

from .._checks import number, scalar_valued
from ..noise import AbstractGradientNoise
from .model import AbstractMemoryless, checked_loss, checked_noise, gradient_of_square


class ModifiedSGD(AbstractMemoryless):
    """SGD in continuous time to second order in η: dX = -∇(f + (η/4)|∇f|²) dt + sqrt(2D(X)) dB (Itô), D = ηΣ/2.

    Step k of SGD is at t = ηk, as for `SGD`, which has no term in η in its drift. Over a fixed time expectations of
    smooth functions differ from those of SGD by O(η²), where those of `SGD` differ by O(η).

    It is not better in all respects. With curvature h and constant noise the mean after a step is (1 - ηh)x + O(η³)
    in the place of O(η²), but the stationary variance is ηc/(2h(1 + ηh/2)), further from ηc/(h(2 - ηh)), the exact
    one, than the ηc/(2h) of `SGD`: the relative errors are -ηh and -ηh/2. (The variance is O(η) itself, so both are
    O(η²), as claimed.) On a quadratic `EmbeddedSGD` has the exact law.

    Source: Li, Tai and E, *Stochastic modified equations and dynamics of stochastic gradient algorithms I*, JMLR 2019.
    """

    loss: Callable
    gradient_noise: AbstractGradientNoise
    learning_rate: Float[Array, ""]

    def __init__(self, loss: Callable, noise: AbstractGradientNoise, learning_rate):
        self.loss, self.gradient_noise = checked_loss(loss), checked_noise(noise)
        self.learning_rate = number("learning_rate", learning_rate, positive=True)

    def drift(self, t, x):
        g, turn = gradient_of_square(self.loss, x)
        return -(g + 0.5 * self.learning_rate.astype(x.dtype) * turn)

    def noise(self, t, x):
        return self.gradient_noise.operator(scalar_valued(self.loss), self.learning_rate, x)

    @property
    def clock(self) -> Float[Array, ""]:
        """η: step k is at t = ηk."""
        return self.learning_rate
