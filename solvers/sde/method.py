"""What an integrator is: a pure map of one step, with its orders declared on the class."""

import abc
from typing import Any, Literal

import equinox as eqx
from jaxtyping import Array, Float

from ..process import AbstractDiffusion
from .brownian import Increment, Need


class AbstractMethod(eqx.Module):
    """A one-step integrator for dX = b dt + G dB.

    `strong_order` and `weak_order` hold for smooth coefficients with bounded derivatives; `calculus` says how the
    method reads G dB. The orders are declared here and nowhere else; NaN is an order that nobody declares.
    """

    strong_order: eqx.AbstractClassVar[float]
    weak_order: eqx.AbstractClassVar[float]
    calculus: eqx.AbstractClassVar[Literal["ito", "stratonovich"]]

    @abc.abstractmethod
    def needs(self, process: AbstractDiffusion, x: Float[Array, "n d"]) -> Need:
        """What a step needs of the Brownian motion for this process: a kind of `Increment`.

        Found at typical states `x` before anything is compiled.

        Raises `ValueError` where the method could not have its declared order, saying what to use instead.
        """

    @abc.abstractmethod
    def step(
        self,
        process: AbstractDiffusion,
        t: Float[Array, ""],
        x: Float[Array, " d"],
        dt: Float[Array, ""],
        increment: Increment,
    ) -> Float[Array, " d"]:
        """The state at t + dt."""


class AbstractPostprocessed(AbstractMethod):
    """A method that steps another variable y than the state x, with x and y a function of each other at each time.

    Both maps see the increment of the step that *begins* at t. `simulate` enters at the start and leaves wherever the
    state is looked at; in between it knows y only.
    """

    @abc.abstractmethod
    def enter(
        self,
        process: AbstractDiffusion,
        t: Float[Array, ""],
        x: Float[Array, " d"],
        dt: Float[Array, ""],
        increment: Increment,
    ) -> Float[Array, " d"]:
        """The variable y of a path that is at x."""

    @abc.abstractmethod
    def leave(
        self,
        process: AbstractDiffusion,
        t: Float[Array, ""],
        y: Float[Array, " d"],
        dt: Float[Array, ""],
        increment: Increment,
    ) -> Float[Array, " d"]:
        """The state x of a path whose variable is y."""


def check_method(method: Any) -> None:
    """`TypeError` for anything but an integrator: its class, its name or another object."""
    if not isinstance(method, AbstractMethod):
        raise TypeError(f"`method` must be an integrator such as `sde.EulerMaruyama()`, got {method!r}.")


def check_noise(noise: Any) -> None:
    """`ValueError` for anything but the kinds of noise that a weak method may step with."""
    if noise not in ("normal", "three-point"):
        raise ValueError(
            f'`noise` must be "normal", or "three-point" for increments that take the values 0 and ±√(3 dt) only, '
            f"got {noise!r}."
        )
