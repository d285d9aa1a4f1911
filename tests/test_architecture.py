"""What holds for the project as a whole: imports, dependencies, public names, and a JAX that computes correctly."""

import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text().splitlines()


def _python(code):
    """A fresh interpreter, as a user starts one: no test configuration, no JAX yet."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


# Imports


def test_import_rules():
    """The contracts are in pyproject.toml."""
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run(
        [linter, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=120
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 kept, 0 broken" in result.stdout


def test_import_loads_nothing_heavy():
    result = _python("import sys, sgdsde, solvers; print(*{name.partition('.')[0] for name in sys.modules})")
    assert result.returncode == 0, result.stderr
    heavy = {"diffrax", "equinox", "jax", "jaxlib", "lineax", "matplotlib", "numpy", "pandas", "scipy", "xarray"}
    assert not heavy & set(result.stdout.split())


def test_matplotlib_is_loaded_only_for_a_plot():
    result = _python(
        "import sys, sgdsde, solvers\n"
        "[getattr(package, name) for package in (sgdsde, solvers) for name in package.__all__]\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    assert result.returncode == 0, result.stderr
    assert not {"matplotlib", "pandas", "xarray"} & set(result.stdout.split())


def test_using_the_library_leaves_the_configuration_of_jax_alone():
    result = _python(
        "import jax\n"
        "before = dict(jax.config.values)\n"
        "import sgdsde, solvers\n"
        "[getattr(package, name) for package in (sgdsde, solvers) for name in package.__all__]\n"
        "after = dict(jax.config.values)\n"
        "print({name: after[name] for name in before if after[name] != before[name]})"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "{}"


# Public names


def _offers(module):
    """The public names of a module: those it lists, or those it defines or imports from the two packages."""
    if hasattr(module, "__all__"):
        return {name: getattr(module, name) for name in module.__all__}
    names = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return {n: v for n, v in names.items() if getattr(v, "__module__", "").startswith(("sgdsde", "solvers"))}


def _undocumented(name, value):
    # A dataclass without a docstring gets its signature for one.
    if not (value.__doc__ or "").strip() or value.__doc__.startswith(f"{name.rpartition('.')[2]}("):
        yield name
    if inspect.ismodule(value):
        for inner, offered in _offers(value).items():
            yield from _undocumented(f"{name}.{inner}", offered)
    if inspect.isclass(value):
        for inner in vars(value):
            method = getattr(value, inner)
            public = not inner.startswith("_") and (inspect.isroutine(method) or isinstance(method, property))
            # `getdoc` finds the docstring of an override where the method is declared.
            if public and not inspect.getdoc(method):
                yield f"{name}.{inner}"


@pytest.mark.parametrize("package", ["sgdsde", "solvers"])
def test_every_public_name_exists_and_is_documented(package):
    assert list(_undocumented(package, importlib.import_module(package))) == []


@pytest.mark.parametrize("package", ["sgdsde", "solvers"])
def test_unknown_names_are_attribute_errors(package):
    module = importlib.import_module(package)
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'no_such_name'"):
        _ = module.no_such_name


# Dependencies


def _requirements(name):
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return [r for group in groups for r in map(Requirement, group) if r.name == name]


@pytest.mark.parametrize("name", ["jax", "jaxlib"])
def test_the_release_with_wrong_numbers_is_excluded_everywhere(name):
    requirements = _requirements(name)
    assert requirements
    for requirement in requirements:
        assert not requirement.specifier.contains("0.10.2"), requirement
        assert requirement.specifier.contains("0.10.1"), requirement
    assert not [line for line in CONSTRAINTS if line.startswith(f"{name}==0.10.2")]


def test_constraints_are_names_and_versions_only():
    """No address, no hash, no option: the file must work wherever packages come from."""
    marker = r"[\w'.]+( not in| in| ==| !=| <=?| >=?) [\w'.]+"
    line_form = re.compile(rf"[a-z0-9-]+==[0-9][0-9a-z.]*( ; \(?{marker}( (and|or) \(?{marker}\)?)*)?")
    assert not [line for line in CONSTRAINTS if not line_form.fullmatch(line)]


def test_constraints_pin_a_permitted_version_of_every_direct_requirement():
    pins = [Requirement(line) for line in CONSTRAINTS]
    groups = PROJECT["optional-dependencies"]
    for requirement in map(Requirement, PROJECT["dependencies"] + groups["test"] + groups["notebook"]):
        versions = [next(iter(p.specifier)).version for p in pins if p.name == requirement.name]
        assert versions, f"constraints.txt has no {requirement.name}"
        assert all(requirement.specifier.contains(v) for v in versions), requirement


def test_nothing_depends_on_the_machine_it_was_written_on():
    """Outside the tests, no file names a folder of a developer's machine or an address of packages."""
    local = re.compile(
        r"(?<![\w+/.=])/(work|tmp|opt|root|home|Users)/|file://|https?://\S+/simple\b|find-links|index-url"
    )
    kinds = {"", ".py", ".toml", ".md", ".txt", ".cff", ".ipynb", ".yml", ".yaml", ".csv", ".json"}
    skipped = {"tests", "__pycache__", "build", "dist"}
    found = []
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        hidden = any(p.startswith(".") and p != ".ci" for p in parts[:-1])
        if path.suffix not in kinds or hidden or skipped & set(parts) or not path.is_file():
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        found += [f"{path.relative_to(ROOT)}:{i}: {s[:120]}" for i, s in enumerate(lines, 1) if local.search(s)]
    assert not found


def test_readme_gives_the_command_of_the_tests_that_ci_runs():
    """`.ci/run` reads it from there; it must start from Python alone and end with the tests."""
    blocks = re.findall(r"^<!-- tests -->\n```\w*\n(.*)\n```$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(blocks) == 1
    steps = blocks[0].split(" && ")
    assert steps[0].startswith("python3 -m venv .venv")
    assert '-c constraints.txt -e ".[test]"' in steps[1]
    assert steps[-1].startswith(".venv/bin/pytest")
    assert "<!-- tests -->" in (ROOT / ".ci" / "run").read_text()


# JAX


def test_jax_computes_least_squares_correctly():
    """jaxlib 0.10.2 compiles `jit(vmap(...))` of |A w|² wrongly on CPU, without a warning (jax issue 39103).

    At n = 16385 paths in d = 3 with float64 it mixes up paths: a loss over an ensemble is then another function. With
    A the identity and w = (i, 0, 0) the answer is the whole number i², so every path must be exact.
    """
    n, d = 16_385, 3
    matrix = jnp.eye(d)
    w = jnp.zeros((n, d)).at[:, 0].set(jnp.arange(n, dtype=float))
    assert w.dtype == np.float64
    got = jax.jit(jax.vmap(lambda w: jnp.sum((matrix @ w) ** 2)))(w)
    np.testing.assert_array_equal(got, np.arange(n, dtype=float) ** 2)


def test_the_jaxlib_with_wrong_numbers_is_refused():
    result = _python(
        "import importlib.metadata as metadata\n"
        "version = metadata.version\n"
        "metadata.version = lambda name: '0.10.2' if name == 'jaxlib' else version(name)\n"
        "import solvers"
    )
    assert result.returncode == 1
    assert (
        "ImportError: jaxlib 0.10.2 returns silently wrong numbers on CPU (jax issue 39103). "
        'Install another release, for example: pip install "jax==0.10.1" "jaxlib==0.10.1".'
    ) in result.stderr
