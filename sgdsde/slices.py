"""Losses and models on a line or plane: few enough dimensions to see them, and to solve the Fokker-Planck equation."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg
from jaxtyping import Array, Float

from ._checks import scalar_valued
from ._restricted import Plane as Plane, Slice as Slice, SquaredSlice as SquaredSlice, SumSlice as SumSlice, on_plane
from .models import SGD
from .noise import Projected

# Up to so many dimensions all eigenvectors are computed.
_dense = 64

# Residual of an eigenvector over its eigenvalue.
_tolerance = 1e-8


def restrict(loss_or_model: Any, x: Any, directions: Any) -> Any:
    """The loss, or the model of SGD, on the points x + Σ_k y_k v_k, as one of the coordinates y (k,).

    v_k are the `directions`, shape (k, d), or (d,) for a line, made orthonormal in their order (`sg.Plane`). Between
    two minima a and b: `restrict(loss, a, b - a)`, where y = 0 is a and y = |b - a| is b. Along the top eigenvectors of
    the Hessian: `restrict(loss, x, sg.top_directions(loss, x, 2))`.

    The restricted loss is a finite sum, or a squared loss, if `loss` is one, with the gradients Vᵀ∇l_i of its examples:
    all that takes a finite sum takes it, and `optimizers.run` runs the algorithm y ← y - η Vᵀ g(x + Vy), SGD confined
    to the plane. `.plane.point(y)` is a point of the whole space, and `.plane.coordinates(x)` the way back.

    A restricted model has the restricted loss, and D(y) = Vᵀ D(x + Vy) V, from k Brownian motions (`noise.Projected`):

        line = sg.restrict(sg.SGD(loss, sg.noise.Minibatch(loss, 4), 0.1), a, b - a)
        p = fokker_planck.stationary(fokker_planck.assemble(line, Grid.uniform((-1.0, 3.0, 400))))
        barrier = -np.log(p.pdf)                            # with noise that varies it is not that of the loss alone
        T = fokker_planck.exit_time(line, grid, inside=lambda y: y[0] < 0.5)
        sgd = sg.optimizers.run(sg.optimizers.SGD(0.1, 4), line.loss, jnp.zeros(1), steps=1000, runs=100, key=0)

    On a plane D is a full matrix in general: `stationary`, `evolve` and `exit_time` of `fokker_planck` take it;
    derivatives with respect to numbers of the model need a diagonal one. Where all gradients of examples are the same,
    as at an interpolating minimum, D = 0, and the stationary law may be a point: the Fokker-Planck solver says so.

    A slice is not the marginal of SGD in the whole space, whose other coordinates move.

    `ValueError` or `TypeError` for arguments that do not fit; a model other than `sg.SGD` is a `TypeError`.
    """
    plane = Plane(x, directions)
    if isinstance(loss_or_model, SGD):
        model = loss_or_model
        _check_fits(model.loss, plane)
        noise = Projected(model.gradient_noise, model.loss, plane)
        return SGD(on_plane(model.loss, plane), noise, model.learning_rate)
    if not callable(loss_or_model):
        raise TypeError(
            "`loss_or_model` must be a function of one point, or an `sg.SGD(loss, noise, learning_rate)`, but got "
            f"{type(loss_or_model).__name__}. For other models restrict the loss, and make the model of that."
        )
    _check_fits(loss_or_model, plane)
    return on_plane(loss_or_model, plane)


def top_directions(loss: Callable, x: Any, k: int = 2) -> Float[Array, "k d"]:
    """The eigenvectors of the Hessian of `loss` at x with the k largest eigenvalues, in falling order, as rows.

    By Lanczos iteration on products of the Hessian with vectors, without the matrix, in more than 64 dimensions. The
    largest component of each is positive. Where eigenvalues coincide any vectors of their space are returned.
    `ValueError` unless 1 ≤ k < d, or k ≤ d in up to 64 dimensions; `ArithmeticError` if the iteration does not end.
    """
    x = jnp.asarray(x)
    if x.ndim != 1 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"`x` must be one point of shape (d,) and floating dtype, got shape {x.shape}, {x.dtype}.")
    most = x.size if x.size <= _dense else x.size - 1
    if isinstance(k, bool) or int(k) != k or not 1 <= k <= most:
        raise ValueError(f"`k` must be a whole number of directions from 1 to {most}, but got {k}.")

    def product(v: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
        return np.asarray(_hessian_product(loss, x, jnp.asarray(v.reshape(-1), x.dtype)), np.float64)

    if x.size <= _dense:
        vectors = np.linalg.eigh(np.stack([product(e) for e in np.eye(x.size)]))[1][:, ::-1][:, : int(k)]
    else:
        vectors = _lanczos(product, x, int(k))
    rows = vectors.T
    signs = np.sign(np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1))
    return jnp.asarray(rows * signs, x.dtype)


def _lanczos(product: Callable, x: Float[Array, " d"], k: int) -> Float[np.ndarray, "d k"]:
    operator = scipy.sparse.linalg.LinearOperator((x.size, x.size), matvec=product, dtype=np.float64)  # pyright: ignore
    # Products are exact to the rounding of the dtype of x.
    tolerance = max(_tolerance, float(jnp.finfo(x.dtype).eps))
    start = np.random.default_rng(0).normal(size=x.size)
    try:
        values, vectors = scipy.sparse.linalg.eigsh(
            operator,
            k,
            which="LA",
            v0=start,
            tol=tolerance,  # pyright: ignore[reportArgumentType]
        )
    except scipy.sparse.linalg.ArpackNoConvergence as error:
        raise ArithmeticError(
            f"The {k} largest eigenvalues of the Hessian were not found: {error} Ask for fewer, or for as many as "
            "stand apart from the rest."
        ) from None
    return vectors[:, np.argsort(values)[::-1]]


@eqx.filter_jit
def _hessian_product(loss: Callable, x: Float[Array, " d"], v: Float[Array, " d"]) -> Float[Array, " d"]:
    return jax.jvp(jax.grad(scalar_valued(loss)), (x,), (v,))[1]


def _check_fits(loss: Callable, plane: Plane) -> None:
    try:
        jax.eval_shape(scalar_valued(loss), plane.origin)
    except TypeError as error:
        raise ValueError(f"`loss` can't be evaluated at `x` of shape {plane.origin.shape}: {error}") from error
