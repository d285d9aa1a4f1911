"""Learning curves of networks depend on η and the batch size B through η/B alone, as long as η is small.

A grid of learning rates and batch sizes with the schedule of Wang's numerical study, a tenth of the rate after 12/25
and 20/25 of all epochs. Equal η/B makes equal curves, up to the noise between runs, until ηλ_max(H) is no longer small.
Equal η and other B differ: against epochs for the most part because t = Σ η has come less far, against t by noise.
"""

import csv
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterator
from typing import Any, Literal

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from solvers.sde.checkpoint import Store
from solvers.sde.progress import Progress
from solvers.sde.random import key_words

from .. import datasets, networks
from ..losses import from_model
from ..model_loss import ModelLoss
from . import training
from .claims import Claim, table


@dataclasses.dataclass(frozen=True)
class Config:
    """Learning rates η, batch sizes B that divide the number of training examples, and losses, "KLD" or "log".

    `data` is "digits", "clusters", or a directory with the binary files of CIFAR-10 (`sgdsde.datasets`); `network` has
    one hidden layer of `width` units ("MLP"), or two residual blocks of `width` channels ("ResNet"). `runs` are made of
    each cell, of so many `epochs`, a multiple of 25.
    """

    rates: tuple[float, ...] = (0.01, 0.02, 0.04, 0.16, 0.64, 2.56)
    batches: tuple[int, ...] = (10, 20, 40)
    losses: tuple[str, ...] = ("KLD", "log")
    data: str = "digits"
    network: Literal["MLP", "ResNet"] = "MLP"
    width: int = 32
    runs: int = 8
    epochs: int = 50

    @staticmethod
    def fast() -> "Config":
        """A generated set, fewer cells, and one loss."""
        return Config(
            rates=(0.1, 0.4, 1.6, 6.4), batches=(10, 40), losses=("KLD",), data="clusters", width=16, runs=6, epochs=25
        )


