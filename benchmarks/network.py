"""The benchmark of real networks: a step of SGD's process with the exact covariance of minibatches, against a gradient.

    python benchmarks/network.py           in some ten minutes; writes network.md
    python benchmarks/network.py --quick   a smoke test on small networks; writes nothing

Both in the same process on one core, in turns; CPU-seconds of long runs less those of runs half as long, so that
compilation and what happens once do not count.
"""

import argparse
import statistics

import measure

REPORT = measure.HERE / "network.md"
PACKAGES = ("jax", "jaxlib", "equinox", "numpy")
BATCH, TARGET = 32, 2.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke test, which writes nothing")
    quick = parser.parse_args().quick
    measure.pin()
    # Width, depth and number of examples of a perceptron from 64 numbers to 10 classes.
    sizes = [(8, 1, 64)] if quick else [(8, 1, 128), (64, 2, 512), (256, 2, 1024)]
    paths = (1, 4) if quick else (1, 4, 16)
    load, rows = measure.now(), [row(*size, paths, quick) for size in sizes]
    head = ["parameters", "examples", "a gradient", *(f"{n} path{'s' * (n > 1)}" for n in paths), "of its memory"]
    report = (
        "# Benchmark of real networks\n\nWritten by `python benchmarks/network.py`.\n\n"
        + measure.machine(PACKAGES)
        + f"\n\n*{load}*\n\nEuler-Maruyama with `noise.Minibatch` of {BATCH} examples on a perceptron with softmax and "
        "cross-entropy, float32, through `simulate`: CPU time of a step of one path in multiples of one full-batch "
        "`jax.grad` in a `lax.fori_loop`, medians of turns; and the memory of the compiled step of one path in "
        "multiples of that of the compiled gradient, data apart, as the compiler reports it. Target: at most "
        f"{TARGET:g}.\n\n"
        + measure.table(head, rows)
        + "\n\nDrift and noise of one loss are one weighted backward pass, to which a step adds a normal number for "
        "each example.\n"
    )
    print(report)
    if not quick:
        REPORT.write_text(report)


def row(width: int, depth: int, examples: int, paths: tuple[int, ...], quick: bool) -> list[str]:
    import equinox as eqx
    import jax
    import numpy as np

    import sgdsde as sg

    rng = np.random.default_rng(0)
    data = rng.normal(size=(examples, 64)).astype(np.float32), rng.integers(0, 10, examples)
    network = eqx.nn.MLP(64, 10, width, depth, key=jax.random.key(0))
    loss = sg.losses.from_model(network, lambda z, y: jax.nn.logsumexp(z) - z[y], data)
    model = sg.SGD(loss, sg.noise.Minibatch(loss, BATCH), learning_rate=0.1)
    descend = jax.jit(lambda x, n: jax.lax.fori_loop(0, n, lambda _, x: x - 1e-3 * jax.grad(loss)(x), x))
    gradients = lambda n: jax.block_until_ready(descend(loss.x0, n))  # noqa: E731
    runs = {p: stepper(model, p) for p in paths}
    n = measure.calibrated(lambda steps, _: gradients(steps), 0.2 if quick else 0.3)
    multiples, each = {p: [] for p in paths}, []
    for _ in range(2 if quick else 3):
        each.append(slope(gradients, n))
        for p, run in runs.items():
            multiples[p].append(slope(run, max(4, n // p)) / p / each[-1])
    medians = [statistics.median(multiples[p]) for p in paths]
    gradient = f"{1e3 * statistics.median(each):.2f} ms"
    return [f"{loss.x0.size:,}", f"{examples:,}", gradient, *map(verdict, medians), verdict(memory(model, loss))]


def stepper(model, paths: int):
    """A function that simulates so many steps."""
    from solvers import sde

    def run(steps: int) -> None:
        sde.simulate(
            model, sde.EulerMaruyama(), model.loss.x0, t1=0.01 * steps, dt=0.01, key=0, paths=paths, progress=False
        )

    return run


def slope(run, steps: int) -> float:
    """CPU-seconds of one of `steps` steps, at the margin."""
    run(steps), run(2 * steps)
    short, long = (min(measure.cpu_seconds(run, n) for _ in range(2)) for n in (steps, 2 * steps))
    return (long - short) / steps


def memory(model, loss) -> float:
    """The memory for a step over that for a gradient."""
    import jax
    import jax.numpy as jnp

    def temporary(function, *args) -> int:
        return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes

    dw = jnp.zeros(model.noise(0.0, loss.x0).in_size(), loss.x0.dtype)
    step = temporary(lambda x, dw: model.euler(jnp.zeros(()), x, jnp.asarray(0.01, x.dtype), dw), loss.x0, dw)
    return step / temporary(jax.grad(loss), loss.x0)


def verdict(multiple: float) -> str:
    return f"{measure.significant(multiple)}x ({'pass' if multiple <= TARGET else '**fail**'})"


if __name__ == "__main__":
    main()
