"""The grid of learning rates and batch sizes: its clock, distances, what is saved, and messages."""

import csv
import dataclasses

import numpy as np
import pytest

from sgdsde.experiments import learning_rate_batch_size as study, training

small = study.Config(rates=(0.1, 0.4), batches=(120, 480), losses=("KLD",), data="clusters", width=2, runs=2, epochs=25)


def test_time_is_the_sum_of_the_learning_rates():
    # 10 steps an epoch, of 0.5 up to epoch 60, of 0.05 up to epoch 100, of 0.005 up to epoch 125.
    t = training.times(0.5, 10, 100, 125)
    assert t.shape == (26,)
    np.testing.assert_allclose(t[[1, 12, 20, 25]], [25, 300, 300 + 20, 320 + 1.25])


def _result(curves):
    shape = (1, 2, 2, 26, 2, 2, 4)
    full = np.broadcast_to(np.exp(curves)[:, :, :, :, None, None], (2, 2, 26, 2, 2, 4)).reshape(shape)
    return study.Result(small, 480, full, np.ones((1, 2, 2, 2, 2, 2)))


def test_distance_of_curves_and_its_floor():
    curves = np.zeros((2, 2, 26, 2))
    curves[1, 1] = 0.3
    curves[1, 1, :, 0] += 0.1
    curves[1, 1, :, 1] -= 0.1
    distance, floor = _result(curves).distance(0, (0, 0), (1, 1))
    # Two runs that are 0.2 apart have variance 0.02.
    np.testing.assert_allclose([distance, floor], [0.3, 0.1])


def test_equal_times_make_equal_curves_of_one_flow():
    curves = np.empty((2, 2, 26, 2))
    result = _result(np.zeros_like(curves))
    for r in range(2):
        for b in range(2):
            curves[r, b] = -0.01 * result.times(r, b)[:, None]
    flow = _result(curves)
    cells = (0, 0), (0, 1)
    # At equal epochs t is four times as far with the small batches.
    apart = 0.01 * 0.75 * np.sqrt(np.mean(result.times(*cells[0])[1:] ** 2))
    np.testing.assert_allclose(flow.distance(0, *cells)[0], apart, rtol=1e-12)
    np.testing.assert_allclose(flow.distance(0, *cells, clock="t")[0], 0, atol=1e-12)
    assert flow.pairs() == [((0, 0), (1, 1))]


def test_an_interrupted_study_goes_on_where_it_was(tmp_path, monkeypatch):
    trained, train = [], training.train

    def counted(*arguments):
        trained.append(arguments[2:4])
        if len(trained) == 3:
            raise KeyboardInterrupt
        return train(*arguments)

    monkeypatch.setattr(training, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        study.run(small, key=3, checkpoint=tmp_path / "grid")
    resumed = study.run(small, key=3, checkpoint=tmp_path / "grid")
    assert trained == [(0.1, 120), (0.1, 480), (0.4, 120), (0.4, 120), (0.4, 480)]
    monkeypatch.setattr(training, "train", train)
    whole = study.run(small, key=3)
    np.testing.assert_array_equal(resumed.curves, whole.curves)
    np.testing.assert_array_equal(resumed.traces, whole.traces)
    with pytest.raises(ValueError, match="width"):
        study.run(dataclasses.replace(small, width=3), key=3, checkpoint=tmp_path / "grid")
    # One start, and curves that have come down at the end.
    assert np.ptp(whole.curves[..., 0, :, 0, 0]) < 1e-6
    assert np.all(whole.curves[..., -1, :, 0, 0] < whole.curves[..., 0, :, 0, 0])
    whole.write_csv(tmp_path / "table.csv")
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["learning_rate"]) for row in rows] == [0.1, 0.1, 0.4, 0.4]
    np.testing.assert_allclose(float(rows[3]["loss"]), whole.curves[0, 1, 1, -1, :, 0, 0].mean())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batches": (7, 28)}, "must divide the number of training examples, 480, but 7 does not"),
        ({"epochs": 30}, "multiple of 25, but got 30"),
        ({"runs": 1}, "at least 2"),
        ({"losses": ("MSE",)}, 'must be "KLD" or "log", but got \'MSE\''),
        ({"network": "VGG"}, 'must be "MLP" or "ResNet"'),
        ({"rates": (0.1, 0.3)}, "cells of equal η/B"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_messages(changes, message):
    with pytest.raises(ValueError, match=message):
        study.run(dataclasses.replace(small, **changes))
