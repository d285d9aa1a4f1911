"""Mean exit times and their variance against closed forms, quadrature and particles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from test_solvers.fokker_planck_problems import brownian, double_well, gibbs, loss_proportional, quadratic

from solvers import Diffusion, Grid, fokker_planck, sde


def ball(radius):
    return lambda x: x @ x < radius**2


def observed_order(errors):
    return np.log2(np.abs(errors[:-1]) / np.abs(errors[1:]))


def radial_time(r, radius, d, scale, speed):
    """∫_r^R scale(y) y^(1-d) ∫_0^y speed(z) z^(d-1) dz dy: exit from a ball under a radial process."""
    inner = lambda y: quad(lambda z: speed(z) * z ** (d - 1), 0, y, epsabs=0, epsrel=1e-11)[0]  # noqa: E731
    return quad(lambda y: scale(y) * y ** (1 - d) * inner(y), r, radius, epsabs=0, epsrel=1e-10)[0]


# --- a line -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [Grid.uniform((-1.3, 1.7, 37)), Grid.stretched((40.0, 60, 0.5))])
def test_brownian_motion_on_an_interval(grid):
    # (1 - x²) / (2D), and E τ² = (5 - 6x² + x⁴) / (12 D²). The ends ±1 are nowhere near faces or centres.
    tau = fokker_planck.exit_time(brownian(0.7), grid, inside=lambda x: jnp.abs(x[0]) < 1)
    x = grid.centres[0]
    there = np.abs(x) < 1
    mean = np.where(there, (1 - x**2) / 1.4, 0)
    np.testing.assert_allclose(tau.values, mean, rtol=1e-12)
    variance = np.where(there, (5 - 6 * x**2 + x**4) / (12 * 0.49) - mean**2, 0)
    np.testing.assert_allclose(tau.variance, variance, rtol=1e-9)
    assert np.all(tau.error < 1e-12)
    assert "at most 0.7" in str(tau)


@pytest.mark.parametrize(("drift", "rtol"), [(-2.0, 1e-11), (30.0, 1e-9), (-4000.0, 1e-5)])
def test_drift_may_dominate_a_cell(drift, rtol):
    # (L (1 - e^(-bx/D)) / (1 - e^(-bL/D)) - x) / b on [0, L]: up to 80 times D / width.
    length, x = 0.93, (np.arange(40) + 0.5) / 40
    tau = fokker_planck.exit_time(
        brownian(1.0, drift), Grid.uniform((0.0, 1.0, 40)), lambda x: x[0] < length, "absorbing"
    )
    if drift > -700:
        exact = (length * np.expm1(-drift * x) / np.expm1(-drift * length) - x) / drift
    else:
        exact = (length * np.exp(np.minimum(drift * (length - x), 0)) - x) / drift
    np.testing.assert_allclose(tau.values, np.where(x < length, exact, 0), rtol=rtol)


def test_multiplicative_noise_on_a_line_to_eighth_order():
    # D = κ f: T = (1/κ) ∫_x^1 f^(1/κ) ∫_(-2)^y f^(-1-1/κ), reflected at -2.
    f, kappa, end = lambda x: 0.05 + (x**2 - 1) ** 2 / 4, 0.5, 1.03
    inner = lambda y: quad(lambda z: f(z) ** -3, -2, y, epsabs=0, epsrel=1e-13)[0]  # noqa: E731
    errors = []
    for n in (13, 26, 52):
        grid = Grid.uniform((-2.0, 2.0, n))
        tau = fokker_planck.exit_time(loss_proportional(double_well(0.05), kappa), grid, lambda x: x[0] < end)
        cell = int(np.searchsorted(grid.centres[0], 0.0))
        x = grid.centres[0][cell]
        exact = quad(lambda y: 2 * f(y) ** 2 * inner(y), x, end, epsabs=0, epsrel=1e-12)[0]
        errors.append(tau.values[cell] / exact - 1)
        assert abs(tau.values[cell] - exact) <= 3 * tau.error[cell]
    assert abs(errors[-1]) < 1e-9
    assert np.all(observed_order(np.array(errors)) > 6.5)


def test_variance_converges_to_sixth_order():
    # Against a grid so fine that its own error is rounding.
    inside = lambda x: jnp.abs(x[0] - 0.1) < 0.97  # noqa: E731
    finest = fokker_planck.exit_time(gibbs(quadratic, 0.2), Grid.uniform((-1.5, 1.5, 405)), inside).variance
    errors = []
    for n in (15, 45):
        tau = fokker_planck.exit_time(gibbs(quadratic, 0.2), Grid.uniform((-1.5, 1.5, n)), inside)
        # Every third centre is one of the finer grid.
        errors.append(np.max(np.abs(tau.variance - finest[(405 // n - 1) // 2 :: 405 // n])))
    assert errors[0] > 1e-8
    assert np.log(errors[0] / errors[1]) / np.log(3) > 5


@pytest.mark.parametrize(
    ("process", "end", "exact"),
    [
        (gibbs(double_well(), 0.25), 0.0, 5.743437068035236),
        (gibbs(double_well(), 0.25), 1.0, 14.27773663650805),
        (gibbs(double_well(), 0.1), 1.0, 66.26862636491788),
        (loss_proportional(double_well(0.05), 0.5), 0.0, 176.7307569822162),
        (loss_proportional(double_well(0.05), 0.5), 1.0, 357.8710116910439),
        (loss_proportional(double_well(0.05), 0.25), 1.0, 13383.39745929139),
        (loss_proportional(double_well(0.25), 0.5), 1.0, 25.44686127416225),
    ],
)
def test_double_well(process, end, exact):
    # From one minimum to the top or to the other: a cell has its centre at -1.
    tau = fokker_planck.exit_time(process, Grid.uniform((-10.02, 10.02, 501)), inside=lambda x: x[0] < end)
    assert tau.at(-1.0) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("cells", [400, 800])
def test_a_time_of_1e108_has_ten_digits(cells):
    # T = (1/D) ∫_x^b e^(V/D) ∫_(-2)^y e^(-V/D), V = (x² - 1)²/4, D = .001, by Gauss-Legendre on panels.
    v, b = lambda x: (x**2 - 1) ** 2 / 4e-3, 0.0137
    tau = fokker_planck.exit_time(gibbs(double_well(), 1e-3), Grid.uniform((-2.0, 2.0, cells)), lambda x: x[0] < b)
    cell = cells // 4
    edges = np.linspace(tau.grid.centres[0][cell], b, 801)
    s, w = (a / 2 for a in np.polynomial.legendre.leggauss(8))
    h = np.diff(edges)[:, None]
    y = edges[:-1, None] + h * (0.5 + s)
    before = quad(lambda z: np.exp(-v(z)), -2, edges[0], epsabs=0, epsrel=1e-13, points=[-1.1, -1.0])[0]
    panels = np.sum(h * w * np.exp(-v(y)), axis=1)
    part = (y - edges[:-1, None])[..., None]
    within = np.sum(part * w * np.exp(-v(edges[:-1, None, None] + part * (0.5 + s))), axis=-1)
    inner = before + np.concatenate([[0], np.cumsum(panels)[:-1]])[:, None] + within
    exact = np.sum(h * w * np.exp(v(y)) * inner) * 1000
    assert exact > 1e108
    assert tau.values[cell] == pytest.approx(exact, rel=1e-10)
    # Its law is exponential; the square is beyond float64 in the middle of the calculation, too.
    assert tau.variance[cell] == pytest.approx(exact * exact, rel=1e-9)


@pytest.mark.parametrize(
    ("inside", "length"), [(lambda x: (x[0] > 4) | (x[0] < 1.2), 2 * np.pi - 2.8), (lambda x: x[0] > 4, 2 * np.pi - 4)]
)
def test_an_arc_of_a_ring(inside, length):
    # From 4 on, across the seam or up to it, under a constant drift: the closed form of an interval.
    grid = Grid.uniform((0.0, 2 * np.pi, 50))
    tau = fokker_planck.exit_time(brownian(0.3, 0.2), grid, inside, boundary="periodic")
    x = np.mod(grid.centres[0] - 4, 2 * np.pi)
    exact = (length * np.expm1(-x / 1.5) / np.expm1(-length / 1.5) - x) / 0.2
    np.testing.assert_allclose(tau.values, np.where(x < length, exact, 0), rtol=1e-10)


def test_parts_of_a_set_do_not_know_each_other():
    grid = Grid.uniform((-3.0, 3.0, 60))
    both = fokker_planck.exit_time(gibbs(quadratic, 0.2), grid, lambda x: jnp.abs(jnp.abs(x[0]) - 1.0) < 0.53)
    one = fokker_planck.exit_time(gibbs(quadratic, 0.2), grid, lambda x: jnp.abs(x[0] - 1.0) < 0.53)
    np.testing.assert_allclose(both.values[30:], one.values[30:], rtol=1e-13)
    np.testing.assert_allclose(both.values, both.values[::-1], rtol=1e-12)


def test_between_centres():
    errors = []
    for n in (20, 60):
        tau = fokker_planck.exit_time(brownian(0.5), Grid.uniform((-1.3, 1.7, n)), lambda x: jnp.abs(x[0]) < 1)
        x = np.linspace(-1, 1, 101)
        errors.append(np.max(np.abs(tau.at(x) - (1 - x**2))))
    assert errors[-1] < 1e-3
    assert np.log(errors[0] / errors[1]) / np.log(3) > 1.5
    assert tau.at(1.2) == 0
    assert tau.at(x[:, None]).shape == (101,)
    with pytest.raises(ValueError, match="must lie in the grid"):
        tau.at(2.0)
    with pytest.raises(ValueError, match="`x` must have shape"):
        tau.at(np.zeros((2, 2)))


# --- the plane and space ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "cells"), [(2, 31), (3, 15)])
def test_brownian_motion_in_a_ball_is_exact(d, cells):
    # (R² - r²) / (2dD): a quadratic function, for which cut edges leave no error at all.
    grid = Grid.uniform((-1.3, 1.7, cells), *[(-1.2, 1.3, cells)] * (d - 1))
    tau = fokker_planck.exit_time(brownian(0.7), grid, ball(1.0))
    exact = np.maximum(1 - np.sum(grid.points**2, axis=-1), 0) / (1.4 * d)
    np.testing.assert_allclose(tau.values, exact, rtol=1e-9)
    # E τ² is of fourth degree, and second order.
    square = np.minimum(np.sum(grid.points**2, axis=-1), 1)
    second = (1 / (2 * d) - 1 / (4 * d + 8) - square / (2 * d) + square**2 / (4 * d + 8)) / (0.49 * d)
    np.testing.assert_allclose(tau.variance, second - exact**2, atol=0.4 * (3 / cells) ** 2 * np.max(second))


_radial = {
    "ou": (gibbs(quadratic, 0.2), lambda y: np.exp(y**2 / 0.4) / 0.2, lambda z: np.exp(-(z**2) / 0.4)),
    "loss-proportional": (
        loss_proportional(quadratic, 0.4),
        lambda y: 2.5 * (0.5 * (1 + y**2)) ** 2.5,
        lambda z: (0.5 * (1 + z**2)) ** -3.5,
    ),
    # A rotation does not change the distance from the centre.
    "turning": (
        Diffusion(lambda t, x: -x + 2 * jnp.stack([x[1], -x[0]]), lambda t, x: jnp.sqrt(jnp.asarray(0.4))),
        lambda y: np.exp(y**2 / 0.4) / 0.2,
        lambda z: np.exp(-(z**2) / 0.4),
    ),
}


@pytest.mark.parametrize(
    ("name", "d", "cells"),
    [
        ("ou", 2, (20, 40, 80)),
        ("loss-proportional", 2, (31, 63)),
        ("turning", 2, (31, 63)),
        ("ou", 3, (12, 24)),
    ],
)
@pytest.mark.slow("ou-3-cells3", "ou-2-cells0")
def test_radial_processes_in_a_ball_to_second_order(name, d, cells):
    process, scale, speed = _radial[name]
    r = np.linspace(0, 1, 30)
    times = np.polynomial.Polynomial.fit(r**2, [radial_time(a, 1.0, d, scale, speed) for a in r], 12)
    errors = []
    for n in cells:
        grid = Grid.uniform((-1.3, 1.7, n), *[(-1.2, 1.3, n)] * (d - 1))
        tau = fokker_planck.exit_time(process, grid, ball(1.0))
        square = np.sum(grid.points**2, axis=-1)
        error = np.abs(tau.values - np.where(square < 1, times(np.minimum(square, 1)), 0))
        errors.append(np.max(error))
        # An odd number of cells can't be halved to compare with.
        assert np.all(np.isnan(tau.error[tau.values > 0])) if n % 2 else np.max(tau.error) < 5 * errors[-1]
        assert n % 2 or np.all(error <= 3 * tau.error + 0.2 * np.max(tau.error))
    assert errors[-1] / times(0) < 4e-2 * (24 / cells[-1]) ** 2
    np.testing.assert_allclose(observed_order(np.array(errors)), 2, atol=0.35)


@pytest.mark.slow
def test_particles_leave_an_irreversible_process_as_late():
    # dX = (-A x) dt + sqrt(2D) dB with a rotation, and a set that a rotation does not keep.
    turn = jnp.array([[1.0, 2.0], [-2.0, 1.0]])
    process = Diffusion(lambda t, x: -turn @ x, lambda t, x: jnp.array([0.6, 0.9]))
    level = lambda x: 0.64 - (x[0] - 0.5) ** 2 - 2 * (x[1] - 0.3) ** 2  # noqa: E731
    start = np.array([0.7, 0.2])
    grid = Grid.uniform((-1.0, 2.0, 120), (-1.0, 1.6, 104))
    time = fokker_planck.exit_time(process, grid, lambda x: level(x) > 0).at(start)
    out = sde.simulate(
        process,
        sde.EulerMaruyama(),
        jnp.asarray(start),
        t1=6.0,
        dt=4e-3,
        key=jax.random.key(3),
        paths=4_000,
        observe={"exit": sde.FirstPassage(level)},
    )
    assert out["exit"].fraction == 1
    assert time == pytest.approx(out["exit"].mean, abs=4 * out["exit"].sem)
    # The other way round it takes another time.
    other = Diffusion(lambda t, x: -turn.T @ x, lambda t, x: jnp.array([0.6, 0.9]))
    assert abs(fokker_planck.exit_time(other, grid, lambda x: level(x) > 0).at(start) - time) > 10 * out["exit"].sem


def test_faces_that_absorb_and_axes_that_close():
    # The unit square: T(centre) = .0736713532815 / D. With one axis a circle, the interval's x (1 - x) / (2D).
    grid = Grid.uniform((0.0, 1.0, 41), (0.0, 1.0, 41))
    everywhere = lambda x: x[0] == x[0]  # noqa: E731
    square = fokker_planck.exit_time(brownian(0.5), grid, everywhere, boundary="absorbing")
    assert square.values[20, 20] == pytest.approx(0.0736713532815 / 0.5, rel=6e-4)
    assert np.all(np.isnan(square.error))
    strip = fokker_planck.exit_time(brownian(0.5), grid, everywhere, boundary=("absorbing", "periodic"))
    x = grid.points[..., 0]
    np.testing.assert_allclose(strip.values, x * (1 - x), rtol=1e-9)


# --- what can't be answered -------------------------------------------------------------------------------------------


def _exit(inside, process=None, grid=None, **options):
    return fokker_planck.exit_time(process or brownian(1.0), grid or Grid.uniform((-2.0, 2.0, 20)), inside, **options)


@pytest.mark.parametrize(
    ("inside", "error", "says"),
    [
        (lambda x: x[0] > 5, ValueError, "holds at none of"),
        (lambda x: x[0] < 5, ValueError, "holds at all cell centres.*never left"),
        (lambda x: x @ x - 1, TypeError, "must return one boolean of JAX, got float64.*Compare"),
        (lambda x: jnp.abs(x) < 1, ValueError, r"got shape \(1,\).*jnp.all"),
        (lambda x: None, TypeError, "must return one boolean of JAX, got NoneType"),
        (lambda x: bool(x[0] > 0), TypeError, r"`inside\(x\)` cannot be compiled"),
        (1.0, TypeError, "must be a function of one point"),
    ],
)
def test_bad_sets(inside, error, says, unchecked):
    with pytest.raises(error, match=says):
        _exit(inside)


def test_python_functions_and_axes_that_are_too_many():
    with pytest.raises(NotImplementedError, match="grid` has 4 axes"):
        _exit(ball(0.5), grid=Grid.uniform(*[(-1.0, 1.0, 4)] * 4))
    with pytest.raises(ValueError, match="Did you mean 'absorbing'"):
        _exit(ball(0.5), boundary="open")


@pytest.mark.slow
def test_exits_too_rare_for_float64_are_refused():
    # On a line, 2e27; in the plane, where x₂ has no say, the same number is lost in rounding.
    line, side = (-2.0, 2.0, 80), (-0.5, 0.5, 10)
    process = gibbs(lambda x: (x[0] ** 2 - 1) ** 2 / 4 + jnp.sum(x[1:] ** 2), 4e-3)
    inside = lambda x: x[0] < 0.3  # noqa: E731
    assert 1e27 < _exit(inside, process, Grid.uniform(line)).at(-1.0) < 1e28
    with pytest.raises(ArithmeticError, match=r"too rarely for float64.*one-dimensional"):
        _exit(inside, process, Grid.uniform(line, side))
    warmer = gibbs(lambda x: (x[0] ** 2 - 1) ** 2 / 4 + jnp.sum(x[1:] ** 2), 0.05)
    plane, along = (_exit(inside, warmer, grid) for grid in (Grid.uniform(line, side), Grid.uniform(line)))
    np.testing.assert_allclose(plane.values, np.broadcast_to(along.values[:, None], (80, 10)), rtol=1e-2)


def test_times_beyond_float64_are_refused():
    with pytest.raises(ArithmeticError, match="exceeds 1e308"):
        _exit(lambda x: x[0] < 0.3, gibbs(double_well(), 3e-4), Grid.uniform((-2.0, 2.0, 800)))
