"""Random numbers that have an address: a pure function of (key, path, step, component).

There is no generator state. Whoever asks for the numbers of path 7 at step 1000 gets the same ones, whatever else was
computed before, in which order and where; chunks, devices, segments and resumed runs agree for that reason.

The generator is Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011).
One call for the counter (path, group of steps, component, stream) gives four words, and those the numbers of one
component of one path at all steps of a group: four normal numbers in float32, two in float64. The streams keep apart
what different parts of the package draw with one key.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float, UInt32

from .gaussian import box_muller_32, box_muller_64
from .packing import bits

Law = Literal["normal", "three-point"]

_multipliers = (0xD2511F53, 0xCD9E8D57)
_weyl = (0x9E3779B9, 0xBB67AE85)
_rounds = 10

# The streams: increments of `simulate`, coupled increments of studies, and uniform numbers beside the increments.
increments, studies, uniforms = 0, 1, 2

# Streams from this one on are for packages that build on this one.
first_free_stream = 16


def key_words(key: Any) -> UInt32[Array, "2"]:
    """The two 32-bit words that a run takes from `key`: a `jax.random.key`, or a whole number as a seed."""
    if not isinstance(key, (int, np.integer, np.ndarray, jax.Array)):
        raise TypeError(f"`key` must be a `jax.random.key(seed)` or a whole number, got {key!r}.")
    if isinstance(key, (int, np.integer)):
        if not 0 <= key < 2**32:
            raise ValueError(f"`key` as a seed must lie in [0, 2**32), but got {key}; larger seeds would be cut short.")
        key = jax.random.key(int(key))
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jnp.asarray(key)
    if data.shape != (2,) or data.dtype != jnp.uint32:
        raise ValueError(
            f"`key` must be one `jax.random.key(seed)` of the default kind, but its data have shape {data.shape} and "
            f"dtype {data.dtype}."
        )
    return data


def philox(counter: tuple, key: tuple) -> tuple:
    """Philox4x32-10: four random 32-bit words for four counter words and two key words, elementwise."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_rounds):
        hi0, lo0 = _wide_product(c0, _multipliers[0])
        hi1, lo1 = _wide_product(c2, _multipliers[1])
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = k0 + jnp.uint32(_weyl[0]), k1 + jnp.uint32(_weyl[1])
    return c0, c1, c2, c3


def philox_lanes(counter: tuple, key: tuple, zero: UInt32[Array, "*n"]) -> tuple:
    """`philox` for a loop over lanes on a CPU; `zero` is 0, but the compiler must not know.

    What is the same for all lanes comes as a scalar, and so does all that follows from it: the key of each round, and
    half of the first two rounds where only the path varies.

    The words stay in 64-bit lanes: what the upper halves hold does not matter, because each product takes the lower
    half of a lane only. That saves packing and unpacking in every round. `zero` keeps the compiler from computing parts
    that do not change from step to step ahead of the loop: reading 64-bit arrays would halve the width of all vectors.
    """
    with jax.enable_x64(True):
        c0, c1, c2, c3 = (lax.convert_element_type(c + zero if c.ndim else c, jnp.uint64) for c in counter)
        low, half = jnp.uint64(2**32 - 1), jnp.uint64(32)
        for turn in range(_rounds):
            keys = (k + jnp.uint32(turn * w % 2**32) for k, w in zip(key, _weyl, strict=True))
            k0, k1 = (lax.convert_element_type(k, jnp.uint64) for k in keys)
            p0, p1 = (c0 & low) * jnp.uint64(_multipliers[0]), (c2 & low) * jnp.uint64(_multipliers[1])
            c0, c1, c2, c3 = (p1 >> half) ^ (c1 ^ k0), p1, (p0 >> half) ^ (c3 ^ k1), p0
        return tuple(lax.convert_element_type(c, jnp.uint32) for c in (c0, c1, c2, c3))


def group_size(dtype: Any, law: Law = "normal") -> int:
    """How many successive steps share one call of the generator."""
    return 2 if dtype == jnp.float64 and law == "normal" else 4


def group(
    words: UInt32[Array, "2"],
    path: UInt32[Array, "*n"],
    group: UInt32[Array, "..."],
    component: UInt32[Array, "..."],
    dtype: Any,
    law: Law = "normal",
    stream: int = increments,
) -> list[Float[Array, "*n"]]:
    """The numbers of one component at the `group_size` steps of a group, one array for each step.

    float32 numbers resolve tails to 6.7 standard deviations, float64 (from 53 random bits) to 8.6.
    """
    return group_of(words_of(words, path, group, component, stream), dtype, law)


def words_of(
    words: UInt32[Array, "2"],
    path: UInt32[Array, "*n"],
    group: UInt32[Array, "..."],
    component: UInt32[Array, "..."],
    stream: int = increments,
) -> tuple:
    """The four random words behind the numbers of a group."""
    lane = lax.broadcasted_iota(jnp.uint32, path.shape, path.ndim - 1)
    return philox_lanes((path, group, component, jnp.uint32(stream)), (words[0], words[1]), (lane + group) >> 31)


def group_of(w: tuple, dtype: Any, law: Law = "normal") -> list[Float[Array, "*n"]]:
    """The numbers of a group from the four words of its call of the generator."""
    if law == "three-point":
        return [_three_point(v, dtype) for v in w]
    if dtype == jnp.float64:
        return list(box_muller_64(*w))
    return [*box_muller_32(w[0], w[1]), *box_muller_32(w[2], w[3])]


