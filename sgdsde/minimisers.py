"""Manifolds of minimisers: how many dimensions they have, where gradient flow reaches them, and how sharp they are.

An overparametrised model has a manifold of minimisers. SGD stays near it, and moves along it by its noise.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._checks import scalar_valued
from ._curvature import columns_at_once, for_each, has_outputs, hessian_product, outputs
from ._spectra import Estimate, signs
from .factors import point

# Jacobians of up to so many numbers are written down (512 MiB in float64), and so are Gram matrices.
_most_numbers = 1 << 26

# A gap of less than this between two singular values does not say which of them are 0.
_clear_gap = 100.0

# Explicit steps as long as stability allows leave errors of their own tolerance behind, and the gradient does not fall
# below the largest curvature times these: the flow's steps are so much finer than the gradient at rest.
_finer = 1e-3

# Hessians of so many parameters have their traces taken exactly.
_exact_trace = 1000


class Dimension(eqx.Module):
    """The outcome of `dimension`.

    `rank` is the number of `singular_values` above `threshold`, in descending order; there are `parameters` and
    `conditions` = N · (outputs of an example). A full rank is that of the smaller of both.
    """

    parameters: int
    conditions: int
    rank: int
    singular_values: Float[np.ndarray, " q"]
    threshold: float

    @property
    def dimension(self) -> int:
        """d - rank."""
        return self.parameters - self.rank

    @property
    def gap(self) -> float:
        """The last singular value that counts over the first that does not; infinite if there is none or it is 0."""
        if self.rank in (0, len(self.singular_values)) or self.singular_values[self.rank] == 0:
            return np.inf
        return float(self.singular_values[self.rank - 1] / self.singular_values[self.rank])

    def __str__(self) -> str:
        last = self.singular_values[self.rank - 1] if self.rank else 0.0
        text = (
            f"dimension {self.dimension} = {self.parameters} parameters - rank {self.rank} of {self.conditions} "
            f"conditions; singular values from {self.singular_values[0]:.3g} to {last:.3g}"
        )
        if np.isfinite(self.gap):
            text += f", the next is smaller by a factor of {self.gap:.3g}"
        return text + ("" if self.gap > _clear_gap else ": no clear gap, the rank depends on the tolerance")


class Along(eqx.Module):
    """The outcome of `trace_hessian_along`: `points` on the manifold, tr H there, and the loss, in the shape of xs."""

    points: Float[np.ndarray, "*shape d"]
    traces: Float[np.ndarray, "*shape"]
    losses: Float[np.ndarray, "*shape"]


def dimension(loss: Any, x: Any, *, tolerance: float | None = None) -> Dimension:
    """The dimension d - rank J of the manifold {outputs = given values} through x, J = ∂(outputs of all examples)/∂x.

    Where the outputs are those that fit the labels it is the manifold of minimisers; of squared losses, J is the
    Jacobian of the residuals. For almost every choice of labels the rank is full on all of the manifold, N times the
    outputs of an example, if there are no fewer parameters. Source: Cooper, *The loss landscape of overparameterized
    neural networks*, arXiv:1804.10200.

    Singular values above `tolerance` times the largest count. J is written down if it is small enough (2^26 numbers),
    and the default is max(shape) · rounding; otherwise its Gram matrix is, from products with J and Jᵀ, which knows
    singular values to √rounding only, and the default is the root of that. Look at the `gap`.

    `TypeError` if the loss knows no outputs; `ValueError` if d and N times the outputs both are above 8,192.
    """
    if not has_outputs(loss):
        raise TypeError(
            "`loss` must know the outputs of a model, as squared losses do and `losses.from_model(model, l, (inputs, "
            f"labels))`, but got {type(loss).__name__}."
        )
    x = point(x)
    conditions = int(np.prod(jax.eval_shape(lambda x: outputs(loss, x), x).shape))
    side, rounding = min(x.size, conditions), float(jnp.finfo(x.dtype).eps) * max(x.size, conditions)
    if x.size * conditions <= _most_numbers:
        values = np.linalg.svd(np.asarray(_jacobian(loss, x, conditions)), compute_uv=False)
    elif side**2 <= _most_numbers:
        squares = np.linalg.eigvalsh(np.asarray(_gram(loss, x, conditions), np.float64))[::-1]
        values, rounding = np.sqrt(np.maximum(squares, 0)), np.sqrt(rounding)
    else:
        raise ValueError(
            f"`loss` has {conditions} conditions (examples times outputs) on {x.size} parameters; one of both must be "
            f"at most {int(_most_numbers**0.5)}. Take fewer examples, `loss.on(data)`."
        )
    threshold = float(values[0]) * (rounding if tolerance is None else tolerance)
    return Dimension(x.size, conditions, int(np.sum(values > threshold)), values, threshold)


def flow_limit(
    loss: Callable, x: Any, *, tolerance: float | None = None, max_steps: int = 100_000
) -> Float[np.ndarray, "*shape d"]:
    """Φ(x) = lim x_t of the gradient flow dx/dt = -∇f from x, or from each point of an array (..., d).

    On a manifold of minimisers that is where SGD would go without noise: small noise moves SGD along the manifold as a
    process of Φ(x_t). Φ keeps what gradient flow conserves, such as |u|² - |w|² in `losses.TwoLayerLinear`, and agrees
    to first order in the distance with the nearest minimiser, up to the metric of H.

    The flow is integrated by Tsit5 until |∇f| is below `tolerance` times max(1, |∇f| at the start); the rest of the way
    is about that over the least positive curvature. By default `tolerance` is √rounding of the dtype of x. The number
    of steps grows like the ratio of the largest to the least positive curvature.

    `RuntimeError` if that takes more than `max_steps` steps. Then there may be no minimiser: with cross-entropy and
    separable data there is none. A saddle is reached only from its stable manifold; look at the loss.
    """
    xs = _points(x)
    if tolerance is None:
        tolerance = float(jnp.finfo(xs.dtype).eps) ** 0.5
    flat = xs.reshape(-1, xs.shape[-1])
    limits, converged = _flows(loss, flat, jnp.asarray(tolerance, xs.dtype), max_steps)
    if not bool(jnp.all(converged)):
        raise RuntimeError(
            f"The gradient flow from {int(jnp.sum(~converged))} of {len(flat)} points has not come to rest in "
            f"`max_steps`={max_steps} steps: allow more of them or a larger `tolerance`, or there is no minimiser."
        )
    return np.asarray(limits).reshape(xs.shape)


def trace_hessian(loss: Callable, x: Any, *, probes: int = 64, key: Any = 0) -> Estimate:
    """tr H at the point x: exact up to 1,000 parameters, beyond that Hutchinson's estimate from so many `probes`."""
    x = point(x)
    if x.size <= _exact_trace:
        return Estimate(float(_exact(loss, x)))
    key = jax.random.key(key) if isinstance(key, int) else key
    values = [float(_form(loss, x, signs(k, x))) for k in jax.random.split(key, probes)]
    return Estimate(float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(probes)))


