"""Small classifiers for `losses.from_model`, and the two losses of classes: `MLP`, `ResNet`, `kld` and `log_loss`.

Both are functions of one input alone, without a state and without batch normalisation, through which the loss of one
example would depend on the others of its minibatch and have no gradient covariance C of its own. Activations are
smooth, so that Hessians exist everywhere.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class MLP(eqx.Module):
    """A multilayer perceptron: inputs of any shape, `depth` hidden layers of `width` units with tanh, and logits."""

    layers: eqx.nn.MLP

    def __init__(self, shape: tuple[int, ...], classes: int, width: int, depth: int = 1, *, key: Any, dtype=None):
        self.layers = eqx.nn.MLP(
            math.prod(shape), classes, width, depth, jax.nn.tanh, dtype=dtype or jnp.float32, key=_key(key)
        )

    def __call__(self, image: Float[Array, "..."]) -> Float[Array, " classes"]:
        return self.layers(image.ravel())


class ResNet(eqx.Module):
    """A residual network for images (c, h, w): 3×3 convolutions, `blocks` of y + a·conv(silu(conv(silu(y)))).

    In place of batch normalisation each block has a number a, which starts at 0: the network starts as a shallow one
    and is as easy to train, with a forward pass of one example alone. The image is halved once, after half of the
    blocks, and averaged before the logits. Source: De and Smith, *Batch normalization biases residual blocks towards
    the identity function in deep networks*, NeurIPS 2020 (SkipInit).
    """

    first: eqx.nn.Conv2d
    blocks: list[tuple[eqx.nn.Conv2d, eqx.nn.Conv2d]]
    scales: Float[Array, " blocks"]
    last: eqx.nn.Linear

    def __init__(
        self, shape: tuple[int, ...], classes: int, channels: int = 8, blocks: int = 2, *, key: Any, dtype=None
    ):
        if len(shape) != 3:
            raise ValueError(f"`shape` must be that of images, (channels, height, width), but got {shape}.")
        keys = iter(jax.random.split(_key(key), 2 * blocks + 2))
        dtype = dtype or jnp.float32

        def convolution(inside: int) -> eqx.nn.Conv2d:
            return eqx.nn.Conv2d(inside, channels, 3, padding=1, dtype=dtype, key=next(keys))

        self.first = convolution(shape[0])
        self.blocks = [(convolution(channels), convolution(channels)) for _ in range(blocks)]
        self.scales = jnp.zeros(blocks, dtype)
        self.last = eqx.nn.Linear(channels, classes, dtype=dtype, key=next(keys))

    def __call__(self, image: Float[Array, "c h w"]) -> Float[Array, " classes"]:
        y = self.first(image)
        for k, (one, two) in enumerate(self.blocks):
            if k == len(self.blocks) // 2:
                y = _halved(y)
            y = y + self.scales[k] * two(jax.nn.silu(one(jax.nn.silu(y))))
        return self.last(jnp.mean(jax.nn.silu(y), axis=(1, 2)))


def kld(logits: Float[Array, " classes"], label: Int[Array, ""]) -> Float[Array, ""]:
    """KL(y | p) = Σ_c y_c log(y_c/p_c) of the label as unit vector y and p = softmax(logits): -log p of the class.

    Its gradient in the logits is p - y.
    """
    return jax.nn.logsumexp(logits) - logits[label]


def log_loss(logits: Float[Array, " classes"], label: Int[Array, ""]) -> Float[Array, ""]:
    """The logistic loss of each class against all others, -Σ_c [y_c log p_c + (1 - y_c) log(1 - p_c)], p = σ(logits).

    Its gradient in the logits is the difference p - y of the predicted and the true value.
    """
    return jnp.sum(jax.nn.softplus(logits)) - logits[label]


def log_odds(loss: Any, logits: Float[Array, " classes"], label: Int[Array, ""]) -> Float[Array, ""]:
    """log p/(1 - p) of the right class, with the p of `loss`, which is `kld` or `log_loss`."""
    if loss is log_loss:
        return logits[label]
    others = jnp.where(jnp.arange(logits.shape[0], dtype=label.dtype) == label, -jnp.inf, logits)
    return logits[label] - jax.nn.logsumexp(others)


def _halved(y: Float[Array, "c h w"]) -> Float[Array, "c h2 w2"]:
    channels, height, width = y.shape
    cut = y[:, : height // 2 * 2, : width // 2 * 2]
    return jnp.mean(cut.reshape(channels, height // 2, 2, width // 2, 2), axis=(2, 4))


def _key(key: Any) -> Any:
    return jax.random.key(key) if isinstance(key, int) else key
