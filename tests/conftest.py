import os
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
# Two simulated devices, so that sharding is tested on any machine; must precede the first use of JAX.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"

import jax
import jaxtyping
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Execute the shape annotations: every call of a public or private function is checked.
_hook = jaxtyping.install_import_hook(["sgdsde", "solvers"], "typecheck.check")
_hook.__enter__()


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also the tests marked `slow`: further cases, long runs")


def pytest_collection_modifyitems(config, items):
    """Without --slow leave out what is marked `slow`: a whole test, or the cases of it that the mark names."""

    def is_slow(item):
        mark = item.get_closest_marker("slow")
        return mark is not None and (not mark.args or item.callspec.id in mark.args)

    if not config.getoption("--slow"):
        config.hook.pytest_deselected(items=[item for item in items if is_slow(item)])
        items[:] = [item for item in items if not is_slow(item)]


# Linux ends a process that maps more than 65530 pieces of memory, and each compiled program takes several. JAX keeps
# them all, so that one process could not run all tests.
_mappings, _most_mappings = Path("/proc/self/maps"), 20_000


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Forget compiled programs before there are too many of them for one process."""
    yield
    if _mappings.exists() and _mappings.read_bytes().count(b"\n") > _most_mappings:
        jax.clear_caches()


@pytest.fixture
def float32():
    """Run a test as users run who never touch JAX's configuration."""
    with jax.enable_x64(False):
        yield


@pytest.fixture
def unchecked():
    """Run a test as users run, with nothing that executes the annotations: our own messages must come through."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