def normals(
    words: UInt32[Array, "2"],
    path: UInt32[Array, " n"],
    step: UInt32[Array, ""],
    count: int,
    dtype: Any,
    law: Law = "normal",
) -> Float[Array, "n {count}"]:
    """The numbers of `simulate` at one step: `count` components for each path."""
    size = group_size(dtype, law)
    shape = (count, path.size)
    component = lax.broadcasted_iota(jnp.uint32, shape, 0)
    of_group = group(words, jnp.broadcast_to(path, shape), step // jnp.uint32(size), component, dtype, law)
    return of_step(of_group, step).T


def normal_pairs(
    words: UInt32[Array, "2"], path: UInt32[Array, " n"], step: UInt32[Array, ""], pairs: int, dtype: Any
) -> Complex[Array, "n {pairs}"]:
    """Pairs of normal numbers of one step as complex ones, for studies that couple step sizes; not those of `simulate`.

    Each is made by a call of its own for (path, step, pair), so that steps need not come in groups.
    """
    shape = (path.size, pairs)
    component = lax.broadcasted_iota(jnp.uint32, shape, 1)
    z = group(words, jnp.broadcast_to(path[:, None], shape), step, component, dtype, stream=studies)
    return lax.complex(z[0], z[1])


def unpaired(z: Complex[Array, "n pairs"], count: int) -> Float[Array, "n {count}"]:
    """The first `count` of the numbers in the pairs: all real parts, then imaginary parts."""
    return jnp.concatenate([z.real, z.imag], axis=1)[:, :count]


def of_step(numbers: list[Float[Array, "*n"]], step: UInt32[Array, "..."]) -> Float[Array, "*n"]:
    """The numbers of one step out of those of its group."""
    chosen = numbers[0]
    for k in range(1, len(numbers)):
        chosen = jnp.where(step % jnp.uint32(len(numbers)) == jnp.uint32(k), numbers[k], chosen)
    return chosen


def pack(w: tuple, dtype: Any, law: Law = "normal") -> Complex[Array, "*n"]:
    """One array for a group, from its four words: of its numbers in float64, else of the words, which is less work."""
    with jax.enable_x64(True):
        if group_size(dtype, law) == 2:
            return lax.complex(*box_muller_64(*w))
        return lax.complex(*[lax.bitcast_convert_type(_wide(*half), jnp.float64) for half in (w[:2], w[2:])])


def pair(packed: Complex[Array, "*n"], step: UInt32[Array, ""], dtype: Any, law: Law = "normal") -> Array:
    """One array for the even step and the odd one after it, between which `step` is, from that for their group."""
    if group_size(dtype, law) == 2:
        return packed
    with jax.enable_x64(True):
        wide = jnp.where(step % jnp.uint32(4) < 2, bits(lax.real(packed)), bits(lax.imag(packed)))
        if law == "three-point":
            return wide
        words = lax.convert_element_type(wide, jnp.uint32), lax.convert_element_type(wide >> 32, jnp.uint32)
        return _wide(*map(bits, box_muller_32(*words)))


def of_pair(pair: Array, step: UInt32[Array, ""], dtype: Any, law: Law = "normal") -> Float[Array, "*n"]:
    """The numbers of a step out of the array for its pair."""
    second = step % jnp.uint32(2)
    if group_size(dtype, law) == 2:
        return jnp.where(second == 0, lax.real(pair), lax.imag(pair))
    # Not two halves to choose from: these would be taken apart ahead of the loop, each at the cost of both.
    with jax.enable_x64(True):
        word = lax.convert_element_type(pair >> lax.convert_element_type(second * 32, jnp.uint64), jnp.uint32)
        return _three_point(word, dtype) if law == "three-point" else lax.bitcast_convert_type(word, jnp.float32)


def _wide(low: UInt32[Array, "*n"], high: UInt32[Array, "*n"]) -> Array:
    return lax.convert_element_type(low, jnp.uint64) | (lax.convert_element_type(high, jnp.uint64) << 32)


def uniform(words: UInt32[Array, "2"], path: UInt32[Array, " n"], step: UInt32[Array, ""], dtype: Any) -> Array:
    """Uniform numbers in (0, 1], one for each path at a step, to 32 bits; in a stream of their own."""
    zero = jnp.zeros_like(path)
    word = philox((path, zero + step, zero, zero + jnp.uint32(uniforms)), (words[0], words[1]))[0]
    return (word.astype(dtype) + 0.5) * 2.0**-32


def _three_point(word: UInt32[Array, "*n"], dtype: Any) -> Float[Array, "*n"]:
    """0 and ±√3 with probabilities 2/3, 1/6 and 1/6: the moments of a normal number up to the fifth."""
    sixth = 0x2AAAAAAB
    root, minus = jnp.asarray(np.sqrt(3.0), dtype), jnp.asarray(-np.sqrt(3.0), dtype)
    high = jnp.where(word >= jnp.uint32(2**32 - sixth), root, jnp.zeros_like(root))
    return jnp.where(word < jnp.uint32(sixth), minus, high)


def _wide_product(a: UInt32[Array, "..."], b: int) -> tuple[UInt32[Array, "..."], UInt32[Array, "..."]]:
    """The high and low words of a 64-bit product."""
    # A 64-bit type exists in JAX only under this flag; it is part of the trace, not of the caller's configuration.
    with jax.enable_x64(True):
        product = lax.convert_element_type(a, jnp.uint64) * jnp.uint64(b)
        high = lax.convert_element_type(lax.shift_right_logical(product, jnp.uint64(32)), jnp.uint32)
        low = lax.convert_element_type(product, jnp.uint32)
    return high, low
