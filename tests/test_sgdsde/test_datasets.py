"""Data sets: splits by key, standardised inputs, the records of CIFAR-10, and refusals."""

import builtins
import pickle

import jax
import numpy as np
import pytest

from sgdsde import datasets


def _standard(inputs):
    over = (0, *range(2, inputs.ndim))
    np.testing.assert_allclose(inputs.mean(axis=over, dtype=np.float64), 0, atol=1e-5)
    np.testing.assert_allclose(inputs.std(axis=over, dtype=np.float64), 1, rtol=1e-5)


def test_digits_are_split_by_the_key():
    one, other = datasets.digits(0, train=1000), datasets.digits(1, train=1000)
    assert one.shape == (1, 8, 8)
    assert (one.classes, len(one.train[1]), len(one.held_out[1])) == (10, 1000, 797)
    for part in (one.train, one.held_out):
        assert set(part[1].tolist()) == set(range(10))
    _standard(one.train[0])
    again = datasets.digits(jax.random.key(0), train=1000)
    np.testing.assert_array_equal(one.train[0], again.train[0])
    assert not np.array_equal(one.train[1], other.train[1])
    # Every image is on one side: of 1,797 labels there are as many of each in any split.
    counts = [np.bincount(np.concatenate([s.train[1], s.held_out[1]])) for s in (one, other)]
    np.testing.assert_array_equal(*counts)
    with pytest.raises(ValueError, match="`train`"):
        datasets.digits(train=1797)


def test_digits_say_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        datasets.digits()


def test_clusters():
    data = datasets.clusters(3, train=3000, held_out=7, classes=4, separation=8.0, flipped=0.2)
    assert str(data) == "3000 + 7 examples of shape (8,), 4 classes"
    _standard(data.train[0])
    # With the clouds far apart the nearest neighbour has the same label unless one of the two was drawn anew, and then
    # with 1/4: (1 - q)² + ... = 1 - (3/4)(1 - (1-q)²) for q = 0.2, to sampling error.
    x, y = data.train
    gram = x @ x.T
    square = np.diag(gram)
    distance = square[:, None] + square - 2 * gram
    np.fill_diagonal(distance, np.inf)
    same = np.mean(y == y[np.argmin(distance, axis=1)])
    expected = 1 - 0.75 * (1 - 0.8**2)
    assert abs(same - expected) < 4 * np.sqrt(2 * expected * (1 - expected) / 3000)
    for bad in ({"train": 0}, {"classes": 1}, {"flipped": 1.5}):
        with pytest.raises(ValueError, match=f"`{next(iter(bad))}`"):
            datasets.clusters(**bad)


def _records(labels, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    return np.concatenate([np.array(labels, np.uint8)[:, None], pixels], axis=1)


def test_cifar10_records(tmp_path):
    first, second, test = (_records(labels, k) for k, labels in enumerate(([3, 9], [0], [7, 7, 1])))
    for name, rows in (("data_batch_1", first), ("data_batch_4", second), ("test_batch", test)):
        (tmp_path / f"{name}.bin").write_bytes(rows.tobytes())
    data = datasets.cifar10(tmp_path)
    assert data.shape == (3, 32, 32)
    np.testing.assert_array_equal(data.train[1], [3, 9, 0])
    np.testing.assert_array_equal(data.held_out[1], [7, 7, 1])
    _standard(data.train[0])
    # Byte 1 + 1024 c + 32 i + j of a record is the pixel (c, i, j).
    raw = np.concatenate([first, second]).astype(float)
    for c, i, j in ((0, 0, 0), (1, 5, 30), (2, 31, 2)):
        plane = raw[:, 1 + 1024 * c : 1025 + 1024 * c]
        expected = (raw[:, 1 + 1024 * c + 32 * i + j] - plane.mean()) / plane.std()
        np.testing.assert_allclose(data.train[0][:, c, i, j], expected, rtol=1e-4, atol=1e-5)


def test_other_files_are_refused_and_no_pickle_is_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such directory"):
        datasets.cifar10(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="not all there"):
        datasets.cifar10(tmp_path)
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return ran.write_text, ("x",)

    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(FileNotFoundError, match=r"pickles.*cifar-10-binary\.tar\.gz"):
        datasets.cifar10(tmp_path)
    assert not ran.exists()
    (tmp_path / "test_batch.bin").write_bytes(_records([1], 0).tobytes())
    for content in (_records([1], 0).tobytes()[:-1], _records([10], 0).tobytes(), b""):
        (tmp_path / "data_batch_1.bin").write_bytes(content)
        with pytest.raises(ValueError, match=r"data_batch_1\.bin is not a file of CIFAR-10's binary version"):
            datasets.cifar10(tmp_path)
