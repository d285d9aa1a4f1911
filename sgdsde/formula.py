"""A loss from a line of text, as on the command line: `parse("0.25*(x**2 - 1)**2 + 0.5*y**2")`.

The text is never executed: Python's grammar turns it into a tree, and only the arithmetic listed here is read from it.
"""

import ast
import math
import warnings
from collections.abc import Callable

# More than any loss written by hand; they bound the time and memory that a hostile text can take.
max_length, max_nodes, max_depth, max_exponent = 2000, 400, 40, 64

constants = {"pi": math.pi, "e": math.e}
arities = {
    **dict.fromkeys(("exp", "log", "log1p", "expm1", "sin", "cos", "tan", "tanh", "sinh", "cosh"), 1),
    **dict.fromkeys(("arctan", "sqrt", "abs"), 1),
    **dict.fromkeys(("maximum", "minimum"), 2),
    "where": 3,
}


class FormulaError(ValueError):
    """A text that is not an allowed formula; the message says what is wrong, and where."""


def parse(text: str, dim: int | None = None) -> Callable:
    """The JAX function of one point x, shape (d,), that `text` describes; it returns one number.

    Names: x, y, z or x1, x2, ... for the coordinates, r2 = |x|², pi, e. Operators + - * / and ** with a number as
    the exponent. Functions: exp log log1p expm1 sin cos tan tanh sinh cosh arctan sqrt abs maximum(a, b)
    minimum(a, b) where(a < b, c, d). Without `dim`, d is the largest coordinate named; the function's attribute
    `dim` has it. `FormulaError`, a `ValueError`, for anything else.
    """
    if not isinstance(text, str):
        raise FormulaError(f"A formula must be text, but got {type(text).__name__}.")
    if dim is not None and (type(dim) is not int or dim < 1):
        raise FormulaError(f"`dim` must be a positive whole number, but got {dim!r}.")
    reader = _Reader(text, dim)
    value = reader.number(_tree(text), 0)
    size = dim or max(reader.largest, 1)

    def loss(x):
        import jax.numpy as jnp

        if x.shape != (size,):
            raise ValueError(f"The formula {text!r} is of {size} coordinates, but x has shape {x.shape}.")
        return jnp.asarray(value(x), x.dtype)

    loss.dim = size  # pyright: ignore[reportFunctionMemberAccess]
    loss.__doc__ = text
    return loss


