"""Labelled data to train on, split into training and held-out examples: digits, a generated set, CIFAR-10 files.

`data.train` and `data.held_out` are pairs (inputs, labels) as `losses.from_model` takes them. Nothing is downloaded and
no pickle is read.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from solvers.sde.random import key_words

Pair = tuple[Float32[np.ndarray, "_ *shape"], Int32[np.ndarray, " _"]]


@dataclasses.dataclass(frozen=True)
class Split:
    """Training and held-out examples, pairs of inputs (N, *shape) and labels 0, ..., `classes` - 1.

    Inputs are standardised: over the training examples each feature of a vector, or each channel of an image
    (channels, height, width), has mean 0 and variance 1. Held-out examples are shifted and scaled by the same numbers.
    """

    train: Pair
    held_out: Pair
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return self.train[0].shape[1:]

    def __str__(self) -> str:
        return f"{len(self.train[1])} + {len(self.held_out[1])} examples of shape {self.shape}, {self.classes} classes"


def digits(key: Any = 0, *, train: int = 1440) -> Split:
    """1,797 images (1, 8, 8) of written digits, `train` of them for training; the split is that of `key`.

    They ship with scikit-learn, which is needed: `ImportError` if it is not installed. `ValueError` unless `train` is
    from 1 to 1,796.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError(
            "`datasets.digits` takes the images that ship with scikit-learn, which is not installed: "
            "`pip install scikit-learn`, or use `datasets.clusters`, which needs nothing."
        ) from None
    pixels, labels = (np.asarray(found) for found in load_digits(return_X_y=True))
    order = _generator(key).permutation(len(labels))
    if not 1 <= train < len(labels):
        raise ValueError(f"`train` must leave some of the {len(labels)} images on both sides, but got {train}.")
    return _split(pixels.reshape(-1, 1, 8, 8)[order], labels[order], train, 10)


def clusters(
    key: Any = 0,
    *,
    train: int = 480,
    held_out: int = 480,
    features: int = 8,
    classes: int = 3,
    separation: float = 2.0,
    flipped: float = 0.1,
) -> Split:
    """A generated set: each class is two normal clouds, and a part `flipped` of all labels is drawn anew at random.

    Centres are random vectors of length `separation`, clouds have unit variance in each of the `features`, so that no
    linear classifier is right and none at all is always right. `ValueError` for sizes below 1, fewer than two classes,
    or `flipped` outside [0, 1].
    """
    if min(train, held_out, features) < 1 or classes < 2:
        raise ValueError(
            f"`train`, `held_out` and `features` must be at least 1, and `classes` 2, but got train={train}, "
            f"held_out={held_out}, features={features}, classes={classes}."
        )
    if not 0 <= flipped <= 1:
        raise ValueError(f"`flipped` must be a part of the labels, from 0 to 1, but got {flipped:g}.")
    random = _generator(key)
    centres = random.normal(size=(classes, 2, features))
    centres *= separation / np.linalg.norm(centres, axis=-1, keepdims=True)
    labels = random.integers(0, classes, train + held_out)
    inputs = centres[labels, random.integers(0, 2, labels.size)] + random.normal(size=(labels.size, features))
    anew = random.random(labels.size) < flipped
    labels = np.where(anew, random.integers(0, classes, labels.size), labels)
    return _split(inputs, labels, train, classes)


def cifar10(directory: str | os.PathLike[str]) -> Split:
    """CIFAR-10, images (3, 32, 32), from the files of its *binary* version in `directory`, which you have to supply.

    These are data_batch_1.bin to data_batch_5.bin, of which those that are there are the training examples, and
    test_batch.bin, the held-out ones; each is a row of records of one byte for the label and 3,072 for the pixels, red
    before green before blue. The Python version of the same data is made of pickles, which can run code and are not
    read. `FileNotFoundError` or `ValueError` for files that are missing or are something else.
    """
    folder = Path(directory)
    batches = [path for k in range(1, 6) if (path := folder / f"data_batch_{k}.bin").is_file()]
    test = folder / "test_batch.bin"
    if not batches or not test.is_file():
        raise FileNotFoundError(_missing(folder))
    parts = [_records(path) for path in [*batches, test]]
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return _split(pixels, labels, len(labels) - len(parts[-1][1]), 10)


_record = 1 + 3 * 32 * 32


def _records(path: Path) -> tuple[np.ndarray, np.ndarray]:
    raw = np.fromfile(path, np.uint8)
    if raw.size == 0 or raw.size % _record or np.max(raw[::_record]) > 9:
        raise ValueError(
            f"{path} is not a file of CIFAR-10's binary version, records of {_record} bytes that begin with a label "
            f"from 0 to 9: it has {raw.size} bytes. Take the files of cifar-10-binary.tar.gz, and all of each."
        )
    rows = raw.reshape(-1, _record)
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]


def _missing(folder: Path) -> str:
    needed = "at least one of data_batch_1.bin to data_batch_5.bin, and test_batch.bin"
    if any((folder / name).exists() for name in ("data_batch_1", "test_batch", "batches.meta")):
        found = "it holds the Python version, whose files are pickles, which can run code and are not read"
    elif folder.is_dir():
        found = "they are not all there"
    else:
        found = "there is no such directory"
    return (
        f"`directory` must hold the binary version of CIFAR-10, {needed}, but in {folder} {found}. Unpack "
        "cifar-10-binary.tar.gz, and give the directory cifar-10-batches-bin."
    )


def _split(inputs: np.ndarray, labels: np.ndarray, train: int, classes: int) -> Split:
    over = (0, *range(2, inputs.ndim))
    inputs = inputs.astype(np.float32)
    inputs -= inputs[:train].mean(axis=over, keepdims=True, dtype=np.float64).astype(np.float32)
    spread = inputs[:train].std(axis=over, keepdims=True, dtype=np.float64)
    # A feature that does not vary stays 0.
    inputs /= np.where(spread > 0, spread, 1).astype(np.float32)
    labels = labels.astype(np.int32)
    return Split((inputs[:train], labels[:train]), (inputs[train:], labels[train:]), classes)


def _generator(key: Any) -> np.random.Generator:
    return np.random.default_rng([int(word) for word in key_words(key)])
