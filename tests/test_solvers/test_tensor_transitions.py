"""Exit times, quasi-stationary laws and committors under full diffusion tensors, against closed forms.

Constant tensors are those of isotropic processes in other coordinates: ellipses take the place of discs.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from scipy.integrate import quad

from solvers import Diffusion, Grid, fokker_planck

_tensor = np.array([[1.0, 0.8], [0.8, 1.5]])
_precision = np.linalg.inv(_tensor)
_root = np.linalg.cholesky(_tensor)


def ellipse(radius, precision=_precision):
    return lambda x: x @ jnp.asarray(precision) @ x < radius**2


def squares(grid, precision=_precision):
    """(r / R)² in the coordinates in which D is isotropic."""
    return np.einsum("...i,ij,...j->...", grid.points, precision, grid.points)


def brownian(tensor=_tensor):
    noise = jnp.asarray(np.linalg.cholesky(2 * tensor))
    return Diffusion(lambda t, x: 0 * x, lambda t, x: noise)


def turning(speed, temperature=0.2):
    """Isotropic and linear, turning with `speed`, in coordinates in which D = temperature · _tensor."""
    drift = jnp.asarray(_root @ np.array([[-1.0, speed], [-speed, -1.0]]) @ np.linalg.inv(_root))
    noise = jnp.asarray(np.sqrt(2 * temperature) * _root)
    return Diffusion(lambda t, x: drift @ x, lambda t, x: noise)


def box(cells):
    return Grid.uniform((-1.3, 1.35, cells), (-1.5, 1.6, cells))


def radial_times(scale, speed, d=2):
    """T(r²) from r to 1, by quadrature of ∫ scale r^(1-d) ∫ speed r^(d-1)."""
    inner = lambda y: quad(lambda z: speed(z) * z ** (d - 1), 0, y, epsrel=1e-11)[0]  # noqa: E731
    r = np.linspace(0, 1, 16)
    times = [quad(lambda y: scale(y) * y ** (1 - d) * inner(y), a, 1, epsrel=1e-9)[0] for a in r]
    return np.polynomial.Polynomial.fit(r**2, times, 10)


# --- exit times -------------------------------------------------------------------------------------------------------


def test_brownian_motion_in_an_ellipse_is_exact():
    # (R² - xᵀD⁻¹x) / 4: quadratic, and exact though long edges are cut at the boundary. E τ² is of fourth degree.
    errors = []
    for n in (20, 40):
        tau = fokker_planck.exit_time(brownian(), box(n), ellipse(1.0))
        square = np.minimum(squares(box(n)), 1)
        np.testing.assert_allclose(tau.values, (1 - square) / 4, atol=1e-12)
        second = (1 / 4 - 1 / 16 - square / 4 + square**2 / 16) / 2
        errors.append(np.max(np.abs(tau.variance - second + tau.values**2)))
        assert np.max(tau.error) < 1e-11
    assert errors[1] < 3e-4
    assert errors[0] / errors[1] > 3


def test_an_ellipsoid_in_space():
    tensor = np.array([[1.0, 0.5, 0.2], [0.5, 1.0, -0.3], [0.2, -0.3, 0.8]])
    grid = Grid.uniform((-1.1, 1.2, 13), (-1.2, 1.1, 12), (-1.0, 1.1, 12))
    tau = fokker_planck.exit_time(brownian(tensor), grid, ellipse(1.0, np.linalg.inv(tensor)))
    square = np.minimum(squares(grid, np.linalg.inv(tensor)), 1)
    np.testing.assert_allclose(tau.values, (1 - square) / 6, atol=1e-12)
    assert np.sum(tau.values > 0) > 300


_processes = {
    # D = .2, and a rotation that circles do not notice.
    "turning": (turning(2.0), lambda y: np.exp(y**2 / 0.4) / 0.2, lambda z: np.exp(-(z**2) / 0.4)),
    # D = κ f with f = (1 + r²)/2 and κ = .4.
    "multiplicative": (
        Diffusion(lambda t, x: -x, lambda t, x: jnp.sqrt(0.4 * (1 + x @ jnp.asarray(_precision) @ x)) * _root),
        lambda y: 2.5 * (0.5 * (1 + y**2)) ** 2.5,
        lambda z: (0.5 * (1 + z**2)) ** -3.5,
    ),
}


@pytest.mark.parametrize("name", _processes)
@pytest.mark.slow("multiplicative")
def test_radial_processes_in_an_ellipse_to_second_order(name):
    process, scale, speed = _processes[name]
    times, errors = radial_times(scale, speed), []
    for n in (20, 40):
        tau = fokker_planck.exit_time(process, box(n), ellipse(1.0))
        square = squares(box(n))
        errors.append(np.max(np.abs(tau.values - np.where(square < 1, times(np.minimum(square, 1)), 0))))
        assert errors[-1] < 1.5 * np.max(tau.error) < 3 * errors[-1]
    assert errors[1] < 0.02 * times(0)
    assert np.log2(errors[0] / errors[1]) > 1.7


@pytest.mark.slow
def test_a_rectangle_at_an_angle():
    # Brownian motion in the unit square, T(centre) = .0736713532815 / D, turned by atan(1/2), with a tensor that is not
    # isotropic there: D = 2 along one side of length sqrt(2), and 1 along the other of length 1.
    turn = np.array([[2.0, -1.0], [1.0, 2.0]]) / np.sqrt(5)
    tensor = turn @ np.diag([2.0, 1.0]) @ turn.T
    half = jnp.asarray([np.sqrt(0.5), 0.5])
    inside = lambda x: jnp.all(jnp.abs(jnp.asarray(turn.T) @ x) < half)  # noqa: E731
    tau = fokker_planck.exit_time(brownian(tensor), Grid.uniform((-1.0, 1.0, 60), (-1.0, 1.0, 60)), inside)
    assert tau.at([0.0, 0.0]) == pytest.approx(0.0736713532815, rel=4e-3)
    assert np.max(tau.error) < 1e-3


@pytest.mark.slow
def test_diffusion_along_lines_only():
    # Along the diagonals of the plane, each of which is left like an interval: (ℓ² - s²) / 2 with D = 1 along it.
    noise = jnp.asarray([[1.0], [1.0]])
    grid = Grid.uniform((-1.2, 1.2, 24), (-1.2, 1.2, 24))
    tau = fokker_planck.exit_time(Diffusion(lambda t, x: 0 * x, lambda t, x: noise), grid, lambda x: x @ x < 1)
    x = grid.points
    across, along = (x[..., 0] - x[..., 1]) / np.sqrt(2), (x[..., 0] + x[..., 1]) / np.sqrt(2)
    np.testing.assert_allclose(tau.values, np.maximum(1 - across**2 - along**2, 0) / 2, atol=1e-12)


@pytest.mark.slow
def test_drift_without_diffusion_leaves_upwind():
    # dX = dt, dY = sqrt(2) dB: a band x < .73 is left after .73 - x, which upwind differences of first order have.
    process = Diffusion(lambda t, x: jnp.stack([1 + 0 * x[0], 0 * x[0]]), lambda t, x: jnp.asarray([[0.0], [2.0**0.5]]))
    grid = Grid.uniform((-1.0, 1.0, 20), (-1.0, 1.0, 20))
    tau = fokker_planck.exit_time(process, grid, lambda x: x[0] < 0.73)
    np.testing.assert_allclose(tau.values, np.maximum(0.73 - grid.points[..., 0], 0), atol=1e-12)
    # Until |y| = 1, as if there were no drift: (1 - y²) / 2, far from where it leads.
    tau = fokker_planck.exit_time(process, Grid.uniform((-9.0, 1.0, 50), (-1.3, 1.3, 26)), lambda x: jnp.abs(x[1]) < 1)
    np.testing.assert_allclose(tau.values[0], np.maximum(1 - tau.grid.centres[1] ** 2, 0) / 2, atol=1e-8)


def test_faces_that_absorb_cut_long_edges():
    # The faces of the box as the boundary of the set, or a set that ends there: the same edges are cut at the same
    # places, those along diagonals, too.
    inner, wide = Grid.uniform((-1.0, 1.0, 20), (-1.0, 1.0, 20)), Grid.uniform((-1.2, 1.2, 24), (-1.2, 1.2, 24))
    square = lambda x: jnp.all(jnp.abs(x) < 1)  # noqa: E731
    faces = fokker_planck.exit_time(brownian(), inner, square, boundary="absorbing")
    region = fokker_planck.exit_time(brownian(), wide, square)
    np.testing.assert_allclose(region.values[2:-2, 2:-2], faces.values, rtol=1e-9)
    # Drift is integrated over whole edges in the one case: second order.
    faces = fokker_planck.exit_time(turning(1.0), inner, square, boundary="absorbing")
    region = fokker_planck.exit_time(turning(1.0), wide, square)
    assert np.max(np.abs(region.values[2:-2, 2:-2] - faces.values)) < 2 * np.max(faces.error)


# --- quasi-stationary laws --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_rate_of_an_ellipse():
    # j₀² for D⁻¹-radius 1, and the density is J₀(j₀ r), times the determinant of the root.
    j, rates = special.jn_zeros(0, 1)[0], []
    for n in (20, 40):
        qs = fokker_planck.quasi_stationary(brownian(), box(n), ellipse(1.0))
        rates.append(abs(qs.rate / j**2 - 1))
        assert abs(qs.rate - j**2) < qs.error
    r = np.sqrt(np.minimum(squares(box(n)), 1))
    pdf = special.j0(j * r) * j / (2 * np.pi * special.j1(j)) / np.linalg.det(_root)
    np.testing.assert_allclose(qs.density.pdf, pdf * (r < 1), atol=5e-3 * np.max(pdf))
    assert rates[1] < 5e-4


def test_the_law_of_an_irreversible_process_leaves_at_its_rate():
    # The mean exit time from the law is one over the rate; in a set that the rotation does not keep.
    inside = lambda x: (x[0] - 0.3) ** 2 + 2 * (x[1] - 0.2) ** 2 < 0.5  # noqa: E731
    products = []
    for n in (23, 45):
        grid = Grid.uniform((-0.6, 1.2, n), (-0.5, 0.9, n))
        qs = fokker_planck.quasi_stationary(turning(1.0), grid, inside)
        products.append(qs.rate * np.sum(qs.density.mass * fokker_planck.exit_time(turning(1.0), grid, inside).values))
    assert abs(products[1] - 1) < 3e-3
    assert abs(products[0] - 1) > 2 * abs(products[1] - 1)


# --- committors -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_between_two_ellipses():
    # log(r / .3) / log(1 / .3), and the rate 2π sqrt(det D) / log(1 / .3) over the area of the box.
    grid = box(40)
    q = fokker_planck.committor(brownian(), grid, ellipse(0.3), lambda x: ~ellipse(1.0)(x))
    r = np.clip(np.sqrt(squares(grid)), 0.3, 1)
    error = np.abs(q.values - np.log(r / 0.3) / np.log(1 / 0.3))
    assert np.max(error) < 2 * np.max(q.error) < 3e-3
    rate = 2 * np.pi * np.sqrt(np.linalg.det(_tensor)) / np.log(1 / 0.3) / np.prod([2.65, 3.1])
    assert q.rate == pytest.approx(rate, rel=4e-3)
    assert abs(q.rate - rate) < 2 * q.rate_error
    # The current through ellipses between: J = D ∇q / area.
    there = (r > 0.5) & (r < 0.8)
    outwards = np.einsum("k...,...k->...", q.current, grid.points @ _precision)
    np.testing.assert_allclose(outwards[there], 1 / np.log(1 / 0.3) / np.prod([2.65, 3.1]), rtol=0.03)


@pytest.mark.slow
def test_as_many_come_back_as_go():
    # Without detailed balance the committor back is not one minus that forth, but as many transitions come back as go.
    a, b = (lambda x: (x[0] + 0.5) ** 2 + x[1] ** 2 < 0.06), (lambda x: (x[0] - 0.5) ** 2 + (x[1] - 0.2) ** 2 < 0.09)
    grid = Grid.uniform((-2.0, 2.0, 40), (-2.4, 2.4, 48))
    forth, back = (fokker_planck.committor(turning(1.5), grid, *sets) for sets in ((a, b), (b, a)))
    assert forth.rate == pytest.approx(back.rate, rel=2e-3)
    assert abs(forth.rate - back.rate) < forth.rate_error
    assert np.max(np.abs(forth.values + forth.backward - 1)) > 0.1
    np.testing.assert_allclose(forth.values + back.values, 1, atol=1e-10)


def test_jumps_from_one_set_into_the_other_are_refused():
    with pytest.raises(ValueError, match="a jump of the diffusion tensor leads from one to the other"):
        fokker_planck.committor(
            brownian(np.array([[1.0, 0.9], [0.9, 1.0]])),
            Grid.uniform((-1.0, 1.0, 20), (-1.0, 1.0, 20)),
            lambda x: (x[0] < 0) & (x[1] < 0),
            lambda x: (x[0] > 0) & (x[1] > 0),
        )


# --- what can't be answered -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_exits_too_rare_for_float64_are_refused():
    noise = jnp.asarray(np.linalg.cholesky(np.array([[0.008, 0.004], [0.004, 0.01]])))
    process = Diffusion(lambda t, x: jnp.stack([x[0] - x[0] ** 3, -2 * x[1]]), lambda t, x: noise)
    with pytest.raises(ArithmeticError, match=r"too rarely for float64.*one-dimensional"):
        fokker_planck.exit_time(process, Grid.uniform((-2.0, 2.0, 40), (-0.5, 0.5, 16)), lambda x: x[0] < 0.3)


def test_sets_that_degenerate_noise_never_leaves_are_refused():
    process = Diffusion(lambda t, x: 0 * x, lambda t, x: jnp.asarray([[1.0], [0.0]]))
    with pytest.raises(ArithmeticError, match="too rarely"):
        fokker_planck.exit_time(process, Grid.uniform((-1.0, 1.0, 10), (-1.0, 1.0, 10)), lambda x: jnp.abs(x[1]) < 0.5)
