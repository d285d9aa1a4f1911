"""Multilevel Monte Carlo: expectations to a tolerance, at a cost that hardly depends on the bias of the steps.

E φ(X_L) = E φ(X_0) + Σ_l E [φ(X_l) - φ(X_{l-1})], where X_l has steps dt / 2^l. Both in a difference follow the same
Brownian path, so its variance falls with l, and most paths are simulated at the longest steps.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ..axes import axes_or_new
from ..diagnosis import Diagnosis, judged
from ..drawing import sampled, solved
from ..process import AbstractDiffusion
from ..provenance import Provenance, made_by, recorded
from ..result import AbstractResult
from .clock import Clock
from .coupling import Coupling, couple, values
from .method import AbstractMethod
from .random import key_words

# How many levels there are at least and at most, and paths of the former before their variances are known. Levels that
# are added later start with fewer, as the others say about what to expect of them.
_levels = 3, 21
_first_paths, _later_paths = 1000, 200

# A fitted rate below this is noise or a functional too rough for the method: it would let the bias estimate diverge.
_least_rate = 0.5


class Multilevel(AbstractResult):
    """The outcome of `multilevel`: `estimate` of E φ(X(t1)), its standard error `sem`, and `bias`, an estimate of what
    steps below the smallest would still add.

    The level l has steps `dts[l]` and `paths[l]` samples of the functional (l = 0) or of its difference to the level
    before, with `means[l]` and `variances[l]`. Over levels, means fall as dt^`alpha` and variances as dt^`beta`, and
    the cost of a sample grows as dt^-`gamma`. `cost` is the number of steps that all samples took. With `twins`, fine
    paths had antithetic twins in the place of Lévy areas.
    """

    estimate: float
    sem: float
    bias: float
    tolerance: float
    dts: Float[np.ndarray, " levels"]
    paths: Int[np.ndarray, " levels"]
    means: Float[np.ndarray, " levels"]
    variances: Float[np.ndarray, " levels"]
    alpha: float
    beta: float
    gamma: float
    cost: int
    twins: bool
    method: str
    provenance: Provenance | None = eqx.field(static=True, default=None)

    def diagnose(self) -> Diagnosis:
        """Whether the tolerance was met, and whether the cost is spent on the long steps, as it should be."""
        error = float(np.hypot(self.sem, self.bias))
        rates = f"variances fall as dt^{self.beta:.2f}, costs grow as dt^-{self.gamma:.2f}"
        return Diagnosis(
            (
                judged(
                    "tolerance",
                    error <= self.tolerance,
                    f"error about {error:.2g} for {self.tolerance:.2g}",
                    "Call again with another key",
                ),
                judged(
                    "levels",
                    self.beta > self.gamma,
                    rates,
                    "The short steps cost most: use a method of higher strong order, such as `Milstein`",
                ),
            )
        )

    def plot(self, ax: Any = None) -> Any:
        """Draws variances and means of the levels against their steps on `ax`, or new axes, which are returned."""
        ax = axes_or_new(ax)
        ax.plot(self.dts, self.variances, color=sampled, marker="o", label=f"variance, slope {self.beta:.2f}")
        ax.plot(self.dts, np.abs(self.means), color=solved, marker="s", label=f"|mean|, slope {self.alpha:.2f}")
        ax.set(xscale="log", yscale="log", xlabel="$dt$", ylabel="of the differences between levels")
        ax.legend(frameon=False)
        return ax

    def __str__(self) -> str:
        how = " with antithetic twins" if self.twins else ""
        return "\n".join(
            [
                f"{self.estimate:.6g} ± {self.sem:.1g}, bias about {self.bias:.1g}, for the tolerance "
                f"{self.tolerance:g}: {self.method}{how}, {self.cost:.3g} path-steps{made_by(self)}",
                f"  over levels means fall as dt^{self.alpha:.2f}, variances as dt^{self.beta:.2f}; the cost of a "
                f"sample grows as dt^-{self.gamma:.2f}",
                *(
                    f"  dt {dt:<10.6g} {n:>9} paths  mean {mean:<+12.4g} variance {variance:.3g}"
                    for dt, n, mean, variance in zip(self.dts, self.paths, self.means, self.variances, strict=True)
                ),
            ]
        )


@recorded("process")
def multilevel(
    process: AbstractDiffusion,
    method: AbstractMethod,
    x0: Any,
    t1: float,
    *,
    functional: Callable,
    tolerance: float,
    key: Any,
    dt: float | None = None,
    t0: float = 0.0,
) -> Multilevel:
    """Estimates E φ(X(t1)) for X(t0) = x0 with a root-mean-square error of `tolerance`, half of its square for bias.

    `functional(x)` -> scalar. The longest steps are `dt`, by default all of `t1 - t0`; take one at which the method is
    stable. Levels of half the steps are added until the bias, extrapolated from the last differences, is small enough.

    Where the variance of differences falls faster than their cost grows (beta > gamma = 1), the cost is of the order
    tolerance^-2, as if the solution were exact. `Milstein` has beta = 2 for Lipschitz functionals and noise that
    commutes. Other noise it takes without Lévy areas and with an antithetic twin of every fine path: beta = 2 again for
    smooth functionals, and about 3/2 for those with kinks. `EulerMaruyama` has beta = 1, for a cost of the order
    tolerance^-2 log² tolerance. For functionals that jump, such as x > 1, all are slower.

    The same key gives the same samples, whatever else is computed. Raises `FloatingPointError` if a path became
    non-finite, and `RuntimeError` if the bias is still too large at the smallest steps. The latter and the number of
    paths are judged from samples: rare events that none of the first thousand paths saw are missed.

    Source: Giles, "Multilevel Monte Carlo methods", Acta Numerica 24, 2015; for the twins, Giles and Szpruch,
    "Antithetic multilevel Monte Carlo estimation for multi-dimensional SDEs without Lévy area simulation", Annals of
    Applied Probability 24, 2014.
    """
    if not 0 < tolerance < np.inf:
        raise ValueError(f"`tolerance` must be positive and finite, got {tolerance}.")
    if dt is None and t0 < t1 < np.inf:
        dt = t1 - t0
    clock = Clock(t0, t1, 1.0 if dt is None else dt)
    words = key_words(key)
    single = couple(process, method, functional, x0, clock.t0, clock.dt, "fine", areas=False)
    twins = not single.areas
    double = dataclasses.replace(single, runs="twins" if twins else "pair")
    levels: list[_Level] = []
    while True:
        levels.append(_Level(len(levels), single if not levels else double, clock, words))
        levels[-1].sample(_first_paths if len(levels) <= _levels[0] else _later_paths)
        if len(levels) < _levels[0]:
            continue
        _sample(levels, tolerance)
        bias = _bias(levels, method.weak_order)
        if bias < tolerance / np.sqrt(2):
            return _result(levels, tolerance, bias, twins, method)
        if len(levels) == _levels[1]:
            raise RuntimeError(
                f"The bias of {type(method).__name__} is still about {bias:.2g} at steps of {levels[-1].dt:g}, where "
                f"`tolerance`={tolerance:g} takes {tolerance / np.sqrt(2):.2g}. Use a larger one, a smaller `dt`, or a "
                "smoother functional."
            )


class _Level:
    """The samples of one level, as they are asked for."""

    def __init__(self, number: int, coupling: Coupling, clock: Clock, words):
        self.coupling, self.steps = coupling, clock.steps * 2 ** max(0, number - 1)
        self.dt = clock.dt / 2**number
        key = jax.random.fold_in(jax.random.wrap_key_data(words), number)
        self.words = key_words(key)
        self.cost = clock.steps * (1 if number == 0 else 2**number * (5 if coupling.runs == "twins" else 3) / 2)
        self.count, self.mean, self.squares = 0, 0.0, 0.0
        # Samples of the last block that were not asked for yet.
        self.spare = np.empty(0)
        self.blocks = 0

    @property
    def variance(self) -> float:
        return self.squares / (self.count - 1)

    def sample(self, more: int) -> None:
        """Takes so many samples more."""
        while more > 0:
            if self.spare.size == 0:
                self.spare = self._block()
            new, self.spare = self.spare[:more], self.spare[more:]
            # Chan, Golub and LeVeque's update of a mean and a sum of squares.
            shift, total = new.mean() - self.mean, self.count + new.size
            self.squares += float(np.sum((new - new.mean()) ** 2) + shift**2 * self.count * new.size / total)
            self.mean += float(shift) * new.size / total
            self.count = total
            more -= new.size

    def _block(self) -> Float[np.ndarray, " n"]:
        n = self.coupling.block
        path = jnp.arange(n, dtype=jnp.uint32) + jnp.uint32(self.blocks * n)
        dt = jnp.asarray(self.dt, self.coupling.x0.dtype)
        runs = values(self.coupling, self.words, path, dt, jnp.asarray(self.steps, jnp.int32))
        self.blocks += 1
        fine, *others = np.asarray(runs, np.float64)
        if not np.all(np.isfinite(runs)):
            raise FloatingPointError(
                f"Paths of {type(self.coupling.method).__name__} or their functional became non-finite at steps of "
                f"{2 * self.dt if others else self.dt:g}. Use a smaller `dt`, that of the longest steps, or "
                "`TamedEuler` for a drift that grows faster than linearly."
            )
        if not others:
            return fine
        coarse, *twin = others
        return (0.5 * (fine + twin[0]) if twin else fine) - coarse


def _sample(levels: list[_Level], tolerance: float) -> None:
    """Samples until the standard error is below tolerance / √2, for the least cost."""
    while True:
        variances = np.array([level.variance for level in levels])
        # Small samples of a high level may have missed its variance.
        rate = max(_rate(variances), _least_rate)
        for i in range(2, len(levels)):
            variances[i] = max(variances[i], 0.5 * variances[i - 1] / 2**rate)
        costs = np.array([level.cost for level in levels])
        wanted = np.ceil(2 / tolerance**2 * np.sqrt(variances / costs) * np.sum(np.sqrt(variances * costs)))
        if wanted.max() >= 2**32:
            raise RuntimeError(
                f"`tolerance`={tolerance:g} would take {wanted.max():.1g} paths of one level, more than are numbered. "
                "Use a larger one."
            )
        missing = np.maximum(wanted - [level.count for level in levels], 0)
        if not np.any(missing):
            return
        for level, more in zip(levels, missing, strict=True):
            level.sample(int(more))


def _bias(levels: list[_Level], order: float) -> float:
    """What steps smaller than those of the last level would add, from the last three differences."""
    means = np.array([level.mean for level in levels])
    rate = float(np.clip(_rate(means), _least_rate, order))
    last = np.abs(means[-1:0:-1])[:3] / 2.0 ** (rate * np.arange(min(3, len(means) - 1)))
    return float(last.max() / (2**rate - 1))


def _rate(sizes: Float[np.ndarray, " levels"]) -> float:
    """The power of dt as which these fall over levels, the first of which is no difference; infinite if all are 0."""
    sizes = np.abs(sizes[1:])
    if not np.all(sizes > 0):
        return np.inf
    return float(-np.polyfit(np.arange(len(sizes)), np.log2(sizes), 1)[0])


def _result(levels: list[_Level], tolerance: float, bias: float, twins: bool, method: AbstractMethod) -> Multilevel:
    count, mean, variance, cost = (
        np.array([getattr(level, name) for level in levels]) for name in ("count", "mean", "variance", "cost")
    )
    return Multilevel(
        estimate=float(mean.sum()),
        sem=float(np.sqrt(np.sum(variance / count))),
        bias=bias,
        tolerance=tolerance,
        dts=np.array([level.dt for level in levels]),
        paths=count,
        means=mean,
        variances=variance,
        alpha=_rate(mean),
        beta=_rate(variance),
        gamma=-_rate(cost),
        cost=round(float(np.sum(count * cost))),
        twins=twins,
        method=type(method).__name__,
    )
