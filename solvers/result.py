"""What every result can do, whatever it is of."""

import abc
import os
from pathlib import Path
from typing import Any

import equinox as eqx

from .diagnosis import Diagnosis
from .saving import save


class AbstractResult(eqx.Module):
    """A result: printing it says what happened, and its field `provenance` what it was computed by and from, if known.

    It can be saved; `solvers.load`, or for results of `sgdsde` that package's `load`, gives it back.
    """

    @abc.abstractmethod
    def diagnose(self) -> Diagnosis:
        """Whether it can be trusted: one line for each thing that may be wrong, "ok" or what to change."""

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes this to `path`, with the ending .npz if it has none; returns the path. See `solvers.saving`.

        Functions and processes are not written. Raises `OSError` if the file can't be written.
        """
        return save(self, path)

    def to_xarray(self) -> Any:
        """All arrays with names for their axes, as an `xarray.Dataset`; see `solvers.labelled`.

        Raises `ImportError` if xarray is not installed, saying how to install it.
        """
        # Labels know densities, which are results.
        from .labelled import to_xarray

        return to_xarray(self)
