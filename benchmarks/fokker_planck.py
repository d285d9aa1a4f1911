"""The benchmark of `solvers.fokker_planck` against FiPy, fplanck and py-pde, at equal grid and equal error in time.

    pip install fipy fplanck py-pde              next to this library, best in an environment of its own
    python benchmarks/fokker_planck.py           everything, in about 20 minutes; writes fokker_planck.md
    python benchmarks/fokker_planck.py --section transient     one section, whose part of the report is replaced
    python benchmarks/fokker_planck.py --quick   a smoke test on small grids; writes nothing

Times are CPU-seconds of one core to which the process is pinned, best of several in turns, so that other users of the
machine disturb little; compilation, which happens once for each shape, is given by itself.
"""

import argparse
import importlib
import time

import measure

# Section: heading and function in `fokker_planck_speed`.
SECTIONS = {
    "transient": ("A transient to 8e-4", "transient"),
    "step": ("One implicit step", "implicit_step"),
    "pypde": ("py-pde", "against_py_pde"),
    "fplanck": ("fplanck", "against_fplanck"),
    "line": ("Tridiagonal systems", "tridiagonal"),
    "multigrid": ("Iterations with multigrid", "multigrid_iterations"),
    "growth": ("Growth with the number of cells, and the memory's limit", "growth"),
    "irreversible": ("Without detailed balance", "irreversible"),
    "space": ("Three dimensions", "space"),
}
REPORT = measure.HERE / "fokker_planck.md"
PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "fipy", "fplanck", "py-pde")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", choices=SECTIONS, action="append", help="only this one; may be repeated")
    parser.add_argument("--quick", action="store_true", help="a smoke test, which writes nothing")
    args = parser.parse_args()
    measure.pin()
    module = importlib.import_module("fokker_planck_speed")
    for name in args.section or SECTIONS:
        heading, function = SECTIONS[name]
        began, load = time.perf_counter(), measure.now()
        text = getattr(module, function)(args.quick)
        part = f"*{load}; library {measure.commit()}; {time.perf_counter() - began:.0f} s*\n\n{text}"
        print(f"\n## {heading}\n\n{part}", flush=True)
        if not args.quick:
            parts = measure.parts(REPORT.read_text()) if REPORT.exists() else {}
            REPORT.write_text(_report(parts | {heading: part}))


def _report(parts: dict[str, str]) -> str:
    head = "# Benchmark of `solvers.fokker_planck`\n\nWritten by `python benchmarks/fokker_planck.py`.\n\n"
    sections = [f"## {h}\n\n{parts[h].strip()}" for h, _ in SECTIONS.values() if h in parts]
    return "\n\n".join([head + measure.machine(PACKAGES), *sections]) + "\n"


if __name__ == "__main__":
    main()
