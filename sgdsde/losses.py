"""Losses with known minima, curvatures and invariant laws: each is a JAX function of one point x of shape (d,).

Any other JAX function of one point will do as well. `floor` is an additive constant f₀: with noise proportional to
the loss it decides whether an invariant law exists at all, so it is never added silently.

`from_model` makes one of a network, or of any other model, and data.

p = 1 + 1/κ below, with κ = ησ: the power law is f^(-p), the Gibbs law exp(-f/κ).
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ._checks import array, number, traced
from ._finite_sum import (
    AbstractFiniteSum as AbstractFiniteSum,
    AbstractSquaredLoss as AbstractSquaredLoss,
    in_dtype_of as _in_dtype_of,
    one_number as _one_number,
)
from .model_loss import ModelLoss as ModelLoss, from_model as from_model


class FiniteSum(AbstractFiniteSum):
    """f(x) = (1/N) Σ_i l(x, data_i), of a JAX function l of one point x (d,) and one example.

    `data` is an array or a pytree of arrays whose first axis, of length N, counts the examples; real numbers are given
    to l in the dtype of x. `ValueError` if there are none, or the lengths differ.
    """

    loss: Callable
    data: Any

    def __init__(self, loss: Callable, data: Any):
        if not callable(loss):
            raise TypeError(f"`loss` must be a function of (x, example), but got {loss!r}.")
        self.loss = loss
        self.data = jax.tree.map(jnp.asarray, data)
        shapes = {leaf.shape[:1] for leaf in jax.tree.leaves(self.data)}
        if len(shapes) != 1 or shapes & {(), (0,)}:
            raise ValueError(
                "`data` must be arrays with one common first axis, of the examples, but their first axes are "
                f"{sorted(shapes)}."
            )

    @property
    def count(self) -> int:
        return jax.tree.leaves(self.data)[0].shape[0]

    def examples(self, x: Float[Array, " d"], index: Int[Array, " b"]) -> Float[Array, " b"]:
        chosen = jax.tree.map(lambda leaf: _in_dtype_of(x, leaf[index]), self.data)
        return jax.vmap(lambda example: _one_number(self.loss(x, example), x, "loss(x, example)"))(chosen)

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        return jnp.mean(self.examples(x, jnp.arange(self.count)))


class SquaredLoss(AbstractSquaredLoss):
    """f = floor + (1/2N) Σ_i (h(x, a_i) - y_i)² of a model h of one point x (d,) and one input, such as a network.

    `predict(x, input)` returns one number; `inputs` are an array or a pytree of arrays whose first axis counts the
    examples, `labels` has shape (N,). `ValueError` if their lengths differ.
    """

    predict: Callable
    inputs: Any
    labels: Float[Array, " N"]
    floor: Float[Array, ""]

    def __init__(self, predict: Callable, inputs: Any, labels, floor=0.0):
        if not callable(predict):
            raise TypeError(f"`predict` must be a function of (x, input), but got {predict!r}.")
        self.predict, self.inputs = predict, jax.tree.map(jnp.asarray, inputs)
        self.labels, self.floor = array("labels", labels), number("floor", floor)
        shapes = {leaf.shape[:1] for leaf in jax.tree.leaves(self.inputs)}
        if self.labels.ndim != 1 or self.labels.size == 0 or shapes != {self.labels.shape}:
            raise ValueError(
                "`labels` must have shape (N,), and every array of `inputs` the first axis N, but got "
                f"{self.labels.shape} and {sorted(shapes)}."
            )

    @property
    def count(self) -> int:
        return len(self.labels)

    def residuals(self, x: Float[Array, " d"], index: Int[Array, " b"]) -> Float[Array, " b"]:
        chosen = jax.tree.map(lambda leaf: _in_dtype_of(x, leaf[index]), self.inputs)
        outputs = jax.vmap(lambda a: _one_number(self.predict(x, a), x, "predict(x, input)"))(chosen)
        return outputs - self.labels[index].astype(x.dtype)

    def examples(self, x: Float[Array, " d"], index: Int[Array, " b"]) -> Float[Array, " b"]:
        return self.floor.astype(x.dtype) + 0.5 * self.residuals(x, index) ** 2

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        return jnp.mean(self.examples(x, jnp.arange(self.count)))


class Quadratic(eqx.Module):
    """f = floor + (x - centre)ᵀ H (x - centre) / 2, with H symmetric positive semi-definite, shape (d, d).

    A number or a vector for H is its diagonal; with a number the dimension is that of x. The Gibbs law is the
    Gaussian of covariance κ H⁻¹.
    """

    H: Float[Array, "..."]
    floor: Float[Array, ""]
    centre: Float[Array, "..."]

    def __init__(self, H, floor=0.0, centre: Any = 0.0):
        self.H = array("H", H)
        self.floor = number("floor", floor)
        self.centre = array("centre", centre)
        if self.H.ndim > 2 or (self.H.ndim == 2 and self.H.shape[0] != self.H.shape[1]):
            raise ValueError(f"`H` must be a number, a diagonal (d,) or a matrix (d, d), but got shape {self.H.shape}.")
        if self.centre.ndim > 1 or (self.centre.ndim and self.H.ndim and len(self.centre) != len(self.H)):
            raise ValueError(f"`centre` must be a number or shape (d,) as `H`, but got shape {self.centre.shape}.")
        if self.H.ndim == 2 and not traced(self.H):
            h = np.asarray(self.H)
            if np.max(np.abs(h - h.T)) > _rounding * np.max(np.abs(h)):
                raise ValueError("`H` must be symmetric: only (H + Hᵀ)/2 acts in xᵀHx. Pass (H + H.T) / 2.")

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        z = x - self.centre.astype(x.dtype)
        H = self.H.astype(x.dtype)
        return self.floor.astype(x.dtype) + 0.5 * jnp.vdot(z, H @ z if H.ndim == 2 else H * z)


class Student(eqx.Module):
    """f = curvature · (scale² + |x|²) / 2, whose power law is a Student distribution: `sgdsde.theory.student`.

    f^(-p) is normalisable iff p > d/2, that is κ < 2/(d-2); in one dimension it has 1 + 2/κ degrees of freedom and
    the scale `scale`/√(1 + 2/κ). f = 1 + |x|² is Student(curvature=2).
    """

    curvature: Float[Array, ""]
    scale: Float[Array, ""]

    def __init__(self, curvature=1.0, scale=1.0):
        self.curvature = number("curvature", curvature, positive=True)
        self.scale = number("scale", scale, positive=True)

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        return 0.5 * self.curvature.astype(x.dtype) * (self.scale.astype(x.dtype) ** 2 + x @ x)


class DoubleWell(eqx.Module):
    """f = floor + (x₁² - 1)²/4 + tilt · x₁ + (x₂² + ... + x_d²)/2.

    Without tilt: minima at x₁ = ±1 of curvature 2 and value `floor`, a saddle at 0 of curvature -1 and height 1/4
    above them. A tilt > 0 makes the left well deeper; both wells exist for |tilt| < 2/(3√3) ≈ 0.385.
    """

    floor: Float[Array, ""]
    tilt: Float[Array, ""]

    def __init__(self, floor=0.0, tilt=0.0):
        self.floor = number("floor", floor)
        self.tilt = number("tilt", tilt)

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        well = 0.25 * (x[0] ** 2 - 1) ** 2 + self.tilt.astype(x.dtype) * x[0]
        return self.floor.astype(x.dtype) + well + 0.5 * jnp.sum(x[1:] ** 2)


class RadialWell(eqx.Module):
    """f = floor + (|x|² - 1)²/4: the minima are the unit sphere, with curvature 2 across it, in any dimension."""

    floor: Float[Array, ""]

    def __init__(self, floor=0.0):
        self.floor = number("floor", floor)

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        return self.floor.astype(x.dtype) + 0.25 * (x @ x - 1) ** 2


class RingValley(eqx.Module):
    """f = floor + a(φ)/8 · (r² - 1)² in the plane, a = 1 + amplitude · cos φ: a valley as sharp as a(φ).

    The minima are the unit circle with curvature a across it: flattest at φ = π. As κ → 0 both laws weigh the
    circle by a^(-1/2). At finite κ the marginal of φ is proportional to

    - Gibbs: √(8πκ/a) (1 + erf √(a/8κ))/4;
    - power law: √(8/(a floor^(2p-1))) ¼ B(½, p-½) [1 + I_{c²/(1+c²)}(½, p-½)], c² = a/(8 floor).

    f jumps at the origin, where φ has no value: f has the limits a(φ)/8, and is given the value for a = 1 there. The
    origin is a hill of height near 1/8, so this matters only to paths that cross it. `ValueError` unless
    0 ≤ amplitude < 1.
    """

    floor: Float[Array, ""]
    amplitude: Float[Array, ""]

    def __init__(self, floor=0.0, amplitude=0.5):
        self.floor = number("floor", floor)
        self.amplitude = number("amplitude", amplitude, minimum=0)
        if not traced(self.amplitude) and not self.amplitude < 1:
            raise ValueError(f"`amplitude` must be below 1, or the ring is no valley, but got {float(self.amplitude)}.")

    def __call__(self, x: Float[Array, "2"]) -> Float[Array, ""]:
        square = x @ x
        away = square > 0
        cosine = jnp.where(away, x[0] / jnp.sqrt(jnp.where(away, square, jnp.ones_like(square))), 0)
        curvature = 1 + self.amplitude.astype(x.dtype) * cosine
        return self.floor.astype(x.dtype) + 0.125 * curvature * (square - 1) ** 2


class LeastSquares(AbstractSquaredLoss):
    """f = floor + |A x - y|²/(2n) for n data (rows of A) and d parameters: A has shape (n, d), y shape (n,).

    Overparametrised when n < d: for A of rank n the minima are an affine space of dimension d - n where f = floor.
    H = AᵀA/n. The losses of the examples are l_i = floor + (a_i x - y_i)²/2.
    """

    A: Float[Array, "n d"]
    y: Float[Array, " n"]
    floor: Float[Array, ""]

    def __init__(self, A, y, floor=0.0):
        self.A = array("A", A)
        self.y = array("y", y)
        self.floor = number("floor", floor)
        if self.A.ndim != 2 or self.y.shape != self.A.shape[:1] or self.A.size == 0:
            raise ValueError(f"`A` must have shape (n, d) and `y` (n,), but got {self.A.shape} and {self.y.shape}.")

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        residual = self.A.astype(x.dtype) @ x - self.y.astype(x.dtype)
        return self.floor.astype(x.dtype) + 0.5 * jnp.mean(residual**2)

    @property
    def count(self) -> int:
        return self.A.shape[0]

    def residuals(self, x: Float[Array, " d"], index: Int[Array, " b"]) -> Float[Array, " b"]:
        return self.A[index].astype(x.dtype) @ x - self.y[index].astype(x.dtype)

    def examples(self, x: Float[Array, " d"], index: Int[Array, " b"]) -> Float[Array, " b"]:
        return self.floor.astype(x.dtype) + 0.5 * self.residuals(x, index) ** 2

    @property
    def rank(self) -> int:
        """The rank of A, numerically."""
        return int(np.linalg.matrix_rank(np.asarray(self.A)))

    @property
    def flat_dimension(self) -> int:
        """The dimension d - rank of the affine space of minima."""
        return self.A.shape[1] - self.rank

    @property
    def minimum_norm_solution(self) -> Float[Array, " d"]:
        """The minimiser of least norm, where gradient descent from 0 ends."""
        return jnp.linalg.pinv(self.A) @ self.y


class TwoLayerLinear(AbstractSquaredLoss):
    """f = floor + (u·w - y)²/2 of x = (u, w) in R^2k: a linear network with one input, k hidden units, one output.

    Where u·w = y the minima are a hypersurface (a hyperbola for k = 1, y ≠ 0) with the curvature |u|² + |w|² across
    it; the origin is a saddle for y ≠ 0. |u|² - |w|² is constant under gradient flow. One example: under label noise
    of variance s² (`noise.LabelNoise`) |u|² - |w|² decays as exp(-ηs²t), path by path.
    """

    y: Float[Array, ""]
    floor: Float[Array, ""]

    def __init__(self, y=1.0, floor=0.0):
        self.y = number("y", y)
        self.floor = number("floor", floor)

    @property
    def count(self) -> int:
        return 1

    def residuals(self, x: Float[Array, " d"], index: Int[Array, " b"]) -> Float[Array, " b"]:
        if x.size % 2:
            raise ValueError(f"`x` must hold u and w of equal length, but has the odd length {x.size}.")
        u, w = jnp.split(x, 2)
        return jnp.full(index.shape, u @ w - self.y.astype(x.dtype))

    def examples(self, x: Float[Array, " d"], index: Int[Array, " b"]) -> Float[Array, " b"]:
        return self.floor.astype(x.dtype) + 0.5 * self.residuals(x, index) ** 2

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        return self.examples(x, jnp.zeros(1, int))[0]


class Rastrigin(eqx.Module):
    """f = floor + |x|²/2 + amplitude · Σ (1 - cos(2π x_k)): a bowl with a local minimum near each integer point.

    The global minimum is f(0) = floor. In the usual form of the test problem f is twice this, with amplitude 5.
    """

    amplitude: Float[Array, ""]
    floor: Float[Array, ""]

    def __init__(self, amplitude=0.1, floor=0.0):
        self.amplitude = number("amplitude", amplitude, minimum=0)
        self.floor = number("floor", floor)

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        rugged = self.amplitude.astype(x.dtype) * jnp.sum(1 - jnp.cos(2 * jnp.pi * x))
        return self.floor.astype(x.dtype) + 0.5 * (x @ x) + rugged


def rosenbrock(x: Float[Array, " d"]) -> Float[Array, ""]:
    """f = Σ_k 100 (x_{k+1} - x_k²)² + (1 - x_k)², d ≥ 2: a curved narrow valley, global minimum f(1, ..., 1) = 0."""
    if x.size < 2:
        raise ValueError(f"`rosenbrock` needs at least 2 coordinates, but x has shape {x.shape}.")
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def himmelblau(x: Float[Array, " d"]) -> Float[Array, ""]:
    """f = (x² + y - 11)² + (x + y² - 7)²: four minima with f = 0 and different curvatures.

    They are (3, 2), (-2.805118, 3.131312), (-3.779310, -3.283186) and (3.584428, -1.848126).
    """
    if x.shape != (2,):
        raise ValueError(f"`himmelblau` is of 2 coordinates, but x has shape {x.shape}.")
    return (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2


# Asymmetry of a matrix up to this fraction of its largest entry is rounding.
_rounding = 1e-6
