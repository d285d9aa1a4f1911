"""Linear processes taken apart into scalar ones: found where they are, refused where they are not, of the same law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import Diffusion, sde
from solvers.sde.eigenbasis import scalar_processes
from solvers.sde.lanes import Unsupported, evaluate_elementwise
from solvers.sde.program import hoist, trace

_rng = np.random.default_rng(5)
_q, _ = np.linalg.qr(_rng.normal(size=(5, 5)))
_values = np.array([0.2, 0.5, 0.5, 1.0, 3.0])
_H = (_q * _values) @ _q.T
_centre = np.array([1.0, -2.0, 0.5, 0.0, 3.0])
_oblique = _q[:, [1, 3]] * np.array([0.7, 1.5])
_nonsymmetric = _H + np.triu(np.ones((5, 5)), 1)


def _quadratic(x):
    y = x - _centre.astype(x.dtype)
    return 0.5 * y @ (_H.astype(x.dtype) @ y)


def _drift(t, x):
    return -jax.grad(_quadratic)(x)


def _root(t, x):
    # The root of the Hessian, from the Hessian at x.
    values, vectors = jnp.linalg.eigh(jax.hessian(_quadratic)(x))
    return 0.3 * (vectors * jnp.sqrt(values)) @ vectors.T


_linear = {
    "matched": (_root, 0.09 * _H),
    "isotropic": (lambda t, x: 0.3, 0.09 * np.eye(5)),
    "low rank": (lambda t, x: jnp.asarray(_oblique, x.dtype), _oblique @ _oblique.T),
    "without noise": (lambda t, x: jnp.zeros(5, x.dtype), np.zeros((5, 5))),
}


@pytest.mark.parametrize("name", list(_linear))
def test_scalar_processes_are_the_process(name):
    noise, covariance = _linear[name]
    process, basis = scalar_processes(Diffusion(_drift, noise), jnp.zeros(5))
    V = np.asarray(basis.vectors)
    assert np.allclose(V.T @ V, np.eye(5), atol=1e-13)
    assert np.allclose((V * process.rate) @ V.T, -_H, atol=1e-13)
    assert np.allclose((V * process.scale**2) @ V.T, covariance, atol=1e-13)
    assert np.allclose(V @ process.offset, _H @ _centre, atol=1e-13)
    x = jnp.asarray(_rng.normal(size=5))
    assert np.allclose(basis.leave(basis.enter(x)), x, atol=1e-14)
    assert np.allclose(basis.leave(process.drift(0.0, basis.enter(x))), _drift(0.0, x), atol=1e-12)


_others = {
    "quartic": (lambda t, x: -(x**3), lambda t, x: 1.0),
    "changing in time": (lambda t, x: -x * t, lambda t, x: 1.0),
    "noise that depends on the state": (_drift, lambda t, x: jnp.sqrt(1 + x @ x)),
    "noise that depends on time": (_drift, lambda t, x: 1 + t),
    "without eigenvectors": (lambda t, x: -jnp.asarray(_nonsymmetric, x.dtype) @ x, lambda t, x: 1.0),
    "no common eigenvectors": (_drift, lambda t, x: jnp.diag(jnp.arange(1.0, 6.0, dtype=x.dtype))),
    "one dimension of many": (lambda t, x: -x.at[0].set(jnp.sin(x[0])), lambda t, x: 1.0),
}


@pytest.mark.parametrize("name", list(_others))
def test_other_processes_stay_as_they_are(name):
    assert scalar_processes(Diffusion(*_others[name]), jnp.zeros(5)) is None


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", ["matched", "low rank"])
@pytest.mark.slow("matched-float32", "matched-float64")
def test_law_of_the_scheme(name, dtype):
    # m' = m + h H (c - m) and C' = (I - hH) C (I - hH) + h G Gᵀ, exactly.
    noise, covariance = _linear[name]
    x0, h, steps, n = np.zeros(5), 0.125, 24, 200_000
    out = sde.simulate(
        Diffusion(_drift, noise), sde.EulerMaruyama(), x0.astype(dtype), h * steps, h, 3, n, save_at=[0.0]
    )
    assert "eigenvectors" in out.engine
    assert out.final.dtype == dtype
    assert np.array_equal(out.xs[0], np.tile(x0.astype(dtype), (n, 1)))
    mean, C = x0, np.zeros((5, 5))
    shrink = np.eye(5) - h * _H
    for _ in range(steps):
        mean, C = mean + h * _H @ (_centre - mean), shrink @ C @ shrink + h * covariance
    # In the eigenvectors, so that small variances count as much as large ones; three directions have none at low rank.
    kept = np.diag(_q.T @ C @ _q) > 1e-9
    z = ((out.final - mean) @ _q)[:, kept] / np.sqrt(np.diag(_q.T @ C @ _q)[kept])
    assert np.all(np.abs(z.mean(axis=0)) < 4 / np.sqrt(n))
    square = np.cov(z.T) - np.eye(kept.sum())
    assert np.all(np.abs(square) < 4 * np.sqrt((1 + np.eye(kept.sum())) / n))
    flat = ((out.final - mean) @ _q)[:, ~kept]
    assert np.all(np.abs(flat) < (1e-4 if dtype == jnp.float32 else 1e-12))


def test_observables_and_exits_see_the_state():
    process = Diffusion(_drift, _root)
    observe = {"x": sde.Moments(), "out": sde.FirstPassage(lambda x: 1.5 - x[4])}
    x0 = np.zeros(5, np.float32)
    out = sde.simulate(process, sde.EulerMaruyama(), x0, 4.0, 0.125, 3, 2000, observe=observe, every=32)
    assert "eigenvectors" in out.engine
    assert np.allclose(out["x"].mean, out.final.mean(axis=0), atol=1e-5)
    assert np.allclose(out["x"].cov, np.cov(out.final.T), atol=1e-4)
    assert out["out"].fraction > 0.9
    assert np.all(np.abs(out["out"].points[:, 4] - 1.5) < 0.3)
    bare = sde.simulate(process, sde.EulerMaruyama(), x0, 4.0, 0.125, 3, 2000)
    assert np.array_equal(bare.final, out.final)


def test_small_states_keep_their_coordinates():
    H = jnp.asarray([[2.0, 0.5], [0.5, 1.0]])
    process = Diffusion(lambda t, x: -H @ x, lambda t, x: 1.0)
    out = sde.simulate(process, sde.EulerMaruyama(), jnp.ones(2), 1.0, 0.125, 0, 8)
    assert "eigenvectors" not in out.engine
    assert "at a time" in out.engine


_functions = {
    "polynomial": lambda t, x, z: x - 0.1 * x**3 + 0.2 * z,
    "gradient of a sum": lambda t, x, z: (
        x - 0.1 * (1 + t) * jax.grad(lambda x: jnp.sum(jnp.log(1 + x**2) * jnp.arange(1.0, 5.0)))(x) + z
    ),
    "one number for all": lambda t, x, z: jnp.full(4, 2.0) * jnp.where(x > 0, x, z[:4]) + jnp.ones(1) * t,
    "constant": lambda t, x, z: jnp.arange(4.0),
}


@pytest.mark.parametrize("name", list(_functions))
@pytest.mark.slow("gradient of a sum", "one number for all")
def test_elementwise_programs_are_the_function(name):
    fn = _functions[name]
    xs, zs = jnp.asarray(_rng.normal(size=(2, 4, 30)))
    t = jnp.asarray(0.3)
    program = hoist(trace(fn, t, jnp.zeros(4), jnp.zeros(4)))
    exact = jax.vmap(lambda x, z: fn(t, x, z), in_axes=1, out_axes=1)(xs, zs)
    assert np.allclose(evaluate_elementwise(program, t, xs, zs)[0], exact, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    "fn", [lambda t, x, z: x[::-1], lambda t, x, z: x * (x @ x), lambda t, x, z: jnp.ones((4, 4)) @ x]
)
def test_programs_that_mix_components_are_not_elementwise(fn):
    program = hoist(trace(fn, jnp.asarray(0.3), jnp.zeros(4), jnp.zeros(4)))
    with pytest.raises(Unsupported):
        evaluate_elementwise(program, jnp.asarray(0.3), jnp.ones((4, 30)), jnp.ones((4, 30)))