def trace_hessian_along(
    loss: Callable, xs: Any, *, tolerance: float | None = None, probes: int = 64, key: Any = 0
) -> Along:
    """tr H at the minimisers Φ(x) that gradient flow reaches from each point of `xs` (..., d), such as `Ensemble.xs`.

    Noise with the shape of the Hessian, such as that of random labels, moves SGD to flatter minimisers: x_t follows
    -∇ tr H on the manifold, at the time η²k of the slow motion. Source: Li, Wang and Arora, "What happens after SGD
    reaches zero loss?", ICLR 2022. On `losses.TwoLayerLinear` tr H = √((|u|²-|w|²)² + 4y²) for k = 1.

    See `flow_limit` for `tolerance` and errors raised, and `trace_hessian` for `probes`.
    """
    points = flow_limit(loss, xs, tolerance=tolerance)
    flat = points.reshape(-1, points.shape[-1])
    traces = np.array([trace_hessian(loss, x, probes=probes, key=key).value for x in flat])
    heights = np.array([float(_height(loss, jnp.asarray(x))) for x in flat])
    return Along(points, traces.reshape(points.shape[:-1]), heights.reshape(points.shape[:-1]))


def _points(x: Any) -> Float[Array, "*shape d"]:
    x = jnp.asarray(x)
    if x.ndim == 0 or x.size == 0:
        raise ValueError(f"`x` must be points of shape (..., d), but has shape {x.shape}.")
    return point(x.ravel()).reshape(x.shape)


