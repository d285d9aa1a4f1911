"""Results in files: `load` gives back what `result.save(path)` wrote, and refuses anything else.

A file is a NumPy archive (`np.load` opens it, and `np.load(path)["final"]` is the array of that name) with one more
member, `result.json`: the format's version, the tree of objects that the result is, and the sha256 of each array. The
archive ends with a comment, the sha256 of all bytes before it in 64 hexadecimal digits, so that a change of any byte is
seen. Members are stored as they are, in one order and without a time: equal results make equal files.

Nothing in a file is executed. There are no pickles, and an object is of a class of this package, or of the packages
that the caller of `load` names, made from its fields as any caller would make it.
"""

import dataclasses
import hashlib
import importlib
import inspect
import io
import json
import os
import re
import uuid
import zipfile
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer

from .process import AbstractDiffusion

# Raised with every change of the layout; older versions stay readable.
FORMAT = 1

_manifest = "result.json"
_digest_size = 64

# What an array may hold, as the kind of its dtype: booleans, integers, floats and complex numbers.
_kinds = "biufc"

# Trees deeper than any result's would end in a RecursionError.
_most_depth = 50

# Classes that are no longer where they were when files were written: "old.module.Name": "new.module.Name".
_moved: dict[str, str] = {}

_class_name = re.compile(r"[a-z_]\w*(\.\w+)+", re.ASCII)


class NotSaved(eqx.Module):
    """What a file can't hold, in the place of a function or a process: a description of it."""

    description: str = eqx.field(static=True)

    def __call__(self, *arguments: Any) -> Any:
        """Raises `TypeError`."""
        raise TypeError(f"{self} Compute the result anew where it is needed.")

    def __str__(self) -> str:
        return f"{self.description} was not saved with this result: functions are not written to files."


