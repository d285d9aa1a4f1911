"""The Euler-Maruyama method."""

from typing import ClassVar, Literal

import equinox as eqx

from ..process import AbstractJointDiffusion
from .method import AbstractMethod, check_noise


class EulerMaruyama(AbstractMethod):
    """Euler-Maruyama: x' = x + b(t, x) dt + G(t, x) dW, for every form of noise.

    Strong order 1/2 (1 when G is constant), weak order 1. With dt equal to the learning rate it *is* SGD with Gaussian
    gradient noise, not an approximation of the SDE: take dt well below the learning rate to study the SDE.

    `noise="three-point"` takes 0 and ±√(3 dt) in the place of normal increments: cheaper, of the same weak order, and
    of no strong order, for it follows no Brownian motion.

    Source: Kloeden and Platen, *Numerical Solution of Stochastic Differential Equations*, 1992.
    """

    noise: Literal["normal", "three-point"] = eqx.field(static=True, default="normal")

    strong_order: ClassVar[float] = 0.5
    weak_order: ClassVar[float] = 1.0
    calculus: ClassVar[Literal["ito", "stratonovich"]] = "ito"

    def __check_init__(self):
        check_noise(self.noise)

    def needs(self, process, x):
        return "increment" if self.noise == "normal" else "three-point"

    def step(self, process, t, x, dt, increment):
        if isinstance(process, AbstractJointDiffusion):
            return process.euler(t, x, dt, increment.dw)
        return x + process.drift(t, x) * dt + process.noise(t, x).mv(increment.dw)
