"""Functions of one point written out component by component are the functions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers.sde.engine import _Fast
from solvers.sde.lanes import Unsupported, components, evaluate_lanes, lanes
from solvers.sde.program import evaluate, hoist, trace

_matrix = np.array([[1.0, 0.3, -0.2], [0.3, 2.0, 0.1], [-0.2, 0.1, 0.7]])


def _network(x):
    h = jnp.tanh(_matrix @ x + jnp.asarray([0.1, -0.2, 0.3]))
    return jax.nn.softplus(h @ h) + jnp.log1p(jnp.sum(jnp.where(x > 0, x, 0.1 * x) ** 2))


_losses = {
    "quadratic": lambda x: 0.5 * x @ (jnp.asarray(_matrix) @ x),
    "ring": lambda x: 0.25 * (x @ x - 1) ** 2 + 0.01,
    "entries": lambda x: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2 + x[-1],
    "slices": lambda x: jnp.sum((x[1:] - x[:-1]) ** 2) + jnp.prod(x[::-1]) + jnp.cumsum(x)[1],
    "norm": lambda x: jnp.linalg.norm(x) + jnp.max(x) + jnp.mean(jnp.abs(x)),
    "network": _network,
    "stacked": lambda x: jnp.sum(jnp.stack([jnp.sin(x[0] * x[1]), jnp.exp(-x[2]), jnp.cosh(x[0])]) ** 3),
    "padded": lambda x: jnp.sum(jnp.pad(x, (1, 2)) * jnp.arange(6.0)),
    "outer": lambda x: jnp.sum(jnp.outer(x, x) * jnp.asarray(_matrix)) + jnp.trace(jnp.outer(x, x)),
    "huber": lambda x: jnp.sum(jnp.where(jnp.abs(x) < 1, 0.5 * x * x, jnp.abs(x) - 0.5)),
    "logsumexp": lambda x: jax.nn.logsumexp(x) + jnp.arctan2(x[0], x[1]),
}


@pytest.mark.parametrize("name", list(_losses))
@pytest.mark.slow("outer", "slices", "logsumexp", "stacked", "padded", "norm")
def test_lanes_are_the_function(name):
    loss = _losses[name]

    def step(t, x, z):
        value, gradient = jax.value_and_grad(loss)(x)
        return x - 0.1 * gradient * (1 + t) + jnp.sqrt(1 + value**2) * z

    xs, zs = np.random.default_rng(0).normal(size=(2, 3, 50))
    t = jnp.asarray(0.3)
    program = hoist(trace(step, t, jnp.zeros(3), jnp.zeros(3)))
    exact = jax.vmap(lambda x, z: step(t, x, z), in_axes=1, out_axes=1)(jnp.asarray(xs), jnp.asarray(zs))
    (out,) = evaluate_lanes(program, t, lanes(list(jnp.asarray(xs))), lanes(list(jnp.asarray(zs))))
    assert np.allclose(np.stack(components(out, xs[0])), exact, rtol=1e-13, atol=1e-13)
    one = jax.vmap(lambda x, z: evaluate(program, t, x, z)[0], in_axes=1, out_axes=1)(jnp.asarray(xs), jnp.asarray(zs))
    assert np.allclose(one, exact, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shapes", [((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 4)), ((2, 3), (3, 4))])
def test_products_that_differ_from_path_to_path(shapes):
    a, b = (np.random.default_rng(k).normal(size=s) for k, s in enumerate(shapes))
    program = hoist(trace(jnp.matmul, jnp.asarray(a), jnp.asarray(b)))
    assert np.allclose(evaluate(program, jnp.asarray(a), jnp.asarray(b))[0], a @ b, rtol=1e-14)
    batch = jnp.einsum("bij,bkj->bik", jnp.ones((2, 3, 4)), jnp.arange(40.0).reshape(2, 5, 4))
    products = trace(lambda a, b: jnp.einsum("bij,bkj->bik", a, b), jnp.ones((2, 3, 4)), jnp.ones((2, 5, 4)))
    assert np.allclose(evaluate(products, jnp.ones((2, 3, 4)), jnp.arange(40.0).reshape(2, 5, 4))[0], batch)


def test_what_does_not_depend_on_the_state_is_computed_once():
    matrix = jnp.asarray(_matrix)

    def step(t, x, z):
        return x + jnp.linalg.cholesky(matrix) @ z

    program = hoist(trace(step, jnp.asarray(0.0), jnp.zeros(3), jnp.zeros(3)))
    assert "cholesky" not in [op.primitive.name for op in program.operations]


@pytest.mark.parametrize(
    ("fn", "text"),
    [
        (lambda x: jnp.sort(x), "`sort`"),
        (lambda x: jax.lax.fori_loop(0, 3, lambda _, x: jnp.sin(x), x), "`scan`|`while`"),
        (lambda x: jnp.outer(jnp.tile(x, 10), jnp.tile(x, 10)).sum(0)[:3], "shape"),
    ],
)
def test_what_has_no_form_in_lanes_is_named(fn, text):
    program = hoist(trace(fn, jnp.zeros(3)))
    with pytest.raises(Unsupported, match=text):
        evaluate_lanes(program, lanes(list(jnp.ones((3, 5)))))


def test_a_compiler_that_does_not_know_its_options_is_asked_once():
    def twice(x):
        return 2 * x

    fast, asked = _Fast(twice), []
    options = {"xla_cpu_prefer_vector_width_of": 512}
    wide = eqx.filter_jit(twice, compiler_options=options)  # pyright: ignore[reportCallIssue]

    def refuses(x):
        asked.append(x)
        return wide(x)

    fast.wide = refuses
    assert [fast(jnp.asarray(x)) for x in (1.0, 2.0)] == [2.0, 4.0]
    assert len(asked) == 1


def test_other_errors_of_a_compiler_are_not_hidden():
    def wrong(x):
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        _Fast(wrong)(jnp.asarray(1.0))
