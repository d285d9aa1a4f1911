"""Sweeps: one compilation, common random numbers, and the bits of single runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring

import sgdsde as sg
from solvers import sde

_method = sde.EulerMaruyama()


def _loss(x):
    return 0.5 * (1 + x @ x)


def _models(sigmas):
    return [sg.SGD(_loss, sg.noise.LossProportional(s), 0.1) for s in sigmas]


def _sweep(sigmas, **options):
    return sde.sweep(_models(sigmas), _method, np.zeros(1), t1=1.0, dt=0.01, key=3, paths=500, **options)


def test_a_sweep_compiles_once_and_has_the_bits_of_single_runs(tmp_path):
    _sweep([1.0])
    compiled = []
    monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    try:
        together = _sweep([2.0, 3.0, 4.0])
        assert not compiled
    finally:
        monitoring.clear_event_listeners()
    for sigma, out in zip([2.0, 3.0, 4.0], together, strict=True):
        (alone,) = _sweep([sigma])
        assert np.array_equal(alone.final, out.final)
    for _ in range(2):
        stored = _sweep([2.0, 3.0, 4.0], checkpoint=tmp_path / "sweep")
        assert all(np.array_equal(a.final, b.final) for a, b in zip(together, stored, strict=True))


def test_paths_of_a_sweep_see_one_brownian_motion():
    # Linear in the noise: doubling D's root doubles X.
    processes = [sg.SGD(_loss, sg.noise.Constant(s), 0.1) for s in (1.0, 4.0)]
    a, b = sde.sweep(processes, _method, np.zeros(1), t1=1.0, dt=0.01, key=3, paths=100)
    assert np.allclose(2 * a.final, b.final, rtol=1e-12)


def test_processes_of_another_structure_are_refused():
    mixed = [*_models([1.0]), sg.SGD(lambda x: x @ x, sg.noise.LossProportional(1.0), 0.1)]
    with pytest.raises(ValueError, match=r"processes\[1\] has another structure"):
        sde.sweep(mixed, _method, jnp.zeros(1), t1=1.0, dt=0.01, key=jax.random.key(0), paths=10)
    with pytest.raises(ValueError, match="at least one"):
        sde.sweep([], _method, jnp.zeros(1), t1=1.0, dt=0.01, key=0, paths=10)
