"""The Leimkuhler-Matthews method, the cheapest accurate sampler of an invariant law under additive noise."""

from typing import ClassVar, Literal

import equinox as eqx

from .method import AbstractPostprocessed, check_noise
from .probing import require_additive


class LeimkuhlerMatthews(AbstractPostprocessed):
    """Leimkuhler-Matthews: x_{n+1} = x_n + b(x_n) dt + ½ G (dW_n + dW_{n+1}), for G that does not depend on x.

    Stepped as y' = y + b(t, y + ½ G dW) dt + G dW, with the state x = y + ½ G dW for the increment dW of the step that
    begins. One drift a step, as Euler-Maruyama, and of another quality in the long run: the invariant law has an error
    of order 2, and under a quadratic loss with D commuting with the Hessian its covariance is exact at every stable dt.

    Weak order 1 at a finite time, with an error that decays to order 2 as the law becomes invariant. Strong order 1/2
    even though the noise is additive, because x is half an increment ahead of the Brownian motion: for pathwise
    questions use `SRA1`. Unstable for dt beyond 2 / (the largest curvature), as Euler-Maruyama.

    `noise="three-point"` takes 0 and ±√(3 dt) in the place of normal increments: cheaper, and of the same weak orders.

    Source: Leimkuhler and Matthews, "Rational construction of stochastic numerical methods for molecular sampling",
    2013.
    """

    noise: Literal["normal", "three-point"] = eqx.field(static=True, default="normal")

    strong_order: ClassVar[float] = 0.5
    weak_order: ClassVar[float] = 1.0
    calculus: ClassVar[Literal["ito", "stratonovich"]] = "ito"

    def __check_init__(self):
        check_noise(self.noise)

    def needs(self, process, x):
        require_additive(type(self).__name__, process, x)
        return "increment" if self.noise == "normal" else "three-point"

    def enter(self, process, t, x, dt, increment):
        return x - 0.5 * process.noise(t, x).mv(increment.dw)

    def step(self, process, t, x, dt, increment):
        kick = process.noise(t, x).mv(increment.dw)
        return x + process.drift(t, x + 0.5 * kick) * dt + kick

    def leave(self, process, t, y, dt, increment):
        return y + 0.5 * process.noise(t, y).mv(increment.dw)
