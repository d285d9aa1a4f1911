"""Normal numbers from random bits by the Box-Muller transform, in arithmetic that compiles into the loop around it.

√(-2 log u) (cos φ, sin φ) is a pair of independent normal numbers for u uniform in (0, 1] and φ uniform on the circle.
`jnp.log`, `jnp.sin` and `jnp.cos` accept any argument and cost several times more than the rest of a step. Here the
bits are taken apart before they become a number: the exponent is split off the argument of the logarithm, and the
angle is reduced to a quarter turn in whole numbers. Short polynomials do the rest, to a few units in the last place.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, UInt32

# (log(1 + t) - t + t²/2) / t³ on [1/√2 - 1, √2 - 1], (sin x - x) / x³ and (cos x - 1 + x²/2) / x⁴ in x² on
# [-π/4, π/4], and (atanh(s)/s - 1) / s² in s² on |s| ≤ (√2 - 1)/(√2 + 1): Chebyshev interpolation, lowest power first.
_log_32 = (
    0.333333312,
    -0.24999997,
    0.200007157,
    -0.166678023,
    0.142490576,
    -0.124256873,
    0.116854199,
    -0.114797338,
    0.0697161147,
)
_sine_32 = (-0.166666647, 0.00833274795, -0.000195878499)
_cosine_32 = (0.0416666647, -0.00138883027, 2.45479011e-05)
_atanh_64 = (
    0.3333333333333332,
    0.20000000000009555,
    0.14285714282976206,
    0.1111111149528064,
    0.090908782829308657,
    0.076938107196414765,
    0.066219582212484723,
    0.066316136809950896,
)
_sine_64 = tuple((-1) ** k / math.factorial(2 * k + 1) for k in range(1, 9))
_cosine_64 = tuple((-1) ** k / math.factorial(2 * k) for k in range(2, 9))

_root_half_32, _exponent_32 = 0x3F3504F3, 0xFF800000
_root_half_64, _exponent_64 = 0x3FE6A09E667F3BCD, -(1 << 52)


def box_muller_32(a: UInt32[Array, "*n"], b: UInt32[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Two float32 normal numbers from two words; |z| < 6.7."""
    radius = jnp.sqrt(-2 * log_unit_32(a))
    sine, cosine = sincos_turn_32(b)
    return radius * cosine, radius * sine


def box_muller_64(
    a: UInt32[Array, "*n"], b: UInt32[Array, "*n"], c: UInt32[Array, "*n"], d: UInt32[Array, "*n"]
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Two float64 normal numbers from four words; |z| < 8.6."""
    with jax.enable_x64(True):
        radius = jnp.sqrt(-2 * log_unit_64(_wide(a, b)))
        sine, cosine = sincos_turn_64(_wide(c, d))
        return radius * cosine, radius * sine


def log_unit_32(bits: UInt32[Array, "*n"]) -> Float[Array, "*n"]:
    """log u of u = (k + ½) / 2³¹, where k are the upper 31 bits."""
    k = (bits >> 1).astype(jnp.int32).astype(jnp.float32)
    u = k * jnp.float32(2**-31) + jnp.float32(2**-32)
    u_bits = lax.bitcast_convert_type(u, jnp.uint32)
    # u = 2^e m with m in [1/√2, √2): subtracting the bits of 1/√2 leaves e in the field of the exponent.
    e_bits = (u_bits - jnp.uint32(_root_half_32)) & jnp.uint32(_exponent_32)
    t = lax.bitcast_convert_type(u_bits - e_bits, jnp.float32) - 1
    e = lax.bitcast_convert_type(e_bits, jnp.int32).astype(jnp.float32) * jnp.float32(2**-23)
    t2 = t * t
    log_m = t + (_polynomial(t, _log_32) * t * t2 - jnp.float32(0.5) * t2)
    return e * jnp.float32(math.log(2)) + log_m


def sincos_turn_32(bits: UInt32[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Sine and cosine of bits / 2³² turns."""
    quarter = (bits + jnp.uint32(1 << 29)) >> 30
    rest = lax.bitcast_convert_type(bits - (quarter << 30), jnp.int32).astype(jnp.float32)
    x = rest * jnp.float32(math.pi / 2**31)
    x2 = x * x
    sine = _polynomial(x2, _sine_32) * x2 * x + x
    cosine = _polynomial(x2, _cosine_32) * x2 * x2 - jnp.float32(0.5) * x2 + 1
    odd = (quarter & 1) != 0
    return (
        _signed(jnp.where(odd, cosine, sine), (quarter & 2) << 30),
        _signed(jnp.where(odd, sine, cosine), ((quarter + 1) & 2) << 30),
    )


def log_unit_64(bits: Array) -> Float[Array, "*n"]:
    """log u of u = (k + ½) / 2⁵², where k are the upper 52 bits."""
    u = (bits >> 12).astype(jnp.int64).astype(jnp.float64) * 2.0**-52 + 2.0**-53
    u_bits = lax.bitcast_convert_type(u, jnp.int64)
    e_bits = (u_bits - jnp.int64(_root_half_64)) & jnp.int64(_exponent_64)
    m = lax.bitcast_convert_type(u_bits - e_bits, jnp.float64)
    e = e_bits.astype(jnp.float64) * 2.0**-52
    s = (m - 1) / (m + 1)
    s2 = s * s
    return e * math.log(2) + 2 * (s + s * s2 * _polynomial(s2, _atanh_64))


def sincos_turn_64(bits: Array) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Sine and cosine of bits / 2⁶⁴ turns."""
    quarter = (bits + jnp.uint64(1 << 61)) >> 62
    rest = lax.bitcast_convert_type(bits - (quarter << 62), jnp.int64).astype(jnp.float64)
    x = rest * (math.pi / 2**63)
    x2 = x * x
    sine = x + x * x2 * _polynomial(x2, _sine_64)
    cosine = 1 + x2 * (x2 * _polynomial(x2, _cosine_64) - 0.5)
    odd = (quarter & 1) != 0
    return (
        _signed(jnp.where(odd, cosine, sine), (quarter & 2) << 62),
        _signed(jnp.where(odd, sine, cosine), ((quarter + 1) & 2) << 62),
    )


def _polynomial(x: Array, coefficients: tuple[float, ...]) -> Array:
    total = jnp.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        total = total * x + jnp.asarray(c, x.dtype)
    return total


def _signed(x: Array, sign: Array) -> Array:
    """x with its sign flipped where the highest bit of `sign` is set."""
    return lax.bitcast_convert_type(lax.bitcast_convert_type(x, sign.dtype) ^ sign, x.dtype)


def _wide(high: UInt32[Array, "*n"], low: UInt32[Array, "*n"]) -> Array:
    return (high.astype(jnp.uint64) << 32) | low.astype(jnp.uint64)
