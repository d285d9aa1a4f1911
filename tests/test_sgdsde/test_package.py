"""Importing sgdsde is quick, says no more than it must, and finds the right `solvers`."""

import subprocess
import sys
from pathlib import Path

import pytest

import sgdsde

root = Path(sgdsde.__file__).parents[1]


def run(code: str, *path: Path) -> subprocess.CompletedProcess:
    setup = f"import sys; sys.path[:0] = {[str(p) for p in path]!r}\n"
    return subprocess.run([sys.executable, "-c", setup + code], capture_output=True, text=True, cwd="/")


def test_import_loads_neither_jax_nor_equinox():
    done = run("import sgdsde; print([m for m in ('jax', 'equinox', 'scipy', 'matplotlib') if m in sys.modules])", root)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("imported_first", [False, True])
def test_another_solvers_is_refused(tmp_path, imported_first):
    (tmp_path / "solvers").mkdir()
    (tmp_path / "solvers" / "__init__.py").write_text("")
    done = run(("import solvers\n" if imported_first else "") + "import sgdsde", tmp_path, root)
    assert done.returncode == 1
    assert "ImportError: `sgdsde` ships with the package `solvers`" in done.stderr
    assert str(tmp_path) in done.stderr


def test_missing_solvers_is_refused(tmp_path):
    (tmp_path / "sgdsde").symlink_to(root / "sgdsde")
    code = f"sys.path[1:] = [p for p in sys.path[1:] if 'site-packages' not in p and p != {str(root)!r}]\nimport sgdsde"
    done = run(code, tmp_path)
    assert "no such package" in done.stderr


def test_names():
    assert sgdsde.SGD.__name__ == "SGD"
    assert sgdsde.noise.Constant.__name__ == "Constant"
    assert set(sgdsde.__all__) <= set(dir(sgdsde))
    assert sgdsde.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        sgdsde.nonsense  # noqa: B018
