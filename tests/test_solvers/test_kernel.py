"""The kernel takes the steps of the engine; it lowers for a GPU, or says why not before anything is compiled."""

import dataclasses
import re
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import Diffusion, Grid, sde
from solvers.process import noise_structure
from solvers.sde import EulerMaruyama, LeimkuhlerMatthews, Milstein, choice, engine, kernel
from solvers.sde.brownian import numbers_per_step
from solvers.sde.clock import Clock, make_schedule
from solvers.sde.random import group_size, key_words

_weights = np.asarray([[0.8, -0.3], [0.2, 1.1], [-0.7, 0.4]])
_shown = np.asarray([True, False, True])


def _network(x):
    h = jnp.tanh(jnp.asarray(_weights, x.dtype) @ x + 0.1)
    h = jnp.where(jnp.asarray(_shown), h, 0.1 * h)
    return jax.nn.softplus(h @ h) + 0.1 * (x @ x)


_losses = {
    "polynomial": lambda x: 1 + jnp.sum(x * x),
    "ring": lambda x: 0.25 * (x @ x - 1) ** 2 + 0.01,
    "log cosh tanh": lambda x: jnp.sum(0.1 + jnp.log(jnp.cosh(x)) + 0.5 * (jnp.tanh(1.3 * x + 0.2) - 0.4) ** 2),
    "huber": lambda x: 0.1 + jnp.sum(jnp.where(jnp.abs(x) < 1, 0.5 * x * x, jnp.abs(x) - 0.5)),
    "network": _network,
    "clipped": lambda x: 0.1 + jnp.sum(jnp.clip(x, -0.5, 0.3) ** 2 + jnp.maximum(x, 0.1) + jnp.abs(x)),
    "library": lambda x: jnp.sum(jax.nn.sigmoid(x) + jnp.logaddexp(x, 0.3) + jnp.expm1(jnp.abs(x)) ** 1.5 + 0.1),
    "scales": lambda x: 3 + jnp.linalg.norm(x) + jnp.max(x) + jnp.prod(jnp.cos(x)) + jnp.sum(x * jnp.floor(x)),
}


def _sgd(loss):
    """Gradient descent with noise in proportion to the loss."""
    return Diffusion(lambda t, x: -jax.grad(loss)(x), lambda t, x: jnp.sqrt(0.2 * loss(x)))


_fading = Diffusion(lambda t, x: -x / (1 + t) + jnp.sin(3 * t), lambda t, x: 0.3 / jnp.sqrt(1 + t) * jnp.ones_like(x))
_additive = Diffusion(lambda t, x: -x - x**3, lambda t, x: 0.3 * jnp.ones_like(x))
_exploding = Diffusion(lambda t, x: x**3, lambda t, x: x)


def _problem(process, method, d, dtype, dt=0.01):
    points = jnp.asarray(np.random.default_rng(1).normal(size=(8, d)), dtype)
    _, motions = noise_structure(process, points[0])
    need = method.needs(process, points)
    problem = engine.Problem(
        process=process,
        method=method,
        transform=None,
        observe={},
        schedule=make_schedule(Clock(0.0, 1000 * dt, dt), 0.0, 1, False, dtype),
        words=key_words(7),
        need=need,
        motions=motions,
        numbers=numbers_per_step(need, motions, dt),
    )
    return engine.fastest(problem, points[0])[0]


def _unoptimised(fn):
    """Compiled so that each product and each sum is rounded: which ones are fused depends on the loop they are in."""
    return eqx.filter_jit(fn, compiler_options={"xla_backend_optimization_level": 0})


@_unoptimised
def _engine(problem, path, x, first, steps):
    block = engine.Block(path, jnp.ones(path.shape, bool), x, {})
    return engine._advance_block(problem, block, first, steps).x


@_unoptimised
def _kernel(problem, path, x, first, steps):
    return kernel.advance_kernel(problem, path, x, first, steps, interpret=True)


_cases = {
    "polynomial": (_sgd(_losses["polynomial"]), EulerMaruyama(), 1, jnp.float32),
    "ring": (_sgd(_losses["ring"]), EulerMaruyama(), 2, jnp.float32),
    "four dimensions": (_sgd(_losses["ring"]), EulerMaruyama(), 4, jnp.float32),
    "log cosh tanh": (_sgd(_losses["log cosh tanh"]), EulerMaruyama(), 1, jnp.float64),
    "huber": (_sgd(_losses["huber"]), EulerMaruyama(), 1, jnp.float64),
    "network": (_sgd(_losses["network"]), EulerMaruyama(), 2, jnp.float64),
    "clipped": (_sgd(_losses["clipped"]), EulerMaruyama(), 1, jnp.float32),
    "milstein": (_sgd(_losses["polynomial"]), Milstein(), 1, jnp.float32),
    "leimkuhler-matthews": (_additive, LeimkuhlerMatthews(), 2, jnp.float32),
    "three points": (_additive, LeimkuhlerMatthews(noise="three-point"), 2, jnp.float64),
    "time": (_fading, EulerMaruyama(), 1, jnp.float64),
}