def save(result: Any, path: str | os.PathLike[str]) -> Path:
    """Writes a result to `path`, with the ending .npz if it has none, and returns that.

    The file gets its name when it is complete and on the disk: one of that name is replaced at that moment or not at
    all. Raises `OSError` if it can't be written, and `TypeError` for a result that holds what JAX traces.
    """
    path = Path(path)
    path = path if path.suffix else path.with_suffix(".npz")
    content = packed(result)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(scratch, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        raise OSError(
            error.errno,
            f"`path`: a result of {len(content):,} bytes could not be saved to {path}: {error.strerror}. Free space or "
            "change permissions, or choose another directory",
        ) from error
    finally:
        scratch.unlink(missing_ok=True)
    return path


def load(path: str | os.PathLike[str], packages: tuple[str, ...] = ("solvers",)) -> Any:
    """The result that was saved to the file `path`, of a class in one of the `packages`.

    Functions and processes are not in files: see `NotSaved`. Raises `ValueError` for a file that is damaged, not of a
    result, of a newer version of the format, or of another package, saying which; `OSError` if it can't be read.
    """
    return _Reader(path, packages).result()


def packed(result: Any) -> bytes:
    """The bytes of the file of a result."""
    arrays: dict[str, np.ndarray] = {}
    tree = _encoded(result, "", arrays)
    members = {f"{name}.npy": _array_bytes(array) for name, array in arrays.items()}
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    manifest = {"format": FORMAT, "result": tree, "sha256": sums}
    text = json.dumps(manifest, ensure_ascii=False, allow_nan=False, indent=1).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in [(_manifest, text), *members.items()]:
            archive.writestr(zipfile.ZipInfo(name), data)
        archive.comment = b"0" * _digest_size
    body = buffer.getvalue()[:-_digest_size]
    return body + hashlib.sha256(body).hexdigest().encode()


def differences(a: Any, b: Any) -> list[str]:
    """The places in two results at which they are not the same to the last bit; how long they took does not count."""
    arrays: tuple[dict, dict] = {}, {}
    leaves: tuple[dict, dict] = {}, {}
    for result, of_arrays, of_leaves in zip((a, b), arrays, leaves, strict=True):
        _collect(_encoded(result, "", of_arrays), "", of_leaves)
    content = [{name: _array_bytes(a) for name, a in found.items()} for found in arrays]
    return [name for x, y in (leaves, content) for name in sorted(x.keys() | y.keys()) if x.get(name) != y.get(name)]


# Fields that differ each time.
_passing = {"provenance", "seconds"}


def _collect(tree: Any, name: str, found: dict[str, Any]) -> None:
    """All that is no array in an encoded tree, by its place; without what differs each time."""
    if isinstance(tree, dict):
        parts = tree.get("fields", tree).items()
    elif isinstance(tree, list):
        parts = enumerate(tree)
    else:
        found[name] = tree
        return
    for key, part in parts:
        if key not in _passing:
            _collect(part, f"{name}.{key}" if name else str(key), found)


def _array_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _encoded(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """JSON for a value; arrays go to `arrays`, under the name of their place in the tree."""
    if isinstance(value, Tracer):
        raise TypeError("A result whose numbers JAX traces can't be saved: save it outside `jit`, `grad` and `vmap`.")
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else {"float": repr(value)}
    if isinstance(value, np.ndarray | jax.Array):
        array = np.asarray(value)
        if array.dtype.kind not in _kinds:
            raise TypeError(f"`{name}` must hold numbers or booleans to be saved, got dtype {array.dtype}.")
        # Two names may become one when what is no letter or digit is left out.
        name = name if name not in arrays else f"{name}.{len(arrays)}"
        arrays[name] = array
        return {"array": name}
    if isinstance(value, list | tuple):
        parts = [_encoded(part, _below(name, k), arrays) for k, part in enumerate(value)]
        return parts if isinstance(value, list) else {"tuple": parts}
    if isinstance(value, dict):
        return {"dict": [[key, _encoded(part, _below(name, key), arrays)] for key, part in value.items()]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type | AbstractDiffusion | NotSaved):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        fields = {f.name: getattr(value, f.name) for f in _saved_fields(type(value))}
        return {"object": kind, "fields": {k: _encoded(part, _below(name, k), arrays) for k, part in fields.items()}}
    description = value.description if isinstance(value, NotSaved) else getattr(value, "__name__", None)
    return {"not saved": description or type(value).__name__}


def _saved_fields(kind: type) -> list[dataclasses.Field]:
    """Fields of a class, but those that are marked with `metadata={"saved": False}`."""
    return [f for f in dataclasses.fields(kind) if f.init and f.metadata.get("saved", True)]


def _below(name: str, part: Any) -> str:
    # Names of observables are the user's: with all else than letters and digits they would be paths in the archive.
    text = re.sub(r"\W", "_", str(part))
    return f"{name}.{text}" if name else text


class _Refused(ValueError):
    """A file in order that is not for this reader; its message is for the user."""


class _Malformed(Exception):
    """What the manifest says makes no sense."""


# What reading a manifest that makes no sense may end in.
_wrong = (
    _Malformed,
    AttributeError,
    EOFError,
    KeyError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
)


class _Reader:
    """One file on its way to a result."""

    def __init__(self, path: str | os.PathLike[str], packages: tuple[str, ...]):
        self.path, self.packages = Path(path), packages
        data = self.path.read_bytes()
        self._check(data)
        self.data = data

    def result(self) -> Any:
        try:
            self.archive = zipfile.ZipFile(io.BytesIO(self.data))
            manifest = json.loads(self._member(_manifest))
            if type(manifest["format"]) is not int or manifest["format"] < 1:
                raise _Malformed(f"its version is {manifest['format']!r}")
            if manifest["format"] > FORMAT:
                raise _Refused(
                    f"`path`: {self.path} has version {manifest['format']} of the format, and this library reads up to "
                    f"{FORMAT}. Update the library."
                )
            self.sums = manifest["sha256"]
            result = self._decoded(manifest["result"], 0)
        except _Refused:
            raise
        except _wrong as error:
            raise ValueError(
                f"`path`: {self.path} is not in order: {error}. Its checksum is right: it was not written by `save`, "
                "or by a version of this library with other results."
            ) from error
        return result

    def _check(self, data: bytes) -> None:
        if data[:4] != b"PK\x03\x04":
            raise ValueError(
                f"`path`: {self.path} is not the file of a result: it does not begin as one, or is damaged."
            )
        body, digest = data[:-_digest_size], data[-_digest_size:]
        if hashlib.sha256(body).hexdigest().encode() != digest:
            raise ValueError(
                f"`path`: {self.path} is damaged, or was not written by `save`: its {len(data):,} bytes do not end "
                "with their sha256. Fetch it again, or compute the result anew."
            )

    def _member(self, name: str) -> bytes:
        info = self.archive.getinfo(name)
        # Stored members are no larger than the file.
        if info.compress_type != zipfile.ZIP_STORED:
            raise _Malformed(f"{name} is compressed")
        return self.archive.read(info)

    def _decoded(self, tree: Any, depth: int) -> Any:
        if depth > _most_depth:
            raise _Malformed(f"it is deeper than {_most_depth} levels")
        if isinstance(tree, list):
            return [self._decoded(part, depth + 1) for part in tree]
        if not isinstance(tree, dict):
            return tree
        if "array" in tree:
            return self._array(tree["array"])
        if "float" in tree:
            return float(tree["float"])
        if "tuple" in tree:
            return tuple(self._decoded(part, depth + 1) for part in tree["tuple"])
        if "dict" in tree:
            return {key: self._decoded(part, depth + 1) for key, part in tree["dict"]}
        if "not saved" in tree:
            return NotSaved(str(tree["not saved"]))
        return self._object(tree["object"], tree["fields"], depth)

    def _array(self, name: str) -> np.ndarray:
        data = self._member(f"{name}.npy")
        if hashlib.sha256(data).hexdigest() != self.sums[f"{name}.npy"]:
            raise _Malformed(f"the sha256 of the array {name!r} is another one")
        array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        if array.dtype.kind not in _kinds:
            raise _Malformed(f"the array {name!r} holds {array.dtype}")
        return array

    def _object(self, name: str, fields: dict[str, Any], depth: int) -> Any:
        kind = self._class(_moved.get(name, name))
        known = {f.name for f in _saved_fields(kind)}
        if unknown := set(fields) - known:
            raise _Malformed(f"{name} has no {sorted(unknown)}")
        # Fields that came later than the file have defaults.
        given = {k: self._decoded(part, depth + 1) for k, part in fields.items()}
        return kind(**given)

    def _class(self, name: str) -> type:
        if not _class_name.fullmatch(name) or name.partition(".")[0] not in self.packages:
            raise _Refused(
                f"`path`: {self.path} holds a {name}, which is not of {' or '.join(self.packages)}. Results of "
                "`sgdsde` are read by `sgdsde.load`."
            )
        home, _, last = name.rpartition(".")
        try:
            kind = getattr(importlib.import_module(home), last)
        except ImportError as error:
            raise _Malformed(f"there is no {name}") from error
        if not inspect.isclass(kind) or not dataclasses.is_dataclass(kind) or kind.__module__ != home:
            raise _Malformed(f"{name} is not a class of results")
        return kind
