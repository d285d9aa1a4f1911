r"""Tridiagonal systems of 10⁴ to 10⁷ unknowns, factored once and solved many times, in JAX.

Elimination goes from row to row, one after the other, and a processor waits for each. So the rows are cut into blocks
of n, of which the last one separates its block from the next (Wang, ACM Trans. Math. Softw. 7 (1981) 170). All
interiors are eliminated at once, row i of all blocks in one operation: with pivots p_i = d_i - a_i c_(i-1) / p_(i-1),

    y_i = (b_i - a_i y_(i-1)) / p_i,      x_i = y_i - f_i s⁻ - c_i / p_i x_(i+1),      x_n = s,

with f what the separator s⁻ before the block adds to y. A separator's own row asks for the last x of its block and the
first of the next: with g_i = Π_(j<i) (-c_j / p_j) that one is Σ g_i y_i, summed on the way down. So the separators
solve a tridiagonal system of their own before the way up, one row a block. Vectors stay in this order, row i of all
blocks side by side, from solve to solve: `folded` and `unfolded` change it.

There is no pivoting: matrices must be diagonally dominant, or symmetric and definite, or the sum of a real symmetric
matrix and i times a definite one, as those of implicit steps and of the poles of a rational function are.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Inexact

# So many blocks for 10⁵ rows and more: then a row of all of them takes longer than to begin it. And so many rows at
# least: fewer, and the separators' own system takes as long as the rest.
_most_blocks, _fewest_rows = 1024, 64


class Factors(eqx.Module):
    """The factors of a tridiagonal matrix of `size` rows in n × P blocks.

    Of row i, `below` is a, `inverse` 1 / p, `above` c / p, `entering` f and `weight` g. On the last row, the
    separator's, they are such that nothing happens to it. `separators` holds the three diagonals of the separators'
    system, and `down` and `up` their entries for the interiors before and after.
    """

    below: Inexact[Array, "n P"]
    inverse: Inexact[Array, "n P"]
    above: Inexact[Array, "n P"]
    entering: Inexact[Array, "n P"]
    weight: Inexact[Array, "n P"]
    separators: tuple[Inexact[Array, " P"], Inexact[Array, " P"], Inexact[Array, " P"]]
    down: Inexact[Array, " P"]
    up: Inexact[Array, " P"]


def blocks_for(size: int) -> int:
    """The number of blocks that takes the least time, a power of two."""
    blocks = 1
    while blocks < _most_blocks and size // (2 * blocks) >= _fewest_rows:
        blocks *= 2
    return blocks


def folded(x: Inexact[Array, " size"], blocks: int, fill: float = 0.0) -> Inexact[Array, "n P"]:
    """A vector in the order of the blocks, `fill` after its end."""
    rows = max(-(-x.size // blocks), 2)
    return jnp.pad(x, (0, rows * blocks - x.size), constant_values=fill).reshape(blocks, rows).T


def unfolded(x: Inexact[Array, "n P"], size: int) -> Inexact[Array, " size"]:
    """A vector of the blocks in its own order."""
    return x.T.ravel()[:size]


@jax.jit(static_argnames="blocks")
def factor(
    lower: Inexact[Array, " size"], diagonal: Inexact[Array, " size"], upper: Inexact[Array, " size"], blocks: int
) -> Factors:
    """The factors of the matrix with these diagonals; `lower[0]` and `upper[-1]` do not count."""
    lower, upper = lower.at[0].set(0), upper.at[-1].set(0)
    a, d, c = (folded(v, blocks, fill) for v, fill in ((lower, 0.0), (diagonal, 1.0), (upper, 0.0)))

    def row(state, entries):
        (before, f, g), (a, d, c) = state, entries
        inverse = 1 / (d - a * before)
        above, f = c * inverse, -a * inverse * f
        return (above, f, -above * g), (inverse, above, f, g)

    # The first row sees a separator, of which it takes away the value, in place of a row of the interior.
    one = jnp.ones_like(d[0])
    (_, _, through), rows = lax.scan(row, (0 * one, -one, one), (a[:-1], d[:-1], c[:-1]))
    inverse, above, entering, weight = (
        jnp.concatenate([v, last[None]]) for v, last in zip(rows, (one, *[0 * one] * 3), strict=True)
    )
    below = a.at[jnp.array([0, -1])].set(0)
    first = jnp.sum(weight * entering, axis=0)
    separators = (
        -a[-1] * entering[-2],
        d[-1] - a[-1] * above[-2] - c[-1] * _after(first),
        c[-1] * _after(through),
    )
    return Factors(below, inverse, above, entering, weight, separators, a[-1], c[-1])


@jax.jit
def solve(factors: Factors, b: Inexact[Array, "n P"]) -> Inexact[Array, "n P"]:
    """The solution for a right side in the order of the blocks, as it is, too."""

    def down(state, entries):
        (y, first), (b, below, inverse, weight) = state, entries
        y = (b - below * y) * inverse
        return (y, first + weight * y), y

    zero = jnp.zeros_like(b[0])
    (_, first), y = lax.scan(down, (zero, zero), (b, factors.below, factors.inverse, factors.weight))
    rest = y[-1] - factors.down * y[-2] - factors.up * _after(first)
    s = lax.linalg.tridiagonal_solve(*factors.separators, rest[:, None])[:, 0]
    before = jnp.append(zero[:1], s[:-1])

    def up(x, entries):
        y, entering, above = entries
        x = y - entering * before - above * x
        return x, x

    return lax.scan(up, zero, (y.at[-1].set(s), factors.entering, factors.above), reverse=True)[1]


def _after(row: Inexact[Array, " P"]) -> Inexact[Array, " P"]:
    # The values of the next block.
    return jnp.append(row[1:], jnp.zeros((1,), row.dtype))
