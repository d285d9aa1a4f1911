"""Results as labelled arrays: the names of axes come from the types of a result's fields, and coordinates from it."""

import dataclasses
import importlib
import json
import typing
from typing import Any

import equinox as eqx
import numpy as np

from .clocks import Clocks
from .density import Density
from .grid import Grid

# What the axes in the types of fields are called for people.
_words = {"s": "time", "n": "path", "d": "component", "k": "mode", "levels": "level", "r": "group", "rates": "rate"}


class Labelled(eqx.Module):
    """Arrays by name, each with the names of its axes; the coordinates of axes, in the same form; and all else.

    `attributes` holds numbers and strings, the record of where the result comes from as JSON among them.
    """

    variables: dict[str, tuple[tuple[str, ...], np.ndarray]]
    coordinates: dict[str, tuple[tuple[str, ...], np.ndarray]]
    attributes: dict[str, Any]


def to_xarray(result: Any) -> Any:
    """A result as an `xarray.Dataset`. `ImportError` if xarray is not installed, saying how to install it."""
    try:
        # By name: the types of an optional package are not there for everybody.
        xarray = importlib.import_module("xarray")
    except ImportError as error:
        raise ImportError("`to_xarray` needs xarray, which is not installed: pip install xarray") from error
    found = labelled(result)
    return xarray.Dataset(found.variables, found.coordinates, found.attributes)


def labelled(result: Any) -> Labelled:
    """The arrays of a result and of all that it holds, with names for their axes.

    Parts of parts have names as in "x.mean", and so have their axes, which need not be those of the whole. Axes of a
    grid are "x1", "x2" and so on, with the centres of cells as coordinates. Times have the coordinate "time", and
    "steps" and "epochs" where these are known.
    """
    found = Labelled({}, {}, {})
    _add(result, "", found)
    clocks = getattr(result, "clocks", None)
    if isinstance(clocks, Clocks) and "time" in found.coordinates:
        times = found.coordinates["time"][1]
        if clocks.step_time is not None:
            found.coordinates["steps"] = ("time",), clocks.steps(times)
        if clocks.steps_per_epoch is not None:
            found.coordinates["epochs"] = ("time",), clocks.epochs(times)
    return found


def _add(part: Any, path: str, found: Labelled) -> None:
    grid = getattr(part, "grid", None)
    if isinstance(grid, Grid):
        for k, centres in enumerate(grid.centres):
            found.coordinates[f"{path}x{k + 1}"] = (f"{path}x{k + 1}",), centres
    for field in dataclasses.fields(part):
        if not field.metadata.get("saved", True):
            continue
        value, name = getattr(part, field.name), f"{path}{field.name.strip('_')}"
        if isinstance(value, np.ndarray):
            axes = _axes(field.type, field.name.strip("_"), value.ndim, path, grid)
            if field.name == "ts":
                found.coordinates[f"{path}time"] = axes, value
            else:
                found.variables[name] = axes, value
        else:
            _add_other(value, name, path, found)


def _add_other(value: Any, name: str, path: str, found: Labelled) -> None:
    if name.endswith("provenance"):
        if value is not None:
            found.attributes[name] = json.dumps(dataclasses.asdict(value), ensure_ascii=False)
    elif isinstance(value, bool | int | float | str | np.generic):
        # Files of labelled arrays know no booleans.
        found.attributes[name] = int(value) if isinstance(value, bool) else value
    elif isinstance(value, dict):
        for key, inner in value.items():
            _add_other(inner, f"{name}.{key}" if name != "observed" else str(key), path, found)
    elif isinstance(value, tuple) and value and all(isinstance(v, Density) for v in value):
        _add_laws(value, name, path, found)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type | Grid):
        _add(value, f"{name}.", found)


def _add_laws(laws: tuple[Density, ...], name: str, path: str, found: Labelled) -> None:
    """Densities at successive times, as one array of masses and one of what is outside."""
    axes = tuple(f"{name}.x{k + 1}" for k in range(laws[0].grid.ndim))
    for axis, centres in zip(axes, laws[0].grid.centres, strict=True):
        found.coordinates[axis] = (axis,), centres
    found.variables[f"{name}.mass"] = (f"{path}time", *axes), np.stack([p.mass for p in laws])
    found.variables[f"{name}.outside"] = (f"{path}time",), np.array([p.outside for p in laws])


def _axes(kind: Any, name: str, count: int, path: str, grid: Any) -> tuple[str, ...]:
    """A name for each axis of an array, by the shape in the type of its field, such as "s n d" or "r *shape"."""
    shapes = [k.dim_str for k in (kind, *typing.get_args(kind)) if hasattr(k, "dim_str")]
    tokens = shapes[0].split() if shapes else []
    variadic = [t for t in tokens if t == "..." or t.startswith("*")]
    if variadic:
        k, more = tokens.index(variadic[0]), count - len(tokens) + 1
        on_grid = isinstance(grid, Grid) and more == grid.ndim
        shared = variadic[0].lstrip("*.")
        other = [f"{shared}_{i}" if shared else f"{name}_{k + i}" for i in range(more)]
        names = [f"x{i + 1}" for i in range(more)] if on_grid else other
        tokens = [*tokens[:k], *names, *tokens[k + 1 :]]
    # An axis of a fixed or computed length has no name of its own.
    named = [_words.get(t, t) if t.isidentifier() else f"{name}_{i}" for i, t in enumerate(tokens)]
    return tuple(f"{path}{t}" for t in (named if len(named) == count else [f"{name}_{i}" for i in range(count)]))
