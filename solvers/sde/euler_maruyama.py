"""The Euler-Maruyama method."""

from typing import ClassVar, Literal

from .method import AbstractMethod


class EulerMaruyama(AbstractMethod):
    """Euler-Maruyama: x' = x + b(t, x) dt + G(t, x) dW, for every form of noise.

    Strong order 1/2 (1 when G is constant), weak order 1. With dt equal to the learning rate it *is* SGD with Gaussian
    gradient noise, not an approximation of the SDE: take dt well below the learning rate to study the SDE.

    Source: Kloeden and Platen, *Numerical Solution of Stochastic Differential Equations*, 1992.
    """

    strong_order: ClassVar[float] = 0.5
    weak_order: ClassVar[float] = 1.0
    calculus: ClassVar[Literal["ito", "stratonovich"]] = "ito"

    def needs(self, process, x):
        return "increment"

    def step(self, process, t, x, dt, increment):
        return x + process.drift(t, x) * dt + process.noise(t, x).mv(increment.dw)