def _paths(d, dtype, scale=0.7):
    n = 40  # more than one tile, and not a whole number of them
    x = jnp.asarray(np.random.default_rng(0).normal(scale=scale, size=(d, n)), dtype)
    return jnp.arange(5, 5 + n, dtype=jnp.uint32), x


@pytest.mark.parametrize("name", list(_cases))
@pytest.mark.slow("four dimensions", "time", "clipped", "log cosh tanh", "ring", "polynomial", "milstein", "huber")
def test_a_kernel_takes_the_steps_of_the_engine(name):
    process, method, d, dtype = _cases[name]
    problem, (path, x) = _problem(process, method, d, dtype), _paths(d, dtype)
    # Two groups of steps: a longer stride takes longer to compile without optimisation, and is no other loop.
    problem = dataclasses.replace(problem, stride=min(problem.stride, 2 * group_size(dtype, problem.law)))
    for first, steps in ((0, 16), (5, 37), (6, 1), (2**31 + 3, 2)):
        span = jnp.uint32(first), jnp.int32(steps)
        out = _kernel(problem, path, x, *span)
        assert jnp.array_equal(out, _engine(problem, path, x, *span))
        assert not jnp.any(out == x)
    assert jnp.array_equal(_kernel(problem, path, x, jnp.uint32(0), jnp.int32(0)), x)
    half = _kernel(problem, path, x, jnp.uint32(5), jnp.int32(18))
    whole = _kernel(problem, path, x, jnp.uint32(5), jnp.int32(37))
    assert jnp.array_equal(_kernel(problem, path, half, jnp.uint32(23), jnp.int32(19)), whole)


@pytest.mark.parametrize("stride", [1, 8])
@pytest.mark.slow("1")
def test_what_is_not_finite_stays_as_in_the_engine(stride):
    problem = dataclasses.replace(_problem(_exploding, EulerMaruyama(), 2, jnp.float32, dt=0.3), stride=stride)
    path, x = _paths(2, jnp.float32, scale=1.5)
    for first, steps in ((3, 5), (3, 41)):
        span = jnp.uint32(first), jnp.int32(steps)
        out = _kernel(problem, path, x, *span)
        assert jnp.array_equal(out, _engine(problem, path, x, *span), equal_nan=True)
        assert 0 < jnp.sum(~jnp.isfinite(out)) < out.size


# Lowering for a GPU


@pytest.fixture
def gpu(monkeypatch):
    """What some versions of JAX ask for before they lower Pallas: a GPU to lower for, and no objections to Triton."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)
        try:
            from jax._src.pallas.triton import gpu_info
        except ImportError:
            yield
            return
        info = gpu_info.get_gpu_info_from_version(gpu_info.GpuVersion.H100)
        monkeypatch.setattr(gpu_info, "get_gpu_info", lambda: info)
        yield


_lowered = {
    **{name: (_sgd(loss), EulerMaruyama(), 2, jnp.float32) for name, loss in _losses.items()},
    **{f"{name}, double": (_sgd(_losses[name]), EulerMaruyama(), 2, jnp.float64) for name in ("network", "library")},
    **{name: _cases[name] for name in ("milstein", "three points", "time", "four dimensions")},
}


@pytest.mark.parametrize("name", list(_lowered))
@pytest.mark.slow("polynomial", "clipped", "network, double", "library, double", "four dimensions", "scales")
def test_what_is_supported_lowers(gpu, name):
    process, method, d, dtype = _lowered[name]
    problem = _problem(process, method, d, dtype)
    assert kernel.supports(problem, d, dtype) == ""
    shapes = ((1000,), jnp.uint32), ((d, 1000), dtype), ((), jnp.uint32), ((), jnp.int32)
    block = [jax.ShapeDtypeStruct(*s) for s in shapes]
    traced = jax.jit(lambda *block: kernel.advance_kernel(problem, *block)).trace(*block)
    assert "triton" in traced.lower(lowering_platforms=("cuda",)).as_text()


_data = np.random.default_rng(0).normal(size=(300, 1))
_refused = {
    "erf": (2, lambda x: 2 + jnp.sum(jax.lax.erf(x)), "which has no form in a kernel"),
    "round": (2, lambda x: 2 + jnp.sum(jnp.round(x) ** 2), "`round`, which has no form"),
    "remainder": (2, lambda x: 2 + jnp.sum(x % 1.0), "`rem`, which has no form"),
    "sort": (2, lambda x: 2 + jnp.sort(x)[0] ** 2, "`sort`, which has no form"),
    "loop": (2, lambda x: 2 + jax.lax.fori_loop(0, 3, lambda _, y: jnp.sin(y), x)[0], "`scan`, which has no form"),
    "state": (17, lambda x: 1 + x @ x, "dimension 17"),
    "array": (1, lambda x: 1 + jnp.sum((jnp.asarray(_data, x.dtype) @ x) ** 2), "shape"),
    "constants": (
        1,
        lambda x: 1 + sum(jnp.sum(jnp.cos(jnp.asarray(part, x.dtype) * x)) for part in np.split(_data, 3)),
        "reads 3.. constants",
    ),
}


@pytest.mark.parametrize("name", list(_refused))
@pytest.mark.slow("constants", "erf")
def test_what_does_not_fit_is_said_before_it_is_compiled(gpu, name):
    d, loss, reason = _refused[name]
    process = _sgd(loss)
    problem = dataclasses.replace(_problem(_additive, EulerMaruyama(), d, jnp.float32), process=process)
    found = kernel.supports(problem, d, jnp.float32)
    assert re.search(reason, found)


def test_long_steps_are_left_to_the_engine(gpu, monkeypatch):
    monkeypatch.setattr(kernel, "_most_operations", 20)
    problem = _problem(_sgd(_losses["network"]), EulerMaruyama(), 2, jnp.float32)
    assert re.fullmatch(r"one step takes \d\d\d operations", kernel.supports(problem, 2, jnp.float32))


def test_a_path_that_went_wrong_does_not_become_sound():
    """Triton's `max` and `min` return the other argument for a NaN."""
    process = Diffusion(
        lambda t, x: -jnp.clip(jnp.maximum(jnp.log(x), -1), -2, 2), lambda t, x: jnp.minimum(jnp.sqrt(x), 1)
    )
    problem = _problem(process, EulerMaruyama(), 1, jnp.float64)
    program = kernel._scalar_program(problem, 1, jnp.float64)
    assert {"max", "min"} <= {op.primitive.name for op in program.operations}
    numbers = jnp.zeros(3), jnp.asarray([-1.0, 0.5, jnp.nan]), jnp.zeros(3)
    text = str(jax.make_jaxpr(lambda *n: kernel._evaluate(program, *n))(*numbers))
    assert not {"max", "min", "clamp"} & set(text.split())
    (out,) = kernel._evaluate(program, *numbers)
    assert jnp.array_equal(jnp.isnan(out), jnp.asarray([True, False, True]))


