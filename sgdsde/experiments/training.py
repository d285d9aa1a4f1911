"""One cell of a grid of training runs: learning curves of SGD under Wang's schedule, and tr C and tr H at the end."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from .. import optimizers
from ..model_loss import ModelLoss
from ..networks import log_odds

# What curves show, for training and for held-out examples each.
measures = ("loss", "accuracy", "mean_odds", "typical_odds")

# A run is looked at so many times, equal numbers of epochs apart; after the looks in `drops` the learning rate is
# divided by ten: after 60 and 100 of 125 epochs in Wang's study.
looks = 25
drops = (12, 20)

# Up to so many parameters tr H is exact; beyond, it is a mean over so many random vectors of signs.
_most_exact, _probes = 256, 32


def train(
    loss: ModelLoss, held_out: ModelLoss, learning_rate: float, batch: int, epochs: int, runs: int, key: Any
) -> dict[str, np.ndarray]:
    """Runs of SGD from one start under reshuffled minibatches, as arrays of numbers.

    "curves" (times, runs, 2, 4) are the `measures` on training and held-out examples, the start first: mean odds are
    the mean of p/(1 - p) of the right class, typical odds the exponential of the mean of its logarithm. "traces" (runs,
    2, 2) are tr C and tr H at the end, on both. If a run becomes non-finite, all are NaN.
    """
    try:
        x = jnp.asarray(_points(loss, learning_rate, batch, epochs, runs, key))
    except FloatingPointError:
        return {"curves": np.full((looks + 1, runs, 2, 4), np.nan), "traces": np.full((runs, 2, 2), np.nan)}
    both = (loss, held_out)
    curves = [_measured(f, x.reshape(-1, x.shape[-1])).reshape(*x.shape[:2], 4) for f in both]
    ends = [_traces(f, x[-1], jax.random.key(0)) for f in both]
    return {
        "curves": np.asarray(jnp.stack(curves, 2), np.float64),
        "traces": np.asarray(jnp.stack(ends, 1), np.float64),
    }


def times(learning_rate: float, batch: int, examples: int, epochs: int) -> Float[np.ndarray, " times"]:
    """t = Σ η over the steps before each look: learning rate times steps, while the rate does not change."""
    each = epochs * (examples // batch) // looks
    rates = learning_rate / 10 ** np.searchsorted(drops, np.arange(looks), side="right")
    return np.concatenate([[0.0], np.cumsum(each * rates)])


def _points(
    loss: ModelLoss, learning_rate: float, batch: int, epochs: int, runs: int, key: Any
) -> Float[np.ndarray, "times runs d"]:
    each = epochs * (loss.count // batch) // looks
    found = [np.repeat(np.asarray(loss.x0)[None, None], runs, axis=1)]
    for part, (first, last) in enumerate(zip((0, *drops), (*drops, looks), strict=True)):
        out = optimizers.run(
            optimizers.SGD(learning_rate / 10**part, batch, sampling="reshuffling"),
            loss,
            found[-1][-1],
            steps=each * (last - first),
            key=jax.random.fold_in(key, part),
            save_at=each * np.arange(1, last - first + 1),
            progress=False,
        )
        if not out.complete:
            raise KeyboardInterrupt
        assert out.xs is not None
        found.append(out.xs)
    return np.concatenate(found)


@eqx.filter_jit
def _measured(loss: ModelLoss, points: Float[Array, "n d"]) -> Float[Array, "n 4"]:
    index = jnp.arange(loss.count)

    def one(x):
        logits, labels = loss.outputs(x, index), loss.data[1]
        odds = jax.vmap(lambda z, y: log_odds(loss.loss, z, y))(logits, labels)
        right = jnp.mean((jnp.argmax(logits, axis=1).astype(labels.dtype) == labels).astype(x.dtype))
        return jnp.stack([loss(x), right, jnp.mean(jnp.exp(odds)), jnp.exp(jnp.mean(odds))])

    return lax.map(one, points)


@eqx.filter_jit
def _traces(loss: ModelLoss, points: Float[Array, "n d"], key: Any) -> Float[Array, "n 2"]:
    """tr C and tr H: (1/N) Σ|∇l_i|² - |∇f|², and the mean of vᵀHv times d over unit vectors or vectors of signs."""
    d = points.shape[1]
    if d <= _most_exact:
        probes, weight = jnp.eye(d, dtype=points.dtype), 1.0
    else:
        probes, weight = jax.random.rademacher(key, (_probes, d), points.dtype), 1 / _probes

    def one(x):
        gradient = jax.grad(loss)

        def squared(i):
            return jnp.sum(jax.grad(lambda x: loss.examples(x, i[None])[0])(x) ** 2)

        squares = lax.map(squared, jnp.arange(loss.count), batch_size=_chunk)
        curved = lax.map(lambda v: v @ jax.jvp(gradient, (x,), (v,))[1], probes)
        return jnp.stack([jnp.mean(squares) - jnp.sum(gradient(x) ** 2), jnp.sum(curved) * weight])

    return lax.map(one, points)


# Examples whose gradients are in memory at a time.
_chunk = 16
