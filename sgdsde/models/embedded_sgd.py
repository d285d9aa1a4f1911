"""The Ornstein-Uhlenbeck process that passes through the steps of SGD on a quadratic exactly."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from solvers.process import as_operator

from .._checks import array, number, traced
from .._roots import covariance_root
from ..losses import Quadratic
from ..noise import Covariance
from .model import AbstractMemoryless


class EmbeddedSGD(AbstractMemoryless):
    """SGD on a quadratic, exactly: the process dX = -A(X - centre) dt + Q^½ dB whose law at t = ηk is that of step k.

    The loss is (x - centre)ᵀH(x - centre)/2, the noise of the gradient Gaussian with the constant covariance
    Σ = C/B. A = -log(I - ηH)/η, and in the basis of the eigenvalues h_i of H, a_i of A,
    Q_ij = η²Σ_ij (a_i + a_j)/(1 - (1 - ηh_i)(1 - ηh_j)). In one dimension the stationary variance is that of SGD,
    ηΣ/(h(2 - ηh)), at every η. `SGD` and `ModifiedSGD` have A = H and A = H + ηH²/2 with Q = ηΣ.

    `ValueError` unless ηh_i < 1 for all i: beyond that SGD jumps across the minimum, and no process without memory in
    continuous time does. Nor need there be one if the noises along directions of different curvature are almost fully
    correlated: then Q is not positive semi-definite, which raises `ValueError` too.
    """

    loss: Quadratic
    gradient_noise: Covariance
    rates: Float[Array, "d d"]
    root: Float[Array, "d d"]
    learning_rate: Float[Array, ""]

    def __init__(self, H, C, learning_rate, batch_size=1, centre=0.0):
        H, C = array("H", H), array("C", C)
        for name, matrix in (("H", H), ("C", C)):
            if matrix.ndim != 2 or matrix.shape != (len(H), len(H)):
                raise ValueError(f"`{name}` must be a matrix (d, d), of the same d for both, but got {matrix.shape}.")
        self.loss, self.gradient_noise = Quadratic(H, centre=centre), Covariance(C, batch_size)
        self.learning_rate = number("learning_rate", learning_rate, positive=True)
        eta, values, vectors = self.learning_rate, *jnp.linalg.eigh(0.5 * (H + H.T))
        if not traced(values) and not traced(eta) and eta * values[-1] >= 1:
            raise ValueError(
                f"`learning_rate` must be below 1/{float(values[-1]):.6g}, the inverse of the largest curvature, but "
                f"got learning_rate={float(eta):.6g}."
            )
        rates = -jnp.log1p(-eta * values) / eta
        self.rates = (vectors * rates) @ vectors.T
        total = rates[:, None] + rates
        # 1 - (1-ηh_i)(1-ηh_j) = 1 - exp(-η(a_i + a_j)), which is η times the sum where that is 0.
        flat = total == 0
        spread = jnp.where(flat, 1 / eta, total / jnp.where(flat, 1, -jnp.expm1(-eta * total)))
        sigma = vectors.T @ C @ vectors / self.gradient_noise.batch_size
        Q = vectors @ (eta**2 * sigma * spread) @ vectors.T
        self.root = covariance_root(Q)
        if not traced(self.root) and not np.all(np.isfinite(self.root)):
            raise ValueError(
                "`C` is such that no process in continuous time has the law of SGD: the covariance Q of its noise has "
                f"the eigenvalue {float(jnp.linalg.eigvalsh(0.5 * (Q + Q.T))[0]):.3g}. Take `SGD` or `ModifiedSGD`."
            )

    def drift(self, t, x):
        return -self.rates.astype(x.dtype) @ (x - self.loss.centre.astype(x.dtype))

    def noise(self, t, x):
        return as_operator(self.root.astype(x.dtype), x)

    @property
    def clock(self) -> Float[Array, ""]:
        """η: step k is at t = ηk."""
        return self.learning_rate
