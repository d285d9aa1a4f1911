"""Stochastic differential equations and their Fokker-Planck equations, from one description of the process.

A process is `Diffusion(drift, noise)`; `solvers.sde` simulates it and `solvers.fokker_planck` solves for its density.
Both hand back a `Density` on a `Grid`, so that they can be compared.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import fokker_planck as fokker_planck, sde as sde
    from .density import Density as Density
    from .grid import Grid as Grid
    from .process import AbstractDiffusion as AbstractDiffusion, Diffusion as Diffusion
    from .saving import NotSaved as NotSaved, load as load

_homes = {
    "AbstractDiffusion": "process",
    "Density": "density",
    "Diffusion": "process",
    "Grid": "grid",
    "NotSaved": "saving",
    "fokker_planck": None,
    "load": "saving",
    "sde": None,
}

__all__ = sorted(_homes)

if importlib.metadata.version("jaxlib") == "0.10.2":
    raise ImportError(
        "jaxlib 0.10.2 returns silently wrong numbers on CPU (jax issue 39103). "
        'Install another release, for example: pip install "jax==0.10.1" "jaxlib==0.10.1".'
    )


def __getattr__(name: str):
    # Names are imported on first use: `import sgdsde` and `sgdsde --help` must not wait for JAX.
    if name not in _homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _homes[name]
    if home is None:
        return importlib.import_module(f".{name}", __name__)
    return getattr(importlib.import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
