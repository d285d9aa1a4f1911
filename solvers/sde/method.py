"""What an integrator is: a pure map of one step, with its orders declared on the class."""

import abc
from typing import Any, Literal

import equinox as eqx
from jaxtyping import Array, Float

from ..process import AbstractDiffusion
from .levy import AbstractLevyArea

AreaKind = Literal["none", "direction", "matrix"]


class Increment(eqx.Module):
    """The Brownian motion over one step: W(t + dt) - W(t), and its Lévy area if the method asked for it."""

    dw: Float[Array, " m"]
    area: AbstractLevyArea | None = None


class AbstractMethod(eqx.Module):
    """A one-step integrator for dX = b dt + G dB.

    `strong_order` and `weak_order` hold for smooth coefficients with bounded derivatives; `calculus` says how the
    method reads G dB. The orders are declared here and nowhere else.
    """

    strong_order: eqx.AbstractClassVar[float]
    weak_order: eqx.AbstractClassVar[float]
    calculus: eqx.AbstractClassVar[Literal["ito", "stratonovich"]]

    @abc.abstractmethod
    def area(self, process: AbstractDiffusion, x: Float[Array, "n d"]) -> AreaKind:
        """Which Lévy areas a step needs for this process, found at typical states `x` before anything is compiled.

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


def check_method(method: Any) -> None:
    """`TypeError` for anything but an integrator: its class, its name or another object."""
    if not isinstance(method, AbstractMethod):
        raise TypeError(f"`method` must be an integrator such as `sde.EulerMaruyama()`, got {method!r}.")
