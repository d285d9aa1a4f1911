"""What all models of optimisers share: their clock, what of the state is the position, and terms for diffrax."""

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from solvers import AbstractDiffusion

from .._checks import scalar_valued
from ..losses import AbstractFiniteSum
from ..noise import AbstractGradientNoise

if TYPE_CHECKING:
    import diffrax


class AbstractModel(AbstractDiffusion):
    """An optimiser as an Itô diffusion. Its state holds the position x, which is what is optimised, and maybe more."""

    @property
    @abc.abstractmethod
    def clock(self) -> Float[Array, ""]:
        """The time that one step of the optimiser takes."""

    @abc.abstractmethod
    def initial(self, x: Float[Array, " d"]) -> Float[Array, " state"]:
        """The state in which the optimiser starts at the position x."""

    @abc.abstractmethod
    def position(self, state: Float[Array, "*batch state"]) -> Float[Array, "*batch d"]:
        """The position in a state, or in each of an array of states."""

    @property
    def steps_per_epoch(self) -> float | None:
        """Steps of the optimiser in one pass through the data, N/B; None where loss or noise know of no data."""
        loss, noise = getattr(self, "loss", None), getattr(self, "gradient_noise", None)
        batch = getattr(self, "batch_size", getattr(noise, "batch_size", None))
        return loss.count / float(batch) if isinstance(loss, AbstractFiniteSum) and batch is not None else None

    def time(self, step) -> Float[Array, "..."]:
        """The time after so many steps of the optimiser."""
        return self.clock * jnp.asarray(step, self.clock.dtype)

    def steps(self, t) -> Float[Array, "..."]:
        """How many steps of the optimiser take the time t; not rounded."""
        return jnp.asarray(t, self.clock.dtype) / self.clock

    def terms(self, path: "diffrax.AbstractPath") -> "diffrax.MultiTerm":
        """This process as diffrax terms, so that any Itô solver of diffrax runs on it.

        `path` is the driving Brownian motion of shape (m,), for example
        `diffrax.VirtualBrownianTree(t0, t1, tol, shape=(m,), key=key)`; m is the number of columns of G, and d for
        isotropic noise.
        """
        import diffrax

        return diffrax.MultiTerm(
            diffrax.ODETerm(lambda t, y, args: self.drift(t, y)),
            diffrax.ControlTerm(lambda t, y, args: self.noise(t, y), path),
        )


class AbstractMemoryless(AbstractModel):
    """An optimiser whose state is its position."""

    def initial(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """x itself."""
        return x

    def position(self, state: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """The state itself."""
        return state


def checked_loss(loss: Any) -> Callable:
    """`loss`, if it is a function; `TypeError` if not. What it returns can only be checked when it is used."""
    if not callable(loss):
        raise TypeError(f"`loss` must be a function of one point x of shape (d,), but got {loss!r}.")
    return loss


def checked_noise(noise: Any) -> AbstractGradientNoise:
    """`noise`, if it is a gradient noise; `TypeError` if not."""
    if not isinstance(noise, AbstractGradientNoise):
        raise TypeError(f"`noise` must be one of `sgdsde.noise`, such as `noise.Constant(0.5)`, but got {noise!r}.")
    return noise


def checked_sum(loss: Any) -> AbstractFiniteSum:
    """`loss`, if it is a finite sum; `TypeError` if not."""
    if not isinstance(loss, AbstractFiniteSum):
        raise TypeError(f"`loss` must be a finite sum, such as `losses.FiniteSum(l, data)`, but got {loss!r}.")
    return loss


def gradient(loss: Callable, x: Float[Array, " d"]) -> Float[Array, " d"]:
    """∇f(x), for a loss that is checked to return one number."""
    return jax.grad(scalar_valued(loss))(x)


def gradient_of_square(loss: Callable, x: Float[Array, " d"]) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """∇f(x) and ∇|∇f(x)|²/2 = H ∇f, by one product with the Hessian."""
    g = gradient(loss, x)
    return g, jax.jvp(lambda y: gradient(loss, y), (x,), (g,))[1]