def _tree(text: str) -> ast.expr:
    if len(text) > max_length:
        raise FormulaError(f"A formula may have at most {max_length} characters, but this one has {len(text)}.")
    for column, character in enumerate(text, 1):
        if not (character.isascii() and character.isprintable()) or character == "#":
            raise FormulaError(f"Only printable ASCII characters but # are allowed; column {column} has {character!r}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text.strip(" "), mode="eval").body
    except SyntaxError as error:
        column = (error.offset or 1) + len(text) - len(text.lstrip(" "))
        raise FormulaError(f"Not a formula: {error.msg} at column {column} of {text[:80]!r}.") from None
    except (ValueError, RecursionError, MemoryError, OverflowError):
        raise FormulaError(
            f"Not a formula: it is nested too deeply, or has too long a number: {text[:80]!r}."
        ) from None


class _Reader:
    """One walk over the tree, building a function of x at each node."""

    def __init__(self, text: str, dim: int | None):
        self.text, self.dim = text, dim
        self.indent = len(text) - len(text.lstrip(" "))
        self.nodes = self.largest = 0

    def fail(self, node: ast.AST, what: str, help: str = ""):
        column = getattr(node, "col_offset", 0) + 1 + self.indent
        raise FormulaError(f"{what}, at column {column} of {self.text[:80]!r}.{help}")

    def enter(self, node: ast.AST, depth: int) -> None:
        self.nodes += 1
        if self.nodes > max_nodes or depth > max_depth:
            self.fail(node, f"The formula is too large: at most {max_nodes} terms nested {max_depth} deep")

    def number(self, node: ast.expr, depth: int) -> Callable:
        """The function of x for a node that must be a number."""
        self.enter(node, depth)
        match node:
            case ast.Constant():
                value = self.literal(node)
                return lambda x: value
            case ast.Name(id=name):
                return self.name(node, name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                a = self.number(operand, depth + 1)
                return lambda x: -a(x)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.number(operand, depth + 1)
            case ast.BinOp(op=ast.Pow(), left=left, right=right):
                a, power = self.number(left, depth + 1), self.exponent(right)
                return lambda x: _as_array(a(x), x) ** power
            case ast.BinOp(op=op, left=left, right=right):
                return self.arithmetic(node, op, self.number(left, depth + 1), self.number(right, depth + 1))
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
                return self.call(node, name, args, depth)
            case ast.Compare():
                return self.fail(node, "A comparison is allowed only as the first argument of where(a < b, c, d)")
            case ast.BoolOp():
                return self.fail(node, "`and` and `or` are not allowed; nest where(...) instead")
        return self.fail(node, f"{type(node).__name__} is not allowed in a formula", _known)

    def literal(self, node: ast.Constant) -> float:
        # The type is compared, not tested with isinstance: True is an int.
        if type(node.value) not in (int, float) or not abs(node.value) <= 1e30:  # pyright: ignore[reportArgumentType]
            self.fail(node, f"{str(type(node.value).__name__)!r} constants are not allowed, only numbers up to 1e30")
        return float(node.value)  # pyright: ignore[reportArgumentType]

    def name(self, node: ast.expr, name: str) -> Callable:
        if name in constants:
            return lambda x: constants[name]
        if name == "r2":
            return lambda x: x @ x
        index = "xyz".find(name) if len(name) == 1 else -1
        if name[0] == "x" and name[1:].isdigit() and len(name) <= 4 and name[1] != "0":
            index = int(name[1:]) - 1
        if index < 0:
            self.fail(node, f"Unknown name {name[:30]!r}", _known)
        if self.dim is not None and index >= self.dim:
            self.fail(node, f"{name!r} is coordinate {index + 1}, but the formula has dim={self.dim}")
        self.largest = max(self.largest, index + 1)
        return lambda x: x[index]

    def exponent(self, node: ast.expr) -> int | float:
        self.enter(node, 0)
        inner = node.operand if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else node
        if not isinstance(inner, ast.Constant) or type(inner.value) not in (int, float):
            self.fail(node, "An exponent must be a number; write exp(b * log(a)) for a**b")
        value = self.literal(inner)  # pyright: ignore[reportArgumentType]
        if value > max_exponent:
            self.fail(node, f"An exponent may be at most {max_exponent} in size")
        value = value if inner is node else -value
        # An integer power is exact for negative bases.
        return int(value) if value.is_integer() else value

    def arithmetic(self, node: ast.expr, op: ast.operator, a: Callable, b: Callable) -> Callable:
        match op:
            case ast.Add():
                return lambda x: a(x) + b(x)
            case ast.Sub():
                return lambda x: a(x) - b(x)
            case ast.Mult():
                return lambda x: a(x) * b(x)
            case ast.Div():
                return lambda x: _as_array(a(x), x) / b(x)
        return self.fail(node, f"The operator {type(op).__name__} is not allowed; use + - * / **")

    def call(self, node: ast.Call, name: str, args: list[ast.expr], depth: int) -> Callable:
        if name not in arities:
            self.fail(node, f"Unknown function {name[:30]!r}", _known)
        if len(args) != arities[name]:
            self.fail(node, f"{name} takes {arities[name]} argument(s), but got {len(args)}")
        first = self.condition if name == "where" else self.number
        values = [(first if k == 0 else self.number)(a, depth + 1) for k, a in enumerate(args)]

        def apply(x):
            import jax.numpy as jnp

            arguments = [v(x) for v in values]
            if name == "where":
                return jnp.where(arguments[0], _as_array(arguments[1], x), _as_array(arguments[2], x))
            return getattr(jnp, name)(*[_as_array(a, x) for a in arguments])

        return apply

    def condition(self, node: ast.expr, depth: int) -> Callable:
        """The function of x for the first argument of where: one comparison."""
        self.enter(node, depth)
        if not isinstance(node, ast.Compare) or len(node.ops) != 1:
            self.fail(node, "The first argument of where must be one comparison, as in where(x < 0, a, b)")
        assert isinstance(node, ast.Compare)
        a, b = self.number(node.left, depth + 1), self.number(node.comparators[0], depth + 1)
        match node.ops[0]:
            case ast.Lt():
                return lambda x: _as_array(a(x), x) < b(x)
            case ast.LtE():
                return lambda x: _as_array(a(x), x) <= b(x)
            case ast.Gt():
                return lambda x: _as_array(a(x), x) > b(x)
            case ast.GtE():
                return lambda x: _as_array(a(x), x) >= b(x)
        return self.fail(node, "Only < <= > >= are allowed as comparisons")


def _as_array(value, x):
    # Python numbers would divide by zero with an exception, and lose the dtype of the state.
    import jax.numpy as jnp

    return jnp.asarray(value, x.dtype)


_known = (
    f" Known are x, y, z, x1, x2, ..., r2, {', '.join(constants)}, the functions {', '.join(arities)}, and + - * / **."
)
