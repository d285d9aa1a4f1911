"""Where results come from: fingerprints that follow the mathematics, the record in every result, and its clocks."""

import importlib.metadata
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import Density, Diffusion, Grid, fokker_planck, sde
from solvers.clocks import Clocks, clocks_of
from solvers.provenance import fingerprint, process_fingerprint


def _ou(rate=1.0, noise=1.0):
    return Diffusion(lambda t, x: -rate * x, lambda t, x: noise)


def _mark(process, d=2, dtype=np.float64):
    return process_fingerprint(process, d, dtype)


def test_equal_processes_have_equal_fingerprints_and_others_not():
    same = _mark(_ou())
    assert same == _mark(_ou())
    assert len({same, _mark(_ou(1 + 1e-15)), _mark(_ou(noise=2.0)), _mark(_ou(), 3), _mark(_ou(), 2, np.float32)}) == 5


def _twice(f):
    return lambda y: jax.lax.fori_loop(0, 2, lambda _, z: f(z), y)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, _twice])
def test_arrays_that_a_drift_closes_over_are_part_of_the_fingerprint(wrap):
    # The text of a program shows the shapes of its constants only.
    def process(a):
        drift = wrap(lambda y: -jnp.asarray([1.0, a]) * y)
        return Diffusion(lambda t, x: drift(x), lambda t, x: 1.0)

    marks = [_mark(process(a)) for a in (2.0, 2.0, 2 + 1e-15)]
    assert marks[0] == marks[1] != marks[2]


def test_a_fingerprint_is_the_same_in_another_interpreter():
    code = (
        "import jax, numpy as np; jax.config.update('jax_enable_x64', True)\n"
        "from solvers.provenance import fingerprint\n"
        "print(fingerprint(lambda _, a, x: jax.nn.softplus(a * x) + np.array([1.0, 2.0]), None, 3.0, np.ones(2)))"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    here = fingerprint(lambda _, a, x: jax.nn.softplus(a * x) + np.array([1.0, 2.0]), None, 3.0, np.ones(2))
    assert there.stdout.strip() == here


def test_a_process_is_traced_once_for_all_its_numbers():
    seen = []

    def drift(h, t, x):
        seen.append(h)
        return -h * x

    def noise(t, x):
        return 1.0

    marks = [_mark(Diffusion(jax.tree_util.Partial(drift, jnp.asarray(h)), noise)) for h in (1.0, 2.0, 1.0)]
    assert marks[0] == marks[2] != marks[1]
    assert len(seen) == 1


def test_a_simulation_says_what_happened():
    out = sde.simulate(
        _ou(), sde.EulerMaruyama(), jnp.zeros(2, jnp.float32), t1=1.0, dt=0.25, key=7, paths=5, burn_in=0.5, every=2
    )
    made = out.provenance
    assert (made.call, made.key, made.dtype) == ("solvers.sde.simulate", (7,), "float32")
    assert made.process == f"Diffusion {_mark(_ou(), dtype=np.float32)}"
    versions = dict(made.versions)
    assert versions["jax"] == jax.__version__
    assert versions["numpy"] == np.__version__
    assert versions["sgdsde"] == importlib.metadata.version("sgdsde")
    assert (out.t0, out.burn_in, out.every) == (0.0, 0.5, 2)
    text = str(out)
    # 5 paths of 2 numbers of 4 bytes; 5 * 4 path-steps.
    assert "40 bytes" in text
    assert f"{20 / out.seconds:.3g} path-steps/s" in text
    assert "from t=0 to t=1" in text
    assert f"{made.process} in float32, key 7, {made.seconds:.2f} s in all, jax {jax.__version__}" in text
    assert str(made).startswith(f"solvers.sde.simulate of {made.process} in float32, key 7, ")


def test_the_key_is_recorded_by_its_words():
    study = sde.strong_order(
        _ou(), sde.EulerMaruyama(), jnp.ones(1), dts=[0.5, 0.25], key=jax.random.key(9), paths=64, exact=_ou_solution
    )
    assert study.provenance.key == (0, 9)
    assert study.provenance.call == "solvers.sde.strong_order"
    assert "; float64, " in str(study)


def _ou_solution(x0, t, w):
    return x0 * jnp.exp(-t) + w


def test_records_differ_by_what_decides_numbers_not_by_the_time_of_day():
    generator = fokker_planck.assemble(_ou(), Grid.uniform((-4, 4, 16)))
    first, second = fokker_planck.stationary(generator), fokker_planck.stationary(generator)
    assert first.provenance == second.provenance
    assert first.provenance.seconds != second.provenance.seconds
    assert fokker_planck.spectrum(generator, k=2).provenance != first.provenance
    assert first.marginal(0).provenance == first.provenance
    # A law is still a tree of numbers.
    assert all(isinstance(leaf, np.ndarray | float) for leaf in jax.tree.leaves(first))


def test_nothing_is_recorded_of_what_jax_traces():
    grid = Grid.uniform((-4, 4, 16))

    def mean_square(rate):
        process = Diffusion(lambda t, x: -rate * x, lambda t, x: 1.0)
        p = fokker_planck.stationary(fokker_planck.assemble(process, grid))
        assert p.provenance is None
        return p.expect(lambda x: x @ x)

    assert jax.eval_shape(mean_square, 1.0).shape == ()


def test_a_law_made_by_hand_has_no_record():
    p = Density(Grid.uniform((0, 1, 2)), [0.5, 0.5])
    assert p.provenance is None
    assert str(p).endswith("outside")


def test_clocks_turn_times_into_steps_and_epochs():
    # 100 examples in batches of 5, at a learning rate of 0.1: 20 steps and t = 2 an epoch.
    clocks = Clocks(dt=0.05, step_time=0.1, steps_per_epoch=20.0)
    np.testing.assert_allclose(clocks.steps([0.0, 2.0, 3.0]), [0, 20, 30])
    np.testing.assert_allclose(clocks.epochs([0.0, 2.0, 3.0]), [0, 1, 1.5])
    assert clocks.at(3.0) == "t=3 = 30 steps of the algorithm = 1.5 epochs"


def test_clocks_that_do_not_exist_are_named():
    clocks = clocks_of(_ou(), 0.5)
    assert clocks.at(2.0) == "t=2"
    with pytest.raises(ValueError, match="`steps` are those of an algorithm"):
        clocks.steps(1.0)
    with pytest.raises(ValueError, match="`epochs` are passes through data"):
        clocks.epochs(1.0)
