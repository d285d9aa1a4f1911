"""What is said of any ensemble of independent paths, be they of a process or of an algorithm."""

from typing import Any

import numpy as np
from jaxtyping import Float

from .density import Density
from .diagnosis import Finding, judged, mass_lost, unknown
from .mixing import rhat, tail_index

# A between-chunk R-hat above this is a shift of a fifth of a standard deviation (Vehtari and others, 2021); and a shift
# by more standard errors than that is no chance.
_most_rhat, _no_chance = 1.01, 5.0

# Fewer times in a chunk, fewer paths, and fewer effective samples than these say little.
_least_times, _least_paths, _least_effective = 4, 100, 100

# A mean has a standard error if moments of this order exist, and a variance if those of the second.
_mean_order, _variance_order = 2.0, 4.0

# Rounding, where it adds up like noise, is to stay below this part of a standard error.
_rounding_part = 0.1


def paths_finite(nonfinite: int, count: int, change: str) -> Finding:
    """Whether every path stayed finite."""
    text = f"all {count} stayed finite" if nonfinite == 0 else f"{nonfinite} of {count} did not stay finite"
    return judged("finite", nonfinite == 0, text, f"The others are a biased sample: {change}")


def run_complete(complete: bool, steps: int) -> Finding:
    """Whether the run came to its end."""
    text = "the run came to its end" if complete else f"the run was interrupted after {steps} steps"
    return judged("complete", complete, text, "Call again with the same `checkpoint`, or let it run")


def burn_in(ts: Any, xs: Any, start: float, averaged: bool, argument: str = "burn_in") -> Finding:
    """Whether states in the first and the second half of the times after `start` are of one law, by R-hat.

    Judged by means and mean squares of each component. A run whose averages are not taken over time may well be of a
    law that changes.
    """
    if not averaged:
        return unknown("burn-in", "nothing is averaged over time, so the law may change")
    times = np.zeros(0, bool) if ts is None else np.asarray(ts) > start
    half = int(times.sum()) // 2
    if 2 * half < _least_times:
        return unknown("burn-in", f"pass `save_at` with {_least_times} times after `{argument}` or more to see it")
    used = np.asarray(xs[times][-2 * half :], np.float64)
    used = used[:, np.isfinite(used).all(axis=(0, 2))]
    values = np.concatenate([used, used**2], axis=2)
    chunks = values[:half], values[half:]
    ratio = max(rhat(np.stack([c[:, :, k].ravel() for c in chunks])) for k in range(values.shape[2]))
    shift = chunks[1].mean(axis=0) - chunks[0].mean(axis=0)
    # Paths are independent, times are not.
    sem = shift.std(axis=0, ddof=1) / np.sqrt(len(shift)) if len(shift) > 1 else np.full(shift.shape[1], np.inf)
    errors = float(np.max(np.abs(shift.mean(axis=0)) / np.where(sem > 0, sem, np.inf)))
    text = f"between-chunk R-hat {ratio:.4f}, shift {errors:.1f} standard errors, between halves of {2 * half} times"
    return judged(
        "burn-in",
        ratio < _most_rhat and errors < _no_chance,
        text,
        f"The law still changes: raise `{argument}` and the end",
    )


def effective_samples(name: str, cov: np.ndarray, sem: np.ndarray, paths: int) -> Finding:
    """Effective sample size of a mean over paths and times: the variance over the square of its standard error."""
    about = f"effective samples of {name!r}"
    if paths < 2:
        return unknown(about, "one path has no standard error: use more `paths`")
    variance, error = np.atleast_1d(np.diagonal(np.atleast_2d(cov))), np.atleast_1d(sem)
    if not np.any(error > 0):
        return judged(about, True, "it does not vary", "")
    size = float(np.min(variance[error > 0] / error[error > 0] ** 2))
    change = "Use more paths, or a longer run"
    return judged(about, size >= _least_effective, f"{size:.3g} independent ones, of {paths} paths", change)


def rounding(final: Float[np.ndarray, "n d"], steps: int) -> Finding:
    """Whether rounding, taken as independent from step to step, is below the sampling error of a mean."""
    good = final[np.isfinite(final).all(axis=1)].astype(np.float64)
    if len(good) < 2:
        return unknown("dtype", f"{final.dtype}, with fewer than two finite paths")
    size, spread = np.sqrt(np.mean(good**2, axis=0)), good.std(axis=0, ddof=1) / np.sqrt(len(good))
    added = np.finfo(final.dtype).eps * np.sqrt(steps) * size
    part = float(np.max(added / np.where(spread > 0, spread, np.inf)))
    text = f"{final.dtype} rounds by up to {part:.1g} standard errors of a mean over {steps} steps"
    return judged("dtype", part < _rounding_part, text, "Give `x0` in float64, with 64-bit JAX")


def tails(final: Float[np.ndarray, "n d"], moments: list[str]) -> Finding:
    """Whether moments that were asked for exist, and have error bars, by Hill's estimate from the last states."""
    radius = np.linalg.norm((final - np.nanmedian(final, axis=0)).astype(np.float64), axis=1)
    radius = radius[np.isfinite(radius)]
    if not moments:
        return unknown("tail index", "no moments were asked for")
    if len(radius) < _least_paths:
        return unknown("tail index", f"it takes {_least_paths} paths or more to see it")
    index, error = tail_index(radius, int(np.sqrt(len(radius))))
    if not np.isfinite(index):
        return judged("tail index", True, "no tail", "")
    names, most = ", ".join(map(repr, moments)), index + 2 * error
    text = f"about {index:.2g} ± {error:.1g}"
    if most < _mean_order:
        return judged(
            "tail index", False, text, f"Means of {names} have no standard error: use medians, or `Histogram`"
        )
    change = f"`cov` of {names} has no error bar, and that of means comes slowly: use quantiles, or `Histogram`"
    return judged("tail index", most >= _variance_order, text, change)


def observed(results: dict[str, Any]) -> list[Finding]:
    """What is to be said of each observable."""
    found = []
    for name, value in results.items():
        if isinstance(value, Density):
            found.append(mass_lost(f"outside of {name!r}", value.outside, "outside the grid"))
        elif hasattr(value, "cov"):
            found.append(effective_samples(name, value.cov, value.sem, value.paths))
        elif hasattr(value, "fraction"):
            text = f"{value.fraction:.3g} of the paths left"
            found.append(judged(f"exits of {name!r}", value.fraction > 0, text, "Run longer, or use `fokker_planck`"))
    return found
