"""Ensembles of runs: addressed random numbers, observables, what is refused."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgdsde as sg
from solvers import Grid, sde

SGD = sg.optimizers.SGD
LINE = sg.losses.LeastSquares(np.array([[1.0], [2.0], [-1.0], [0.5]]), np.array([1.0, -1.0, 0.0, 2.0]))


def bowl(x):
    return 0.5 * (1 + x @ x)


def first(x):
    return 1 - x[0] ** 2


def left_and_right(t, x):
    return jnp.stack([t, x[0]])


# Laws


def test_gaussian_sgd_is_euler_maruyama_with_its_own_random_numbers():
    noise = sg.noise.LossProportional(0.5)
    x0 = np.array([1.0, -0.5])
    out = sg.optimizers.run(SGD(0.1), bowl, x0, noise=noise, steps=37, runs=70, key=5)
    same = sde.simulate(sg.SGD(bowl, noise, 0.1), sde.EulerMaruyama(), x0, t1=3.7, dt=0.1, key=5, paths=70)
    np.testing.assert_allclose(out.final, same.final, rtol=1e-12)


def test_without_noise_it_is_gradient_descent():
    out = sg.optimizers.run(SGD(0.3), sg.losses.Quadratic([1.0, 2.0]), np.ones(2), steps=5, key=0, save_at=[0, 1, 5])
    np.testing.assert_allclose(out.xs[:, 0], [[1, 1], [0.7, 0.4], [0.7**5, 0.4**5]], rtol=1e-13)
    np.testing.assert_array_equal(out.steps_saved, [0, 1, 5])
    np.testing.assert_allclose(out.ts, [0, 0.3, 1.5])


# Addressed random numbers


def _bits(**options):
    observe = {"x": sde.Moments(left_and_right), "p": sde.Histogram(Grid.uniform((-3.0, 3.0, 6)))}
    optimizer = SGD(0.2, 2, sampling="reshuffling")
    x0 = np.linspace(-1, 1, 150)[:, None]
    return sg.optimizers.run(optimizer, LINE, x0, steps=30, key=3, observe=observe, every=4, burn_in=6, **options)


def test_the_bits_do_not_depend_on_chunks_or_on_what_is_looked_at(monkeypatch):
    # Small blocks, so that 150 runs are five of them and the last is not full.
    monkeypatch.setattr("solvers.sde.ensemble._block_numbers", 64)
    monkeypatch.setattr("solvers.sde.ensemble._block_sizes", (16, 32))
    whole = _bits()
    for other in (_bits(chunk=7), _bits(chunk=64), _bits(save_at=[3, 4, 30])):
        np.testing.assert_array_equal(other.final, whole.final)
        np.testing.assert_array_equal(other["x"].mean, whole["x"].mean)
        np.testing.assert_array_equal(other["x"].cov, whole["x"].cov)
        np.testing.assert_array_equal(other["p"].mass, whole["p"].mass)
    bare = sg.optimizers.run(
        SGD(0.2, 2, sampling="reshuffling"), LINE, np.linspace(-1, 1, 150)[:, None], steps=30, key=3
    )
    np.testing.assert_array_equal(bare.final, whole.final)


def test_observables_see_the_samples_asked_for_on_the_clock():
    out = _bits(save_at=np.arange(31))
    sampled = [10, 14, 18, 22, 26, 30]
    np.testing.assert_allclose(out["x"].mean, [np.mean(sampled) * 0.2, out.xs[sampled].mean()], rtol=1e-12)
    np.testing.assert_allclose(out["x"].cov[1, 1], out.xs[sampled].var(), rtol=1e-10)
    counts = np.histogram(out.xs[sampled], np.linspace(-3, 3, 7))[0]
    np.testing.assert_allclose(out["p"].mass, counts / out.xs[sampled].size, rtol=1e-12)


def test_runs_are_independent_and_keys_differ():
    final = _bits().final[:, 0]
    other = sg.optimizers.run(SGD(0.2, 2), LINE, np.zeros(1), steps=30, runs=150, key=3).final[:, 0]
    again = sg.optimizers.run(SGD(0.2, 2), LINE, np.zeros(1), steps=30, runs=150, key=4).final[:, 0]
    assert len(np.unique(final)) == len(np.unique(other)) == 150
    assert not np.any(other == again)


def test_dtype_follows_the_state():
    out = sg.optimizers.run(SGD(0.2, 2), LINE, np.zeros(1, np.float32), steps=3, key=0, observe={"x": sde.Moments()})
    assert out.final.dtype == np.float32
    noisy = sg.optimizers.run(SGD(0.2), bowl, np.ones(1, np.float32), noise=sg.noise.Constant(1.0), steps=3, key=0)
    assert noisy.final.dtype == np.float32


@pytest.mark.parametrize("chosen", ["with-replacement", "without-replacement", "reshuffling"])
@pytest.mark.slow("without-replacement", "with-replacement")
def test_single_precision_needs_no_configuration(float32, chosen):
    optimizer = SGD(0.2, 2, sampling=chosen)
    out = sg.optimizers.run(optimizer, LINE, np.zeros(1), steps=7, runs=40, key=0)
    with jax.enable_x64(True):
        same = sg.optimizers.run(optimizer, LINE, np.zeros(1, np.float32), steps=7, runs=40, key=0)
    assert out.final.dtype == np.float32
    np.testing.assert_allclose(out.final, same.final, rtol=1e-5)


def test_a_sweep_compiles_once(caplog):
    with jax.log_compiles():
        for rate, beta in ((0.1, 0.9), (0.05, 0.5)):
            optimizer = sg.optimizers.Momentum(rate, 2, momentum=beta)
            sg.optimizers.run(optimizer, LINE, np.zeros(1), steps=3, key=0)
    assert sum("Finished XLA compilation of jit(advance)" in r.message for r in caplog.records) == 1


# Exits


def test_exit_times_are_those_of_the_first_step_outside():
    x0 = np.linspace(-0.9, 0.9, 20)[:, None]
    noise = sg.noise.Constant(2.0)
    observe = {"exit": sde.FirstPassage(first), "x": sde.Moments()}
    options = {"noise": noise, "steps": 40, "key": 1}
    xs = sg.optimizers.run(SGD(0.1), bowl, x0, save_at=np.arange(41), **options).xs
    out = sg.optimizers.run(SGD(0.1), bowl, x0, observe=observe, every=5, **options)
    outside = np.abs(xs[:, :, 0]) >= 1
    steps = outside.argmax(axis=0)
    assert outside.any(axis=0).sum() > 5
    np.testing.assert_allclose(out["exit"].times, np.where(outside.any(axis=0), steps * 0.1, np.nan), rtol=1e-12)
    left = np.flatnonzero(outside.any(axis=0))
    np.testing.assert_array_equal(out["exit"].points[:, 0], xs[steps[left], left, 0])
    np.testing.assert_allclose(out["x"].mean, xs[5::5].mean(axis=(0, 1)), rtol=1e-12)


# Runs that blow up


def test_runs_that_blow_up_are_found_and_counted():
    x0 = np.array([[0.1], [3.0], [0.2]])
    quartic = sg.losses.DoubleWell()
    with pytest.raises(FloatingPointError, match=r"1 of 3 runs became non-finite, the first in step \d+ \(run 1\)"):
        sg.optimizers.run(SGD(0.5), quartic, x0, steps=50, key=0)
    observe = {"x": sde.Moments()}
    out = sg.optimizers.run(SGD(0.5), quartic, x0, steps=50, key=0, burn_in=40, throw=False, observe=observe)
    assert out.nonfinite == 1
    assert out["x"].paths == 2
    assert np.isnan(out.final[1, 0])
    assert np.all(np.isfinite(out.final[[0, 2]]))
    assert "1 runs became non-finite" in str(out)


# Ctrl-C


def test_an_interrupt_returns_what_there_is(monkeypatch):
    def add(self, done):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("solvers.sde.progress.Progress.add", add)
    observe = {"x": sde.Moments()}
    out = sg.optimizers.run(
        SGD(0.2, 2), LINE, np.zeros(1), steps=1000, runs=5, key=0, observe=observe, save_at=[1, 900]
    )
    assert not out.complete
    assert 1 <= out.steps < 1000
    assert out.final.shape == (5, 1)
    np.testing.assert_array_equal(out.steps_saved, [1])
    assert f"interrupted: 5 runs after {out.steps} steps" in str(out)


# Refusals


@pytest.mark.parametrize(
    ("optimizer", "loss", "options", "error", "message"),
    [
        (SGD(0.1, 2), bowl, {}, TypeError, r"wrap .* in sg.losses.FiniteSum"),
        (SGD(0.1, 2), LINE, {"noise": sg.noise.Constant(1.0)}, ValueError, "`noise` takes the place of minibatches"),
        (SGD(0.1), bowl, {"noise": 0.5}, TypeError, "`noise` must be one of `sgdsde.noise`"),
        (SGD(0.1, 3, sampling="reshuffling"), LINE, {}, ValueError, "must divide the number of examples, 4"),
        (SGD(0.1, 5, sampling="without-replacement"), LINE, {}, ValueError, "at most the number of examples, 4"),
        (SGD(0.1), "bowl", {}, TypeError, "`loss` must be a function"),
        (SGD(0.1), bowl, {"steps": 0}, ValueError, "`steps` must be a number of steps from 1"),
        (SGD(0.1), bowl, {"steps": 2.5}, TypeError, "`steps` must be a whole number"),
        (SGD(0.1), bowl, {"save_at": [2, 1]}, ValueError, "`save_at` must hold increasing numbers of steps"),
        (SGD(0.1), bowl, {"save_at": [0.5]}, ValueError, "`save_at` must hold increasing numbers of steps"),
        (SGD(0.1), bowl, {"chunk": 0}, ValueError, "`chunk` must be a positive whole number of runs"),
        (SGD(0.1), bowl, {"runs": 0}, ValueError, "`runs` must be a positive whole number"),
        (SGD(0.1), bowl, {"observe": {"x": bowl}}, TypeError, "must be an observable such as"),
        (SGD(0.1), bowl, {"observe": {"x": sde.Moments()}, "burn_in": 5}, ValueError, "leave no sample in 5 steps"),
        (SGD, bowl, {}, TypeError, "`optimizer` must be one of"),
    ],
)
def test_bad_arguments(unchecked, optimizer, loss, options, error, message):
    with pytest.raises(error, match=message):
        sg.optimizers.run(optimizer, loss, np.ones(1), **({"steps": 5, "key": 0} | options))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(0.0), "`learning_rate` must be positive"),
        (lambda: SGD(0.1, 0), "`batch_size` must be a whole number"),
        (lambda: SGD(0.1, 1.5), "`batch_size` must be a whole number"),
        (lambda: SGD(0.1, 1, sampling="shuffled"), "`sampling` must be"),
        (lambda: sg.optimizers.Momentum(0.1, momentum=1.0), "`momentum` must be below 1"),
        (lambda: sg.optimizers.Momentum(0.1, form="polyak"), "`form` must be"),
    ],
)
def test_bad_hyperparameters(unchecked, make, message):
    with pytest.raises(ValueError, match=message):
        make()
