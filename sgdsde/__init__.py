"""Stochastic gradient descent as a continuous-time process: `import sgdsde as sg`.

Write a loss as a JAX function, choose the gradient noise, and `sg.SGD(loss, noise, learning_rate)` is a process that
`solvers.sde` simulates and `solvers.fokker_planck` solves. `sg.theory` holds the closed forms to compare with.
"""

import importlib
import importlib.util
import os.path
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import (
        datasets as datasets,
        experiments as experiments,
        losses as losses,
        minimisers as minimisers,
        networks as networks,
        noise as noise,
        optimizers as optimizers,
        plots as plots,
        theory as theory,
    )
    from .distances import compare as compare
    from .factors import NoiseReport as NoiseReport, noise_report as noise_report
    from .invariant import compare_invariant as compare_invariant
    from .law_comparison import (
        LawComparison as LawComparison,
        compare_laws as compare_laws,
        hessian_trace as hessian_trace,
    )
    from .models import (
        DNSAM as DNSAM,
        SAM as SAM,
        SGD as SGD,
        USAM as USAM,
        Adam as Adam,
        EmbeddedSGD as EmbeddedSGD,
        GradientFlow as GradientFlow,
        LinearisedSGD as LinearisedSGD,
        ModifiedSGD as ModifiedSGD,
        Momentum as Momentum,
        PreconditionedSGD as PreconditionedSGD,
        RandomReshuffling as RandomReshuffling,
        RMSProp as RMSProp,
        SignSGD as SignSGD,
    )
    from .saving import load as load
    from .slices import Plane as Plane, restrict as restrict, top_directions as top_directions
    from .weak_error import Validity as Validity, validity as validity


_homes = {
    "Adam": "models",
    "DNSAM": "models",
    "EmbeddedSGD": "models",
    "GradientFlow": "models",
    "LawComparison": "law_comparison",
    "LinearisedSGD": "models",
    "ModifiedSGD": "models",
    "Momentum": "models",
    "NoiseReport": "factors",
    "Plane": "slices",
    "PreconditionedSGD": "models",
    "RMSProp": "models",
    "RandomReshuffling": "models",
    "SAM": "models",
    "SGD": "models",
    "SignSGD": "models",
    "USAM": "models",
    "Validity": "weak_error",
    "compare": "distances",
    "compare_invariant": "invariant",
    "compare_laws": "law_comparison",
    "datasets": None,
    "experiments": None,
    "hessian_trace": "law_comparison",
    "load": "saving",
    "losses": None,
    "minimisers": None,
    "networks": None,
    "noise": None,
    "noise_report": "factors",
    "optimizers": None,
    "plots": None,
    "restrict": "slices",
    "theory": None,
    "top_directions": "slices",
    "validity": "weak_error",
}

__all__ = sorted(_homes)


def _check_solvers() -> None:
    # `solvers` is a generic name: a folder or another package of that name may come first on the path.
    expected = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "solvers")
    if "solvers" in sys.modules:
        found = sys.modules["solvers"].__file__
    else:
        spec = importlib.util.find_spec("solvers")
        found = spec.origin if spec is not None else None
    if found is None or os.path.realpath(os.path.dirname(found)) != os.path.realpath(expected):
        raise ImportError(
            f"`sgdsde` ships with the package `solvers` in {expected}, but Python finds {found or 'no such package'}. "
            "Rename or move the other `solvers`, or start Python from another folder; if there is no other one, "
            "reinstall sgdsde."
        )


_check_solvers()


def __getattr__(name: str):
    # Names are imported on first use: `import sgdsde` and `sgdsde --help` must not wait for JAX.
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("sgdsde")
    if name not in _homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Results of `solvers` may ask for axes from now on.
    importlib.import_module("._axes", __name__)
    home = _homes[name]
    if home is None:
        return importlib.import_module(f".{name}", __name__)
    return getattr(importlib.import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
