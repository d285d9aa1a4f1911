"""Path-steps per second on one GPU: the kernel, the engine's loops, a plain `lax.scan`, and diffrax; Fokker-Planck.

    python benchmarks/gpu.py            measures, and writes benchmarks/gpu.md
    python benchmarks/gpu.py --check    runs everything once at a small size, on any machine, and writes nothing

All contenders take the same Euler-Maruyama steps of the same process, gradient descent on a loss f with noise
sqrt(2 c f), in float32. The law is checked with an identity that holds for the stationary law of Euler-Maruyama at any
dt: E|x'|² = E|x|², so that E[-2 x·∇f + dt |∇f|² + 2 c d f] = 0. In one dimension with f = 1 + x² it says that
E x² = 2 c / (4 - 4 dt - 2 c).
"""

import argparse
import dataclasses
import datetime
import functools
import importlib.metadata
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import diffrax
import equinox as eqx
import gpu_fokker_planck
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from solvers import Diffusion
from solvers.sde import EulerMaruyama, engine, kernel
from solvers.sde.clock import Clock, make_schedule
from solvers.sde.random import key_words

C, DT = 0.1, 0.01
SIZES = (10_000, 1_000_000)

# Thread instructions that a multiprocessor can start in one cycle of its clock.
LANES = 128


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss in d dimensions, and the instructions that one step of the kernel takes.

    Counted in the loop as compiled for sm_90 by Triton 3.9: a change to the kernel changes them.
    """

    name: str
    d: int
    loss: Callable[[Array], Array]
    instructions: float

    def process(self) -> Diffusion:
        return Diffusion(lambda t, x: -jax.grad(self.loss)(x), lambda t, x: jnp.sqrt(2 * C * self.loss(x)))

    def gain(self, x: Array) -> Array:
        """What E|x|² gains in a step, divided by dt, for a path at x: 0 on average under the stationary law."""
        f, g = jax.value_and_grad(self.loss)(x)
        return -2 * x @ g + DT * g @ g + 2 * C * self.d * f


CASES = (
    Case("em1d", 1, lambda x: 1 + jnp.sum(x * x), 50),
    Case("ring", 2, lambda x: 0.25 * (x @ x - 1) ** 2 + 0.01, 95),
    Case("ring in 4-D", 4, lambda x: 0.25 * (x @ x - 1) ** 2 + 0.01, 184),
)


# Contenders: each makes a function of (x, steps), where x has shape (n, d)


def the_kernel(case: Case, n: int, interpret: bool = False) -> Callable:
    problem, path = _problem(case), jnp.arange(n, dtype=jnp.uint32)

    @eqx.filter_jit
    def run(problem, path, x, steps):
        return kernel.advance_kernel(problem, path, x.T, jnp.uint32(0), steps, interpret=interpret).T

    return lambda x, steps: run(problem, path, x, jnp.int32(steps))


def the_engine(case: Case, n: int) -> Callable:
    problem, path = _problem(case), jnp.arange(n, dtype=jnp.uint32)

    def run(x, steps):
        block = engine.Block(path, jnp.ones(n, bool), x.T, {})
        return engine.advance(problem, block, jnp.uint32(0), jnp.int32(steps)).x.T

    return run


def plain_scan(case: Case, n: int) -> Callable:
    @functools.partial(jax.jit, static_argnums=1)
    def run(x, steps):
        def step(carry, _):
            x, key = carry
            key, now = jax.random.split(key)
            f, g = jax.vmap(jax.value_and_grad(case.loss))(x)
            z = jax.random.normal(now, x.shape, x.dtype)
            return (x - DT * g + jnp.sqrt(2 * C * DT * f)[:, None] * z, key), None

        return lax.scan(step, (x, jax.random.key(0)), length=steps)[0][0]

    return run


def with_diffrax(case: Case, n: int) -> Callable:
    process, keys = case.process(), jax.random.split(jax.random.key(0), n)

    @functools.partial(jax.jit, static_argnums=1)
    def run(x, steps):
        def one(x, key):
            path = diffrax.UnsafeBrownianPath(shape=(case.d,), key=key)
            drift = diffrax.ODETerm(lambda t, x, _: process.drift(t, x))
            noise = diffrax.ControlTerm(lambda t, x, _: process.noise(t, x), path)
            out = diffrax.diffeqsolve(
                diffrax.MultiTerm(drift, noise),
                diffrax.Euler(),
                0.0,
                steps * DT,
                DT,
                x,
                adjoint=diffrax.ForwardMode(),
                max_steps=None,
            )
            assert out.ys is not None
            return out.ys[-1]

        return jax.vmap(one)(x, keys)

    return run


def _problem(case: Case) -> engine.Problem:
    problem = engine.Problem(
        process=case.process(),
        method=EulerMaruyama(),
        transform=None,
        observe={},
        schedule=make_schedule(Clock(0.0, DT, DT), 0.0, 1, False, jnp.float32),
        words=key_words(0),
        need="increment",
        motions=case.d,
        numbers=case.d,
    )
    return engine.fastest(problem, jnp.ones(case.d, jnp.float32))[0]


def start(case: Case, n: int) -> Array:
    return jnp.full((n, case.d), 0.5, jnp.float32)


# Measurements


def rate(run: Callable, x: Array, steps: int, grow: bool) -> float:
    """Path-steps per second, the median of five runs; with `grow`, of runs long enough to time."""
    seconds = _seconds(run, x, steps)
    while grow and seconds < 0.2 and steps < 1 << 26:
        steps *= 4
        seconds = _seconds(run, x, steps)
    return len(x) * steps / statistics.median(_seconds(run, x, steps, warm=True) for _ in range(5))


def _seconds(run: Callable, x: Array, steps: int, warm: bool = False) -> float:
    if not warm:
        run(x, steps).block_until_ready()
    began = time.perf_counter()
    run(x, steps).block_until_ready()
    return time.perf_counter() - began


def errors_of_the_law(case: Case, run: Callable, n: int) -> float:
    """How many standard errors the law of the states is from the stationary one, after 20 units of time."""
    x = np.asarray(run(start(case, n), 2000))
    gains = np.asarray(jax.vmap(case.gain)(jnp.asarray(x)), np.float64)
    if case.name == "em1d":
        exact = 2 * C / (4 - 4 * DT - 2 * C)
        print(f"  E x² = {np.mean(x.astype(np.float64) ** 2):.6f}, exactly {exact:.6f}")
    return float(abs(gains.mean()) / gains.std() * np.sqrt(n))


def measure() -> None:
    """Measures everything on the GPU at hand and writes the table."""
    lines = [
        "| problem | paths | kernel | of its bound | engine's loops | plain scan | diffrax | kernel / scan | law |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    device = jax.devices()[0]
    clock = _nvidia("clocks.max.sm")
    issues = float(device.core_count) * LANES * float(clock) * 1e6
    for case in CASES:
        for n in SIZES:
            x = start(case, n)
            print(f"{case.name}, {n} paths")
            run = the_kernel(case, n)
            law = errors_of_the_law(case, run, n)
            fast = rate(run, x, 256, grow=True)
            loops = rate(the_engine(case, n), x, 256, grow=True)
            scan = rate(plain_scan(case, n), x, 1000, grow=False)
            other = rate(with_diffrax(case, n), x, 100, grow=False)
            share = fast * case.instructions / issues
            numbers = f"{fast:.3g} | {share:.2f} | {loops:.3g} | {scan:.3g} | {other:.3g} | {fast / scan:.0f}"
            lines.append(f"| {case.name} | {n} | {numbers} | {law:.1f} |")
            print(lines[-1], flush=True)
            if law > 5:
                sys.exit(f"The law of {case.name} is {law:.1f} standard errors off.")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "diffrax"))
    counted = ", ".join(f"{case.instructions} for {case.name}" for case in CASES)
    text = [
        "# Path-steps per second on a GPU",
        "",
        "Written by `python benchmarks/gpu.py`; float32, Euler-Maruyama, loss-proportional noise.",
        "",
        f"{device.device_kind}, driver {_nvidia('driver_version')}, {versions}, Python {platform.python_version()}, "
        f"{datetime.date.today()}.",
        "",
        *lines,
        "",
        f"The bound is that of issuing instructions: {device.core_count} multiprocessors x {LANES} x {clock} MHz over "
        f"the instructions of a step, {counted}. The last column is the distance of the kernel's law from the exact "
        "stationary one of the scheme, in standard errors. diffrax takes 100 steps a run, `vmap` over paths with "
        "`UnsafeBrownianPath`.",
        "",
        "## Fokker-Planck, float64",
        "",
        *gpu_fokker_planck.section(),
        "",
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join(text), encoding="utf-8")


def _nvidia(query: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()


def check() -> None:
    """Runs every contender once at a small size, the kernel in interpret mode."""
    for case in CASES:
        x = start(case, 40)
        out, expected = the_kernel(case, 40, interpret=True)(x, 37), the_engine(case, 40)(x, 37)
        assert np.allclose(out, expected, rtol=1e-4, atol=1e-5), f"{case.name}: kernel and engine differ"
        for contender in (plain_scan, with_diffrax):
            assert np.all(np.isfinite(contender(case, 40)(x, 10))), f"{case.name}: {contender.__name__}"
        law = errors_of_the_law(case, the_engine(case, 20_000), 20_000)
        assert law < 5, f"{case.name}: the law is {law:.1f} standard errors off"
        print(f"{case.name}: kernel and engine agree; the law is {law:.1f} standard errors from the exact one")
    gpu_fokker_planck.check()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="a small run on any machine, which writes nothing")
    if parser.parse_args().check:
        check()
    elif jax.default_backend() != "gpu":
        print("There is no GPU here, or JAX has no CUDA backend: nothing is measured. A check at a small size instead:")
        check()
    else:
        measure()
