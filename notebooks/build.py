"""Execute the scripts in this folder into notebooks with outputs: `python notebooks/build.py [script ...]`.

The same outputs give the same bytes, so that a difference in git is a difference in results.
Needs the extra `notebook`.
"""

import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

here = Path(__file__).resolve().parent


def build(script: Path) -> None:
    """Write `script` (jupytext percent format), executed, to the `.ipynb` beside it."""
    notebook = jupytext.read(script, fmt="py:percent")
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(script.parent)}},
    ).execute()
    # Random ids, the kernel's version and jupytext's settings change without a change of content.
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i:02d}"
        cell.metadata = {"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {}
    nbformat.write(notebook, script.with_suffix(".ipynb"))


if __name__ == "__main__":
    # Full particle numbers, and figures inside the notebook.
    os.environ.pop("SGDSDE_FAST", None)
    os.environ.pop("MPLBACKEND", None)
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else sorted(here.glob("*.py")):
        if path.resolve() != Path(__file__).resolve():
            print(f"building {path.with_suffix('.ipynb')}", flush=True)
            build(path)
