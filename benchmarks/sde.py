"""The benchmark of `solvers.sde`: speed against diffrax and plain JAX, and the quality of laws and random numbers.

    python benchmarks/sde.py                     everything, in about 20 minutes; writes sde.md and sampling.png
    python benchmarks/sde.py --quick             a smoke test in less than a minute; writes nothing
    python benchmarks/sde.py --section random    one section; with --write its part of sde.md is replaced

Times are CPU-seconds of one core to which the process is pinned, so that other users of the machine disturb little.
"""

import argparse
import importlib
import json
import os
import time

import measure

# Section: heading, module and function.
SECTIONS = {
    "throughput": ("Throughput", "speed", "throughput"),
    "budget": ("What a step is made of", "speed", "budget"),
    "streaming": ("The price of observables", "speed", "streaming"),
    "ensembles": ("Small ensembles", "speed", "ensembles"),
    "compile": ("Compile time", "speed", "compilation"),
    "cores": ("Two cores", "speed", "cores"),
    "sampling": ("Sampling: bias per gradient", "laws", "sampling"),
    "random": ("Random numbers", "laws", "random_numbers"),
    "law": ("The law at scale", "laws", "law"),
    "kills": ("Kills", "kills", "kills"),
}
REPORT, README = measure.HERE / "sde.md", measure.HERE.parent / "README.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", choices=SECTIONS, action="append", help="only this one; may be repeated")
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    parser.add_argument("--write", action="store_true", help="write the report also if this is not the full run")
    parser.add_argument("--probe", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.probe:
        return _probe(*args.probe)
    measure.pin()
    written = args.write or not (args.quick or args.section)
    parts = measure.parts(REPORT.read_text()) if REPORT.exists() else {}
    for name in args.section or SECTIONS:
        heading, module, function = SECTIONS[name]
        began, load = time.perf_counter(), measure.now()
        text = getattr(importlib.import_module(module), function)(args.quick)
        note = f"*{load}; library {measure.commit()}; {time.perf_counter() - began:.0f} s{' (quick)' * args.quick}*"
        parts[heading] = f"{note}\n\n{text}"
        print(f"\n## {heading}\n\n{parts[heading]}", flush=True)
        if written:
            REPORT.write_text(_report(parts))
            README.write_text(_readme(README.read_text(), parts))
    return None


def _report(parts: dict[str, str]) -> str:
    head = "# Benchmark of `solvers.sde`\n\nWritten by `python benchmarks/sde.py`.\n\n" + measure.machine()
    sections = [f"## {h}\n\n{parts[h].strip()}" for h, _, _ in SECTIONS.values() if h in parts]
    return "\n\n".join([head, *sections]) + "\n"


def _readme(readme: str, parts: dict[str, str]) -> str:
    """The README with a short form of the table of throughputs between its marks."""
    rates, ratios, *_ = _tables(parts["Throughput"])
    rows = [
        [name, rate.split()[0], diffrax.split()[0], naive.split()[0]]
        for (name, rate, *_), (_, diffrax, _, _, naive, _) in zip(rates, ratios, strict=True)
    ]
    table = measure.table(("float32 unless said", "M path-steps/s", "diffrax", "scan"), rows)
    before, mark, rest = readme.partition("<!-- throughput -->\n")
    _, end, after = rest.partition("<!-- end -->")
    return f"{before}{mark}{table}\n{end}{after}"


def _tables(text: str) -> list[list[list[str]]]:
    """The rows of the tables of a text, without their heads."""
    tables: list[list[list[str]]] = []
    for block in text.split("\n\n"):
        if block.startswith("|"):
            tables.append([[cell.strip() for cell in row.strip("|").split(" | ")] for row in block.splitlines()[2:]])
    return tables


def _probe(name: str, *args: str) -> None:
    """What sections ask of a fresh process: one result on the last line of the output."""
    if name == "cores":
        os.sched_setaffinity(0, set(range(int(args[0]))))
    elif name != "killed":
        measure.pin()
    module = importlib.import_module("kills" if name == "killed" else "speed")
    print(json.dumps(module.PROBES[name](*args)))


if __name__ == "__main__":
    main()
