"""Small vectors as separate lanes: one array over paths for each component, and nothing but elementwise operations.

A loss written for one point x of shape (d,) adds components up, multiplies by matrices and picks entries. Written out
component by component all this is arithmetic on arrays of shape (n,), which a compiler turns into a single loop over
paths with everything in registers, on a CPU as in a GPU kernel. That is possible where every shape is small and every
operation is in the tables below; `Unsupported` says which one is not.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from .program import Operation, Program, value_of

# More entries than that in one value, or multiplications in one product, and the written-out program is too long.
_most_entries = 256

# fmt: off
_elementwise = frozenset(
    [
        "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil",
        "clamp", "convert_element_type", "copy", "copy_p", "cos", "cosh", "digamma", "div", "eq", "erf", "erf_inv",
        "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "lgamma", "log", "log1p",
        "log2", "logistic", "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not", "one_minus_square", "or", "pow",
        "reduce_precision", "rem", "round", "rsqrt", "select_n", "shift_left", "shift_right_arithmetic",
        "shift_right_logical", "sign", "sin", "sinh", "sqrt", "square", "sub", "tan", "tanh", "xor",
    ]
)
# fmt: on


class Unsupported(Exception):
    """The program can't be written out in lanes, for the reason given."""


class Lanes:
    """A value of any small shape, one entry for each component: an array over paths, or a scalar for all of them."""

    def __init__(self, entries: np.ndarray):
        self.entries = entries


def evaluate_lanes(program: Program, *arguments: Any) -> list[Any]:
    """The outputs of a program whose inputs are `Lanes` (or arrays that all paths share)."""
    values = dict(program.known)
    values.update(zip(program.inputs, arguments, strict=True))
    for op in program.operations:
        inputs = [value_of(i, values) for i in op.inputs]
        outputs = _apply(op, inputs) if any(isinstance(v, Lanes) for v in inputs) else op.bind(inputs)
        values.update(zip(op.outputs, outputs, strict=True))
    return [value_of(o, values) for o in program.outputs]


def evaluate_elementwise(program: Program, time: Any, *vectors: Any) -> list[Any]:
    """The outputs, shape (d, n), of a program of time and vectors (d,) that does the same to every component.

    `vectors` have shape (d, n), for n paths; d > 1.
    """
    values: dict[int, Any] = {}
    (d, _) = vectors[0].shape

    def over_paths(reference):
        value = values.get(reference) if not isinstance(reference, Literal) else None
        if value is None:
            value = value_of(reference, program.known)
            if np.shape(value) not in ((), (1,), (d,)):
                raise Unsupported(f"a constant of shape {np.shape(value)}")
            value = jnp.asarray(value, getattr(reference, "aval", value).dtype)
            value = value[:, None] if value.ndim else value
        return value

    values.update(zip(program.inputs, (time, *vectors), strict=True))
    for op in program.operations:
        name = op.primitive.name
        inputs = [over_paths(i) for i in op.inputs]
        if name in _elementwise:
            values.update(zip(op.outputs, op.bind(jnp.broadcast_arrays(*inputs)), strict=True))
        elif name in _same and _same[name](op.params, d):
            values[op.outputs[0]] = inputs[0]
        else:
            raise Unsupported(f"the operation `{name}`")
    return [jnp.broadcast_to(over_paths(o), vectors[0].shape) for o in program.outputs]


# Operations that leave a vector (d,) as it is, or make one of a scalar, and when they do.
_same: dict[str, Callable] = {
    "broadcast_in_dim": lambda p, d: p["shape"] in ((), (1,), (d,)),
    "reshape": lambda p, d: p["new_sizes"] in ((1,), (d,)),
    "squeeze": lambda p, d: True,
    "slice": lambda p, d: (p["start_indices"], p["limit_indices"], p["strides"] or (1,)) == ((0,), (d,), (1,)),
    "stop_gradient": lambda p, d: True,
    "transpose": lambda p, d: len(p["permutation"]) < 2,
}


def lanes(components: Sequence[Any]) -> Lanes:
    """A vector from its components."""
    entries = np.empty(len(components), object)
    for i, c in enumerate(components):
        entries[i] = c
    return Lanes(entries)


def scalar(entry: Any) -> Lanes:
    """A number for each path."""
    entries = np.empty((), object)
    entries[()] = entry
    return Lanes(entries)


def components(value: Any, like: Any) -> list[Any]:
    """The components of a vector, each an array over paths of the shape of `like`."""
    return [jnp.broadcast_to(e, like.shape) for e in _entries(value).flat]


def _apply(op: Operation, inputs: list[Any]) -> list[Any]:
    name = op.primitive.name
    if name in _elementwise:
        return [_map(op, inputs)]
    if name not in _rules:
        raise Unsupported(f"the operation `{name}`")
    outputs = _rules[name](op.params, *inputs)
    outputs = outputs if op.primitive.multiple_results else [outputs]
    for entries in outputs:
        if entries.size > _most_entries:
            raise Unsupported(f"a value of shape {entries.shape}")
    return [Lanes(entries) for entries in outputs]


def _entries(value: Any) -> np.ndarray:
    """The entries of a value, as an object array of its shape."""
    if isinstance(value, Lanes):
        return value.entries
    shape = np.shape(value)
    if np.prod(shape) > _most_entries:
        raise Unsupported(f"a constant of shape {shape}")
    entries = np.empty(shape, object)
    for index in np.ndindex(*shape):
        entries[index] = value[index] if shape else value
    return entries


