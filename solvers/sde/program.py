"""A traced function taken apart, so that it can be run in other ways than JAX would.

`trace` writes a function down as a flat list of primitive operations. `hoist` then computes what depends on closed-over
values alone, once; `evaluate` computes the rest. An engine calls `hoist` before its loop over steps and
`evaluate` in it: the square root of a constant Hessian, for one, is computed once a run.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

# Operations that only call another function, and where they keep it.
_calls = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_lin": "call_jaxpr",
}


class Operation(NamedTuple):
    """One primitive operation; values have numbers, and literals stand for themselves."""

    primitive: Any
    inputs: tuple[Any, ...]
    outputs: tuple[int, ...]
    params: dict[str, Any]
    context: Any

    def bind(self, values: Sequence[Any]) -> Sequence[Any]:
        with self.context.manager:
            out = self.primitive.bind(*values, **self.params)
        return out if self.primitive.multiple_results else [out]


class Program(NamedTuple):
    """A function as a list of operations on numbered values, some of which may be known already."""

    inputs: tuple[int, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[Any, ...]
    known: dict[int, Any]


def trace(fn: Callable, *examples: Any) -> Program:
    """The program of `fn`, which takes and returns arrays, for arguments of the shapes and dtypes of `examples`."""
    closed = jax.make_jaxpr(fn)(*examples)
    flat = _Flattener()
    inputs = [flat.number() for _ in closed.jaxpr.invars]
    outputs = flat.inline(closed.jaxpr, closed.consts, inputs)
    return Program(tuple(inputs), tuple(flat.operations), tuple(outputs), flat.known)


def hoist(program: Program) -> Program:
    """What is left of the program when everything that does not depend on its inputs is computed, here and now."""
    known, rest = dict(program.known), []
    for op in _needed(program):
        if all(isinstance(i, Literal) or i in known for i in op.inputs):
            known.update(zip(op.outputs, op.bind([value_of(i, known) for i in op.inputs]), strict=True))
        else:
            rest.append(op)
    return program._replace(operations=tuple(rest), known=known)


def _needed(program: Program) -> list[Operation]:
    """The operations on which the outputs depend: a gradient leaves behind those of the value that nobody asked for."""
    used, needed = {o for o in program.outputs if not isinstance(o, Literal)}, []
    for op in reversed(program.operations):
        if not used.isdisjoint(op.outputs):
            used.update(i for i in op.inputs if not isinstance(i, Literal))
            needed.append(op)
    return needed[::-1]


def is_constant(program: Program) -> bool:
    """Whether no output depends on an input, as far as the operations tell."""
    varying = set(program.inputs)
    for op in program.operations:
        if not varying.isdisjoint(i for i in op.inputs if not isinstance(i, Literal)):
            varying.update(op.outputs)
    return varying.isdisjoint(o for o in program.outputs if not isinstance(o, Literal))


def evaluate(program: Program, *arguments: Any) -> list[Any]:
    """The values of the program's outputs."""
    values = dict(program.known)
    values.update(zip(program.inputs, arguments, strict=True))
    for op in program.operations:
        inputs = [value_of(i, values) for i in op.inputs]
        if op.primitive.name == "dot_general" and not any(
            isinstance(i, Literal) or i in program.known for i in op.inputs
        ):
            outputs = [_product(op.params, *inputs)]
        else:
            outputs = op.bind(inputs)
        values.update(zip(op.outputs, outputs, strict=True))
    return [value_of(o, values) for o in program.outputs]


def _product(params: dict[str, Any], a: Any, b: Any) -> Any:
    """`dot_general` as a sum of products, which a compiler can fuse; for factors that differ from path to path.

    For a constant matrix and many paths a `dot` is right; one small `dot` for each path is not.
    """
    (contract_a, contract_b), (batch_a, batch_b) = params["dimension_numbers"]
    free_a = [i for i in range(a.ndim) if i not in (*contract_a, *batch_a)]
    free_b = [i for i in range(b.ndim) if i not in (*contract_b, *batch_b)]
    a, b = a.transpose(*batch_a, *free_a, *contract_a), b.transpose(*batch_b, *free_b, *contract_b)
    batch, terms = len(batch_a), len(contract_a)
    a = a.reshape(*a.shape[: batch + len(free_a)], *(1,) * len(free_b), *a.shape[batch + len(free_a) :])
    b = b.reshape(*b.shape[:batch], *(1,) * len(free_a), *b.shape[batch:])
    return (a * b).sum(axis=tuple(range(a.ndim - terms, a.ndim)))


def value_of(reference: Any, values: dict[int, Any]) -> Any:
    return reference.val if isinstance(reference, Literal) else values[reference]


class _Flattener:
    """Writes the operations of a function and of all that it calls into one list."""

    def __init__(self):
        self.operations: list[Operation] = []
        self.known: dict[int, Any] = {}
        self._count = 0

    def number(self) -> int:
        self._count += 1
        return self._count

    def inline(self, jaxpr: Jaxpr, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        numbers = dict(zip(jaxpr.invars, inputs, strict=True))
        for variable, value in zip(jaxpr.constvars, consts, strict=True):
            numbers[variable] = self.number()
            self.known[numbers[variable]] = value

        def reference(variable):
            return variable if isinstance(variable, Literal) else numbers[variable]

        for equation in jaxpr.eqns:
            name = equation.primitive.name
            inner = equation.params.get(_calls[name]) if name in _calls else None
            arguments = [reference(v) for v in equation.invars]
            if inner is None:
                outputs = [self.number() for _ in equation.outvars]
                operation = Operation(
                    equation.primitive, tuple(arguments), tuple(outputs), dict(equation.params), equation.ctx
                )
                self.operations.append(operation)
            elif isinstance(inner, ClosedJaxpr):
                outputs = self.inline(inner.jaxpr, inner.consts, arguments)
            else:
                outputs = self.inline(inner, (), arguments)
            numbers.update(zip(equation.outvars, outputs, strict=True))
        return [reference(v) for v in jaxpr.outvars]
