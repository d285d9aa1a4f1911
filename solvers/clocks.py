"""The clocks of a result: time, steps of the method, and steps and epochs of the algorithm behind a process.

A process that is the limit of an algorithm, as that of SGD is, says so by two attributes: `clock`, the time of one step
of the algorithm (η for SGD, η² for Adam), and `steps_per_epoch`, None where there are no data.
"""

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float


class Clocks(eqx.Module):
    """What one step takes. All are numbers: times are in units of the process's time.

    `dt` is the time of one step of the method, `step_time` that of one step of the algorithm, None for a process that
    is not the limit of one, and `steps_per_epoch` its steps in one pass through the data, None where there are none.
    """

    dt: float
    step_time: float | None = None
    steps_per_epoch: float | None = None

    def steps(self, t: Any) -> Float[np.ndarray, "*k"]:
        """The number k of steps of the algorithm that take the time t, not rounded."""
        if self.step_time is None:
            raise ValueError("`steps` are those of an algorithm, but the process names none of which it is the limit.")
        return np.asarray(np.asarray(t, np.float64) / self.step_time)

    def epochs(self, t: Any) -> Float[np.ndarray, "*k"]:
        """The number of passes through the data that take the time t."""
        if self.steps_per_epoch is None:
            raise ValueError("`epochs` are passes through data, but the process has none, or does not say how many.")
        return np.asarray(self.steps(t) / self.steps_per_epoch)

    def at(self, t: float) -> str:
        """The time t on all clocks that there are, for people."""
        text = f"t={t:g}"
        if self.step_time is not None:
            text += f" = {float(self.steps(t)):g} steps of the algorithm"
            if self.steps_per_epoch is not None:
                text += f" = {float(self.epochs(t)):.4g} epochs"
        return text


def clocks_of(process: Any, dt: float) -> Clocks:
    """The clocks of a process that is stepped by `dt`."""
    clock, epoch = getattr(process, "clock", None), getattr(process, "steps_per_epoch", None)
    return Clocks(float(dt), None if clock is None else float(clock), None if epoch is None else float(epoch))
