"""What is known of exits from a region: times, points, rates, with those who are still inside."""

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float
from scipy.special import erfcx

# How much later than the end of all watching a time may be to count as the end: runs in float32 round.
_whole = 1e-6


class FirstPassageResult(eqx.Module):
    """Exit times and points of `FirstPassage`, for paths in the order of the run.

    `times` are NaN for paths that were still inside at the end, or became non-finite before they left. `points` are
    those of the paths that left, in the same order. `watched` says for how long each path was: until it left, or to the
    end of the run; NaN for the `nonfinite` ones, which count in nothing else here.

    No path is lost from sight before `horizon`: the run's length, under `TimeChanged` the shortest time at which it
    ended for a path inside, and infinite if all left. What is said without a model ends there: `mean` is that of
    min(T, horizon), the mean exit time only if all left, and `survival` is NaN beyond. `rate` is the number of exits
    divided by the time that all spent inside. It is the most likely rate of an exponential law, which exit times follow
    where paths forget their start long before they leave; 1 / `rate` is then the mean exit time, however few left.

    `uncorrected` counts steps for which the gradient of the level function was not finite, so that crossings during the
    step went unseen; in long runs, whose paths are watched from inside a loop of many steps, the first step only.
    """

    times: Float[np.ndarray, " n"]
    points: Float[np.ndarray, "out d"]
    watched: Float[np.ndarray, " n"]
    nonfinite: int
    uncorrected: int

    @property
    def fraction(self) -> float:
        """The part of the paths that left, of those that stayed finite."""
        return len(self.points) / self._used.size if self._used.size else np.nan

    @property
    def horizon(self) -> float:
        """The time up to which every path was watched."""
        return float(self._censored.min()) if self._censored.size else np.inf

    @property
    def mean(self) -> float:
        """The mean of min(T, horizon)."""
        return float(np.minimum(self._used, self.horizon).mean()) if self._used.size else np.nan

    @property
    def sem(self) -> float:
        """The standard error of `mean`."""
        n = self._used.size
        return float(np.minimum(self._used, self.horizon).std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan

    @property
    def rate(self) -> float:
        """Exits per time at risk, the maximum-likelihood rate of an exponential law of exit times."""
        risk = self._used.sum()
        return float(len(self.points) / risk) if risk > 0 else np.nan

    @property
    def rate_sem(self) -> float:
        """The standard error of `rate`, rate / √exits under that law; NaN if no path left."""
        exits = len(self.points)
        return self.rate / np.sqrt(exits) if exits else np.nan

    def survival(self, times: Any) -> Float[np.ndarray, "*k"]:
        """The part of the paths that had not left by each of these times; NaN beyond `horizon`."""
        t = np.asarray(times, np.float64)
        left = np.sort(self.times[~np.isnan(self.times)])
        share = 1 - np.searchsorted(left, t, side="right") / max(self._used.size, 1)
        return np.where(t <= self.horizon * (1 + _whole), share, np.nan)

    def __str__(self) -> str:
        n, exits = self._used.size, len(self.points)
        text = f"{exits} of {n} paths left"
        if exits == n > 0:
            text += f", mean exit time {self.mean:.6g} ± {self.sem:.2g}"
        elif n > 0:
            text += f", mean time inside up to {self.horizon:.6g}: {self.mean:.6g} ± {self.sem:.2g}"
        if 0 < exits < n:
            text += f"; {self.rate:.6g} ± {self.rate_sem:.2g} exits per time at risk"
        outside = int(np.sum(self.times == 0))
        if outside:
            text += f"; {outside} started outside"
        if self.nonfinite:
            text += f"; {self.nonfinite} became non-finite before they left: the others are a biased sample"
        if self.uncorrected:
            text += f"; crossings within {self.uncorrected} steps went unseen: no gradient of `inside` there"
        return text

    @property
    def _used(self) -> Float[np.ndarray, " used"]:
        return self.watched[~np.isnan(self.watched)]

    @property
    def _censored(self) -> Float[np.ndarray, " inside"]:
        return self.watched[np.isnan(self.times) & ~np.isnan(self.watched)]


def crossing_part(
    start: Float[np.ndarray, " n"], end: Float[np.ndarray, " n"], spread: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """The mean part of a step after which a Brownian bridge from `start` > 0 to -`end` < 0 is at 0 first.

    With a = start / spread and b = end / spread it is a M(a + b) with Mills' ratio M; for small noise a / (a + b).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        width = (start + end) / spread
        mills = np.sqrt(np.pi / 2) * erfcx(width / np.sqrt(2))
        return start / (start + end) * np.where(spread > 0, np.where(width < 1e8, width * mills, 1), 1)
