"""Leases say which worker computes which part, for workers that share nothing but a directory.

A lease is a file `PART.GENERATION`, made with O_EXCL: of all that try, one succeeds. Its worker renews it now and then.
A lease that was not renewed for `stale_seconds`, or whose worker was a process of this machine that has ended, is taken
over by making the file of the next generation: again one succeeds, since nobody removes a lease to make room for his
own.

A worker that was only slow learns from `renew` that it has lost its lease. Until it asks, two workers compute the same
part. Leases save work, they do not protect data: what is done under a lease must be harmless when done twice.
"""

import os
import re
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path


class Lease:
    """The right to work on `part`, until it is released or not renewed for too long. A context: its end releases."""

    def __init__(self, path: Path, part: int, generation: int, owner: str):
        self.part = part
        self._path, self._owner = path, owner
        self._next = path.with_name(_name(part, generation + 1))

    def renew(self) -> bool:
        """Keeps the lease fresh; False if another worker has taken it over meanwhile."""
        try:
            if self._next.exists() or self._path.read_text() != self._owner:
                return False
            os.utime(self._path)
        except FileNotFoundError:
            return False
        return True

    def release(self) -> None:
        """Gives the part back. Does nothing to the lease of a worker that took over."""
        if self.renew():
            self._path.unlink(missing_ok=True)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Leases:
    """The leases in one directory. `scratch` is a directory on the same file system for files of no duration."""

    def __init__(self, directory: Path, scratch: Path, stale_seconds: float):
        if not stale_seconds > 0:
            raise ValueError(f"`stale_seconds` must be positive, got {stale_seconds}.")
        self.directory, self.scratch, self.stale_seconds = directory, scratch, stale_seconds

    def claim(self, part: int) -> Lease | None:
        """The lease of a part, or None while another worker has it."""
        held = sorted(generation for of, generation in self._files() if of == part)
        if held and not self._stale(self.directory / _name(part, held[-1])):
            return None
        generation = held[-1] + 1 if held else 1
        path, owner = self.directory / _name(part, generation), unique_name()
        try:
            with open(path, "x") as file:
                file.write(owner)
        except FileExistsError:
            return None
        for older in held:
            (self.directory / _name(part, older)).unlink(missing_ok=True)
        return Lease(path, part, generation, owner)

    def _files(self) -> Iterator[tuple[int, int]]:
        for match in map(_form.fullmatch, os.listdir(self.directory)):
            if match:
                yield int(match[1]), int(match[2])

    def _stale(self, path: Path) -> bool:
        # Opened, not only looked up: network file systems then ask the server, where they would trust a cache.
        try:
            with open(path, "rb") as file:
                renewed, owner = os.fstat(file.fileno()).st_mtime, file.read().decode(errors="replace")
        except FileNotFoundError:
            return False
        return _is_dead(owner) or now(self.scratch) - renewed > self.stale_seconds


def unique_name() -> str:
    """A file name that no other process, machine or call uses."""
    return f"{_host()}-{os.getpid()}-{secrets.token_hex(8)}"


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname())


def _is_dead(owner: str) -> bool:
    """Whether the process of that name was one of this machine and has ended: nobody need wait for it."""
    host, _, rest = owner.rpartition("-")[0].rpartition("-")
    if os.name != "posix" or host != _host() or not rest.isdecimal():
        return False
    try:
        os.kill(int(rest), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def now(scratch: Path) -> float:
    """The time by the clock which dates the files in that directory: on a network drive, the clock of its server."""
    path = scratch / unique_name()
    with open(path, "xb") as file:
        try:
            return os.fstat(file.fileno()).st_mtime
        finally:
            path.unlink(missing_ok=True)


def _name(part: int, generation: int) -> str:
    return f"{part:08d}.{generation}"


_form = re.compile(r"([0-9]{8,})\.([0-9]+)")
