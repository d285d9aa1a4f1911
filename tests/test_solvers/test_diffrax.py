"""Solvers of diffrax as methods: equal to ours where they are the same, and right where only they exist."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_solvers import sde_problems as problems

from solvers import Diffusion, sde
from solvers.sde.brownian import increment, numbers_per_step
from solvers.sde.diffrax import _bridge

_controller = diffrax.PIDController(rtol=1e-3, atol=1e-4)


def _noisy(noise):
    return Diffusion(lambda t, x: jnp.sin(3 * t) - x, noise)


# Noise of each form; all depend on t.
_noises = {
    "isotropic": lambda t, x: 0.5 + jnp.cos(t + x[0]),
    "diagonal": lambda t, x: 0.5 + jnp.cos(t + x),
    "matrix": lambda t, x: jnp.stack([0.5 + jnp.cos(t + x), x, 0 * x], axis=1),
}


def _paths(method, process, x, t, dt, n=5):
    """One step of n paths from one point."""
    need = method.needs(process, x[None])
    m = process.noise(jnp.asarray(t), x).in_size()
    t, dt = jnp.asarray(t, x.dtype), jnp.asarray(dt, x.dtype)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(n, numbers_per_step(need, m, 1.0))), x.dtype)
    return jax.jit(jax.vmap(lambda z: method.step(process, t, x, dt, increment(need, m, dt, z))))(z)


@pytest.mark.parametrize("noise", list(_noises))
@pytest.mark.parametrize(
    ("solver", "ours"), [(diffrax.Euler(), sde.EulerMaruyama()), (diffrax.Heun(), sde.StratonovichHeun())]
)
def test_the_same_method_has_the_same_steps(solver, ours, noise):
    # Late on the clock, where a step taken as a difference of times would lose digits.
    process, x = _noisy(_noises[noise]), jnp.asarray([0.4, -0.7])
    arguments = process, x, 1e4, 0.01
    np.testing.assert_allclose(_paths(sde.Diffrax(solver), *arguments), _paths(ours, *arguments), rtol=1e-12)


@pytest.mark.parametrize("solver", [diffrax.ItoMilstein(), diffrax.StratonovichMilstein()])
def test_milstein_is_the_same_in_one_dimension(solver):
    process, x = _noisy(_noises["isotropic"]), jnp.asarray([0.4])
    arguments = process, x, 0.3, 0.1
    np.testing.assert_allclose(_paths(sde.Diffrax(solver), *arguments), _paths(sde.Milstein(), *arguments), rtol=1e-13)


def test_sra1_is_the_same_under_constant_noise():
    arguments = problems.wells, jnp.asarray([1.0, 0.5]), 0.3, 0.1
    theirs = _paths(sde.Diffrax(diffrax.SRA1()), *arguments)
    np.testing.assert_allclose(theirs, _paths(sde.SRA1(), *arguments), rtol=1e-13)


@pytest.mark.parametrize("solver", [diffrax.EulerHeun(), diffrax.SPaRK(), diffrax.ReversibleHeun()])
@pytest.mark.slow("solver2", "solver1")
def test_stratonovich_solvers_converge_to_the_solution_in_the_sense_of_ito(solver):
    process, x0, exact = problems.pathwise["four turning"]
    dts = [2.0**-k for k in range(4, 8)]
    study = sde.strong_order(process, sde.Diffrax(solver), x0, dts=dts, key=1, paths=300, exact=exact)
    # Of order 1 here, because this noise commutes.
    assert abs(study.order - 1) < 0.15, str(study)


def test_solvers_in_a_run():
    # Through `simulate`, with its time integrals: ShARK is exact for X_1 = ∫ X_2 dt, X_2 = B, where E X_1² = T³/3.
    process = Diffusion(lambda t, x: jnp.stack([x[1], 0 * x[1]]), lambda t, x: jnp.asarray([[0.0], [1.0]]))
    out = sde.simulate(process, sde.Diffrax(diffrax.ShARK()), jnp.zeros(2), t1=1.0, dt=0.5, key=0, paths=50_000)
    square = out.final[:, 0] ** 2
    assert abs(square.mean() - 1 / 3) < 4 * square.std() / np.sqrt(len(square))


# Adaptive runs


@pytest.mark.slow
def test_an_adaptive_run_is_closer_than_fixed_steps():
    # dX = 1.5 X dt + X dB is X_0 exp(t + B): a function of the increment alone, whatever happens in between.
    process, x, dt = Diffusion(lambda t, x: 1.5 * x, lambda t, x: x), jnp.ones(1), 0.5
    # Without drift, X = X_0 + B.
    dw = _paths(sde.EulerMaruyama(), Diffusion(lambda t, x: 0 * x, lambda t, x: 1.0), jnp.zeros(1), 0.3, dt, n=100)
    exact = np.exp(dt + np.asarray(dw))
    fixed, adaptive = (
        np.abs(_paths(sde.Diffrax(diffrax.Heun(), controller), process, x, 0.3, dt, n=100) - exact)
        for controller in (None, _controller)
    )
    assert adaptive.mean() < 0.02 * fixed.mean()


@pytest.mark.slow
def test_an_adaptive_run_takes_a_stiff_drift_and_reports_an_explosion():
    def ends(sign):
        process = Diffusion(lambda t, x: sign * x**3, lambda t, x: 0.1)
        method = sde.Diffrax(diffrax.SPaRK(), stepsize_controller=_controller)
        assert method.needs(process, jnp.ones((1, 1))) == "increment"
        dws = jnp.asarray([[0.5], [-0.3]])
        one, zero = jnp.asarray(1.0), jnp.asarray(0.0)
        return jax.vmap(lambda dw: method.step(process, zero, jnp.asarray([9.0]), one, sde.Increment(dw)))(dws)

    ends = jax.jit(ends)
    # Without noise X(1) = 9/√(1 + 2·81); with the other sign X is infinite at t = 1/162.
    stiff = ends(jnp.asarray(-1.0))
    assert np.all(np.abs(stiff - 9 / np.sqrt(163)) < 0.2)
    assert stiff[0] != stiff[1]
    assert np.all(np.isnan(ends(jnp.asarray(1.0))))


@pytest.mark.slow
def test_the_path_within_a_step_is_a_brownian_motion_with_the_given_end():
    n, dt = 10_000, jnp.asarray(0.5)
    dw = jnp.sqrt(dt) * jnp.asarray(np.random.default_rng(0).normal(size=(n, 1)))
    times = dt * jnp.asarray([0.0, 0.25, 0.75, 1.0])

    def parts(dw):
        path = _bridge(diffrax.SpaceTimeLevyArea, jnp.asarray(0.2), dt, sde.Increment(dw))
        part = jax.vmap(lambda a, b: path.evaluate(a, b, use_levy=True))(times[:-1], times[1:])
        return part.W[:, 0], part.H[:, 0]

    w, h = (np.asarray(v) for v in jax.jit(jax.vmap(parts))(dw))
    np.testing.assert_allclose(w.sum(axis=1), dw[:, 0], atol=1e-14)
    # Independent, of variance length for increments and length/12 for areas.
    lengths = np.diff(times)
    scaled = np.concatenate([w / np.sqrt(lengths), h / np.sqrt(lengths / 12)], axis=1)
    assert np.all(np.abs(scaled.T @ scaled / n - np.eye(6)) < 4 * np.sqrt(2 / n))


def test_the_path_within_a_step_is_a_function_of_its_increment_and_time():
    dt, end, t = jnp.asarray(0.5), jnp.asarray([0.3, -0.1]), jnp.asarray(0.25)

    @jax.jit
    def middle(t, dw):
        return _bridge(diffrax.BrownianIncrement, t, dt, sde.Increment(dw)).evaluate(0 * dt, 0.5 * dt)

    assert np.array_equal(middle(t, end), middle(t, end))
    assert not np.any(np.isclose(middle(t, end), middle(2 * t, end)))
    # One rounding of one component makes it another path.
    assert not np.any(np.isclose(middle(t, end), middle(t, end.at[1].set(np.nextafter(-0.1, 0)))))


# Orders, and what is refused


def test_orders_and_calculus_are_those_of_the_solver():
    assert sde.Diffrax(diffrax.Euler()).strong_order == 0.5
    assert sde.Diffrax(diffrax.ShARK()).strong_order == 1.5
    assert np.isnan(sde.Diffrax(diffrax.Heun(), _controller).strong_order)
    assert np.isnan(sde.Diffrax.weak_order)
    assert sde.Diffrax(diffrax.Euler()).calculus == "ito"
    assert sde.Diffrax(diffrax.Heun()).calculus == "stratonovich"


@pytest.mark.parametrize("solver", [diffrax.ItoMilstein(), diffrax.StratonovichMilstein(), diffrax.SlowRK()])
@pytest.mark.slow("solver0", "solver2")
def test_solvers_that_need_noise_that_commutes_refuse_other(solver):
    method = sde.Diffrax(solver)
    lossy = Diffusion(lambda t, x: -x, lambda t, x: jnp.sqrt(1 + x @ x))
    for process, d in ((lossy, 2), (problems.rotated, 2), (problems.levy_area, 3)):
        with pytest.raises(ValueError, match=r"needs noise that commutes.*Use `Milstein`"):
            method.needs(process, jnp.ones((1, d)))
    for process, x0, _ in problems.pathwise.values():
        assert method.needs(process, x0[None]) in ("increment", "time")
    assert method.needs(lossy, jnp.ones((1, 1))) in ("increment", "time")


@pytest.mark.parametrize("solver", [diffrax.Tsit5(), diffrax.ShOULD(), "heun", diffrax.Heun])
def test_other_solvers_are_refused(solver, unchecked):
    with pytest.raises(TypeError, match="`solver` must be a solver of diffrax for Itô or Stratonovich equations"):
        sde.Diffrax(solver)


def test_solvers_that_look_inside_a_step_need_a_controller(unchecked):
    with pytest.raises(ValueError, match="`HalfSolver` looks at the Brownian motion within a step"):
        sde.Diffrax(diffrax.HalfSolver(diffrax.Euler()))
    with pytest.raises(TypeError, match="`stepsize_controller` must be an adaptive one"):
        sde.Diffrax(diffrax.Heun(), diffrax.ConstantStepSize())
    sde.Diffrax(diffrax.HalfSolver(diffrax.ItoMilstein()), _controller)