def _map(op: Operation, inputs: list[Any]) -> Lanes:
    operands = np.broadcast_arrays(*[_entries(v) for v in inputs])
    if operands[0].size > _most_entries:
        raise Unsupported(f"a value of shape {operands[0].shape}")
    out = np.empty(operands[0].shape, object)
    for index in np.ndindex(*out.shape):
        # Scalars and arrays over paths meet here: the primitive wants equal shapes.
        values = jnp.broadcast_arrays(*[o[index] for o in operands])
        out[index] = op.bind(values)[0]
    return Lanes(out)


def _fold(combine):
    def rule(params, x):
        axes = tuple(params["axes"])
        x = np.moveaxis(_entries(x), axes, range(len(axes)))
        rows = x.reshape((-1, *x.shape[len(axes) :]))
        if len(rows) == 0:
            raise Unsupported("a sum or product of nothing")
        out = np.empty(rows.shape[1:], object)
        for index in np.ndindex(*out.shape):
            total = rows[(0, *index)]
            for k in range(1, len(rows)):
                total = combine(total, rows[(k, *index)])
            out[index] = total
        return out

    return rule


def _dot_general(params, a, b):
    (contract_a, contract_b), (batch_a, batch_b) = params["dimension_numbers"]
    a, b = _entries(a), _entries(b)
    free_a = [i for i in range(a.ndim) if i not in (*contract_a, *batch_a)]
    free_b = [i for i in range(b.ndim) if i not in (*contract_b, *batch_b)]
    shape = [a.shape[i] for i in (*batch_a, *free_a)] + [b.shape[i] for i in free_b]
    terms = int(np.prod([a.shape[i] for i in contract_a]))
    if np.prod(shape, dtype=int) * terms > _most_entries:
        raise Unsupported(f"a product of shapes {a.shape} and {b.shape}")
    a = a.transpose(*batch_a, *free_a, *contract_a).reshape(*[a.shape[i] for i in (*batch_a, *free_a)], terms)
    b = b.transpose(*batch_b, *free_b, *contract_b).reshape(*[b.shape[i] for i in (*batch_b, *free_b)], terms)
    out = np.empty(shape, object)
    for index in np.ndindex(*out.shape):
        batch, rest = index[: len(batch_a)], index[len(batch_a) :]
        row, column = a[(*batch, *rest[: len(free_a)])], b[(*batch, *rest[len(free_a) :])]
        total = row[0] * column[0]
        for k in range(1, terms):
            total = total + row[k] * column[k]
        out[index] = total
    return out


def _broadcast_in_dim(params, x):
    x, shape, into = _entries(x), params["shape"], params["broadcast_dimensions"]
    spread = [1] * len(shape)
    for axis, size in zip(into, x.shape, strict=True):
        spread[axis] = size
    return np.broadcast_to(x.reshape(spread), shape)


def _slice(params, x):
    strides = params["strides"] or (1,) * len(params["start_indices"])
    window = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return _entries(x)[tuple(slice(*w) for w in window)]


def _pad(params, x, value):
    x, config = _entries(x), params["padding_config"]
    edges = [(max(low, 0), max(high, 0), gap) for low, high, gap in config]
    wide = [low + high + n + max(0, n - 1) * gap for n, (low, high, gap) in zip(x.shape, edges, strict=True)]
    out = np.empty(wide, object)
    out.fill(_entries(value)[()])
    inner = [slice(low, n - high, gap + 1) for n, (low, high, gap) in zip(wide, edges, strict=True)]
    out[tuple(inner)] = x
    cut = [slice(max(-low, 0), n + min(high, 0)) for n, (low, high, _) in zip(wide, config, strict=True)]
    return out[tuple(cut)]


def _split(params, x):
    return np.split(_entries(x), np.cumsum(params["sizes"])[:-1], axis=params["axis"])


def _unstack(params, x):
    x = np.moveaxis(_entries(x), params["axis"], 0)
    return [x[k : k + 1].reshape(x.shape[1:]) for k in range(len(x))]


def _cumulative(combine):
    def rule(params, x):
        out = np.array(np.flip(_entries(x), params["axis"]) if params["reverse"] else _entries(x), dtype=object)
        rows = np.moveaxis(out, params["axis"], 0)
        for k in range(1, len(rows)):
            for index in np.ndindex(*rows.shape[1:]):
                rows[(k, *index)] = combine(rows[(k - 1, *index)], rows[(k, *index)])
        return np.flip(out, params["axis"]) if params["reverse"] else out

    return rule


_rules = {
    "reduce_sum": _fold(lambda a, b: a + b),
    "reduce_prod": _fold(lambda a, b: a * b),
    "reduce_max": _fold(jnp.maximum),
    "reduce_min": _fold(jnp.minimum),
    "reduce_and": _fold(lambda a, b: a & b),
    "reduce_or": _fold(lambda a, b: a | b),
    "cumsum": _cumulative(lambda a, b: a + b),
    "cumprod": _cumulative(lambda a, b: a * b),
    "dot_general": _dot_general,
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": lambda params, x: _entries(x).reshape(params["new_sizes"]),
    "squeeze": lambda params, x: np.squeeze(_entries(x), tuple(params["dimensions"])),
    "expand_dims": lambda params, x: np.expand_dims(_entries(x), tuple(params["dimensions"])),
    "transpose": lambda params, x: _entries(x).transpose(params["permutation"]),
    "stop_gradient": lambda params, x: _entries(x),
    "tile": lambda params, x: np.tile(_entries(x), params["reps"]),
    "stack": lambda params, *xs: np.stack([_entries(x) for x in xs], params["axis"]),
    "split": _split,
    "unstack": _unstack,
    "rev": lambda params, x: np.flip(_entries(x), params["dimensions"]),
    "slice": _slice,
    "pad": _pad,
    "concatenate": lambda params, *xs: np.concatenate([_entries(x) for x in xs], params["dimension"]),
}
