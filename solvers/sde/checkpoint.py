"""Checkpoints on disk: a `Store` keeps the parts of a run in a directory, from which the run resumes.

Any number of processes may use one directory at a time. Below it are

    identity                    which run this is; written once
    parts/GROUP/PART-STEP.ckpt  one part after so many steps; the two newest of each part are kept
    leases/                     which worker computes which part
    tmp/                        files being written

A file is complete and on the disk before it gets its name, and older ones go only after that: what had been saved
survives a crash, a kill or a full disk at any moment. Files are (numbers little-endian)

    8 bytes  magic
    u64      version of the format
    u64      length of the file
    u64      length of the manifest
    32 bytes sha256 of all other bytes of the file
    manifest JSON: names, dtypes and shapes of the arrays, and what else there is
    arrays   raw, in the order of the manifest and in C order, without gaps

The first 64 bytes are so in every version: a file of a newer version can be told from a damaged one. Nothing in a
file is executed.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .leases import Lease, Leases, now, unique_name

# Raised with every change of the layout; older versions stay readable.
FORMAT = 1


class Store:
    """The checkpoints of one run in `directory`, which is made if it does not exist.

    `identity` is what must be equal for a run to be resumed, as JSON values. Raises `ValueError`, in terms of the
    argument `checkpoint` of the caller, if the directory belongs to a run of another identity (saying what differs),
    holds other things, or cannot be written.

    A process may be killed at any moment, and parts may be saved by several processes at a time. A part that two
    workers compute at once must come out the same in both: then it does not matter whose file remains.
    """

    def __init__(self, directory: str | os.PathLike[str], identity: dict[str, Any], stale_seconds: float = 30.0):
        if not isinstance(directory, str | os.PathLike):
            raise TypeError(f"`checkpoint` must be the path of a directory, got {directory!r}.")
        self.directory = Path(directory)
        self._scratch, self._parts = self.directory / "tmp", self.directory / "parts"
        self._leases = Leases(self.directory / "leases", self._scratch, stale_seconds)
        self._identity = hashlib.sha256(_json(identity)).hexdigest()
        self._good: dict[int, int] = {}
        try:
            self._open(json.loads(_json(identity)))
            self._clean()
        except OSError as error:
            raise ValueError(
                f"`checkpoint` must be a directory in which files can be made, but for {self.directory} the system "
                f"says: {error}. Free space or change permissions, or choose another directory."
            ) from error

    def save(self, part: int, step: int, arrays: dict[str, np.ndarray], meta: dict[str, Any] | None = None) -> None:
        """Saves a part after so many steps; when this returns, it is on the disk.

        Arrays are of booleans, integers or floats, of any shape. Their names may have folders, as in "observed/p/0",
        which mean nothing here. `meta` holds JSON values. Raises `OSError` if it cannot be written, for example to a
        full disk; what had been saved is intact then.
        """
        if part < 0 or step < 0:
            raise ValueError(f"`part` and `step` must not be negative, got {part} and {step}.")
        pieces = _pack({"identity": self._identity, "part": part, "step": step, "meta": meta or {}}, arrays)
        path = self._path(part, step)
        try:
            _make_directory(path.parent)
            self._write(path, pieces, os.replace)
        except OSError as error:
            raise OSError(
                error.errno,
                f"`checkpoint`: step {step} of part {part} could not be saved: {error.strerror}. This takes "
                f"{sum(map(len, pieces)):,} bytes, and {_free_bytes(self.directory)} are free. What was saved before "
                "is intact: the same call resumes from there",
                str(path),
            ) from error
        # The one kept besides is known to be good: saved by this process, or what it resumed from. Another one between
        # the two may be damaged.
        older = sorted(s for s in self._steps(part) if s < step)
        spare = self._good.get(part)
        spare = spare if spare in older else max(older, default=None)
        for s in older:
            if s != spare:
                self._path(part, s).unlink(missing_ok=True)
        self._good[part] = step

    def load(self, part: int) -> tuple[int, dict[str, np.ndarray], dict[str, Any]] | None:
        """The newest checkpoint of a part: step, arrays and meta. None if there is none.

        A damaged file is passed over with a `RuntimeWarning`. Raises `ValueError` if there are files and all are
        damaged, or if one is of a newer version of the format or of another run.
        """
        for _ in range(_attempts):
            # A file goes between listing and reading when another process has saved newer ones.
            with contextlib.suppress(FileNotFoundError):
                return self._newest(part)
        return self._newest(part)

    def steps(self) -> dict[int, int]:
        """The newest step of every part that was saved, from the names of files alone: `load` may find it damaged."""
        newest: dict[int, int] = {}
        for group in filter(str.isdecimal, os.listdir(self._parts)):
            for part, step in self._files(group):
                newest[part] = max(step, newest.get(part, 0))
        return newest

    def claim(self, part: int) -> Lease | None:
        """The right to compute a part, as a context, or None while another worker has it. See `leases`."""
        return self._leases.claim(part)

    def _open(self, identity: dict[str, Any]) -> None:
        path = self.directory / "identity"
        if self.directory.exists() and not self.directory.is_dir():
            raise ValueError(f"`checkpoint` must be a directory, but {self.directory} is a file.")
        if not path.exists():
            self._check_unused()
        for directory in (self._scratch, self._parts, self._leases.directory):
            _make_directory(directory)
        if not path.exists():
            # Without this file the parts can still say whether they are of this run.
            for part in self.steps():
                self.load(part)
                break
            self._write(path, _pack({"identity": identity}, {}), _place_first)
        try:
            found = _read(path)[0].get("identity")
        except _Damaged as damage:
            raise ValueError(
                f"`checkpoint`: {path} is damaged ({damage}). Delete this one file to go on with the parts, which are "
                "checked by themselves, or all of the directory to start anew."
            ) from None
        if differences := list(_differences(found, identity)):
            raise ValueError(
                f"`checkpoint`: {self.directory} belongs to a different run: {'; '.join(differences)}. "
                "Choose another directory, or delete this one to start anew."
            )

    def _check_unused(self) -> None:
        names = os.listdir(self.directory) if self.directory.exists() else []
        others = sorted(n for n in names if not n.startswith(".") and n not in ("tmp", "parts", "leases", "identity"))
        if others:
            raise ValueError(
                f"`checkpoint` must be a new or empty directory, or one with checkpoints, but {self.directory} holds "
                f"other files ({', '.join(others[:5])}). Choose another directory."
            )

    def _clean(self) -> None:
        time = now(self._scratch)
        for path in self._scratch.iterdir():
            try:
                if time - path.stat().st_mtime > _abandoned_seconds:
                    path.unlink()
            except FileNotFoundError:
                pass

    def _newest(self, part: int) -> tuple[int, dict[str, np.ndarray], dict[str, Any]] | None:
        damaged: list[str] = []
        for step in sorted(self._steps(part), reverse=True):
            path = self._path(part, step)
            try:
                manifest, arrays = _read(path)
                self._check_manifest(manifest, path, part, step)
            except _Damaged as damage:
                damaged.append(f"{path} ({damage})")
                continue
            for file in damaged:
                text = f"`checkpoint`: damaged file {file}: part {part} resumes from step {step} instead."
                warnings.warn(text, RuntimeWarning, stacklevel=3)
            self._good[part] = step
            return step, arrays, manifest["meta"]
        if damaged:
            raise ValueError(
                f"`checkpoint`: every file of part {part} is damaged: {', '.join(damaged)}. "
                "Delete these files to compute this part anew."
            )
        return None

    def _check_manifest(self, manifest: dict[str, Any], path: Path, part: int, step: int) -> None:
        if manifest.get("identity") != self._identity:
            raise ValueError(
                f"`checkpoint`: {path} belongs to a different run than this one. "
                "Choose another directory, or delete this file to compute its part anew."
            )
        if (manifest.get("part"), manifest.get("step")) != (part, step) or not isinstance(manifest.get("meta"), dict):
            raise _Damaged("it is not the part and step of its name")

    def _write(self, path: Path, pieces: Sequence[memoryview], place: Callable) -> None:
        scratch = self._scratch / unique_name()
        try:
            with open(scratch, "xb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            place(scratch, path)
            _sync_directory(path.parent)
        finally:
            scratch.unlink(missing_ok=True)

    def _path(self, part: int, step: int) -> Path:
        return self._parts / _group(part) / f"{part:08d}-{step:012d}.ckpt"

    def _steps(self, part: int) -> list[int]:
        return [step for p, step in self._files(_group(part)) if p == part]

    def _files(self, group: str) -> Iterator[tuple[int, int]]:
        try:
            names = os.listdir(self._parts / group)
        except FileNotFoundError:
            return
        for match in map(_form.fullmatch, names):
            if match:
                yield int(match[1]), int(match[2])


class _Damaged(Exception):
    """The one way in which the contents of a file can be wrong."""


def _pack(manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> list[memoryview]:
    """The pieces of a file, without a copy of arrays that are in C order already."""
    little = {name: np.asarray(a, a.dtype.newbyteorder("<"), order="C") for name, a in arrays.items()}
    for name, a in little.items():
        if a.dtype.str not in _dtypes:
            raise TypeError(f"`arrays[{name!r}]` must hold booleans, integers or floats, got dtype {a.dtype}.")
        if not _is_name(name):
            raise ValueError(f"`arrays` must have names as in 'observed/p/0', got {name!r}.")
    text = _json(manifest | {"arrays": [[name, a.dtype.str, a.shape] for name, a in little.items()]})
    rest = [memoryview(text), *(a.reshape(-1).view(np.uint8).data for a in little.values())]
    start = _start.pack(_magic, FORMAT, _start.size + _digest_size + sum(map(len, rest)), len(text))
    return [memoryview(start), memoryview(_sha256(start, *rest)), *rest]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        with open(path, "rb") as file:
            # Before the rest is read: a damaged length must not make us look for that much memory.
            _check_start(file.read(_start.size), os.fstat(file.fileno()).st_size)
            file.seek(0)
            return _unpack(file.read(), path)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise _Damaged("the disk cannot read it") from None


def _unpack(data: bytes, path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Manifest and arrays. Every way in which the bytes can be wrong is `_Damaged`; a newer version is `ValueError`."""
    version, size = _check_start(data, len(data))
    begin = _start.size + _digest_size
    view = memoryview(data)
    if _sha256(view[: _start.size], view[begin:]) != view[_start.size : begin]:
        raise _Damaged("its sha256 does not match")
    if version > FORMAT:
        raise ValueError(
            f"`checkpoint`: {path} has version {version} of the format, and this library reads up to {FORMAT}. "
            "Update the library, or choose another directory."
        )
    # What follows was written by a `Store`, or made to look so.
    try:
        manifest = json.loads(str(view[begin : begin + size], "utf-8"))
        arrays, offset = {}, begin + size
        for name, dtype, shape in manifest["arrays"]:
            if not _is_name(name) or name in arrays or dtype not in _dtypes:
                raise _Damaged("its manifest has a name or dtype that is not permitted")
            if not all(type(n) is int and n >= 0 for n in shape):
                raise _Damaged("its manifest has a shape that is not permitted")
            # A slice ends with the file: a shape that asks for more finds too little there.
            end = offset + math.prod(shape) * np.dtype(dtype).itemsize
            array = np.frombuffer(view[offset:end], dtype).reshape(shape)
            arrays[name] = array.astype(array.dtype.newbyteorder("="))
            offset = end
        if offset != len(data):
            raise _Damaged("it is longer than its arrays")
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise _Damaged(f"its manifest is not in order: {error}") from None
    return manifest, arrays


