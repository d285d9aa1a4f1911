"""What an optimiser is: a pure map of one step, which is told a stochastic gradient."""

import abc
from typing import Any, Literal

import equinox as eqx
from jaxtyping import Array, Float, UInt32

Sampling = Literal["with-replacement", "without-replacement", "reshuffling"]

Need = Literal["gradient", "pair", "labels"]


class AbstractGradient(eqx.Module):
    """The stochastic gradient of one step of one run: a function of the point, from one and the same sample."""

    @abc.abstractmethod
    def __call__(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """The stochastic gradient g(x); at every x from the same minibatch, or with the same normal numbers."""

    @abc.abstractmethod
    def mean(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """∇f(x), over all examples and without noise."""

    @abc.abstractmethod
    def other(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """A stochastic gradient from a second sample, independent of the first; for the need "pair" only."""

    @abc.abstractmethod
    def relabelled(self, x: Float[Array, " d"], std: Float[Array, ""]) -> Float[Array, " d"]:
        """g(x) with independent N(0, std²) added to the labels of the sample; for the need "labels" only."""


class AbstractOptimizer(eqx.Module):
    """An algorithm x, s ← step(k, x, s, g) with a state s beside the point x.

    Numbers are array fields, so that a sweep over them compiles once. `batch_size` is the number B of examples in a
    minibatch, None for all. With N examples, `sampling` is

    - "with-replacement": B independent examples in every step;
    - "without-replacement": B different ones, in every step independently of the others;
    - "reshuffling": the next B in a random order of all N, which is drawn anew after N/B steps, an epoch.

    `needs` is what a step asks of its gradient: "gradient", or besides a second sample ("pair") or noise on the labels
    ("labels").
    """

    needs: eqx.AbstractClassVar[Need]
    learning_rate: eqx.AbstractVar[Float[Array, ""]]
    batch_size: eqx.AbstractVar[int | None]
    sampling: eqx.AbstractVar[Sampling]

    @property
    @abc.abstractmethod
    def clock(self) -> Float[Array, ""]:
        """The time of one step: step k is at t = k · clock, the clock of the continuum limit."""

    @abc.abstractmethod
    def init(self, x: Float[Array, " d"]) -> Any:
        """The state s before the first step, a pytree of arrays in the dtype of x; () if there is none."""

    @abc.abstractmethod
    def step(self, k: UInt32[Array, ""], x: Float[Array, " d"], state: Any, gradient: Any) -> tuple[Any, Any]:
        """Point and state after step k, the first of which is number 0.

        `gradient` is an `AbstractGradient`, or for the need "gradient" any function of x unless the docstring says
        more.
        """


def checked_batch(batch_size: Any, sampling: Any) -> tuple[int | None, Sampling]:
    """`batch_size` and `sampling` as an optimiser keeps them; `ValueError` for what is neither."""
    if batch_size is not None and (isinstance(batch_size, bool) or int(batch_size) != batch_size or batch_size < 1):
        raise ValueError(
            f"`batch_size` must be a whole number of examples, or None for all of them, but got {batch_size}."
        )
    if sampling not in ("with-replacement", "without-replacement", "reshuffling"):
        raise ValueError(
            f'`sampling` must be "with-replacement", "without-replacement" or "reshuffling", but got {sampling!r}.'
        )
    return None if batch_size is None else int(batch_size), sampling
