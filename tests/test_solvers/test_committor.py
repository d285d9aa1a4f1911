"""Committors and transition rates against closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from test_solvers.fokker_planck_problems import double_well, gibbs, loss_proportional

from solvers import Diffusion, Grid, fokker_planck


def integral(f, low, high):
    return quad(f, low, high, epsabs=0, epsrel=1e-12, limit=200)[0]


def observed_order(errors):
    return np.log2(np.abs(errors[:-1]) / np.abs(errors[1:]))


_v = lambda x: (x**2 - 1) ** 2 / 4  # noqa: E731

# The scale density s = e^(V/D) or f^(1/κ), and the stationary density without its norm.
_lines = {
    "gibbs": (gibbs(double_well(), 0.1), lambda x: np.exp(_v(x) / 0.1), lambda x: np.exp(-_v(x) / 0.1), 0.1),
    "loss-proportional": (
        loss_proportional(double_well(0.05), 0.5),
        lambda x: (0.05 + _v(x)) ** 2,
        lambda x: (0.05 + _v(x)) ** -3,
        0.5,
    ),
}


@pytest.mark.parametrize("name", _lines)
@pytest.mark.slow("gibbs")
def test_on_a_line(name):
    # q = ∫_a^x s / ∫_a^b s, and the rate 1 / (Z ∫ 1 / (D ρ)) with 1 / (D ρ) ∝ s.
    process, scale, density, diffusion = _lines[name]
    low, high = -0.83, 0.77
    whole, z = integral(scale, low, high), integral(density, -3, 3)
    for cells in (40, 120):
        grid = Grid.uniform((-3.0, 3.0, cells))
        q = fokker_planck.committor(process, grid, a=lambda x: x[0] < low, b=lambda x: x[0] > high)
        exact = [integral(scale, low, min(max(c, low), high)) / whole for c in grid.centres[0]]
        assert np.all(np.abs(q.values - exact) <= 3 * q.error + 1e-13)
        assert q.rate == pytest.approx(diffusion / (z * whole), abs=3 * q.rate_error)
        np.testing.assert_allclose(q.values + q.backward, 1, atol=1e-15)
    np.testing.assert_allclose(q.values, exact, rtol=1e-9, atol=1e-300)
    assert q.rate == pytest.approx(diffusion / (z * whole), rel=1e-9)
    free = (grid.centres[0] > low) & (grid.centres[0] < high)
    np.testing.assert_allclose(q.current[0], np.where(free, q.rate, 0), rtol=1e-12)
    assert "transitions from a to b per time" in str(q)


def test_a_rate_of_1e_109():
    # Between the wells at D = .001: half of that at which either is left, whose sum is the gap, 1.19975e-109.
    q = fokker_planck.committor(
        gibbs(double_well(), 1e-3), Grid.uniform((-2.0, 2.0, 401)), a=lambda x: x[0] < -0.9, b=lambda x: x[0] > 0.9
    )
    assert q.rate == pytest.approx(1.19975e-109 / 4, rel=1e-5)


def test_the_rate_is_half_the_gap_times_the_masses():
    # Between deep wells, rate = gap P(a) P(b) up to the time within a well.
    f = lambda x: (x[0] ** 2 - 1) ** 2 / 4 + x[0] / 20 + x[1] ** 2  # noqa: E731
    grid = Grid.uniform((-2.2, 2.0, 81), (-1.2, 1.2, 47))
    generator = fokker_planck.assemble(gibbs(f, 0.05), grid)
    gap = fokker_planck.spectrum(generator, 2).gap
    p = fokker_planck.stationary(generator)
    q = fokker_planck.committor(
        gibbs(f, 0.05),
        grid,
        a=lambda x: (x[0] + 1.03) ** 2 + x[1] ** 2 < 0.06,
        b=lambda x: (x[0] - 0.97) ** 2 + x[1] ** 2 < 0.06,
    )
    in_b = p.marginal(0).mass[grid.centres[0] > 0.05].sum()
    assert q.rate == pytest.approx(gap * in_b * (1 - in_b), rel=0.02)


_annulus = {
    "still": Diffusion(lambda t, x: -x, lambda t, x: jnp.sqrt(jnp.asarray(0.6))),
    "turning": Diffusion(lambda t, x: -x + 2 * jnp.stack([x[1], -x[0]]), lambda t, x: jnp.sqrt(jnp.asarray(0.6))),
}


@pytest.mark.parametrize("name", _annulus)
@pytest.mark.slow("still")
def test_out_of_a_disc_to_second_order(name):
    # From r < .3 to r > 1 under D = .3: q = ∫_.3^r e^(r²/.6)/r dr / ∫_.3^1, and the rate is 2π D / (Z ∫), Z = .6 π.
    # A rotation changes neither, but there is no detailed balance.
    scale = lambda r: np.exp(r**2 / 0.6) / r  # noqa: E731
    whole = integral(scale, 0.3, 1)
    r = np.linspace(0.3, 1, 40)
    exact = np.polynomial.Polynomial.fit(r, [integral(scale, 0.3, a) / whole for a in r], 14)
    values, rates = [], []
    for n in (80, 160) if name == "still" else (81, 161):
        grid = Grid.uniform((-3.1, 3.3, n), (-3.2, 3.2, n))
        q = fokker_planck.committor(_annulus[name], grid, a=lambda x: x @ x < 0.09, b=lambda x: x @ x > 1.0)
        r = np.clip(np.sqrt(np.sum(grid.points**2, axis=-1)), 0.3, 1)
        values.append(np.max(np.abs(q.values - exact(r))))
        rates.append(q.rate * whole - 1)
        assert np.max(np.abs(q.backward + q.values - 1)) < 5 * values[-1]
        assert n % 2 or abs(rates[-1]) * q.rate < 3 * q.rate_error
        assert n % 2 or values[-1] < 4 * np.max(q.error)
    assert values[-1] < 1e-3
    assert abs(rates[-1]) < 2e-3
    # The current through every circle is the rate.
    outwards = 2 * np.pi * np.sum(np.moveaxis(q.current, 0, -1) * grid.points, axis=-1)
    np.testing.assert_allclose(outwards[(r > 0.5) & (r < 0.8)], q.rate, rtol=0.02)
    assert observed_order(np.array(values))[0] > 1.6


def test_a_tilted_ring():
    # dX = (1 - sin x) dt + dB on a circle: no detailed balance, and transitions mostly the short way with the drift.
    force, d = lambda x: 1 - np.sin(x), 0.5
    phi = lambda x: 2 * (x + np.cos(x))  # noqa: E731
    a, b = (0.6, 1.4), (3.3, 4.7)
    around = lambda x: integral(lambda y: np.exp(phi(x) - phi(y)), x, x + 2 * np.pi) / d  # noqa: E731
    z = integral(around, 0, 2 * np.pi)
    # At the ends of a, q⁺ is 0 and q⁻ is 1: the reactive current there is ρ D dq⁺/dx.
    exact = sum(
        around(x) / z * d / abs(integral(lambda y, x=x: np.exp(phi(x) - phi(y)), x, to))
        for x, to in [(a[1], b[0]), (a[0], b[1] - 2 * np.pi)]
    )
    assert force(np.pi / 2) == pytest.approx(0)
    process = Diffusion(lambda t, x: 1 - jnp.sin(x), lambda t, x: jnp.asarray(1.0))
    inside = lambda ends: lambda x: (x[0] > ends[0]) & (x[0] < ends[1])  # noqa: E731
    errors = []
    for n in (64, 128):
        grid = Grid.uniform((0.0, 2 * np.pi, n))
        q = fokker_planck.committor(process, grid, inside(a), inside(b), boundary="periodic")
        errors.append(q.rate / exact - 1)
        x = grid.centres[0]
        middle = (x > a[1]) & (x < b[0])
        share = [integral(lambda y: np.exp(-phi(y)), a[1], c) for c in x[middle]]
        np.testing.assert_allclose(
            q.values[middle], np.divide(share, integral(lambda y: np.exp(-phi(y)), a[1], b[0])), atol=20 / n**2
        )
        assert abs(errors[-1]) * exact < 2 * q.rate_error
    assert abs(errors[-1]) < 1e-3
    assert observed_order(np.array(errors))[0] > 1.6
    # As many come back as go.
    back = fokker_planck.committor(process, grid, inside(b), inside(a), boundary="periodic")
    assert back.rate == pytest.approx(q.rate, rel=1e-3)
    np.testing.assert_allclose(back.values, 1 - q.values, atol=1e-10)


def test_as_many_come_back_as_go_in_the_plane():
    turn = jnp.array([[1.0, 2.0], [-1.0, 1.5]])
    process = Diffusion(lambda t, x: -turn @ x, lambda t, x: jnp.sqrt(jnp.array([0.6, 1.0])))
    left, right = (
        (lambda x: (x[0] + 0.6) ** 2 + x[1] ** 2 < 0.2),
        (lambda x: (x[0] - 0.5) ** 2 + (x[1] - 0.3) ** 2 < 0.1),
    )
    grid = Grid.uniform((-2.8, 2.8, 71), (-2.8, 2.8, 71))
    there, back = (fokker_planck.committor(process, grid, *sets) for sets in ((left, right), (right, left)))
    assert there.rate == pytest.approx(back.rate, rel=1e-3)
    np.testing.assert_allclose(there.values + back.values, 1, atol=1e-9)
    # What comes from a is not what does not go to b.
    assert np.max(np.abs(there.backward - (1 - there.values))) > 0.2


@pytest.mark.slow
def test_in_space():
    # Nothing depends on the other coordinates.
    f = lambda x: (x[0] ** 2 - 1) ** 2 / 4 + jnp.sum(x[1:] ** 2)  # noqa: E731
    line, side = (-2.0, 2.0, 30), (-1.0, 1.0, 5)
    space, along = (
        fokker_planck.committor(gibbs(f, 0.2), grid, a=lambda x: x[0] < -0.83, b=lambda x: x[0] > 0.77)
        for grid in (Grid.uniform(line, side, side), Grid.uniform(line))
    )
    np.testing.assert_allclose(space.values, np.broadcast_to(along.values[:, None, None], (30, 5, 5)), atol=5e-3)
    assert space.rate == pytest.approx(along.rate, rel=2e-2)
    # Not halved by an odd number of cells: nothing to compare with.
    assert np.isnan(space.rate_error)


def test_results_lost_in_rounding_are_refused():
    # Another well, deep and far from both sets: from there it takes 1e20 time units to reach any.
    f = lambda x: (x[0] ** 2 - 1) ** 2 / 4 + x[1] ** 2  # noqa: E731
    near = lambda y: lambda x: (x[0] + 1) ** 2 + (x[1] - y) ** 2 < 0.01  # noqa: E731
    for temperature in (5e-3, 3e-3):
        grid = Grid.uniform((-1.6, 1.6, 64), (-0.5, 0.5, 20))
        with pytest.raises(ArithmeticError, match="float64"):
            fokker_planck.committor(gibbs(f, temperature), grid, a=near(0.2), b=near(-0.2))


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        (lambda x: x[0] < -5, lambda x: x[0] > 1, "`a` must hold at some cell centre"),
        (lambda x: x[0] < -1, lambda x: x[0] > 5, "`b` must hold at some cell centre"),
        (lambda x: x[0] < 0.5, lambda x: x[0] > -0.5, "must not overlap, but both hold at"),
        (lambda x: x[0] < 0, lambda x: x[0] > 0.05, "must be separated by cells"),
    ],
)
def test_bad_sets(a, b, says):
    with pytest.raises(ValueError, match=says):
        fokker_planck.committor(gibbs(double_well(), 0.1), Grid.uniform((-2.0, 2.0, 20)), a, b)


def test_absorbing_faces_are_refused():
    with pytest.raises(ValueError, match="`boundary` must be 'no-flux' or 'periodic' for a committor"):
        fokker_planck.committor(
            gibbs(double_well(), 0.1),
            Grid.uniform((-2.0, 2.0, 20)),
            lambda x: x[0] < -1,
            lambda x: x[0] > 1,
            "absorbing",
        )
