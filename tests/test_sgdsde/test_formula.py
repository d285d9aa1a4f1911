"""Formulas mean what they say, and nothing else can be said."""

import random
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgdsde.formula import FormulaError, parse


@pytest.mark.parametrize(
    ("text", "x", "value"),
    [
        ("0.25*(x**2 - 1)**2 + 0.5*y**2", [2.0, 3.0], 0.25 * 9 + 4.5),
        ("-x**2", [3.0], -9.0),
        ("x**-1 + x**0.5", [4.0], 2.25),
        ("2**-1 - 3/4", [0.0], -0.25),
        ("r2 + pi*e", [1.0], 1 + np.pi * np.e),
        ("x1*x3 - z + +y", [2.0, 5.0, 7.0], 12.0),
        ("where(x < 0, 1, exp(x)) + maximum(x, 2) + minimum(x, 2)", [1.0], np.e + 3),
        ("where(x >= 1, abs(-x), 5)", [1.0], 1.0),
        ("log(x)+log1p(x)+expm1(x)+sin(x)+cos(x)+tan(x)", [0.5], None),
        ("tanh(x)+sinh(x)+cosh(x)+arctan(x)+sqrt(x)", [0.5], None),
        ("  x + 1  ", [1.0], 2.0),
        ("3", [1.0], 3.0),
        ("(-x)**3", [2.0], -8.0),
    ],
)
def test_values(text, x, value):
    if value is None:
        names = ("exp", "log", "log1p", "expm1", "sin", "cos", "tan", "tanh", "sinh", "cosh", "arctan", "sqrt")
        value = eval(text, {n: getattr(np, n) for n in names}, {"x": x[0]})
    loss = parse(text)
    for dtype, tolerance in ((jnp.float32, 1e-6), (jnp.float64, 1e-15)):
        point = jnp.array(x, dtype)
        out, slope = jax.jit(jax.value_and_grad(loss))(point)
        assert out.shape == ()
        assert out.dtype == slope.dtype == dtype
        np.testing.assert_allclose(out, value, rtol=10 * tolerance)


def test_dimension():
    assert parse("x + y").dim == 2
    assert parse("r2", dim=5).dim == 5
    assert parse("1").dim == 1
    with pytest.raises(FormulaError, match="'y' is coordinate 2, but the formula has dim=1, at column 5"):
        parse("x + y", dim=1)
    with pytest.raises(ValueError, match=r"of 2 coordinates, but x has shape \(3,\)"):
        parse("x + y")(jnp.ones(3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x + foo", r"Unknown name 'foo', at column 5 .* Known are x, y, z"),
        ("x + foo(x)", "Unknown function 'foo', at column 5"),
        ("  x + foo", "at column 7"),
        ("x**y", r"exponent must be a number; write exp\(b \* log\(a\)\).*column 4"),
        ("x**65", "at most 64"),
        ("x +", "Not a formula: .* column"),
        ("x < 1", "comparison is allowed only as the first argument of where"),
        ("x % 2", "operator Mod is not allowed"),
        ("x and y", "nest where"),
        ("sqrt(x, y)", r"sqrt takes 1 argument\(s\), but got 2, at column 1"),
        ("é", "Only printable ASCII"),
        ("x" * 2001, "at most 2000 characters"),
        ("True", "'bool' constants are not allowed"),
    ],
)
def test_messages(text, message):
    with pytest.raises(FormulaError, match=message):
        parse(text)


attacks = [
    "__import__('os').system('touch pwned')",
    "().__class__.__bases__[0].__subclasses__()",
    *("(lambda: 1)()", "open('/etc/passwd')", "x.__class__", "exec('1')", "eval('1')", "9**9**9**9", "x**1000000"),
    *("'a'*10**9", "[x for x in (1,2)]", "f'{x}'", "x if y else 1", "x:=3", "(x:=3)", "await x", "a.b", "x[0]"),
    *(
        "{1:2}",
        "1e999",
        "1j",
        "x@y",
        "x//y",
        "x<<y",
        "~x",
        "*x",
        "lambda x:x",
        "print(x)",
        "sqrt(*x)",
        "sqrt(x=1)",
        "sqrt(x, out=y)",
    ),
    *("", " ", "\x00", "(" * 1900, "-" * 1500 + "x", "((x)+" * 90 + "x" + ")" * 90, "9" * 1900, "import os", "x;y"),
    *("x\ny", "x #", "getattr(x,'a')", "globals()", "x.at", "exp.__globals__", "\u2003x", "ｅｘｐ(x)", "nan", "inf"),
    *("0x" + "f" * 1000, "where(x,1,2)", "where(x<1<2,1,2)", "where(x==1,1,2)", "x0", "x99999", "None", "...", "exp"),
    *("b'a'", "x\\", "__debug__", "yield x", "not x", "'''", "1if 2else 3", "x" + "+x" * 900, "*".join("x" * 500)),
]


@pytest.mark.parametrize("text", attacks)
def test_attacks(text):
    with pytest.raises(FormulaError):
        parse(text)


def test_fuzz():
    # Run without the annotation checker of the tests, whose cost is no part of the limit.
    code = (
        "import random, warnings, sys\nwarnings.simplefilter('error')\n"
        "from sgdsde.formula import FormulaError, parse\n"
        "tokens = 'x y 1 2.5 ( ) + - * / ** , exp log sqrt where < . __class__ [ ] \\' lambda : import \\\\ # = @ "
        "1e400 é None if else 0x _ { } ~ not 1or is\"'.split() + [' ', chr(10)]\n"
        "r, accepted = random.Random(0), 0\n"
        "for k in range(20000):\n"
        "    s = ''.join(r.choice(tokens) for _ in range(r.randrange(1, 40))) if k % 5 else "
        "bytes(r.randrange(256) for _ in range(r.randrange(60))).decode('latin1')\n"
        "    try:\n        parse(s)\n        accepted += 1\n    except FormulaError:\n        pass\n"
        "assert accepted > 10, accepted\nassert 'jax' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr


def test_no_warning_reaches_the_user():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for text in ("1or 2", "1 is 1", "(1)(2)", "'\\d'", "0x1for x in y"):
            with pytest.raises(FormulaError):
                parse(text)


def test_random_sums_agree_with_python():
    r = random.Random(1)
    for _ in range(20):
        text = "".join(
            f"{r.choice('+-')}{r.random():.3f}*x**{r.randrange(5)}/(1 + r2)" for _ in range(r.randrange(1, 6))
        )
        x = r.uniform(-2, 2)
        expected = eval(text, {}, {"x": x, "r2": x * x})
        np.testing.assert_allclose(parse(text)(jnp.array([x])), expected, rtol=1e-13, atol=1e-14)
