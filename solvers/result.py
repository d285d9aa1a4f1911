"""What every result can do, whatever it is of."""

import os
from pathlib import Path

import equinox as eqx

from .provenance import Provenance
from .saving import save


class AbstractResult(eqx.Module):
    """A result: printing it says what happened, `provenance` what it was computed by and from.

    It can be saved; `solvers.load`, or for results of `sgdsde` that package's `load`, gives it back.
    """

    provenance: eqx.AbstractVar[Provenance | None]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes this to `path`, with the ending .npz if it has none; returns the path. See `solvers.saving`.

        Functions and processes are not written. Raises `OSError` if the file can't be written.
        """
        return save(self, path)
