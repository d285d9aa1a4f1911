"""Where a result comes from: versions, platform, dtype, key, and the process by the hash of what it computes."""

import datetime
import functools
import hashlib
import importlib.metadata
import inspect
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from ._tracing import Static, is_traced
from .process import AbstractDiffusion

_Function = TypeVar("_Function", bound=Callable)

# What decides the numbers, beside the call itself. `sgdsde` is the name under which this package is installed.
_packages = ("sgdsde", "jax", "jaxlib", "numpy", "scipy", "equinox", "lineax", "diffrax")

# Where Python puts objects in memory says nothing about what they are.
_address = re.compile(r"0x[0-9a-f]+")


@dataclass(frozen=True)
class Provenance:
    """What a result was computed by and from.

    `process` is the name of its class and a hash of the operations and numbers in its drift and noise, or of the loss
    of an optimiser; the same process gives the same hash on one version of JAX. `key` is the seed, or the words of a
    `jax.random.key`. Two are equal if all but the time of day and the time that it took, `seconds`, is.
    """

    call: str
    process: str
    key: tuple[int, ...] | None
    dtype: str
    platform: str
    versions: tuple[tuple[str, str], ...]
    seconds: float = field(compare=False)
    created: str = field(compare=False)

    @property
    def brief(self) -> str:
        """What is said with every result: the rest is in the fields."""
        key = "" if self.key is None else f", key {' '.join(map(str, self.key))}"
        return f"{self.process} in {self.dtype}{key}, {self.seconds:.2f} s in all, jax {dict(self.versions)['jax']}"

    def __str__(self) -> str:
        key = "" if self.key is None else f", key {' '.join(map(str, self.key))}"
        versions = ", ".join(f"{name} {version}" for name, version in self.versions)
        return (
            f"{self.call} of {self.process} in {self.dtype}{key}, {self.seconds:.2f} s in all on {self.platform} at "
            f"{self.created}; {versions}"
        )


def recorded(of: str) -> Callable[[_Function], _Function]:
    """For a public function whose result has `provenance`: measures its time, and fills that in.

    `of` is the argument that holds the process, or something with one. Its dimension is that of the grid, or else of
    the argument `x0`, and the dtype that of `x0`, or else float64. Nothing is recorded while JAX traces a result.
    """

    def decorate(solve: _Function) -> _Function:
        parameters = inspect.signature(solve)

        @functools.wraps(solve)
        def timed(*args, **kwargs):
            began = time.perf_counter()
            result = solve(*args, **kwargs)
            if is_traced(result):
                return result
            seconds = time.perf_counter() - began
            given = parameters.bind(*args, **kwargs).arguments
            subject: Any = given[of]
            x0: Any = given.get("x0")
            grid = given.get("grid", getattr(subject, "grid", getattr(given.get("p"), "grid", None)))
            return replace(
                result,
                provenance=provenance_of(
                    f"{solve.__module__.rpartition('.')[0]}.{solve.__name__}",
                    getattr(subject, "process", subject),
                    np.shape(x0)[-1] if grid is None else grid.ndim,
                    np.float64 if x0 is None else np.asarray(x0).dtype,
                    given.get("key"),
                    seconds,
                ),
            )

        return timed  # pyright: ignore[reportReturnType]

    return decorate


def provenance_of(
    call: str, subject: Any, d: int, dtype: Any, key: Any, seconds: float, beside: tuple = ()
) -> Provenance:
    """The provenance of what `call` computed of a process on R^d, or of a function of a point (d,).

    The classes and numbers of what is `beside` a function count as part of it, as those of an optimiser.
    """
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    if isinstance(subject, AbstractDiffusion):
        mark = process_fingerprint(subject, d, dtype)
    else:
        numbers, rest = eqx.partition(subject, eqx.is_array)
        others = [type(b).__name__ for b in beside], eqx.filter(beside, eqx.is_array)
        mark = fingerprint(_value, rest, numbers, jax.ShapeDtypeStruct((d,), dtype), others=others)
    return Provenance(
        call=call,
        process=f"{getattr(subject, '__name__', type(subject).__name__)} {mark}",
        key=_key(key),
        dtype=str(dtype),
        platform=_platform(),
        versions=_versions(),
        seconds=seconds,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def fingerprint(fn: Callable, rest: Any, numbers: Any, *arguments: Any, others: Any = ()) -> str:
    """A hash of what the JAX function `fn(static, numbers, *arguments)` does, its constants, `numbers`, `others`.

    `rest` holds what is no array, and comes to it as a `Static`. It is traced once for equal `rest` and equal shapes.
    """
    digest = hashlib.sha256()
    _add(digest, jax.jit(fn, static_argnums=0).trace(Static(rest), numbers, *arguments).jaxpr)
    for number in jax.tree.leaves((numbers, others)):
        _add_number(digest, number)
    return digest.hexdigest()[:16]


def process_fingerprint(process: AbstractDiffusion, d: int, dtype: Any) -> str:
    """A hash of drift and noise of a process on R^d."""
    numbers, rest = eqx.partition(process, eqx.is_array)
    t, x = jax.ShapeDtypeStruct((), dtype), jax.ShapeDtypeStruct((d,), dtype)
    return fingerprint(_drift_and_noise, rest, numbers, t, x)


def _drift_and_noise(static: Static, numbers: Any, t: Any, x: Any) -> Any:
    process = eqx.combine(numbers, static.value)
    noise = process.noise(t, x)
    return process.drift(t, x), noise.mv(jnp.ones(noise.in_size(), x.dtype))


def _value(static: Static, numbers: Any, x: Any) -> Any:
    return eqx.combine(numbers, static.value)(x)


def bytes_of(result: Any) -> str:
    """The size of all arrays in a result, for people."""
    size = float(sum(a.nbytes for a in jax.tree.leaves(result) if isinstance(a, np.ndarray | jax.Array)))
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def made_by(result: Any) -> str:
    """How long a result took and how large it is, as the end of a line; nothing where no provenance is known."""
    record = result.provenance
    return "" if record is None else f"; {record.dtype}, {record.seconds:.2g} s, {bytes_of(result)}"


def _key(key: Any) -> tuple[int, ...] | None:
    if key is None:
        return None
    if isinstance(key, int | np.integer):
        return (int(key),)
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return tuple(int(w) for w in np.asarray(data))


def _platform() -> str:
    device = jax.devices()[0]
    kind = "" if device.device_kind == device.platform else f" {device.device_kind}"
    return f"{device.platform}{kind}, {platform.system()} {platform.machine()}"


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    found = [("python", platform.python_version())]
    for name in _packages:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append((name, "not installed"))
    return tuple(found)


def _add(digest: Any, closed: ClosedJaxpr) -> None:
    digest.update(_address.sub("", str(closed.jaxpr)).encode())
    _add_constants(digest, closed)


def _add_constants(digest: Any, closed: ClosedJaxpr) -> None:
    """Constants of a program and of those that it calls: its text shows only their shapes."""
    for number in closed.consts:
        _add_number(digest, number)
    for equation in closed.jaxpr.eqns:
        for _, value in sorted(equation.params.items()):
            for part in value if isinstance(value, tuple | list) else (value,):
                if isinstance(part, ClosedJaxpr):
                    _add_constants(digest, part)


def _add_number(digest: Any, number: Any) -> None:
    if isinstance(number, jax.Array) and jnp.issubdtype(number.dtype, jax.dtypes.prng_key):
        number = jax.random.key_data(number)
    number = np.asarray(number)
    digest.update(f"{number.dtype} {number.shape}".encode() + np.ascontiguousarray(number).tobytes())
