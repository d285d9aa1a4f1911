"""Integrals of exp(log weight) over boxes in R^d, adaptively and in logarithms."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int


class PointError(ValueError):
    """The loss has the value `value` at the point `x`, where the weight is not a number."""

    def __init__(self, x: Float[np.ndarray, " d"], value: float):
        super().__init__(f"f = {value} at x = {x}")
        self.x, self.value = x, value


class PeakError(ValueError):
    """The integral could not be computed near the point `x`: it is too peaked or rough there, or infinite."""

    def __init__(self, x: Float[np.ndarray, " d"]):
        super().__init__(f"could not be integrated near x = {x}")
        self.x = x


class Cubature:
    """Log integrals of exp(log_weight(f(x))) by Gauss-Legendre rules, refined where two rules disagree.

    A box is halved across the axis that varies most. Two rules also agree where both miss a narrow peak: a box whose
    corner, or the known `peak` of the weight in it, stands far above what the nodes saw is halved too.
    """

    def __init__(self, loss: Callable, log_weight: Callable, peak: Float[np.ndarray, " d"]):
        self.d, self.peak = len(peak), peak
        self._log_peak = float(log_weight(loss(jnp.asarray(peak))))
        self._rules = jax.jit(jax.vmap(_box_rule(loss, log_weight, self.d)))

    def __call__(
        self,
        low: Float[np.ndarray, "n d"],
        high: Float[np.ndarray, "n d"],
        owner: Int[np.ndarray, " n"],
        owners: int,
        reference: float | None = None,
    ) -> Float[np.ndarray, " owners"]:
        """The log mass of each owner's boxes, accurate relative to that mass, down to 1e-30 of the total.

        With a `reference` log mass, only down to 1e-5 of that or of the total: an oscillating loss far out would take
        for ever. Then f = inf is allowed (weight 0).
        """
        done = np.full(owners, -np.inf)
        for _ in range(_levels * self.d):
            coarse, fine, highest, axis = self._evaluate(low, high, allow_infinite=reference is not None)
            mass = done.copy()
            np.logaddexp.at(mass, owner, np.where(np.isfinite(fine), fine, -np.inf))
            total = np.logaddexp.reduce(mass)
            floor = total + np.log(_negligible) if reference is None else max(total, reference) + np.log(_minor)
            scale = np.maximum(mass[owner], floor)
            with np.errstate(invalid="ignore", over="ignore"):
                bad = ~(np.abs(np.exp(fine - scale) - np.exp(coarse - scale)) <= _tolerance)
            bad |= (highest > fine + np.log(_missed)) & (highest > scale + np.log(_tolerance))
            np.logaddexp.at(done, owner[~bad], fine[~bad])
            if not bad.any():
                return done
            if 2 * bad.sum() > _most_boxes:
                break
            low, high, owner = _halve(low[bad], high[bad], owner[bad], axis[bad])
        raise PeakError(0.5 * (low[0] + high[0]))

    def _evaluate(self, low, high, allow_infinite: bool):
        coarse, fine, highest = np.empty((3, len(low)))
        axis = np.empty(len(low), int)
        for start in range(0, len(low), _boxes_per_call):
            part = slice(start, start + _boxes_per_call)
            n = len(low[part])
            # One size of call compiles once; slicing before leaving JAX would compile anew for each n.
            padding = ((0, _boxes_per_call - n), (0, 0))
            out = self._rules(np.pad(low[part], padding, mode="edge"), np.pad(high[part], padding, mode="edge"))
            c, f, h, a, is_nan, is_infinite, x, value = (np.asarray(o)[:n] for o in out)
            coarse[part], fine[part], highest[part], axis[part] = c, f, h, a
            wrong = is_nan if allow_infinite else is_nan | is_infinite
            if wrong.any():
                first = int(np.argmax(wrong))
                raise PointError(x[first], float(value[first]))
        has_peak = np.all((low <= self.peak) & (self.peak <= high), axis=1)
        top = np.sum(np.log(high - low), axis=1) + self._log_peak
        return coarse, fine, np.where(has_peak, np.maximum(highest, top), highest), axis


def _box_rule(loss: Callable, log_weight: Callable, d: int) -> Callable:
    coarse, fine = (_tensor_rule(n, d) for n in (_coarse, _fine))
    corners = np.stack(np.meshgrid(*[(0.0, 1.0)] * d, indexing="ij"), -1).reshape(-1, d)
    nodes = np.concatenate([coarse[0], fine[0]])

    def rule(low, high):
        points = low + (high - low) * nodes
        f = jax.vmap(loss)(points)
        logs = log_weight(f)
        volume = jnp.sum(jnp.log(high - low))
        n = len(coarse[0])
        is_nan, is_infinite = jnp.isnan(logs) | (f == -jnp.inf), f == jnp.inf
        worst = jnp.argmax(jnp.where(is_nan.any(), is_nan, is_infinite))
        return (
            logsumexp(logs[:n] + coarse[1]) + volume,
            logsumexp(logs[n:] + fine[1]) + volume,
            jnp.nanmax(log_weight(jax.vmap(loss)(low + (high - low) * corners)), initial=-jnp.inf) + volume,
            _roughest_axis(logs[n:].reshape([_fine] * d)),
            is_nan.any(),
            is_infinite.any(),
            points[worst],
            f[worst],
        )

    return rule


def _tensor_rule(n: int, d: int) -> tuple[Float[np.ndarray, "nodes d"], Float[np.ndarray, " nodes"]]:
    """Gauss-Legendre nodes in the unit cube and the logs of their weights."""
    x, w = np.polynomial.legendre.leggauss(n)
    nodes = np.stack(np.meshgrid(*[0.5 * (1 + x)] * d, indexing="ij"), -1).reshape(-1, d)
    weights = np.stack(np.meshgrid(*[np.log(0.5 * w)] * d, indexing="ij"), -1).reshape(-1, d).sum(-1)
    return nodes, weights


def _roughest_axis(logs: Float[Array, "..."]) -> Int[Array, ""]:
    """The axis along which the weight, given at the nodes of the fine rule, has most in its last Legendre modes."""
    logs = jnp.where(jnp.isfinite(logs), logs, -jnp.inf)
    top = jnp.max(logs)
    weight = jnp.exp(logs - jnp.where(jnp.isfinite(top), top, 0.0))
    x, w = np.polynomial.legendre.leggauss(_fine)
    modes = np.polynomial.legendre.legvander(x, _fine - 1)[:, -2:] * w[:, None]
    return jnp.argmax(jnp.stack([jnp.sum(jnp.abs(jnp.tensordot(modes, weight, (0, k)))) for k in range(weight.ndim)]))


def _halve(low, high, owner, axis):
    across = np.arange(low.shape[1]) == axis[:, None]
    middle = 0.5 * (low + high)
    lows = np.concatenate([low, np.where(across, middle, low)])
    highs = np.concatenate([np.where(across, middle, high), high])
    return lows, highs, np.concatenate([owner, owner])


# Nodes an axis. Where the coarse rule is right to 1e-9, the fine one is right to about 1e-14.
_coarse, _fine, _tolerance = 4, 7, 1e-9

# How far a peak may stand above the mean over its box: less than the rules resolve, more than a smooth weight has.
_missed = 30.0

# Masses below this fraction of the total need no relative accuracy: on the grid, and outside it.
_negligible, _minor = 1e-30, 1e-5

# Halvings of a box along each axis, boxes in flight, and boxes evaluated at once.
_levels, _most_boxes, _boxes_per_call = 48, 2_000_000, 512
