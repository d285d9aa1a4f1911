"""Extrapolation of expectations to step 0: one order more for half as much work again."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..axes import axes_or_new
from ..diagnosis import Diagnosis, judged
from ..drawing import sampled
from ..process import AbstractDiffusion
from ..provenance import Provenance, made_by, recorded
from ..result import AbstractResult
from .clock import Clock
from .coupling import couple, values
from .method import AbstractMethod
from .random import key_words

# A bias is seen above so many standard errors; what is left of one above this part of the estimate may matter.
_seen, _large = 3.0, 0.2


class Extrapolation(AbstractResult):
    """The outcome of `extrapolated`: `estimate` of E φ(X(t1)) with the standard error `sem`.

    `raw` are the estimates at steps dt and dt/2, with standard errors `raw_sem`; the last and `estimate` differ by the
    bias that was removed. `order` is the weak order of the method, by which they were weighted.
    """

    estimate: float
    sem: float
    raw: tuple[float, float]
    raw_sem: tuple[float, float]
    dt: float
    order: float
    method: str
    paths: int
    provenance: Provenance | None = eqx.field(static=True, default=None)

    def diagnose(self) -> Diagnosis:
        """Whether the bias that was removed is small, as its expansion takes it to be."""
        bias = abs(self.estimate - self.raw[1])
        share = bias / max(abs(self.estimate), 1e-300)
        resolved = bias > _seen * self.sem
        text = f"removed bias {bias:.2g}, standard error {self.sem:.2g}"
        large = resolved and share > _large
        return Diagnosis((judged("bias", not large, text, "It is no small part of the estimate: halve `dt`"),))

    def plot(self, ax: Any = None) -> Any:
        """Draws the estimates at both steps and at dt = 0, with 95 % bars, on `ax` or new axes, which are returned."""
        ax = axes_or_new(ax)
        values, errors = (*self.raw, self.estimate), 1.96 * np.array([*self.raw_sem, self.sem])
        ax.errorbar([self.dt, self.dt / 2, 0.0], values, errors, color=sampled, marker="o")
        ax.set(xlabel="$dt$", ylabel="estimate")
        return ax

    def __str__(self) -> str:
        rows = [
            f"  at dt={dt:<10.6g} {value:.6g} ± {sem:.1g}"
            for dt, value, sem in zip((self.dt, self.dt / 2), self.raw, self.raw_sem, strict=True)
        ]
        head = f"{self.method}, {self.paths} paths, extrapolated by order {self.order:g}{made_by(self)}"
        return "\n".join([f"{self.estimate:.6g} ± {self.sem:.1g} by {head}", *rows])


@recorded("process")
def extrapolated(
    process: AbstractDiffusion,
    method: AbstractMethod,
    x0: Any,
    t1: float,
    dt: float,
    key: Any,
    paths: int,
    functional: Callable,
    *,
    t0: float = 0.0,
) -> Extrapolation:
    """Estimates E φ(X(t1)) for X(t0) = x0 by (2^p E_{dt/2} - E_dt) / (2^p - 1), with p the weak order of the method.

    The error is of weak order p + 1 where that of the method has an expansion in powers of dt: for smooth coefficients
    and functionals φ(x) -> scalar, and dt small enough. Half and full steps follow the same Brownian paths, so that the
    standard error is little above that of one run. For one step size, use `simulate`; to reach a tolerance, use
    `multilevel`.

    `x0` is one point, shape (d,), and `t1 - t0` a whole number of steps `dt`. Methods with three-point increments are
    refused: these have no sum of the same kind. Raises `FloatingPointError` if a path became non-finite.

    Source: Talay and Tubaro, "Expansion of the global error for numerical schemes solving stochastic differential
    equations", Stochastic Analysis and Applications 8, 1990.
    """
    if int(paths) != paths or not 2 <= paths < 2**32:
        raise ValueError(f"`paths` must be a whole number of at least 2 and below 2**32, got {paths}.")
    clock = Clock(t0, t1, dt)
    coupling = couple(process, method, functional, x0, clock.t0, clock.dt / 2, "pair")
    words, half = key_words(key), jnp.asarray(clock.dt / 2, coupling.x0.dtype)
    ends = []
    for first in range(0, int(paths), coupling.block):
        path = jnp.arange(first, first + coupling.block, dtype=jnp.uint32)
        ends.append(np.asarray(values(coupling, words, path, half, jnp.asarray(clock.steps, jnp.int32)), np.float64))
    fine, coarse = np.concatenate(ends, axis=1)[:, : int(paths)]
    if not np.all(np.isfinite([fine, coarse])):
        bad = int(np.sum(~np.isfinite(coarse) | ~np.isfinite(fine)))
        raise FloatingPointError(
            f"{bad} of {paths} paths of {type(method).__name__} or their functional became non-finite at steps of "
            f"{clock.dt:g}. Use a smaller `dt`, or `TamedEuler` for a drift that grows faster than linearly."
        )
    return _result(coarse, fine, clock.dt, method)


def _result(coarse: Float[np.ndarray, " n"], fine: Float[np.ndarray, " n"], dt: float, method) -> Extrapolation:
    order = method.weak_order
    combined = (2**order * fine - coarse) / (2**order - 1)
    (estimate, sem), full, half = (_mean(v) for v in (combined, coarse, fine))
    return Extrapolation(
        estimate=estimate,
        sem=sem,
        raw=(full[0], half[0]),
        raw_sem=(full[1], half[1]),
        dt=dt,
        order=order,
        method=type(method).__name__,
        paths=len(fine),
    )


def _mean(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The mean with its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
