"""Experiments on what the theory of SGD as a process says: one a module, each `run(config, key)`.

`run` returns a result with the numbers, a printed table, `claims` (what should be true, with the tolerance that theory
allows), `check()` (raises if one is not) and `plot(axes=None)`. `config` is the module's `Config`; `Config.fast()` is a
reduced one. On the command line: `sgdsde list`, `sgdsde run NAME`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import (
        anisotropic_escape as anisotropic_escape,
        claims as claims,
        contraction as contraction,
        convergence as convergence,
        escape as escape,
        flat_minima as flat_minima,
        learning_rate_batch_size as learning_rate_batch_size,
        narrow_valley as narrow_valley,
        shuffling as shuffling,
        square_root_rule as square_root_rule,
        stationary_loss as stationary_loss,
        training as training,
        two_minima as two_minima,
        weak_order as weak_order,
    )

# In the order in which a reader would go through them.
names = (
    "two_minima",
    "narrow_valley",
    "flat_minima",
    "convergence",
    "contraction",
    "escape",
    "anisotropic_escape",
    "shuffling",
    "square_root_rule",
    "weak_order",
    "stationary_loss",
    "learning_rate_batch_size",
)

__all__ = ["claims", "training", *names]


def __getattr__(name: str):
    # On first use: `sgdsde list` must not wait for JAX.
    if name in __all__:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
