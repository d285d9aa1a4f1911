"""Checks of arguments that the closed forms share: a `ValueError` names the argument, what was given and the remedy."""

import numpy as np
from jaxtyping import Float


def number(name: str, value) -> float:
    """`value` as a float; `TypeError` unless it is one number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"`{name}` must be one number, but got {name}={value!r}.") from None


def positive(name: str, value) -> float:
    """`value` as a float; `ValueError` unless it is positive and finite."""
    value = number(name, value)
    if not 0 < value < np.inf:
        raise ValueError(f"`{name}` must be positive and finite, but got {name}={value:g}.")
    return value


def not_negative(name: str, value) -> float:
    """`value` as a float; `ValueError` unless it is at least 0 and finite."""
    value = number(name, value)
    if not 0 <= value < np.inf:
        raise ValueError(f"`{name}` must be at least 0 and finite, but got {name}={value:g}.")
    return value


def whole(name: str, value, least: int = 1) -> int:
    """`value` as an int; `ValueError` unless it is a whole number of at least `least`."""
    if not number(name, value).is_integer() or value < least:
        raise ValueError(f"`{name}` must be a whole number, {least} or more, but got {name}={value}.")
    return int(value)


def momentum(value) -> float:
    """A coefficient β with 0 ≤ β < 1."""
    value = number("momentum", value)
    if not 0 <= value < 1:
        raise ValueError(f"`momentum` must be at least 0 and below 1, but got momentum={value:g}.")
    return value


def rates(learning_rate, batch_size) -> float:
    """The learning rate η as a float, with the batch size checked too."""
    positive("batch_size", batch_size)
    return positive("learning_rate", learning_rate)


def symmetric(name: str, a) -> Float[np.ndarray, "d d"]:
    """`a` as a symmetric matrix, rounding removed; a number is 1 × 1."""
    try:
        a = np.atleast_2d(np.asarray(a, dtype=np.float64))
    except (TypeError, ValueError):
        raise TypeError(f"`{name}` must be a matrix of numbers (d, d), but got {a!r}.") from None
    if a.ndim != 2 or a.shape[0] != a.shape[1] or not np.all(np.isfinite(a)):
        raise ValueError(f"`{name}` must be a finite square matrix (d, d), but got {a!r}.")
    if np.max(np.abs(a - a.T)) > rounding * np.max(np.abs(a)):
        raise ValueError(
            f"`{name}` must be symmetric, but {name} - {name}ᵀ has an entry {np.max(np.abs(a - a.T)):.3g}."
        )
    return 0.5 * (a + a.T)


def definite(name: str, a) -> Float[np.ndarray, "d d"]:
    """`a` as a symmetric positive definite matrix."""
    a = symmetric(name, a)
    values = np.linalg.eigvalsh(a)
    if not values[0] > len(a) * np.finfo(float).eps * abs(values[-1]):
        raise ValueError(
            f"`{name}` must be positive definite, but has the eigenvalue {values[0]:.6g}: along flat or falling "
            f"directions no stationary state exists. Restrict {name} to the others."
        )
    return a


def semidefinite(name: str, a) -> Float[np.ndarray, "d d"]:
    """`a` as a symmetric positive semi-definite matrix."""
    a = symmetric(name, a)
    lowest = np.linalg.eigvalsh(a)[0]
    if lowest < -rounding * np.max(np.abs(a)):
        raise ValueError(f"`{name}` must be positive semi-definite, but has the eigenvalue {lowest:.6g}.")
    return a


def quadratic_model(H, C) -> tuple[Float[np.ndarray, "d d"], Float[np.ndarray, "d d"]]:
    """H positive definite and C positive semi-definite, of one shape."""
    H, C = symmetric("H", H), symmetric("C", C)
    if H.shape != C.shape:
        raise ValueError(f"`H` and `C` must have one shape, but have {H.shape} and {C.shape}.")
    return definite("H", H), semidefinite("C", C)


# Relative to the largest entry: asymmetry and negative eigenvalues this small are rounding, also of float32 input.
rounding = 1e-5
