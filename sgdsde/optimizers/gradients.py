"""Where the stochastic gradient of a step comes from: minibatches of examples, a model of the noise, or no noise.

A source draws the numbers of a step for many runs at once; a gradient is made of the numbers of one run.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Complex, Float, Int, Int32, UInt32

from solvers._tracing import traceable
from solvers.sde.packing import join, split
from solvers.sde.random import group, group_size

from .._checks import scalar_valued
from ..losses import AbstractFiniteSum, AbstractSquaredLoss
from ..noise import AbstractGradientNoise
from .optimizer import AbstractGradient, AbstractOptimizer, Sampling
from .sampling import label_noise, permutations, with_replacement, without_replacement


class AbstractSource(eqx.Module):
    """Draws what a gradient is made of. In all arrays the last axis counts runs."""

    @abc.abstractmethod
    def begin(self, runs: UInt32[Array, " n"]) -> Any:
        """What `draw` hands on from step to step, before the first."""

    @abc.abstractmethod
    def draw(self, step: UInt32[Array, ""], runs: UInt32[Array, " n"], carried: Any) -> tuple[Any, Any]:
        """What is handed on, and the numbers of this step: a pytree of arrays."""

    @abc.abstractmethod
    def numbers_per_run(self, d: int) -> int:
        """About how many numbers one step of one run has in memory, for points in d dimensions."""

    @abc.abstractmethod
    def gradient(self, numbers: Any) -> AbstractGradient:
        """The gradient of one run from its numbers."""


def source_of(
    optimizer: AbstractOptimizer, loss: Callable, noise: Any, words: UInt32[Array, "2"], x: Float[Array, " d"]
) -> AbstractSource:
    """The source of gradients that an optimiser, a loss and a model of the noise call for, at points such as x.

    Raises `ValueError` or `TypeError` where they do not fit each other.
    """
    if not callable(loss):
        raise TypeError(f"`loss` must be a function of one point x of shape (d,), but got {loss!r}.")
    with traceable("`loss(x)`"):
        _check_takes(loss, x)
    name, size = type(optimizer).__name__, optimizer.batch_size
    samples = 2 if optimizer.needs == "pair" else 1
    if optimizer.needs == "labels" and not isinstance(loss, AbstractSquaredLoss):
        raise TypeError(
            f"`{name}` adds noise to labels, so `loss` must have labels, as `sg.losses.LeastSquares(A, y)` or "
            f"`sg.losses.SquaredLoss(predict, inputs, labels)`, but got {loss!r}."
        )
    if noise is not None:
        _check_noise(optimizer, noise)
        operator = eqx.filter_eval_shape(noise.operator, scalar_valued(loss), optimizer.learning_rate, x)
        return _Gaussian(loss, noise, optimizer.learning_rate, words, operator.in_size(), samples, x.dtype)
    if size is None and optimizer.needs != "labels":
        return _Exact(loss)
    if not isinstance(loss, AbstractFiniteSum):
        raise TypeError(
            f"`batch_size={size}` asks for minibatches, but `loss` is a function of x alone: wrap the loss of one "
            "example and the data in sg.losses.FiniteSum(loss, data), or leave `batch_size` out and pass `noise`."
        )
    _check_size(size, optimizer.sampling, loss.count)
    sampling = "without-replacement" if size is None else optimizer.sampling
    labels = optimizer.needs == "labels"
    return _Minibatches(loss, words, size or loss.count, sampling, samples, labels, x.dtype)


def _check_takes(loss: Callable, x: Float[Array, " d"]) -> None:
    try:
        jax.eval_shape(loss, x)
    except jax.errors.JAXTypeError:
        # What can't be traced is named by the caller.
        raise
    except TypeError as error:
        raise TypeError(f"`loss(x)` fails for the points of `x0`, which have the shape {x.shape}: {error}") from error
    jax.eval_shape(jax.grad(scalar_valued(loss)), x)


def _check_noise(optimizer: AbstractOptimizer, noise: Any) -> None:
    name = type(optimizer).__name__
    if not isinstance(noise, AbstractGradientNoise):
        raise TypeError(f"`noise` must be one of `sgdsde.noise`, such as `noise.Constant(0.5)`, but got {noise!r}.")
    if optimizer.batch_size is not None:
        raise ValueError(
            f"`noise` takes the place of minibatches, but `{name}` has batch_size={optimizer.batch_size}: leave one "
            "of the two out."
        )
    if optimizer.needs == "labels":
        raise ValueError(f"`noise` can't be given to `{name}`, whose noise is that of labels: leave it out.")


def _check_size(size: int | None, sampling: Sampling, count: int) -> None:
    if size is None or sampling == "with-replacement":
        return
    if size > count:
        raise ValueError(
            f"`batch_size` must be at most the number of examples, {count}, but got {size}; or sample with replacement."
        )
    if sampling == "reshuffling" and count % size:
        raise ValueError(
            f"`batch_size` must divide the number of examples, {count}, so that an epoch is a whole number of "
            f"minibatches, but got {size}."
        )


class ExactGradient(AbstractGradient):
    """∇f, without noise."""

    loss: Callable

    def __call__(self, x):
        return jax.grad(scalar_valued(self.loss))(x)

    def mean(self, x):
        return self(x)

    def other(self, x):
        return self(x)

    def relabelled(self, x, std):
        raise NotImplementedError("without a minibatch there are no labels")


class _Exact(AbstractSource):
    """∇f itself."""

    loss: Callable

    def begin(self, runs):
        return ()

    def draw(self, step, runs, carried):
        return (), ()

    def numbers_per_run(self, d):
        return d

    def gradient(self, numbers):
        return ExactGradient(self.loss)


class GaussianGradient(AbstractGradient):
    """∇f - Gz/√η with G of a model of the noise, G Gᵀ = 2D = ηΣ, and rows z of standard normal numbers."""

    loss: Callable
    noise: AbstractGradientNoise
    learning_rate: Float[Array, ""]
    z: Float[Array, "samples m"]

    def __call__(self, x):
        return self._noisy(x, self.z[0])

    def mean(self, x):
        return jax.grad(scalar_valued(self.loss))(x)

    def other(self, x):
        return self._noisy(x, self.z[1])

    def relabelled(self, x, std):
        raise NotImplementedError("without a minibatch there are no labels")

    def _noisy(self, x: Float[Array, " d"], z: Float[Array, " m"]) -> Float[Array, " d"]:
        # The sign makes a step of SGD one of Euler-Maruyama with dt = η.
        g = self.noise.operator(scalar_valued(self.loss), self.learning_rate, x)
        return self.mean(x) - g.mv(z) / jnp.sqrt(self.learning_rate.astype(x.dtype))


class _Gaussian(AbstractSource):
    """∇f plus normal noise of the covariance Σ = 2D/η; the normal numbers are those of `sde.simulate`."""

    loss: Callable
    noise: AbstractGradientNoise
    learning_rate: Float[Array, ""]
    words: UInt32[Array, "2"]
    motions: int = eqx.field(static=True)
    samples: int = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)

    def begin(self, runs):
        return _no_group(self._group, runs)

    def draw(self, step, runs, carried):
        carried, z = _of_group(self._group, step, runs, carried, self.dtype)
        return carried, z.reshape(self.samples, self.motions, runs.size)

    def numbers_per_run(self, d):
        return d + self.samples * self.motions

    def gradient(self, numbers):
        return GaussianGradient(self.loss, self.noise, self.learning_rate, numbers)

    def _group(self, number: UInt32[Array, ""], runs: UInt32[Array, " n"]) -> Complex[Array, "m n"]:
        shape = (self.samples * self.motions, runs.size)
        component = lax.broadcasted_iota(jnp.uint32, shape, 0)
        return join(group(self.words, jnp.broadcast_to(runs, shape), number, component, self.dtype))


class MinibatchGradient(AbstractGradient):
    """The mean gradient of the examples in a row of `index`; z are standard normal numbers for their labels."""

    loss: AbstractFiniteSum
    index: Int[Array, "samples b"]
    z: Float[Array, " b"] | None

    def __call__(self, x):
        return self._over(x, self.index[0])

    def mean(self, x):
        return jax.grad(self.loss)(x)

    def other(self, x):
        return self._over(x, self.index[1])

    def relabelled(self, x, std):
        # The residual h - y of the label y + ε is r - ε.
        assert isinstance(self.loss, AbstractSquaredLoss)
        assert self.z is not None
        loss, noise = self.loss, std.astype(x.dtype) * self.z
        return jax.grad(lambda x: 0.5 * jnp.mean((loss.residuals(x, self.index[0]) - noise) ** 2))(x)

    def _over(self, x: Float[Array, " d"], index: Int[Array, " b"]) -> Float[Array, " d"]:
        return jax.grad(lambda x: jnp.mean(self.loss.examples(x, index)))(x)


class _Minibatches(AbstractSource):
    """Mean gradients of minibatches of a finite sum."""

    loss: AbstractFiniteSum
    words: UInt32[Array, "2"]
    size: int = eqx.field(static=True)
    sampling: Sampling = eqx.field(static=True)
    samples: int = eqx.field(static=True)
    labels: bool = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)

    def begin(self, runs):
        labels = _no_group(self._label_group, runs) if self.labels else None
        if self.sampling != "reshuffling" or self._all:
            return None, labels
        return jnp.zeros((self.samples, self.loss.count, runs.size), jnp.int32), labels

    def draw(self, step, runs, carried):
        (order, labels), z = carried, None
        if self.labels:
            labels, z = _of_group(self._label_group, step, runs, labels, self.dtype)
        if self._all:
            index = None
        elif self.sampling == "reshuffling":
            order, index = self._next_of_epoch(step, runs, order)
        else:
            draw = with_replacement if self.sampling == "with-replacement" else without_replacement
            drawn = [draw(self.words, runs, step, self.size, self.loss.count, s) for s in range(self.samples)]
            index = jnp.stack(drawn)
        return (order, labels), (index, z)

    def _label_group(self, number: UInt32[Array, ""], runs: UInt32[Array, " n"]) -> Complex[Array, "m n"]:
        return label_noise(self.words, runs, number, self.size, self.dtype)

    def numbers_per_run(self, d):
        order = self.loss.count if self.sampling == "reshuffling" else 0
        return d + self.samples * (self.size * d + order)

    def gradient(self, numbers):
        index, z = numbers
        if self._all:
            index = jnp.broadcast_to(jnp.arange(self.size, dtype=jnp.int32), (self.samples, self.size))
        return MinibatchGradient(self.loss, index, z)

    @property
    def _all(self) -> bool:
        # All examples, in an order that does not matter.
        return self.sampling != "with-replacement" and self.size == self.loss.count

    def _next_of_epoch(
        self, step: UInt32[Array, ""], runs: UInt32[Array, " n"], order: Int32[Array, "samples count n"]
    ):
        batches = jnp.uint32(self.loss.count // self.size)
        epoch, place = step // batches, step % batches

        def shuffled(turn, _):
            # The address depends on the turn, or the compiler would move the draw out of the loop, to every step.
            number = epoch + turn.astype(jnp.uint32)
            orders = [permutations(self.words, runs, number, self.loss.count, s) for s in range(self.samples)]
            return jnp.stack(orders)

        # A loop of no or one turn: a branch would copy the order in every step.
        order = lax.fori_loop(0, (place == 0).astype(jnp.int32), shuffled, order)
        return order, lax.dynamic_slice_in_dim(order, place.astype(jnp.int32) * self.size, self.size, axis=1)


def _no_group(draw: Callable, runs: UInt32[Array, " n"]) -> Complex[Array, "m n"]:
    """What `_of_group` is handed before the first step."""
    return jnp.zeros_like(draw(jnp.uint32(0), runs))


def _of_group(
    draw: Callable, step: UInt32[Array, ""], runs: UInt32[Array, " n"], carried: Complex[Array, "m n"], dtype: Any
) -> tuple[Complex[Array, "m n"], Float[Array, "m n"]]:
    """The numbers of a group of steps and, of these, those of this step.

    The generator makes the numbers of several steps at once: `draw(number of the group, runs)` at the first of these.
    """
    count = group_size(dtype)
    size = jnp.uint32(count)

    def drawn(turn, _):
        # The address depends on the turn, or the compiler would move the draw out of the loop, to every step.
        return draw(step // size + turn.astype(jnp.uint32), runs)

    carried = lax.fori_loop(0, (step % size == 0).astype(jnp.int32), drawn, carried)
    return carried, lax.select_n((step % size).astype(jnp.int32), *split(carried, count))
