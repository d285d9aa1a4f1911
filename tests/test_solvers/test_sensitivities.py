"""Derivatives of what the Fokker-Planck solver computes, against closed forms and differences of its own values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from solvers import AbstractDiffusion, Density, Diffusion, Grid, fokker_planck

_line = Grid.uniform((-5, 5, 80))
_plane = Grid.uniform((-2.5, 2.5, 16), (-2, 2, 12))


class Linear(AbstractDiffusion):
    """dX = -h X dt + sqrt(2 T (1 + κ X²)) dB, with numbers that are leaves."""

    h: jax.Array
    temperature: jax.Array
    kappa: jax.Array

    def drift(self, t, x):
        return -self.h * x

    def noise(self, t, x):
        from solvers.process import as_operator

        return as_operator(jnp.sqrt(2 * self.temperature * (1 + self.kappa * x**2)), x)


def linear(h, temperature, kappa=0.0):
    return Linear(*(jnp.asarray(a, jnp.float64) for a in (h, temperature, kappa)))


def double_well(a, temperature=0.3):
    return Diffusion(lambda t, x: -a * (x**3 - x), lambda t, x: jnp.sqrt(2 * temperature * (1 + 0.1 * jnp.cos(x))))


def turning(a):
    """A double well in the plane with a rotation: no detailed balance."""
    return Diffusion(
        lambda t, x: -jnp.stack([a * (x[0] ** 3 - x[0]), 1.5 * x[1]]) + 0.4 * a * jnp.stack([-x[1], x[0]]),
        lambda t, x: jnp.sqrt(0.8 + 0.2 * a * jnp.cos(x)),
    )


def independent(a):
    """A double well and a parabola in the plane that do not see each other."""
    return Diffusion(
        lambda t, x: -jnp.stack([a * (x[0] ** 3 - x[0]), (1 + a) * x[1]]), lambda t, x: jnp.sqrt(0.8 + 0.1 * a)
    )


def variance(process, grid):
    return fokker_planck.stationary(fokker_planck.assemble(process, grid)).expect(lambda x: x @ x)


def gap(process, grid):
    return fokker_planck.spectrum(fokker_planck.assemble(process, grid), k=2).gap


def left(x):
    return x[0] < 0.13


def difference(f, a, h=2e-3):
    """The central difference of fourth order."""
    return (8 * (f(a + h) - f(a - h)) - (f(a + 2 * h) - f(a - 2 * h))) / (12 * h)


def agrees(f, a, mode=jax.jacfwd):
    """The traced values are those of numbers, and their derivatives those of their differences."""
    value, slope = jax.jit(lambda a: (f(a), mode(f)(a)))(a)
    np.testing.assert_allclose(value, f(a), rtol=1e-9)
    np.testing.assert_allclose(slope, difference(f, a), rtol=1e-6)


def test_variance_of_gibbs():
    # E x² = T / h: both derivatives, and the second.
    f = lambda t, h: variance(linear(h, t), _line)  # noqa: E731
    value, (by_t, by_h) = jax.value_and_grad(f, argnums=(0, 1))(0.5, 1.25)
    np.testing.assert_allclose([value, by_t, by_h], [0.4, 0.8, -0.32], rtol=1e-6)


@pytest.mark.slow
def test_variance_of_student():
    # D = T(1 + κ x²) has E x² = T / (h - κT); the tails need a stretched grid. Fourth order: 2e-6 on 640 cells.
    grid = Grid.stretched((1e4, 640, 1.0))
    f = lambda kappa: variance(linear(1.0, 0.5, kappa), grid)  # noqa: E731
    slope = jax.jit(jax.grad(f))(0.4)
    np.testing.assert_allclose(slope, 0.5**2 / (1 - 0.4 * 0.5) ** 2, rtol=1e-5)
    np.testing.assert_allclose(slope, difference(f, 0.4), rtol=1e-6)


def test_sweep_is_a_loop():
    f = lambda t: variance(linear(1.0, t), _line)  # noqa: E731
    ts = jnp.linspace(0.2, 0.8, 7)
    np.testing.assert_allclose(jax.jit(jax.vmap(f))(ts), [f(t) for t in ts], rtol=1e-12)


@pytest.mark.slow
def test_loss_that_closes_over_a_tracer():
    def f(a):
        loss = lambda x: 0.5 * a * x @ x  # noqa: E731
        process = Diffusion(lambda t, x: -jax.grad(loss)(x), lambda t, x: jnp.sqrt(2 * jnp.asarray(0.5)))
        p = fokker_planck.stationary(fokker_planck.assemble(process, _line))
        return jnp.stack([jnp.asarray(v) for v in (p.expect(lambda x: a * x @ x), p.at(0.3), p.cdf()[30], p.pdf[7])])

    value, slope = jax.jvp(f, (1.25,), (1.0,))
    np.testing.assert_allclose(value, f(1.25), rtol=1e-9)
    # E a x² = T; its derivative is zero by the closed form.
    np.testing.assert_allclose(slope[0], 0, atol=1e-6)
    np.testing.assert_allclose(slope, difference(f, 1.25), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("process", "mode"), [(turning, jax.jacrev), (independent, jax.jacfwd)])
@pytest.mark.slow("turning-jacrev")
def test_law_and_gap_in_the_plane(process, mode):
    def f(a):
        generator = fokker_planck.assemble(process(a), _plane)
        variance = fokker_planck.stationary(generator).expect(lambda x: x @ x)
        return jnp.stack([jnp.asarray(variance), jnp.asarray(fokker_planck.spectrum(generator, k=2).gap)])

    agrees(f, 0.9, mode)


def test_gap_of_ornstein_uhlenbeck():
    # The extrapolated rate is of sixth order: 3e-7 off on 160 cells.
    grid = Grid.uniform((-5, 5, 160))
    slopes = jax.grad(lambda h, t: gap(linear(h, t), grid), argnums=(0, 1))(1.25, 0.5)
    np.testing.assert_allclose(slopes, [1, 0], atol=1e-6)


@pytest.mark.slow
def test_tiny_gap():
    # Of 1e-24: the derivative of its logarithm is that of the barrier, -1 / 4D, and of prefactors.
    grid = Grid.uniform((-2, 2, 160))
    process = lambda a: Diffusion(lambda t, x: -a * (x**3 - x), lambda t, x: jnp.sqrt(2 * jnp.asarray(0.005)))  # noqa: E731
    agrees(lambda a: jnp.log(gap(process(a), grid)), 1.1)


@pytest.mark.slow
def test_mean_exit_time_by_quadrature():
    # T(x) = ∫_x^c e^(f/T) ∫_-∞^y e^(-f/T) dz dy / T, f = a (x² - 1)² / 4, between a wall at -2 and c.
    temperature, c, x0 = 0.2, 0.13, -0.9

    def exact(a):
        f = lambda x: a * (x * x - 1) ** 2 / 4 / temperature  # noqa: E731
        inner = lambda y: scipy.integrate.quad(lambda z: np.exp(f(y) - f(z)), -2, y, epsabs=0, epsrel=1e-11)[0]  # noqa: E731
        return scipy.integrate.quad(inner, x0, c, epsabs=0, epsrel=1e-11)[0] / temperature

    grid = Grid.uniform((-2, 2, 41))
    cell = int(np.argmin(np.abs(grid.centres[0] - x0)))
    x0 = float(grid.centres[0][cell])
    process = lambda a: Diffusion(lambda t, x: -a * (x**3 - x), lambda t, x: jnp.sqrt(2 * jnp.asarray(temperature)))  # noqa: E731
    f = lambda a: fokker_planck.exit_time(process(a), grid, inside=left).values[cell]  # noqa: E731
    value, slope = jax.jit(jax.value_and_grad(f))(0.9)
    np.testing.assert_allclose([value, slope], [exact(0.9), difference(exact, 0.9)], rtol=1e-6)
    np.testing.assert_allclose(slope, difference(f, 0.9), rtol=1e-6)


@pytest.mark.slow
def test_rare_exit():
    # Of e^100; noise that varies.
    def f(a):
        tau = fokker_planck.exit_time(double_well(a, 0.002), Grid.uniform((-2, 2, 40)), inside=left)
        return jnp.log(jnp.stack([jnp.asarray(v) for v in (tau.at(-1.0), tau.variance[8])]))

    assert f(0.9)[0] > 100
    agrees(f, 0.9)


@pytest.mark.slow
def test_exit_in_the_plane():
    def f(a):
        tau = fokker_planck.exit_time(turning(a), _plane, inside=lambda x: x @ x < 1.3)
        return jnp.stack([jnp.asarray(v) for v in (tau.at(jnp.array([-0.5, 0.1])), tau.variance[6, 5])])

    agrees(f, 0.9, jax.jacrev)


def test_other_numbers_compile_nothing():
    counted = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: counted.append(event) if "backend_compile" in event else None
    )
    solve = lambda t: fokker_planck.stationary(fokker_planck.assemble(linear(1.0, t), _plane)).mass  # noqa: E731
    first = solve(0.1)
    assert counted
    counted.clear()
    assert not np.allclose(solve(0.15), first)
    assert not counted


def test_a_function_that_reads_a_changed_variable_is_evaluated_anew():
    numbers = {"h": 1.0}
    process = Diffusion(lambda t, x: -numbers["h"] * x, lambda t, x: jnp.sqrt(2 * jnp.asarray(0.5)))
    values = []
    for h in (1.0, 2.0):
        numbers["h"] = h
        values.append(variance(process, _line))
    np.testing.assert_allclose(values, [0.5, 0.25], rtol=1e-3)


def test_what_has_no_derivative_says_so():
    def generator(a):
        return fokker_planck.assemble(linear(a, 0.5), _line)

    def refused(f, match):
        with pytest.raises((NotImplementedError, AttributeError), match=match):
            jax.eval_shape(f, jnp.asarray(1.0))

    point = Density.point(_line, 0.1)
    refused(lambda a: fokker_planck.evolve(generator(a), point, [0.1]).mass_error, "stationary")
    refused(lambda a: generator(a).matrix, "matrix")
    refused(lambda a: fokker_planck.spectrum(generator(a), k=2).modes, "derivatives")
    refused(lambda a: fokker_planck.quasi_stationary(linear(a, 0.5), _line, inside=left).rate, "traces")
    refused(lambda a: fokker_planck.exit_time(linear(1.0, 0.5), _line, inside=lambda x: x[0] < a).values[0], "inside")
    refused(lambda a: jax.grad(jax.grad(lambda b: gap(linear(b, 0.5), _line)))(a), "first derivatives")


def test_full_tensors_have_no_derivative_and_say_so():
    def spread(a):
        noise = jnp.array([[1.0, 0.0], [0.5, 1.0]]) * a
        return variance(Diffusion(lambda t, x: -x, lambda t, x: noise), _plane)

    with pytest.raises(RuntimeError, match="for a full tensor D take differences"):
        jax.grad(spread)(0.5)
