"""The addressed Gaussian numbers: known answers of the generator, and the law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from solvers.sde.random import key_words, normals, philox, sincos_turns

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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_sincos_of_turns(dtype):
    # Every eighth turn, its neighbours, and what lies between, against float64 after an exact reduction.
    eighths = np.arange(9, dtype=dtype) / 8
    u = np.concatenate([eighths, np.nextafter(eighths[1:], dtype(0)), np.linspace(0, 1, 10_001, dtype=dtype)])
    sine, cosine = sincos_turns(jnp.asarray(u))
    quarter = np.round(4 * u.astype(np.float64))
    x = 2 * np.pi * (u.astype(np.float64) - quarter / 4)
    exact = np.exp(1j * x) * 1j**quarter
    assert np.max(np.abs(np.asarray(sine) - exact.imag)) < 4 * np.finfo(dtype).eps
    assert np.max(np.abs(np.asarray(cosine) - exact.real)) < 4 * np.finfo(dtype).eps


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
