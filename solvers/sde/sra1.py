"""Rößler's SRA1 method, of strong order 3/2 for additive noise."""

from typing import ClassVar, Literal

from .method import AbstractMethod
from .probing import require_additive


class SRA1(AbstractMethod):
    """SRA1: x' = x + (b(t, x) + 2 b(t + ¾dt, y)) dt / 3 + ∫G dW, for G that may depend on t, but not on x.

    The stage is y = x + ¾ b(t, x) dt + (3/2) G(t + dt) dz / dt with dz = ∫ (W(s) - W(t)) ds over the step, and the
    noise is integrated for G linear in time: ∫G dW = G(t + dt) dW - (G(t + dt) - G(t)) dz / dt.

    Strong order 3/2, weak order 2: for pathwise questions and moments at a finite time under additive noise, among them
    time-changed paths. Two drifts and two noises a step, 2m normal numbers. For the invariant law alone
    `LeimkuhlerMatthews` is as good at half the price.

    Source: Rößler, "Runge-Kutta methods for the strong approximation of solutions of stochastic differential
    equations", SIAM Journal on Numerical Analysis 48, 2010.
    """

    strong_order: ClassVar[float] = 1.5
    weak_order: ClassVar[float] = 2.0
    calculus: ClassVar[Literal["ito", "stratonovich"]] = "ito"

    def needs(self, process, x):
        require_additive(type(self).__name__, process, x)
        return "time"

    def step(self, process, t, x, dt, increment):
        if increment.dz is None:
            raise ValueError(
                "`SRA1` needs the time integral of the Brownian motion, but `increment.dz` is None. `simulate` and the "
                "order studies supply it; for a single step, pass Increment(dw, dz=dz)."
            )
        mean = increment.dz / dt
        end = process.noise(t + dt, x)
        b = process.drift(t, x)
        y = x + 0.75 * dt * b + 1.5 * end.mv(mean)
        noise = end.mv(increment.dw - mean) + process.noise(t, x).mv(mean)
        return x + dt / 3 * (b + 2 * process.drift(t + 0.75 * dt, y)) + noise
