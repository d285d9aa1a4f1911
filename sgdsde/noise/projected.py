"""The part of a gradient noise that acts within a plane."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from .._checks import scalar_valued
from .._restricted import Plane
from .._roots import covariance_root
from .gradient_noise import AbstractGradientNoise, matrix_operator


class Projected(AbstractGradientNoise):
    """A noise on a plane x = origin + Vy, V orthonormal: D(y) = Vᵀ D(x) V for coordinates y (k,), Σ(y) = Vᵀ Σ(x) V.

    It is that of gradients projected on the plane, and driven by k Brownian motions, however many drive `noise`: a root
    of a k × k matrix, from k products with Gᵀ. Such a root has no derivative where D(y) loses rank.

    `loss` is the loss in the whole space, which some noises ask. Made by `sg.restrict` of a model.
    """

    noise: AbstractGradientNoise
    loss: Callable
    plane: Plane

    def operator(self, loss, learning_rate, x):
        g = self.noise.operator(scalar_valued(self.loss), learning_rate, self.plane.point(x))
        rows: Float[Array, "k m"] = jax.vmap(g.transpose().mv)(self.plane.directions.astype(x.dtype))
        return matrix_operator(covariance_root(rows @ rows.T), x)
