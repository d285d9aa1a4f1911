"""Measuring on a machine that others use too: CPU-seconds of one core, contestants in turns, medians of ratios."""

import gc
import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent


def pin() -> int:
    """Keeps this process on one core. Before JAX is imported: its threads are as many as there are cores."""
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def cpu_seconds(fn: Callable, *args) -> float:
    gc.collect()
    began = time.process_time()
    fn(*args)
    return time.process_time() - began


def calibrated(run: Callable, budget: float, most: int = 1 << 24) -> int:
    """Steps, a power of two, for which `run(steps, seed)` takes about `budget` CPU-seconds."""
    steps = min(64, most)
    run(steps, 0)  # compiles
    while cpu_seconds(run, steps, 0) < budget / 1.5 and steps < most:
        steps *= 2
    return steps


def rates(runs: dict[str, tuple[Callable, int, int]], rounds: int) -> dict[str, list[float]]:
    """Work per CPU-second of each `run(steps, seed)` that advances so many paths, taken in turns.

    Turns are short against changes of the load, so that ratios within one round are fair.
    """
    result: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name, (run, steps, paths) in runs.items():
            result[name].append(steps * paths / cpu_seconds(run, steps, turn + 1))
    return result


def ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def rate_text(values: list[float]) -> str:
    return f"{significant(statistics.median(values) / 1e6)} ({significant(max(values) / 1e6)})"


def significant(x: float) -> str:
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.1f}" if abs(x) >= 10 else f"{x:.2f}"


def verdict(reached: float, target: float | None) -> str:
    if target is None:
        return f"{significant(reached)}x"
    return f"{significant(reached)}x (target {target:g}x: {'pass' if reached >= target else '**fail**'})"


def table(header: Iterable[str], rows: Iterable[Iterable]) -> str:
    def line(cells):
        return "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"

    header = list(header)
    return "\n".join([line(header), line(["---"] * len(header)), *map(line, rows)])


def machine(packages: Iterable[str] = ("jax", "jaxlib", "diffrax", "equinox", "numpy")) -> str:
    """What was measured with: one Markdown table. Each section says on which CPU it was, for they may be run apart."""
    rows = [
        ("system", platform.platform()),
        ("python", platform.python_version()),
        *((name, importlib.metadata.version(name)) for name in packages),
        ("this library", commit()),
    ]
    return table(("", ""), rows)


def parts(report: str) -> dict[str, str]:
    """The sections of a report by their headings."""
    return {h: text for h, _, text in (part.partition("\n") for part in report.split("\n## ")[1:])}


def commit() -> str:
    """The commit of this library, and whether its files differ from it."""
    head = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--", "solvers", "sgdsde")
    return (head or "not a git clone") + (" with uncommitted changes" if changed else "")


def now() -> str:
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {cpu_model()}, {os.cpu_count()} cores, load {load}"


def _git(*args: str) -> str:
    return subprocess.run(["git", *args], cwd=HERE.parent, capture_output=True, text=True, check=False).stdout.strip()


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    name = fields.get("model name", platform.processor())
    family = f" (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else ""
    return name + family + (", AVX-512" if "avx512f" in fields.get("flags", "") else "")
