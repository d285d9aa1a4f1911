"""When things happen in a run: whole steps, counted from time 0."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from .engine import Schedule

# Steps are counted in 32 bits.
_most_steps = 2**32 - 1

# A number of steps counts as whole when it is this close to a whole number.
_whole = 1e-6


class Clock:
    """Steps of length dt from t0 to t1; `origin` is the number of the first one, counted from time 0."""

    def __init__(self, t0: float, t1: float, dt: float):
        t0, t1, dt = float(t0), float(t1), float(dt)
        if not 0 < dt < np.inf:
            raise ValueError(f"`dt` must be positive and finite, got {dt}.")
        if not -np.inf < t0 < t1 < np.inf:
            raise ValueError(f"`t1` must be finite and later than `t0`, but t0={t0} and t1={t1}.")
        if t0 < 0:
            raise ValueError(
                f"`t0` must not be negative, because steps are counted from time 0, but t0={t0}. Shift time."
            )
        exact = (t1 - t0) / dt
        self.t0, self.dt, self.steps = t0, dt, round(exact)
        if abs(exact - self.steps) > _whole or self.steps == 0:
            raise ValueError(
                f"`t1 - t0` must be a whole number of steps `dt`, but t1 - t0 = {t1 - t0:.12g} and dt = {dt:.12g}; "
                f"the nearest that fits is dt = {(t1 - t0) / max(1, self.steps):.12g}."
            )
        self.origin = int(np.floor(t0 / dt + _whole))
        self.phase = t0 - self.origin * dt
        if abs(self.phase) < _whole * dt:
            self.phase = 0.0
        if self.origin + self.steps >= _most_steps:
            raise ValueError(
                f"`dt` must make fewer than 2**32 steps from time 0 to `t1`, got {self.origin + self.steps}."
            )

    def steps_at(self, name: str, times: Any) -> list[int]:
        """The numbers of steps after which the run is at these times."""
        times = np.atleast_1d(np.asarray([] if times is None else times, dtype=np.float64))
        exact = (times - self.t0) / self.dt
        steps = np.round(exact).astype(np.int64)
        if times.ndim != 1 or np.any(np.abs(exact - steps) > _whole) or np.any((steps < 0) | (steps > self.steps)):
            raise ValueError(
                f"`{name}` must hold times between t0={self.t0:g} and t1={self.time(self.steps):g}, each a whole "
                f"number of steps dt={self.dt:g} from t0, got {times}."
            )
        if np.any(np.diff(steps) <= 0):
            raise ValueError(f"`{name}` must be increasing, got {times}.")
        return steps.tolist()

    def time(self, step: int) -> float:
        return self.phase + (self.origin + step) * self.dt


def make_schedule(clock: Clock, burn_in: float, every: int, observed: bool, dtype) -> Schedule:
    """The schedule of a run for compiled code, in the dtype of its state."""
    if not 0 <= burn_in < np.inf:
        raise ValueError(f"`burn_in` must be a time of at least 0, got {burn_in}.")
    if int(every) != every or every < 1:
        raise ValueError(f"`every` must be a positive whole number of steps, got {every}.")
    burnt = int(np.ceil(burn_in / clock.dt - _whole))
    if observed and burnt + every > clock.steps:
        raise ValueError(
            f"`burn_in`={burn_in:g} and `every`={every} leave no sample in {clock.steps} steps of dt={clock.dt:g}."
        )
    return Schedule(
        phase=jnp.asarray(clock.phase, dtype),
        dt=jnp.asarray(clock.dt, dtype),
        origin=jnp.asarray(clock.origin, jnp.uint32),
        burn_in=jnp.asarray(min(burnt, 2**31 - 1), jnp.int32),
        every=jnp.asarray(every, jnp.int32),
    )
