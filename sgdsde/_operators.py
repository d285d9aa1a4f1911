"""The noise of a finite sum as a linear operator that is never written down, and what is asked of noise operators."""

import itertools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from solvers.process import noise_kind

# Gradients of single examples are held at once up to so many numbers, and beyond that computed one after the other.
_at_once = 1 << 16


class ExampleRoot(lx.AbstractLinearOperator):
    """G: R^N -> R^d, w ↦ scale · Σ_i (w_i - w̄) ∇φ_i(x), for functions φ_i of N examples; without w̄ if not `centred`.

    G Gᵀ = scale² N · Cov(∇φ_i) with the population covariance, or scale² Σ_i ∇φ_i ∇φ_iᵀ if not centred. The rank is
    at most N - 1, or N. A product is one backward pass through `functions(x, index)`, which returns φ_i(x) for the
    examples in `index`; the matrix itself takes min(d, N) passes.
    """

    functions: Callable
    x: Float[Array, " d"]
    scale: Float[Array, ""]
    count: int = eqx.field(static=True)
    centred: bool = eqx.field(static=True)

    def mv(self, vector):
        return self.along(self.weights(vector))

    def weights(self, vector: Float[Array, " N"]) -> Float[Array, " N"]:
        """What the gradient of each example is multiplied by."""
        return self.scale * self._centred(vector)

    def along(self, weights: Float[Array, " N"]) -> Float[Array, " d"]:
        """Σ_i weights_i ∇φ_i(x), by one backward pass."""
        _, pull_back = jax.vjp(self._all, self.x)
        (out,) = pull_back(weights)
        return out

    def as_matrix(self):
        wide = self.count > self.x.size
        jacobian = (jax.jacfwd if wide else jax.jacrev)(self._all)(self.x)
        return self.scale * jax.vmap(self._centred, in_axes=1)(jacobian)

    def transpose(self):
        def fn(vector):
            return self.weights(jax.jvp(self._all, (self.x,), (vector,))[1])

        return lx.FunctionLinearOperator(fn, self.out_structure())

    def in_structure(self):
        return jax.ShapeDtypeStruct((self.count,), self.x.dtype)

    def out_structure(self):
        return jax.ShapeDtypeStruct(self.x.shape, self.x.dtype)

    def row_squares(self) -> Float[Array, " d"]:
        """The diagonal of G Gᵀ, without the gradients of all examples at once if there are many."""

        def gradient(i):
            return jax.grad(lambda x: self.functions(x, i[None])[0])(self.x)

        square = mean_over(self.count, lambda i: gradient(i) ** 2, self.x)
        if self.centred:
            square = square - jax.grad(lambda x: jnp.mean(self._all(x)))(self.x) ** 2
        return self.scale**2 * self.count * jnp.maximum(square, 0)

    def _all(self, x):
        return self.functions(x, jnp.arange(self.count))

    def _centred(self, vector):
        return vector - jnp.mean(vector) if self.centred else vector


class SideBySide(lx.AbstractLinearOperator):
    """G = (G₁ G₂ ...): R^(m₁ + m₂ + ...) -> R^d, so that G Gᵀ = Σ G_i G_iᵀ: the sum of independent noises."""

    operators: tuple[lx.AbstractLinearOperator, ...]

    def mv(self, vector):
        ends = list(itertools.accumulate(g.in_size() for g in self.operators))
        parts = jnp.split(vector, ends[:-1])
        return sum((g.mv(v) for g, v in zip(self.operators, parts, strict=True)), start=jnp.zeros_like(self._out))

    def as_matrix(self):
        return jnp.concatenate([g.as_matrix() for g in self.operators], axis=1)

    def transpose(self):
        def fn(vector):
            return jnp.concatenate([g.transpose().mv(vector) for g in self.operators])

        return lx.FunctionLinearOperator(fn, self.out_structure())

    def in_structure(self):
        return jax.ShapeDtypeStruct((sum(g.in_size() for g in self.operators),), self._out.dtype)

    def out_structure(self):
        return self._out

    def row_squares(self) -> Float[Array, " d"]:
        """The diagonal of G Gᵀ."""
        return jnp.sum(jnp.stack([row_squares(g) for g in self.operators]), axis=0)

    @property
    def _out(self):
        return self.operators[0].out_structure()


def mean_over(count: int, term: Callable, x: Float[Array, " d"]) -> Float[Array, " d"]:
    """(1/N) Σ_i term(i) for i < N = `count` and a `term` of the shape of x; term by term where N d is large."""
    if count * x.size <= _at_once:
        return jnp.mean(jax.vmap(term)(jnp.arange(count)), axis=0)
    return jax.lax.fori_loop(0, count, lambda i, total: total + term(i), jnp.zeros_like(x)) / count


def row_squares(g: lx.AbstractLinearOperator) -> Float[Array, " d"]:
    """The diagonal of G Gᵀ: for G = √η Σ^½ it is η times the variances of the components of the gradient."""
    if isinstance(g, (ExampleRoot, SideBySide)):
        return g.row_squares()
    if noise_kind(g) == "general":
        return jnp.sum(g.as_matrix() ** 2, axis=1)
    structure = g.in_structure()
    return g.mv(jnp.ones(structure.shape, structure.dtype)) ** 2


def transformed(linear: Callable, g: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    """The operator w ↦ linear(G w) of a linear function on R^d."""
    return lx.FunctionLinearOperator(linear, g.out_structure()) @ g


@lx.materialise.register(ExampleRoot)
@lx.materialise.register(SideBySide)
def _(operator):
    return lx.MatrixLinearOperator(operator.as_matrix())


@lx.diagonal.register(ExampleRoot)
@lx.diagonal.register(SideBySide)
def _(operator):
    return jnp.diag(operator.as_matrix())


@lx.linearise.register(ExampleRoot)
@lx.linearise.register(SideBySide)
@lx.conj.register(ExampleRoot)
@lx.conj.register(SideBySide)
def _(operator):
    return operator


def _never(operator: lx.AbstractLinearOperator) -> bool:
    return False


# lineax asks each kind of operator for its structure, and these have none.
for _property in (
    lx.is_symmetric,
    lx.is_diagonal,
    lx.is_tridiagonal,
    lx.has_unit_diagonal,
    lx.is_lower_triangular,
    lx.is_upper_triangular,
    lx.is_positive_semidefinite,
    lx.is_negative_semidefinite,
):
    _property.register(ExampleRoot)(_never)
    _property.register(SideBySide)(_never)