def _check_start(data: bytes, size: int) -> tuple[int, int]:
    """Version of the format and length of the manifest, of a file of that size."""
    if size < _start.size + _digest_size:
        raise _Damaged(f"it is cut off after {size} bytes")
    magic, version, length, manifest = _start.unpack_from(data)
    if magic != _magic:
        raise _Damaged("it does not begin as a checkpoint")
    if length != size:
        raise _Damaged(f"it has {size:,} bytes, and should have {length:,}")
    if manifest > size - _start.size - _digest_size:
        raise _Damaged("its manifest is longer than the file")
    return version, manifest


def _sha256(*pieces: bytes | memoryview) -> bytes:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def _json(value: Any) -> bytes:
    """One text for one value, whatever the order of dictionaries."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _is_name(name: Any) -> bool:
    """Whether a name stays below where it is put, if someone makes a path of it."""
    return (
        isinstance(name, str)
        and name.isprintable()
        and not set(name) & set("\\:")
        and not set(name.split("/")) & {"", ".", ".."}
    )


def _differences(found: Any, wanted: Any, name: str = "") -> Iterator[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            inner = f"{name}.{key}" if name else key
            yield from _differences(found.get(key, ...), wanted.get(key, ...), inner)
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        for i, pair in enumerate(zip(found, wanted, strict=True)):
            yield from _differences(*pair, f"{name}[{i}]")
    elif repr(found) != repr(wanted):
        # By repr, because 1 == 1.0 == True, while the sha256 of an identity in the files of parts tells them apart.
        yield f"{name}: checkpoint {_shown(found)}, this run {_shown(wanted)}"


def _shown(value: Any) -> str:
    return "nothing" if value is ... else repr(value)[:200]


def _free_bytes(directory: Path) -> str:
    try:
        return f"{shutil.disk_usage(directory).free:,}"
    except OSError:
        return "an unknown number"


def _make_directory(path: Path) -> None:
    if not path.is_dir():
        _make_directory(path.parent)
        path.mkdir(exist_ok=True)
        _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    """Makes the names in a directory durable."""
    if os.name == "posix":
        directory = os.open(path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _place_first(source: Path, target: Path) -> None:
    """Gives a file its name unless the name is taken: of runs that begin in one directory at once, one has it."""
    try:
        os.link(source, target)
    except FileExistsError:
        pass
    except OSError:
        # A file system without hard links.
        os.replace(source, target)


def _group(part: int) -> str:
    return f"{part // _parts_a_group:06d}"


# Parts whose files share a directory: finding one of many parts must not mean listing all. Belongs to the format.
_parts_a_group = 64
_form = re.compile(r"([0-9]{8}|[1-9][0-9]{8,})-([0-9]{12}|[1-9][0-9]{12,})\.ckpt")

# How old a file in `tmp` must be for its writer to be dead, in seconds.
_abandoned_seconds = 3600.0

# How often the files of a part are listed anew when another process removes them while they are read.
_attempts = 5

# As in PNG: a transfer as text, or to seven bits, changes the magic.
_magic = b"\x89SDE\r\n\x1a\n"
_start = struct.Struct("<8sQQQ")
_digest_size = 32
_dtypes = ("|b1", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8")