@eqx.filter_jit
def _jacobian(loss: Any, x: Float[Array, " d"], conditions: int) -> Float[Array, "rows columns"]:
    """J, or its transpose if there are fewer parameters than conditions."""

    def all_of(x):
        return outputs(loss, x).ravel()

    if x.size <= conditions:
        return for_each(lambda j: jax.jvp(all_of, (x,), (_unit(j, x.size, x),))[1], x.size, columns_at_once)
    _, pull_back = jax.vjp(all_of, x)
    return for_each(lambda i: pull_back(_unit(i, conditions, x))[0], conditions, columns_at_once)


@eqx.filter_jit
def _gram(loss: Any, x: Float[Array, " d"], conditions: int) -> Float[Array, "side side"]:
    """J Jᵀ or Jᵀ J, the smaller one, column by column."""

    def all_of(x):
        return outputs(loss, x).ravel()

    _, pull_back = jax.vjp(all_of, x)

    def push(v):
        return jax.jvp(all_of, (x,), (v,))[1]

    if x.size <= conditions:
        return for_each(lambda j: pull_back(push(_unit(j, x.size, x)))[0], x.size, columns_at_once)
    return for_each(lambda i: push(pull_back(_unit(i, conditions, x))[0]), conditions, columns_at_once)


def _unit(j: Any, size: int, x: Float[Array, " d"]) -> Float[Array, " size"]:
    return jnp.zeros(size, x.dtype).at[j].set(1)


@eqx.filter_jit
def _flows(loss: Callable, xs: Float[Array, "n d"], tolerance: Float[Array, ""], max_steps: int):
    slope = jax.grad(scalar_valued(loss))
    finer = jnp.maximum(_finer * tolerance, jnp.finfo(xs.dtype).eps)

    def flow(x0):
        rest = tolerance * jnp.maximum(1, jnp.linalg.norm(slope(x0)))
        # No time is long enough for every loss: the event ends the flow.
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, x, args: -slope(x)),
            diffrax.Tsit5(),
            jnp.zeros((), x0.dtype),
            jnp.full((), jnp.inf, x0.dtype),
            None,
            x0,
            stepsize_controller=diffrax.PIDController(rtol=finer, atol=finer),
            event=diffrax.Event(lambda t, y, args, **_: jnp.linalg.norm(slope(y)) < rest),
            max_steps=max_steps,
            throw=False,
        )
        assert solution.ys is not None
        return solution.ys[-1], solution.result == diffrax.RESULTS.event_occurred

    return jax.lax.map(flow, xs)


@eqx.filter_jit
def _exact(loss: Callable, x: Float[Array, " d"]) -> Float[Array, ""]:
    f = scalar_valued(loss)
    return jnp.sum(for_each(lambda j: hessian_product(f, x, _unit(j, x.size, x))[j], x.size, columns_at_once))


@eqx.filter_jit
def _form(loss: Callable, x: Float[Array, " d"], v: Float[Array, " d"]) -> Float[Array, ""]:
    return v @ hessian_product(scalar_valued(loss), x, v)


@eqx.filter_jit
def _height(loss: Callable, x: Float[Array, " d"]) -> Float[Array, ""]:
    return scalar_valued(loss)(x)
