"""Lévy areas: the second-order part of a Brownian increment, without which Milstein loses its order.

For m Brownian motions on a step of length h, the Lévy area is the antisymmetric matrix
A_jk = ½ ∫ (W_j dW_k - W_k dW_j). It is needed wherever the columns of the noise do not commute; isotropic noise that
depends on x, s(x) I in two or more dimensions, is such a case.

Two samplers, both conditional on the increment W and both from the Fourier series of the Brownian bridge
W(t) - (t/h) W = a_0/2 + Σ_r a_r cos(2πrt/h) + b_r sin(2πrt/h), a_r and b_r ~ N(0, h/(2π²r²)):

- `sample_matrix` keeps p terms of the whole matrix and puts a Gaussian of the right covariance for the rest
  (Mrongowius and Rössler, 2022): m²/2 + 2pm + m normal numbers, mean-square error h² m/(24 π² p²).
- `DirectionalArea` samples only the product Aᵀv for one direction v known at the start of the step. With e_1 along v,
  A_1k = H W_k + √V ζ_k for every k ≠ 1, where H = -Σ_r a_r and V = (h/2) Σ_r [a_r² + (b_r - W_1/(πr))²] belong to the
  first motion and ζ is standard normal: d + 2p + 1 numbers, mean-square error at most 0.45 h²/(π⁴p³) for each
  component across v, with |v| = 1. It is all that isotropic noise needs.
"""

import abc
import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class AbstractLevyArea(eqx.Module):
    """The Lévy area A of one step, in units of time."""

    @abc.abstractmethod
    def along(self, v: Float[Array, " m"]) -> Float[Array, " m"]:
        """The product Aᵀ v."""


class MatrixArea(AbstractLevyArea):
    """A Lévy area that is known in full."""

    matrix: Float[Array, "m m"]

    def along(self, v):
        return self.matrix.T @ v


class DirectionalArea(AbstractLevyArea):
    """A Lévy area that is sampled when its direction is known. Ask it only once: it holds numbers for one direction."""

    dt: Float[Array, ""]
    dw: Float[Array, " m"]
    z: Float[Array, " count"]

    def along(self, v):
        m = self.dw.size
        p = (self.z.size - m - 1) // 2
        zeta, tail, a, b = jnp.split(self.z, [m, m + 1, m + 1 + p])
        norm = jnp.sqrt(v @ v)
        e = v / jnp.where(norm > 0, norm, 1.0)
        # Everything in units of the step: lengths √dt, areas dt.
        w = self.dw / jnp.sqrt(self.dt)
        w_along = e @ w
        r = np.arange(1, p + 1)
        a = a / jnp.asarray(np.sqrt(2) * np.pi * r, a.dtype)
        b = b / jnp.asarray(np.sqrt(2) * np.pi * r, b.dtype) - w_along / jnp.asarray(np.pi * r, b.dtype)
        rest = _inverse_squares_beyond(p) / (2 * np.pi**2)
        h = -jnp.sum(a) - math.sqrt(rest) * tail[0]
        v_bridge = 0.5 * (a @ a + b @ b + rest * (2 + 2 * w_along**2))
        across = h * w + jnp.sqrt(v_bridge) * zeta
        return self.dt * norm * (across - (e @ across) * e)


def directional_count(m: int, dt: float) -> int:
    """How many normal numbers `DirectionalArea` takes so that its error is O(dt^{3/2}), as strong order 1 needs."""
    p = max(1, math.ceil((2 / (4 * math.pi**4 * dt)) ** (1 / 3)))
    return m + 1 + 2 * p


def matrix_count(m: int, dt: float) -> int:
    """How many normal numbers `sample_matrix` takes so that its error is O(dt^{3/2}), as strong order 1 needs."""
    p = max(1, math.ceil(math.sqrt(m / (12 * math.pi**2 * dt))))
    return m * (2 * p + 1) + m * (m - 1) // 2


def sample_matrix(dt: Float[Array, ""], dw: Float[Array, " m"], z: Float[Array, " count"]) -> MatrixArea:
    """A Lévy area for the increment `dw` over `dt` from `matrix_count` standard normal numbers."""
    m = dw.size
    pairs = m * (m - 1) // 2
    p = (z.size - m - pairs) // (2 * m)
    x, y, x_tail, tail = jnp.split(z, [p * m, 2 * p * m, 2 * p * m + m])
    w = math.sqrt(2) * dw / jnp.sqrt(dt)
    over_r = jnp.asarray(1 / np.arange(1, p + 1), z.dtype)
    series = jnp.einsum("rj,rk,r->jk", x.reshape(p, m), y.reshape(p, m) - w, over_r)
    rest = _inverse_squares_beyond(p)
    series = series - math.sqrt(rest) * jnp.outer(x_tail, w)
    upper = jnp.zeros((m, m), z.dtype).at[jnp.triu_indices(m, 1)].set(math.sqrt(2 * rest) * tail)
    area = series + upper
    return MatrixArea(dt / (2 * np.pi) * (area - area.T))


def chain(w: Float[Array, "... m"], a: Float[Array, "... m m"], dw: Float[Array, "... m"], da: Float[Array, "... m m"]):
    """The increment and Lévy area over two successive intervals (Chen's relation)."""
    cross = w[..., :, None] * dw[..., None, :]
    return w + dw, a + da + 0.5 * (cross - jnp.swapaxes(cross, -1, -2))


def _inverse_squares_beyond(p: int) -> float:
    return math.pi**2 / 6 - sum(1 / r**2 for r in range(1, p + 1))
