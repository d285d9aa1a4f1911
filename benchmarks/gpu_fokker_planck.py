"""The part of the GPU benchmark that belongs to `solvers.fokker_planck`, in float64.

The kernel of `evolve` and of implicit steps is a polynomial of the generator, term by term; its products are compared
with what the memory allows. Tridiagonal systems are solved in blocks. Every result is compared with that of the CPU.
"""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from solvers import Density, Diffusion, Grid, fokker_planck
from solvers.fokker_planck.chebyshev_steps import chebyshev_sum
from solvers.fokker_planck.tridiagonal import factor, folded, solve

SHAPES = ((256, 256), (1024, 1024), (4096, 4096), (64, 64, 64), (256, 256, 256))
LENGTHS, BLOCKS = (100_000, 1_000_000, 10_000_000), 4096
TERMS = 201

# Results of the two kinds of processor may differ by rounding, which the recurrence makes this much larger at most.
ROUNDING = 1e-11


def section() -> list[str]:
    """Lines of the report."""
    with jax.enable_x64(True):
        lines = ["| products with the generator | ms each | GB/s | from the CPU's |", "|---|---|---|---|"]
        for shape in SHAPES:
            arguments = polynomial(shape)
            seconds = _median(lambda a=arguments: chebyshev_sum(*a)) / TERMS
            rate = (2 * len(shape) + 4) * 8 * np.prod(shape) / seconds / 1e9
            lines.append(f"| {shape} | {1e3 * seconds:.4g} | {rate:.0f} | {difference(chebyshev_sum, arguments):.0e} |")
        lines += ["", "| tridiagonal system | ms | from the CPU's |", "|---|---|---|"]
        for size in LENGTHS:
            arguments = system(size, BLOCKS)
            seconds = _median(lambda a=arguments: solve(*a))
            lines.append(f"| {size:,} | {1e3 * seconds:.4g} | {difference(solve, arguments):.0e} |")
        return [*lines, "", *_transients()]


def polynomial(shape: tuple[int, ...]) -> tuple:
    """Arguments of a polynomial with `TERMS` terms, for rates that depend on the place."""
    keys = jax.random.split(jax.random.key(0), 2 * len(shape) + 1)
    rates = []
    for k in range(len(shape)):
        for end, key in ((-1, keys[2 * k]), (0, keys[2 * k + 1])):
            rate = jax.random.uniform(key, shape, jnp.float64) / (2 * len(shape))
            rates.append(jnp.moveaxis(jnp.moveaxis(rate, k, 0).at[end].set(0), 0, k))
    coefficients = jnp.full(1 << 13, 1.0 / TERMS)
    return rates, None, coefficients, jnp.asarray(TERMS), jax.random.uniform(keys[-1], shape, jnp.float64)


def system(size: int, blocks: int) -> tuple:
    """The factors of a matrix whose columns sum to one, and a right side."""
    lower, upper, b = jax.random.uniform(jax.random.key(1), (3, size), jnp.float64)
    return factor(-lower, 1 + lower + upper, -upper, blocks), folded(b, blocks)


def difference(run: Callable, arguments: tuple) -> float:
    """How far a result is from that of the CPU, as a fraction of the largest value."""
    here = np.asarray(run(*arguments))
    cpu = jax.devices("cpu")[0]
    there = np.asarray(run(*jax.device_put(arguments, cpu)))
    worst = float(np.max(np.abs(here - there)) / np.max(np.abs(there)))
    assert worst < ROUNDING, f"GPU and CPU differ by {worst:.2g}."
    return worst


def _transients() -> list[str]:
    lines = ["| `evolve` to t = 1, rtol 1e-6 | s, whole call |", "|---|---|"]
    for n, d in ((512, 2), (64, 3)):
        run = transient(n, d)
        run()
        began = time.perf_counter()
        run()
        lines.append(f"| {n}{'²³'[d - 2]} | {time.perf_counter() - began:.3g} |")
    return lines


def transient(n: int, d: int) -> Callable[[], np.ndarray]:
    """The law of a double well in n^d cells at t = 1."""
    slope = lambda x: jnp.concatenate([x[:1] ** 3 - x[:1], x[1:]])  # noqa: E731
    process = Diffusion(lambda t, x: -slope(x), lambda t, x: jnp.sqrt(0.1))
    generator = fokker_planck.assemble(process, Grid.uniform(*[(-2.2, 2.2, n)] * d))
    start = Density.from_function(generator.grid, lambda x: jnp.exp(-12 * jnp.sum((x - 0.2) ** 2)))
    return lambda: fokker_planck.evolve(generator, start, [1.0], rtol=1e-6).densities[0].mass


def check() -> None:
    """Runs everything once at a small size, on any machine."""
    with jax.enable_x64(True):
        for shape in ((24, 20), (8, 9, 10)):
            difference(chebyshev_sum, polynomial(shape))
        difference(solve, system(1000, 16))
        law = transient(72, 2)()
        assert abs(law.sum() - 1) < 1e-12
    print(
        "Fokker-Planck: polynomials, tridiagonal systems and a transient run, on the GPU as on the CPU if there is one"
    )


def _median(run: Callable[[], Array]) -> float:
    run().block_until_ready()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        run().block_until_ready()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
