"""Other coordinates and clocks in which a process is easier to simulate: wrapped around a method."""

import abc
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from ..process import AbstractDiffusion
from .method import AbstractMethod


class AbstractTransform(eqx.Module):
    """How the states that a method steps relate to those that the user means.

    `weighted` says whether samples count by `weight`; otherwise all count alike.
    """

    weighted: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def enter(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """What the method steps, for a path at x."""

    @abc.abstractmethod
    def leave(self, y: Float[Array, " d"]) -> Float[Array, " d"]:
        """The state x of a path."""

    @abc.abstractmethod
    def weight(self, t: Float[Array, ""], x: Float[Array, " d"]) -> Float[Array, ""]:
        """How much a sample at x counts."""


class AbstractTransformed(eqx.Module):
    """A method for another form of the process: `simulate` steps that with `inner`, and leaves it to be looked at."""

    inner: eqx.AbstractVar[AbstractMethod]

    @abc.abstractmethod
    def apply(self, process: AbstractDiffusion, x: Float[Array, "n d"]) -> tuple[AbstractDiffusion, AbstractTransform]:
        """The form that is stepped and how it relates to `process`; `x` are typical states."""


def unwrapped(process: AbstractDiffusion, method: Any, x: Float[Array, "n d"]) -> tuple[Any, Any, Any]:
    """The process to step, the method that steps it, and the transform between, or None."""
    if isinstance(method, AbstractTransformed):
        inner, transform = method.apply(process, x)
        return inner, method.inner, transform
    return process, method, None