class Result(eqx.Module):
    """Curves of every run, (losses, rates, batches, times, runs, 2, 4): `measures`, on training and held-out examples.

    `traces` (losses, rates, batches, runs, 2, 2) are tr C and tr H at the ends. `examples` are those for training.
    Cells of which a run became non-finite are NaN.
    """

    config: Config = eqx.field(static=True)
    examples: int
    curves: Float[np.ndarray, "losses rates batches times runs 2 4"]
    traces: Float[np.ndarray, "losses rates batches runs 2 2"]

    def times(self, rate: int, batch: int) -> Float[np.ndarray, " times"]:
        """t = Σ η of a cell of the grid at the times of its curves; epochs are equally spaced."""
        config = self.config
        return training.times(config.rates[rate], config.batches[batch], self.examples, config.epochs)

    def distance(self, loss: int, a: tuple[int, int], b: tuple[int, int], clock: str = "epochs") -> tuple[float, float]:
        """The distance between the learning curves of two cells (rate, batch), and its noise floor.

        It is the root mean square over times, the start left out, of the difference of the mean of log(training loss)
        over runs. The floor is what two sets of runs with one law have: the root of the mean of (s_a² + s_b²)/runs with
        the variances s² between runs. With `clock="t"` cells are compared at equal t instead of at equal epochs, as far
        as both have come before the learning rate drops, by interpolation.
        """
        one, other = (np.log(self.curves[loss, *cell, :, :, 0, 0]) for cell in (a, b))
        if clock == "t":
            last = training.drops[0] + 1
            ta, tb = (self.times(*cell)[:last] for cell in (a, b))
            common = np.linspace(max(ta[1], tb[1]), min(ta[-1], tb[-1]), last - 1)
            if common[0] >= common[-1]:
                return np.nan, np.nan
            one, other = _at(common, ta, one[:last]), _at(common, tb, other[:last])
        else:
            one, other = one[1:], other[1:]
        difference = one.mean(axis=1) - other.mean(axis=1)
        spread = (one.var(axis=1, ddof=1) + other.var(axis=1, ddof=1)) / one.shape[1]
        return float(np.sqrt(np.mean(difference**2))), float(np.sqrt(np.mean(spread)))

    def pairs(self) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """Cells of equal η/B and neighbouring batch sizes, by the larger learning rate."""
        return _pairs(self.config)

    @property
    def claims(self) -> list[Claim]:
        """Equal η/B is equal curves for the smallest rates and not for the largest; a change of B alone is seen."""
        found = []
        (small, equal), (large, unstable) = self.pairs()[0], self.pairs()[-1]
        for k, name in enumerate(self.config.losses):
            distance, floor = self.distance(k, small, equal)
            text = f"{name}, {self._named(small)} and {self._named(equal)}"
            found.append(Claim(f"{text}: distance", distance, 0.0, _floors * floor))
            far, far_floor = self.distance(k, large, unstable)
            text = f"{name}, {self._named(large)} and {self._named(unstable)}"
            found.append(Claim(f"{text}: distance", far, _floors * far_floor, 0.0, ">"))
            other = (small[0], equal[1])
            text = f"{name}, {self._named(small)} and {self._named(other)}"
            by_epochs = self.distance(k, small, other)[0]
            found.append(Claim(f"{text}: distance", by_epochs, _times_farther * (distance + floor), 0.0, ">"))
            by_t, floor = self.distance(k, small, other, clock="t")
            found.append(Claim(f"{text}: distance at equal t", by_t, by_epochs / _times_farther, 0.0, "<"))
            found.append(Claim(f"{text}: distance at equal t", by_t, _floors * floor, 0.0, ">"))
        return found

    def _named(self, cell: tuple[int, int]) -> str:
        return f"(η {self.config.rates[cell[0]]:g}, B {self.config.batches[cell[1]]})"

    def table(self) -> dict[str, np.ndarray]:
        """The ends of all cells, means over runs, as columns of equal length; `_held` is on held-out examples.

        `C_over_H` is tr C/tr H: how far η tr C/(4B) is from η tr H/(4B).
        """
        config = self.config
        grid = itertools.product(config.losses, config.rates, config.batches)
        names, rates, batches = (np.array(column) for column in zip(*grid, strict=True))
        columns = {"objective": names, "B_over_rate": batches / rates, "batch_size": batches, "learning_rate": rates}
        ends = self.curves[:, :, :, -1].mean(axis=3).reshape(-1, 2, 4)
        traces = self.traces.mean(axis=3).reshape(-1, 2, 2)
        for split, suffix in enumerate(("", "_held")):
            columns |= {name + suffix: ends[:, split, m] for m, name in enumerate(training.measures)}
            columns |= {"tr_C" + suffix: traces[:, split, 0], "tr_H" + suffix: traces[:, split, 1]}
            columns["C_over_H" + suffix] = traces[:, split, 0] / traces[:, split, 1]
        return columns

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes the table to a file, with one line of names."""
        columns = self.table()
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))

    def plot(self, axes=None) -> np.ndarray:
        """Curves against epochs and against t, distances at equal η/B, and the traces."""
        from ..plots import experiments

        return experiments.learning_rate_batch_size(self, axes)

    def __str__(self) -> str:
        columns = self.table()
        shown = [name for name in columns if name not in _not_printed]
        rows = [list(row) for row in zip(*(columns[name].tolist() for name in shown), strict=True)]
        near = [
            [name, self._named(a), self._named(b), *self.distance(k, a, b)]
            for k, name in enumerate(self.config.losses)
            for a, b in self.pairs()
        ]
        equal = table(["objective", "at equal η/B", "and", "distance", "noise floor"], near)
        return "\n".join([table(shown, rows), "", equal, *map(str, self.claims)])


# A distance beyond so many noise floors is no chance: under one law the squared ratio has mean 1, and its standard
# deviation is at most √2, if all times of a curve are one.
_floors = 3.0

# "Far" and "near", for distances.
_times_farther = 3.0

# Too many columns for a terminal.
_not_printed = ("mean_odds", "mean_odds_held", "C_over_H_held")


def run(config: Config | None = None, key=0, *, checkpoint: Any = None, progress: bool | None = None) -> Result:
    """Trains all cells, one after the other.

    `checkpoint` is a directory in which each finished cell is saved: after an interruption the same call goes on from
    there, with the same numbers. `progress` shows a line; by default in terminals and notebooks. `ValueError` for a
    grid without cells of equal η/B, batch sizes that don't divide the examples, or a directory of another study.
    """
    config = Config() if config is None else config
    data = _data(config)
    _check(config, len(data.train[1]))
    key = jax.random.key(key) if isinstance(key, int) else key
    cells = list(itertools.product(config.losses, config.rates, config.batches))
    store = None if checkpoint is None else Store(checkpoint, _identity(config, data, key))
    saved = set() if store is None else set(store.steps())
    steps = [config.epochs * (len(data.train[1]) // batch) * config.runs for _, _, batch in cells]
    line = Progress(progress, max(1, sum(s for k, s in enumerate(steps) if k not in saved)))
    found = []
    for k, arrays in enumerate(_cells(config, cells, data, store, key)):
        found.append(arrays)
        if k not in saved:
            line.add(steps[k])
    line.close()
    grid = (len(config.losses), len(config.rates), len(config.batches))
    curves, traces = (np.stack([f[name] for f in found]) for name in ("curves", "traces"))
    return Result(
        config, len(data.train[1]), curves.reshape(*grid, *curves.shape[1:]), traces.reshape(*grid, *traces.shape[1:])
    )


def _cells(config: Config, cells: list, data: datasets.Split, store: Store | None, key: Any) -> Iterator[dict]:
    """The arrays of each cell, from the disk where they are there."""
    losses = {name: _losses(config, name, data) for name in config.losses}
    for k, (name, rate, batch) in enumerate(cells):
        loaded = None if store is None else store.load(k)
        if loaded is not None:
            yield loaded[1]
            continue
        own = jax.random.fold_in(key, k)
        arrays = training.train(*losses[name], rate, batch, config.epochs, config.runs, own)
        if store is not None:
            store.save(k, 1, arrays)
        yield arrays


def _losses(config: Config, name: str, data: datasets.Split) -> tuple[ModelLoss, ModelLoss]:
    # One start for all runs: what differs between them is the noise of SGD.
    if config.network == "MLP":
        network = networks.MLP(data.shape, data.classes, config.width, key=0)
    else:
        network = networks.ResNet(data.shape, data.classes, config.width, key=0)
    loss = from_model(network, {"KLD": networks.kld, "log": networks.log_loss}[name], data.train)
    return loss, loss.on(data.held_out)


def _data(config: Config) -> datasets.Split:
    if config.data == "digits":
        return datasets.digits(0)
    return datasets.clusters(0) if config.data == "clusters" else datasets.cifar10(config.data)


def _check(config: Config, examples: int) -> None:
    if bad := [b for b in config.batches if examples % b]:
        raise ValueError(f"`batches` must divide the number of training examples, {examples}, but {bad[0]} does not.")
    if config.epochs < 1 or config.epochs % training.looks:
        raise ValueError(f"`epochs` must be a multiple of {training.looks}, but got {config.epochs}.")
    if config.runs < 2:
        raise ValueError(f"`runs` must be at least 2, for the noise between them, but got {config.runs}.")
    if bad := [name for name in config.losses if name not in ("KLD", "log")]:
        raise ValueError(f'`losses` must be "KLD" or "log", but got {bad[0]!r}.')
    if config.network not in ("MLP", "ResNet"):
        raise ValueError(f'`network` must be "MLP" or "ResNet", but got {config.network!r}.')
    if not _pairs(config):
        raise ValueError(
            f"`rates` and `batches` must have cells of equal η/B with neighbouring batch sizes, but got {config.rates} "
            f"and {config.batches}: for example, rates with the ratios of the batch sizes."
        )


def _pairs(config: Config) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    rates, batches = config.rates, config.batches
    cells = itertools.product(range(len(rates)), range(len(rates)), range(len(batches) - 1))
    found = [((r, b), (s, b + 1)) for r, s, b in cells if np.isclose(rates[r] * batches[b + 1], rates[s] * batches[b])]
    return sorted(found, key=lambda pair: rates[pair[1][0]])


def _identity(config: Config, data: datasets.Split, key: Any) -> dict[str, Any]:
    digest = hashlib.sha256()
    for array in (*data.train, *data.held_out):
        digest.update(np.ascontiguousarray(array).tobytes())
    # Where the files of the data are does not matter.
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name != "data"}
    words = [int(word) for word in key_words(key)]
    return {"experiment": "learning_rate_batch_size", **settings, "data": digest.hexdigest()[:16], "key": words}


def _at(common: Float[np.ndarray, " s"], t: Float[np.ndarray, " times"], curves: Float[np.ndarray, "times runs"]):
    return np.stack([np.interp(common, t, curve) for curve in curves.T], axis=1)
