"""The notebooks run, say what is true, and show what their scripts compute."""

import runpy
import sys
from pathlib import Path

import jax
import jupytext
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
SCRIPTS = sorted(p for p in FOLDER.glob("*.py") if p.name != "build.py")

if not SCRIPTS:
    pytest.skip("there are no notebooks yet", allow_module_level=True)

each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)


def _code(notebook):
    return [c.source for c in notebook.cells if c.cell_type == "code"]


@pytest.fixture
def as_users_run(monkeypatch, tmp_path):
    """JAX's own defaults, small particle numbers, and a folder that may be written to."""
    monkeypatch.setenv("SGDSDE_FAST", "1")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)
    defaults = {"jax_enable_x64": False, "jax_numpy_dtype_promotion": "standard"}
    before = {name: getattr(jax.config, name) for name in defaults}
    for name, value in defaults.items():
        # Not a context manager: the notebook's own `jax.config.update` must have its effect.
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


# `plt.show()` is right in a notebook; the backend of the tests has no window.
@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
@each_script
def test_script_runs(script, as_users_run):
    runpy.run_path(str(script), run_name="__main__")


@each_script
def test_last_cell_asserts_what_the_text_claims(script):
    assert "assert" in _code(jupytext.read(script, fmt="py:percent"))[-1]


@each_script
def test_notebook_shows_the_script(script):
    path = script.with_suffix(".ipynb")
    assert path.exists(), f"build it: python notebooks/build.py notebooks/{script.name}"
    notebook = jupytext.read(path)
    assert _code(notebook) == _code(jupytext.read(script, fmt="py:percent")), (
        f"{path.name} is older than its script: python notebooks/build.py notebooks/{script.name}"
    )
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert outputs
    for output in outputs:
        assert output.output_type != "error"
        # Warnings would be shown to every reader.
        assert output.get("name") != "stderr", output.text


def test_every_notebook_has_its_script():
    assert {p.stem for p in FOLDER.glob("*.ipynb")} <= {p.stem for p in SCRIPTS}