# In `simulate`


@pytest.fixture
def kernels(monkeypatch):
    """As if the CPU were a GPU: kernels are used where they can be, and interpreted."""
    monkeypatch.setattr(choice, "_kernels", {"cpu": "interpret"})


_run = {"t1": 0.5, "dt": 0.01, "key": 3, "paths": 300}


@pytest.mark.parametrize("name", ["leimkuhler-matthews", "time"])
@pytest.mark.slow("leimkuhler-matthews")
def test_a_run_in_kernels_is_the_run(gpu, kernels, monkeypatch, name):
    process, method, d, dtype = _cases[name]
    moments, x0 = sde.Moments(lambda t, x: x @ x), np.full(d, 0.7, dtype)
    observe = {"r": moments, "p": sde.Histogram(Grid.uniform(*[(-2.0, 2.0, 8)] * d))}
    options = {**_run, "t1": 0.25, "observe": observe, "every": 5, "save_at": [0.13, 0.25]}
    inside = sde.simulate(process, method, x0, **options)
    assert "in one kernel" in inside.engine
    monkeypatch.setattr(choice, "_kernels", {})
    outside = sde.simulate(process, method, x0, **options)
    assert "kernel" not in outside.engine
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == jnp.float32 else {"rtol": 1e-11, "atol": 1e-12}
    assert np.allclose(inside.xs, outside.xs, **tolerance)
    assert np.allclose(inside["r"].mean, outside["r"].mean, **tolerance)
    assert np.allclose(inside["p"].mass, outside["p"].mass, atol=0.01)


@pytest.mark.slow
def test_linear_processes_keep_their_eigenvectors_in_kernels(gpu, kernels, monkeypatch):
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))
    process = Diffusion(lambda t, x: -jnp.asarray(q * np.arange(1.0, 7.0) @ q.T, x.dtype) @ x, lambda t, x: 0.3)
    inside = sde.simulate(process, EulerMaruyama(), np.ones(6), **_run)
    assert "in one kernel, in the eigenvectors" in inside.engine
    monkeypatch.setattr(choice, "_kernels", {})
    assert np.allclose(inside.final, sde.simulate(process, EulerMaruyama(), np.ones(6), **_run).final, atol=1e-12)


def test_why_there_is_no_kernel(gpu, kernels):
    x0 = np.full(2, 0.7, np.float32)
    _, loss, _ = _refused["erf"]
    assert "not in a kernel: it uses" in sde.simulate(_sgd(loss), EulerMaruyama(), x0, **_run).engine
    ring, observe = _cases["ring"][0], {"out": sde.FirstPassage(lambda x: 4 - x @ x)}
    assert "kernel: every step" in sde.simulate(ring, EulerMaruyama(), x0, **_run, observe=observe).engine


def test_a_kernel_that_does_not_compile_is_not_used(gpu, monkeypatch):
    # Nothing compiles such a kernel for a CPU.
    monkeypatch.setattr(choice, "_kernels", {"cpu": "gpu"})
    out = sde.simulate(_cases["ring"][0], EulerMaruyama(), np.full(2, 0.7, np.float32), **_run)
    assert "not in a kernel: it does not compile" in out.engine
    assert np.all(np.isfinite(out.final))
