"""What a loss on labelled data says of classification: classes, accuracy, and odds of the right class."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ._curvature import class_losses, outputs
from .model_loss import ModelLoss

# exp(-l) sums to 1 over the classes up to this, in float32, or it is no law.
_normalised = 1e-3


class Predictions(eqx.Module):
    """How a classifier does on its data: the share of right answers, and the log odds of each right class.

    `log_odds` are log p(y)/(1 - p(y)) of the true classes y; None where exp(-l) is no law over the classes.
    """

    accuracy: float
    log_odds: Float[np.ndarray, " N"] | None


def classes_of(loss: Any, x: Float[Array, " d"]) -> Array | None:
    """The labels that there may be, stacked, or None if the loss is not one of classification.

    | outputs    | labels                    | classes          |
    |------------|---------------------------|------------------|
    | K ≥ 2      | whole numbers             | 0, ..., K - 1    |
    | K ≥ 2      | K numbers, one 1, 0 else  | the unit vectors |
    | one number | all 0 or 1; all -1 or 1   | 0, 1; -1, 1      |
    """
    if not (isinstance(loss, ModelLoss) and loss.predict is not None and isinstance(loss.data[1], jax.Array)):
        return None
    labels, shape = loss.data[1], jax.eval_shape(lambda x: outputs(loss, x), x).shape[1:]
    found = None
    if len(shape) == 1 and shape[0] > 1:
        if labels.ndim == 1 and jnp.issubdtype(labels.dtype, jnp.integer):
            found = jnp.arange(shape[0], dtype=labels.dtype)
        elif labels.shape[1:] == shape:
            found = jnp.eye(shape[0], dtype=labels.dtype)
    elif shape in ((), (1,)) and labels.size == loss.count:
        pair = jnp.array([-1, 1] if np.any(np.asarray(labels) == -1) else [0, 1], labels.dtype)
        found = pair.reshape(2, *labels.shape[1:])
    return found if found is not None and bool(jnp.all(jnp.any(_is_label(loss, found), axis=1))) else None


def predictions(loss: ModelLoss, classes: Array, x: Float[Array, " d"]) -> Predictions:
    """The class of least loss is the answer; p(y) = exp(-l(y)) is the law, if these sum to 1 for every example."""
    values = np.asarray(_values(loss, classes, x), np.float64)
    right = np.asarray(_is_label(loss, classes))
    own = np.sum(values, axis=1, where=right)
    answers = np.argmin(values, axis=1) == np.argmax(right, axis=1)
    with np.errstate(over="ignore", divide="ignore"):
        total = np.sum(np.exp(-values), axis=1)
        # Not from 1 - p, which is 0 for sure answers.
        least = np.min(np.where(right, np.inf, values), axis=1, keepdims=True)
        others = -least[:, 0] + np.log(np.sum(np.exp(least - values), axis=1, where=~right))
    lawful = bool(np.all(np.abs(total - 1) < _normalised))
    return Predictions(float(np.mean(answers)), -own - others if lawful else None)


@eqx.filter_jit
def _values(loss: ModelLoss, classes: Array, x: Float[Array, " d"]) -> Float[Array, "N classes"]:
    return class_losses(loss, classes, outputs(loss, x))


def _is_label(loss: ModelLoss, classes: Array) -> Bool[Array, "N classes"]:
    same = loss.data[1][:, None] == classes[None]
    return jnp.all(same.reshape(*same.shape[:2], -1), axis=2)
