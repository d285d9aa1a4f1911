"""The addressed Gaussian numbers: known answers of the generator, and the law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from solvers.sde import gaussian
from solvers.sde.random import (
    group,
    group_size,
    key_words,
    normals,
    of_pair,
    pack,
    pair,
    philox,
    philox_lanes,
    words_of,
)

# Known-answer vectors of Philox4x32-10, as distributed with Random123: counter, key, output.
_known = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize("x64", [True, False])
@pytest.mark.parametrize(("counter", "key", "output"), _known)
def test_philox_known_answers(counter, key, output, x64):
    with jax.enable_x64(x64):
        words = jax.jit(philox)(tuple(map(jnp.uint32, counter)), tuple(map(jnp.uint32, key)))
    assert [int(w) for w in words] == output


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.slow("float32")
def test_normals_have_the_normal_law(dtype):
    n = 1 << 17
    z = np.asarray(normals(key_words(3), jnp.arange(n, dtype=jnp.uint32), jnp.uint32(5), 4, dtype), dtype=np.float64)
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    for power in range(1, 9):
        exact = 0 if power % 2 else np.prod(np.arange(1, power, 2))
        variance = np.prod(np.arange(1, 2 * power, 2)) - exact**2
        assert abs(np.mean(z**power) - exact) < 4 * np.sqrt(variance / z.size)
    # Components, neighbouring paths and neighbouring steps are uncorrelated, and so are their squares.
    later = np.asarray(normals(key_words(3), jnp.arange(n, dtype=jnp.uint32), jnp.uint32(6), 4, dtype))
    for a, b in ((z[:, 0], z[:, 1]), (z[1:, 0], z[:-1, 0]), (z[:, 0], later[:, 0])):
        assert abs(np.mean(a * b)) < 4 / np.sqrt(n)
        assert abs(np.mean((a**2 - 1) * (b**2 - 1))) < 4 * 2 / np.sqrt(n)


def _words(count):
    """Random 64-bit words, all multiples of an eighth of a turn and their neighbours, and both ends of the range."""
    random = np.random.default_rng(0).integers(0, 2**64, count, dtype=np.uint64)
    eighths = np.arange(8, dtype=np.uint64) << np.uint64(61)
    ends = np.arange(1000, dtype=np.uint64)
    return np.concatenate([random, eighths, eighths - np.uint64(1), ends, ~ends, ends << np.uint64(32)])


def test_logarithm_sine_and_cosine_of_bits_in_single_precision():
    words = (_words(100_000) >> np.uint64(32)).astype(np.uint32)
    k = (words >> 1).astype(np.float32)
    u = (k * np.float32(2**-31) + np.float32(2**-32)).astype(np.float64)
    log = np.asarray(jax.jit(gaussian.log_unit_32)(jnp.asarray(words)), np.float64)
    assert np.all(log[u == 1] == 0)
    assert np.max(np.abs(log - np.log(u)) / np.maximum(-np.log(u), 1e-12)) < 1 * 2**-23
    sine, cosine = (np.asarray(a, np.float64) for a in jax.jit(gaussian.sincos_turn_32)(jnp.asarray(words)))
    angle = 2 * np.pi * words.astype(np.float64) / 2**32
    assert np.max(np.abs(sine - np.sin(angle))) < 1 * 2**-23
    assert np.max(np.abs(cosine - np.cos(angle))) < 1 * 2**-23


def test_logarithm_sine_and_cosine_of_bits_in_double_precision():
    words = _words(100_000)
    u = (words >> np.uint64(12)).astype(np.float64) * 2.0**-52 + 2.0**-53
    log = np.asarray(jax.jit(gaussian.log_unit_64)(jnp.asarray(words)))
    assert np.max(np.abs(log - np.log(u)) / -np.log(u)) < 2 * 2**-52
    sine, cosine = (np.asarray(a) for a in jax.jit(gaussian.sincos_turn_64)(jnp.asarray(words)))
    # The angle to more than double precision: a multiple of a quarter turn plus a small rest.
    quarter = ((words >> np.uint64(61)) + np.uint64(1)) >> np.uint64(1)
    rest = (words - (quarter << np.uint64(62))).view(np.int64).astype(np.float64) * (np.pi / 2**63)
    exact = np.exp(1j * rest) * 1j ** quarter.astype(np.int64)
    assert np.max(np.abs(sine - exact.imag)) < 2 * 2**-52
    assert np.max(np.abs(cosine - exact.real)) < 2 * 2**-52


@pytest.mark.parametrize("shared", [(), (1, 3), (1, 2, 3)])
def test_the_generator_in_lanes_is_the_generator(shared):
    """Words that all lanes share may be scalars."""
    random, n = np.random.default_rng(1), 1001
    counter = tuple(jnp.asarray(random.integers(0, 2**32, () if k in shared else n, dtype=np.uint32)) for k in range(4))
    key = jnp.uint32(0xFFFFFFFF), jnp.uint32(7)
    lanes = jax.jit(philox_lanes)(counter, key, jnp.zeros(n, jnp.uint32))
    whole = philox(tuple(jnp.broadcast_to(c, n) for c in counter), key)
    assert all(np.array_equal(a, b) for a, b in zip(lanes, whole, strict=True))


@pytest.mark.parametrize("x64", [True, False])
@pytest.mark.parametrize(("law", "dtype"), [("normal", "float32"), ("three-point", "float32"), ("normal", "float64")])
@pytest.mark.slow("normal-float32-False", "normal-float32-True", "normal-float64-True")
def test_packed_numbers_are_those_of_each_step(law, dtype, x64):
    if dtype == "float64" and not x64:
        pytest.skip("float64 needs x64")
    with jax.enable_x64(x64):
        words, path, dtype = key_words(3), jnp.arange(50, dtype=jnp.uint32), jnp.dtype(dtype)
        size, component = group_size(dtype, law), jnp.uint32(0)

        @jax.jit
        def three_ways(step):
            packed = pack(words_of(words, path, step // size, component), dtype, law)
            numbers = jnp.stack(group(words, path, step // size, component, dtype, law))
            by_pair = of_pair(pair(packed, step, dtype, law), step, dtype, law)
            return numbers[(step % size).astype(int)], by_pair, normals(words, path, step, 2, dtype, law)[:, 0]

        for step in range(9):
            of_group, by_pair, of_step = three_ways(jnp.uint32(step))
            assert np.array_equal(by_pair, of_group)
            assert np.array_equal(of_step, of_group)


def test_three_point_numbers_have_five_moments_of_the_normal_law():
    n = 1 << 18
    for dtype in (jnp.float32, jnp.float64):
        z = np.asarray(normals(key_words(1), jnp.arange(n, dtype=jnp.uint32), jnp.uint32(0), 4, dtype, "three-point"))
        assert set(np.unique(z.astype(np.float32))) == {np.float32(-np.sqrt(3)), np.float32(0), np.float32(np.sqrt(3))}
        for power, exact in enumerate([0, 1, 0, 3, 0], start=1):
            assert abs(np.mean(z.astype(float) ** power) - exact) < 4 * np.sqrt(3.0**power / z.size)


def test_numbers_depend_on_their_address_only():
    words = key_words(0)
    wide = normals(words, jnp.arange(100, dtype=jnp.uint32), jnp.uint32(9), 3, jnp.float64)
    narrow = normals(words, jnp.arange(40, 50, dtype=jnp.uint32), jnp.uint32(9), 3, jnp.float64)
    assert np.array_equal(wide[40:50], narrow)
    assert not np.any(wide == normals(key_words(1), jnp.arange(100, dtype=jnp.uint32), jnp.uint32(9), 3, jnp.float64))


def test_a_seed_is_the_key_of_that_seed():
    assert np.array_equal(key_words(7), key_words(jax.random.key(7)))
    assert np.array_equal(key_words(7), key_words(jax.random.PRNGKey(7)))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (-1, r"`key` as a seed must lie in \[0, 2\*\*32\)"),
        (2**32 + 5, "would be cut short"),
        (jax.random.split(jax.random.key(0)), "must be one"),
        (jax.random.key(0, impl="rbg"), "of the default kind"),
        (1.5, "`key` must be"),
    ],
)
def test_bad_keys(key, text):
    with pytest.raises((ValueError, TypeError), match=text):
        key_words(key)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_numbers_on_two_devices(dtype):
    mesh = jax.make_mesh((2,), ("paths",), axis_types=(jax.sharding.AxisType.Auto,))
    paths = jax.sharding.PartitionSpec("paths")
    path = jnp.arange(128, dtype=jnp.uint32)

    def draw(path):
        return normals(key_words(1), path, jnp.uint32(9), 2, dtype)

    divided = jax.jit(jax.shard_map(draw, mesh=mesh, in_specs=paths, out_specs=paths))(path)
    assert len(divided.addressable_shards) == 2
    assert np.array_equal(divided, jax.jit(draw)(path))
