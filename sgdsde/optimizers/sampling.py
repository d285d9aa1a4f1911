"""Which examples make the minibatch of a step: a pure function of (key, run, step).

Numbers have addresses as in `solvers.sde.random`, whose generator makes them: no state is handed on. Two optimisers
that are run with one key see the same minibatches, whatever else they differ in; those drawn with replacement are
even nested, a smaller one the beginning of a larger.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Complex, Int32, UInt32

from solvers.sde.packing import join
from solvers.sde.random import first_free_stream, group, philox

# Streams of random numbers: minibatches and permutations of the first and second sample of a step, and labels.
_minibatches, _permutations, _labels = first_free_stream, first_free_stream + 2, first_free_stream + 4


def with_replacement(
    words: UInt32[Array, "2"], runs: UInt32[Array, " n"], step: UInt32[Array, ""], size: int, count: int, sample: int
) -> Int32[Array, "{size} n"]:
    """`size` independent examples out of `count`, for each run."""
    high, low = _long_words(words, runs, step, size, _minibatches + sample)
    return _below(high, low, count)


def without_replacement(
    words: UInt32[Array, "2"], runs: UInt32[Array, " n"], step: UInt32[Array, ""], size: int, count: int, sample: int
) -> Int32[Array, "{size} n"]:
    """A set of `size` different examples out of `count` for each run, all sets equally likely, in no random order.

    Floyd's algorithm: as many numbers as examples, whatever comes out. Source: Bentley and Floyd, "A sample of
    brilliance", Communications of the ACM 30, 1987.
    """
    high, low = _long_words(words, runs, step, size, _minibatches + sample)

    def take(i, chosen):
        last = count - size + i
        example = _below(high[i], low[i], last + 1)
        taken = jnp.any(chosen == example, axis=0)
        return chosen.at[i].set(jnp.where(taken, last, example))

    return lax.fori_loop(0, size, take, jnp.full(high.shape, -1, jnp.int32))


def permutations(
    words: UInt32[Array, "2"], runs: UInt32[Array, " n"], epoch: UInt32[Array, ""], count: int, sample: int
) -> Int32[Array, "{count} n"]:
    """A random order of all `count` examples for each run and epoch: that of random numbers with one for each example.

    The number of an example is in the lowest bits of its random number, so that one array is sorted and not two. At
    least 32 random bits are left; two examples with equal ones, which stay in their order, are as rare as that.
    """
    high, low = _long_words(words, runs, epoch, count, _permutations + sample)
    with jax.enable_x64(True):
        example = lax.broadcasted_iota(jnp.uint64, high.shape, 0)
        lowest = jnp.uint64((1 << (count - 1).bit_length()) - 1)
        wide = lax.shift_left(lax.convert_element_type(high, jnp.uint64), jnp.broadcast_to(jnp.uint64(32), high.shape))
        number = (wide | lax.convert_element_type(low, jnp.uint64)) & ~lowest | example
        # A row is sorted in half the time of a column.
        order = lax.sort(number.T, dimension=1, is_stable=False).T & lowest
        return lax.convert_element_type(order, jnp.int32)


def label_noise(
    words: UInt32[Array, "2"], runs: UInt32[Array, " n"], number: UInt32[Array, ""], size: int, dtype
) -> Complex[Array, "{size} n"]:
    """Independent standard normal numbers for the labels of minibatches, at all steps of a group of this number."""
    shape = (size, runs.size)
    component = lax.broadcasted_iota(jnp.uint32, shape, 0)
    return join(group(words, jnp.broadcast_to(runs, shape), number, component, dtype, stream=_labels))


def _long_words(
    words: UInt32[Array, "2"], runs: UInt32[Array, " n"], step: UInt32[Array, ""], size: int, stream: int
) -> tuple[UInt32[Array, "{size} n"], UInt32[Array, "{size} n"]]:
    """The halves of `size` random 64-bit words for each run: two from one call of the generator."""
    shape = ((size + 1) // 2, runs.size)
    counter = (
        jnp.broadcast_to(runs, shape),
        jnp.broadcast_to(step, shape),
        lax.broadcasted_iota(jnp.uint32, shape, 0),
        jnp.full(shape, stream, jnp.uint32),
    )
    a, b, c, d = philox(counter, (words[0], words[1]))

    def alternating(even, odd):
        return jnp.stack([even, odd], axis=1).reshape(-1, runs.size)[:size]

    return alternating(a, c), alternating(b, d)


def _below(high: UInt32[Array, "*n"], low: UInt32[Array, "*n"], count) -> Int32[Array, "*n"]:
    """⌊word · count / 2⁶⁴⌋: no number below `count` is likelier than another by more than a part count/2⁶⁴."""
    with jax.enable_x64(True):
        bound = lax.convert_element_type(count, jnp.uint64)
        half = jnp.uint64(32)
        carry = lax.shift_right_logical(lax.convert_element_type(low, jnp.uint64) * bound, half)
        product = lax.convert_element_type(high, jnp.uint64) * bound + carry
        return lax.convert_element_type(lax.shift_right_logical(product, half), jnp.int32)
