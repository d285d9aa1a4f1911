"""One simulation for each of many processes that differ in their numbers alone."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from ..process import AbstractDiffusion
from .ensemble import Ensemble, simulate
from .method import AbstractMethod
from .transform import AbstractTransformed


def sweep(
    processes: Sequence[AbstractDiffusion],
    method: AbstractMethod | AbstractTransformed,
    x0: Any,
    t1: float,
    dt: float,
    key: Any,
    paths: int | None = None,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    **options: Any,
) -> list[Ensemble]:
    """`simulate` for each process, all with the same random numbers and one compilation.

    The processes must differ in numbers only, as `[SGD(loss, noise.Constant(s), 0.1) for s in sigmas]` with one
    function `loss` do; a new function for each would be compiled each time, and raises `ValueError`. Differences
    between results then come from the numbers, not from chance: paths see the same Brownian motion. Each result is, to
    the last bit, that of `simulate` for its process alone, however a sweep is divided.

    `options` are those of `simulate`. With `checkpoint`, every process has a directory in that one, and several
    processes of the system that make the same call share the work.
    """
    processes = list(processes)
    if not processes:
        raise ValueError("`processes` must hold at least one process.")
    form = _form(processes[0])
    for k, process in enumerate(processes):
        if _form(process) != form:
            raise ValueError(
                f"`processes` must differ in numbers only, but processes[{k}] has another structure than processes[0]: "
                "another class, another function or arrays of another shape. Define functions once, outside the list."
            )
    results = []
    for k, process in enumerate(processes):
        directory = None if checkpoint is None else Path(checkpoint) / f"{k:06d}"
        results.append(simulate(process, method, x0, t1, dt, key, paths, checkpoint=directory, **options))
    return results


def _form(process: AbstractDiffusion) -> Any:
    arrays, rest = eqx.partition(process, eqx.is_array)
    shapes = [(a.shape, a.dtype) for a in jax.tree.leaves(arrays)]
    return shapes, jax.tree.structure(arrays), jax.tree.leaves(rest), jax.tree.structure(rest)
