"""Models of the gradient noise: which diffusion D(x) the stochastic gradient has.

Every noise gives an operator G with G Gᵀ / 2 = D in the Itô equation dX = -∇f dt + G dB, on the clock t = ηk of step
k and learning rate η.

What σ means. Here σ is fixed by the diffusion: D = ησ I for `Constant`, ησ f I for `LossProportional`, ησ H₊ for
`HessianMatched`, ησ f H₊ for `LossHessian`. A minibatch gradient of covariance Σ has D = ηΣ/2, so D = ησ I means
Σ = 2σ I. The other readings of "σ" in the literature:

| says                                                              | ησ here is                               |
|-------------------------------------------------------------------|------------------------------------------|
| Σ = s f I, s the variance of one component (or s I, constant)      | ηs/2                                     |
| E|g - ∇f|² ≤ s f, s the trace in d dimensions, isotropic           | ηs/(2d)                                  |
| single-sample covariance s² I, batch size B (Jastrzebski, Mandt)   | ηs²/(2B), constant                       |
| squared loss, Σ = (2f/B) H (Mori, Ziyin, Liu, Ueda)                | η/B in `LossHessian`, ηh/B per direction |

`Covariance`, `Minibatch` and `LabelNoise` have no σ: they take the covariance of the gradients themselves. `Sum` adds
independent noises, and `Projected` is the part of one within a plane; `EqualTrace` and
`Frozen` are controls that lack the shape of one, or its dependence on the point.
"""

from .controls import EqualTrace as EqualTrace, Frozen as Frozen
from .covariance import Covariance as Covariance
from .gradient_noise import AbstractGradientNoise as AbstractGradientNoise
from .hessian import HessianMatched as HessianMatched, LossHessian as LossHessian
from .isotropic import Constant as Constant, LossProportional as LossProportional
from .projected import Projected as Projected
from .sampled import LabelNoise as LabelNoise, Minibatch as Minibatch
from .sum import Sum as Sum

__all__ = [
    "AbstractGradientNoise",
    "Constant",
    "Covariance",
    "EqualTrace",
    "Frozen",
    "HessianMatched",
    "LabelNoise",
    "LossHessian",
    "LossProportional",
    "Minibatch",
    "Projected",
    "Sum",
]
