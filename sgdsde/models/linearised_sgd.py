"""SGD linearised about gradient flow: the central limit theorem along a path."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import array, number, scalar_valued
from .._operators import transformed
from ..noise import AbstractGradientNoise
from .model import AbstractModel, checked_loss, checked_noise, gradient


class LinearisedSGD(AbstractModel):
    """SGD to leading order about its gradient flow y, of the state (x, y) in R^2d (Itô):

    dx = -(∇f(y) + H(y)(x - y)) dt + sqrt(ηΣ(y)) dB,  dy = -∇f(y) dt.

    With step k at t = ηk, and η → 0 over a fixed time, (x - y)/√η is the limit in law of the fluctuations of SGD: an
    Ornstein-Uhlenbeck process V whose coefficients move along y, dV = -H(y)V dt + Σ(y)^½ dB. x is Gaussian with the
    mean y and a covariance that obeys Γ' = -HΓ - ΓH + ηΣ; `moments` solves for both. Near a saddle Γ grows, and the
    approximation ends where √Γ is as large as the scale on which H varies.

    Source: Wang, *Asymptotic analysis via stochastic differential equations of gradient descent algorithms*, 2017.
    """

    loss: Callable
    gradient_noise: AbstractGradientNoise
    learning_rate: Float[Array, ""]

    def __init__(self, loss: Callable, noise: AbstractGradientNoise, learning_rate):
        self.loss, self.gradient_noise = checked_loss(loss), checked_noise(noise)
        self.learning_rate = number("learning_rate", learning_rate, positive=True)

    def drift(self, t, x):
        x, y = jnp.split(x, 2)
        slope, turn = jax.jvp(lambda y: gradient(self.loss, y), (y,), (x - y,))
        return jnp.concatenate([-(slope + turn), -slope])

    def noise(self, t, x):
        _, y = jnp.split(x, 2)
        return transformed(lambda dx: jnp.concatenate([dx, jnp.zeros_like(dx)]), self._root(y))

    def moments(self, x0: Float[Array, " d"], ts) -> tuple[Float[Array, "s d"], Float[Array, "s d d"]]:
        """Mean and covariance of x at the increasing times `ts`, from the point x0 at time 0; for small d.

        Solved with a relative tolerance of 1e-9 in double and 1e-5 in single precision.
        """
        import diffrax

        ts = array("ts", ts).astype(x0.dtype)
        if ts.ndim != 1 or ts.size == 0:
            raise ValueError(f"`ts` must be times of shape (s,), but got shape {ts.shape}.")

        def derivative(t, moments, args):
            y, cov = moments
            H, G = jax.hessian(scalar_valued(self.loss))(y), self._root(y).as_matrix()
            return -gradient(self.loss, y), G @ G.T - H @ cov - cov @ H

        tolerance = 1e-9 if x0.dtype == jnp.float64 else 1e-5
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(derivative),
            diffrax.Tsit5(),
            jnp.zeros_like(ts[0]),
            ts[-1],
            None,
            (x0, jnp.zeros((x0.size, x0.size), x0.dtype)),
            saveat=diffrax.SaveAt(ts=ts),
            # Covariances are of the size of η.
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=1e-3 * tolerance),
        )
        assert solution.ys is not None
        return solution.ys

    @property
    def clock(self) -> Float[Array, ""]:
        """η: step k is at t = ηk."""
        return self.learning_rate

    def initial(self, x: Float[Array, " d"]) -> Float[Array, " state"]:
        """(x, x)."""
        return jnp.concatenate([x, x])

    def position(self, state: Float[Array, "*batch state"]) -> Float[Array, "*batch d"]:
        """x."""
        return state[..., : state.shape[-1] // 2]

    def _root(self, y):
        return self.gradient_noise.operator(scalar_valued(self.loss), self.learning_rate, y)
