"""The generator, its stationary law and its current, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from scipy.special import gamma

from solvers import Density, Diffusion, Grid, fokker_planck
from solvers.fokker_planck import coefficients, process_values
from solvers.fokker_planck.assembly import assemble_checked

_kinds = ["no-flux", "absorbing", "periodic"]


def loss_proportional(f, kappa):
    """D = κ f I: stationary law f^(-1 - 1/κ)."""
    return Diffusion(lambda t, x: -jax.grad(f)(x), lambda t, x: jnp.sqrt(2 * kappa * f(x)))


def gibbs(f, temperature):
    return Diffusion(lambda t, x: -jax.grad(f)(x), lambda t, x: jnp.sqrt(2 * jnp.asarray(temperature)))


def linear(a, diffusion):
    """dX = -A X dt + sqrt(2 D) dB with diagonal D."""
    a, g = jnp.asarray(a), jnp.sqrt(2 * jnp.asarray(diffusion))
    return Diffusion(lambda t, x: -a @ x, lambda t, x: g)


def student(kappa):
    return loss_proportional(lambda x: 0.5 * (1 + x @ x), kappa)


# A rotation against unequal noise: the stationary covariance P solves A P + P Aᵀ = 2 D, the current is Ω x ρ with
# Ω = D P⁻¹ - A, and the entropy production is tr(Ωᵀ D⁻¹ Ω P).
_turning = np.array([[1.0, 2.0], [-1.0, 1.5]])
_turning_diffusion = np.array([0.3, 0.5])
_turning_p = np.array([[149.0, -22.0], [-22.0, 102.0]]) / 350


def observed_order(errors):
    """From errors on grids that are each twice as fine as the one before."""
    return np.log2(np.abs(errors[:-1]) / np.abs(errors[1:]))


def skewed_grid(n):
    """Smooth and uneven on [-1.5, 2.5], with the images of the middles as centres."""
    x = np.linspace(0, 1, 2 * n + 1)
    x = -1.5 + 4 * (x + 0.3 * x**2) / 1.3
    return Grid([x[::2]], [x[1::2]])


# --- every generator --------------------------------------------------------------------------------------------------

_processes = {
    "student": (student(0.5), Grid.stretched((1e4, 31, 1.0))),
    "steep": (gibbs(lambda x: (x[0] ** 2 - 1) ** 2, 2e-2), Grid.uniform((-3.0, 2.5, 40))),
    "skewed": (linear([[1.0]], [0.3]), skewed_grid(33)),
    "student 2-D": (student(0.5), Grid.stretched((1e3, 12, 1.0), (50.0, 17, 2.0))),
    "turning": (linear(_turning, _turning_diffusion), Grid.uniform((-3.0, 4.0, 21), (-3.0, 3.0, 18))),
    "fast": (linear(1e4 * _turning, _turning_diffusion), Grid.uniform((-3.0, 4.0, 21), (-3.0, 3.0, 18))),
}


@pytest.mark.parametrize("kind", _kinds)
@pytest.mark.parametrize("name", _processes)
def test_mass_is_conserved_and_rates_are_not_negative(name, kind):
    process, grid = _processes[name]
    generator = fokker_planck.assemble(process, grid, kind)
    a = generator.matrix
    off = a - np.diag(a.diagonal())
    assert np.min(off) >= 0
    scale = np.abs(a.diagonal())
    np.testing.assert_allclose((a.sum(axis=0) + generator.exit_rates.ravel()) / scale, 0, atol=1e-15)
    assert (kind == "absorbing") == bool(np.any(generator.exit_rates > 0))
    assert generator.conserving == (kind != "absorbing")


@pytest.mark.parametrize("kind", ["no-flux", "periodic"])
@pytest.mark.parametrize("grid", [skewed_grid(20), Grid.stretched((30.0, 9, 1.0), (5.0, 8, 1.0))])
def test_a_constant_density_is_kept_without_drift(kind, grid):
    still = Diffusion(lambda t, x: jnp.zeros_like(x), lambda t, x: jnp.arange(1.0, x.size + 1))
    a = fokker_planck.assemble(still, grid, kind).matrix
    change = a @ grid.volumes.ravel()
    np.testing.assert_allclose(change / (np.abs(a.diagonal()) * grid.volumes.ravel()), 0, atol=1e-15)


def test_drift_and_diffusion_of_the_jumps_are_those_of_the_process():
    # Itô: the mean of a jump is b and its mean square 2 D, though D depends on x and no derivative of D enters.
    process = Diffusion(lambda t, x: jnp.array([0.3, -0.2]) + 0 * x, lambda t, x: jnp.exp(jnp.array([0.4, -0.3]) * x))
    errors = []
    for n in (32, 64, 128):
        grid = Grid.uniform((0.0, 2.0, n), (0.0, 1.0, n))
        backward = fokker_planck.assemble(process, grid).matrix.T
        x = grid.points.reshape(-1, 2)
        inner = np.all((x > 0.1) & (x < [1.9, 0.9]), axis=1)
        drift = np.stack([backward @ x[:, k] for k in range(2)], axis=1)
        square = np.stack([backward @ x[:, k] ** 2 for k in range(2)], axis=1) - 2 * x * drift
        errors.append(
            [
                np.max(np.abs(drift - [0.3, -0.2])[inner]),
                np.max(np.abs(square - np.exp(np.array([0.8, -0.6]) * x))[inner]),
            ]
        )
    # The drift is constant, and so b / D exponential: its first error is of fourth order.
    assert np.max(errors[-1]) < 2e-3
    np.testing.assert_allclose(np.array(errors)[:, 0], 0, atol=1e-8)
    np.testing.assert_allclose(observed_order(np.array(errors))[-1, 1], 2, atol=0.05)


# --- the stationary law -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kappa", "tail"), [(0.5, 0.0011144375415074218), (2 / 3, 0.0038825370469605103)])
def test_student_law(kappa, tail):
    errors = []
    for n in (7, 14):
        # Stretched, with faces at ±3, from where the tail is counted.
        s = np.arcsinh(3) / (2 * n) * np.arange(-16 * n, 16 * n + 1)
        grid = Grid([np.sinh(s[::2])], [np.sinh(s[1::2])])
        p = fokker_planck.stationary(fokker_planck.assemble(student(kappa), grid))
        errors.append(p.mass[np.abs(grid.centres[0]) > 3].sum() / tail - 1)
    np.testing.assert_allclose(observed_order(np.array(errors)), 8, atol=0.2)
    assert abs(errors[-1]) < 1e-8


@pytest.mark.parametrize("kappa", [0.5, 2 / 3])
def test_student_density_at_the_centres(kappa):
    # Masses of centres: up to the normalisation, the power law down to 1e-35. Only the quadrature is approximate.
    grid = Grid.stretched((1e4, 250, 1.0))
    p = fokker_planck.stationary(assemble_checked(student(kappa), grid, ("no-flux",), masses="points"))
    x, power = grid.centres[0], 1 + 1 / kappa
    exact = gamma(power) / (np.sqrt(np.pi) * gamma(power - 0.5)) * (1 + x**2) ** -power
    ratio = p.pdf / exact
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-12)
    assert ratio[0] == pytest.approx(1, abs=6e-3)


def _distance(process, grid, law):
    p = fokker_planck.stationary(fokker_planck.assemble(process, grid))
    # Seven nodes: an error of order 14.
    exact = grid.cell_averages(law, nodes=7) * grid.volumes
    return np.abs(p.mass - exact / exact.sum()).sum()


def test_the_law_needs_few_cells():
    # f = .3 + (x² - 1)²/4 + x/10 with D = f/4: an asymmetric double well with the law f^-5.
    def f(x):
        return 0.3 + (x[0] ** 2 - 1) ** 2 / 4 + x[0] / 10

    process = loss_proportional(f, 0.25)
    assert _distance(process, Grid.uniform((-4.0, 4.2, 90)), lambda x: f(x) ** -5) < 1e-10


def test_the_law_is_eighth_order_on_stretched_grids():
    def law(x):
        return (1 + x @ x) ** -3.0

    errors = [_distance(student(0.5), Grid.stretched((1e3, n, 0.5)), law) for n in (100, 200)]
    np.testing.assert_allclose(observed_order(np.array(errors)), 8, atol=0.3)


@pytest.mark.parametrize(("kappa", "right"), [(0.25, 0.050559972553725796), (0.5, 0.16476312669795054)])
def test_the_flatter_of_two_wells_holds_the_mass(kappa, right):
    process = loss_proportional(lambda x: 0.3 + (x[0] ** 2 - 1) ** 2 / 4 + x[0] / 10, kappa)
    barrier = 0.10103125788101082
    # A face on the barrier: the mass to its right is a sum of cells.
    edges = np.concatenate([np.linspace(-8, barrier, 401), np.linspace(barrier, 8, 391)[1:]])
    p = fokker_planck.stationary(fokker_planck.assemble(process, Grid([edges])))
    assert p.mass[400:].sum() == pytest.approx(right, rel=2e-4)


def test_student_law_in_the_plane():
    # f = 1 + |x|², κ = 1/2: Z = π/2, P(|x| > 3) = 0.01 and E|x|² = 1.
    process = loss_proportional(lambda x: 1 + x @ x, 0.5)
    generator = fokker_planck.assemble(process, Grid.stretched((1e4, 192, 1.0), (1e4, 192, 1.0)))
    assert generator.reversible
    p = fokker_planck.stationary(generator)
    square = (p.grid.points**2).sum(-1)
    exact = p.grid.cell_averages(lambda x: (1 + x @ x) ** -3.0 * 2 / jnp.pi, nodes=5)
    # A product of means over the axes: an error of fourth order.
    np.testing.assert_allclose(p.pdf, exact, rtol=2e-5)
    assert p.mass[square > 9].sum() == pytest.approx(0.01, rel=0.05)
    assert np.sum(p.mass * square) == pytest.approx(1.0, rel=5e-3)


def test_radial_well_in_the_plane():
    # f = .1 + (r² - 1)²/4, κ = 1/2: E r² = 1.0110479458443804, P(r < 1) = 0.4958047314821952.
    process = loss_proportional(lambda x: 0.1 + (x @ x - 1) ** 2 / 4, 0.5)
    errors = []
    for n in (40, 80, 160):
        p = fokker_planck.stationary(fokker_planck.assemble(process, Grid.stretched((30.0, n, 1.0), (30.0, n, 1.0))))
        errors.append(np.sum(p.mass * (p.grid.points**2).sum(-1)) - 1.0110479458443804)
    assert abs(errors[-1]) < 1e-3
    assert observed_order(np.array(errors))[-1] > 1.8


def test_mass_gathers_on_the_flat_side_of_the_ring():
    # f = .1 + (1 + cos(φ)/2)/8 (r² - 1)², κ = 1/2: P(cos φ < 0) = 0.5764972123277.
    def f(x):
        square = x @ x
        return 0.1 + (1 + 0.5 * x[0] / jnp.sqrt(square)) / 8 * (square - 1) ** 2

    generator = fokker_planck.assemble(loss_proportional(f, 0.5), Grid.stretched((20.0, 100, 1.0), (20.0, 100, 1.0)))
    p = fokker_planck.stationary(generator)
    assert p.mass[:50].sum() == pytest.approx(0.5764972123277, abs=1e-4)


def test_rotation_keeps_the_lyapunov_covariance():
    np.testing.assert_allclose(_turning @ _turning_p + _turning_p @ _turning.T, 2 * np.diag(_turning_diffusion))
    errors, production = [], []
    for n in (40, 80, 160):
        grid = Grid.uniform((-4.2, 4.0, n), (-3.5, 3.4, n))
        generator = fokker_planck.assemble(linear(_turning, _turning_diffusion), grid)
        assert not generator.reversible
        p = fokker_planck.stationary(generator)
        assert np.min(p.mass) > 0
        covariance = np.einsum("ij,ija,ijb->ab", p.mass, grid.points, grid.points)
        errors.append(np.max(np.abs(covariance - _turning_p)))
        production.append(fokker_planck.current(generator, p).entropy_production - 169 / 37.5)
    assert errors[-1] < 6e-4
    assert observed_order(np.array(errors))[-1] > 1.9
    assert observed_order(np.array(production))[-1] > 1.9


def test_rotation_that_leaves_the_law_alone_is_seen():
    # b = -x + s (x₂, -x₁) keeps exp(-|x|²/2), but has a current s (x₂, -x₁) ρ and entropy production 2 s².
    grid = Grid.uniform((-6.0, 6.0, 120), (-6.0, 6.0, 120))
    process = linear([[1.0, -0.7], [0.7, 1.0]], [1.0, 1.0])
    generator = fokker_planck.assemble(process, grid)
    p = fokker_planck.stationary(generator)
    x = grid.points
    exact = np.exp(-0.5 * (x**2).sum(-1)) / (2 * np.pi)
    np.testing.assert_allclose(p.pdf, exact, atol=2e-4)
    flow = fokker_planck.current(generator, p)
    assert flow.entropy_production == pytest.approx(2 * 0.7**2, rel=5e-3)
    np.testing.assert_allclose(flow.vectors[0], 0.7 * x[..., 1] * exact, atol=2e-4)
    np.testing.assert_allclose(flow.vectors[1], -0.7 * x[..., 0] * exact, atol=2e-4)


def test_elimination_keeps_rare_cells_positive():
    # Drift is 100 times stronger: the corners hold 1e-170 of the mass, and rounding of the rest would drown them.
    grid = Grid.uniform((-3.0, 4.0, 41), (-3.0, 3.0, 36))
    generator = fokker_planck.assemble(linear(100 * _turning, _turning_diffusion), grid)
    with pytest.warns(UserWarning, match="does not resolve the law"):
        p = fokker_planck.stationary(generator)
    assert 0 < np.min(p.mass) < 1e-100
    traffic = np.abs(generator.matrix.diagonal()) * p.mass.ravel()
    np.testing.assert_allclose(generator.matrix @ p.mass.ravel() / traffic, 0, atol=1e-12)


def test_metastable_rotation_is_solved():
    # A tilted double well times a slow rotation; the well that is found first is not the heavy one.
    def drift(t, x):
        return jnp.array([-8 * x[0] * (x[0] ** 2 - 1) - 1.5 + 0.1 * x[1], -x[1] - 0.1 * x[0]])

    process = Diffusion(drift, lambda t, x: jnp.sqrt(jnp.asarray(0.3)))
    generator = fokker_planck.assemble(process, Grid.uniform((-2.0, 2.0, 48), (-2.5, 2.5, 40)))
    assert not generator.reversible
    p = fokker_planck.stationary(generator)
    assert np.min(p.mass) > 0
    residual = generator.matrix @ p.mass.ravel()
    np.testing.assert_allclose(residual / (np.abs(generator.matrix.diagonal()) * p.mass.ravel()), 0, atol=1e-12)


# --- the current ------------------------------------------------------------------------------------------------------


def test_a_reversible_law_has_no_current():
    generator = fokker_planck.assemble(student(0.5), Grid.stretched((1e3, 40, 1.0), (1e3, 44, 1.0)))
    flow = fokker_planck.current(generator, fokker_planck.stationary(generator))
    assert [f.shape for f in flow.faces] == [(41, 44), (40, 45)]
    assert flow.vectors.shape == (2, 40, 44)
    assert np.max(np.abs(flow.vectors)) < 1e-10
    assert 0 <= flow.entropy_production < 1e-20


def test_steady_drift_around_a_circle():
    # b = 3, D = 1 on a circle of length 1: uniform law, current 3, entropy production b²/D = 9.
    process = Diffusion(lambda t, x: 3.0 + jnp.zeros_like(x), lambda t, x: jnp.sqrt(jnp.asarray(2.0)))
    errors = []
    for n in (25, 50):
        generator = fokker_planck.assemble(process, Grid.uniform((0.0, 1.0, n)), "periodic")
        assert not generator.reversible
        assert generator.cycle_defect == pytest.approx(3.0)
        p = fokker_planck.stationary(generator)
        np.testing.assert_allclose(p.pdf, 1, rtol=1e-12)
        flow = fokker_planck.current(generator, p)
        errors.append([flow.faces[0][7] - 3, flow.entropy_production - 9])
    np.testing.assert_allclose(flow.faces[0], flow.faces[0][0], rtol=1e-10)
    np.testing.assert_allclose(errors[1], 0, atol=5e-3)
    np.testing.assert_allclose(observed_order(np.array(errors)), 2, atol=0.02)


def test_current_of_a_slope():
    # No drift, D = 1/2, ρ ∝ 1 + x on [0, 1]: J = -1/3 everywhere inside.
    still = Diffusion(lambda t, x: jnp.zeros_like(x), lambda t, x: jnp.ones(()))
    generator = fokker_planck.assemble(still, Grid.uniform((0.0, 1.0, 10)))
    flow = fokker_planck.current(generator, Density.from_function(generator.grid, lambda x: 1 + x[0]))
    np.testing.assert_allclose(flow.faces[0], [0, *[-1 / 3] * 9, 0], atol=1e-12)


def test_mass_next_to_nothing_produces_infinite_entropy():
    generator = fokker_planck.assemble(student(0.5), Grid.uniform((-3.0, 3.0, 30)))
    flow = fokker_planck.current(generator, Density.point(generator.grid, [0.1]))
    assert flow.entropy_production == np.inf


# --- boxes that are too small -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high", "face"), [(-1.0, 4.0, "low"), (-4.0, 1.1, "high")])
def test_a_small_box_is_reported(low, high, face):
    generator = fokker_planck.assemble(linear([[1.0]], [0.5]), Grid.uniform((low, high, 60)))
    with pytest.warns(UserWarning, match=f"beyond the {face} face of axis 0"):
        fokker_planck.stationary(generator)


def test_truncated_mass_of_an_exponential_tail():
    # ρ = e^-x beyond 0, cut at 5.
    p = Density.from_function(Grid.uniform((0.0, 5.0, 50)), lambda x: jnp.exp(-x[0]))
    assert fokker_planck.truncated_mass(p)[0, 1] == pytest.approx(np.exp(-5) / (1 - np.exp(-5)), rel=1e-6)


def test_truncated_mass_of_a_power_law():
    # The Student law with κ = 2, ρ = (1 + x²)^(-3/2) / 2, has the mass 1/(4 R²) on either side of R.
    p = fokker_planck.stationary(fokker_planck.assemble(student(2.0), Grid.stretched((1e3, 300, 1.0))))
    np.testing.assert_allclose(fokker_planck.truncated_mass(p), [[0.25e-6] * 2], rtol=0.01)


def test_walls_that_belong_to_the_model_can_be_meant():
    still = Diffusion(lambda t, x: jnp.zeros_like(x), lambda t, x: jnp.ones(()))
    with pytest.warns(UserWarning, match="ignore this if the wall is part of your model"):
        p = fokker_planck.stationary(fokker_planck.assemble(still, Grid.uniform((0.0, 1.0, 7))))
    np.testing.assert_allclose(p.pdf, 1, rtol=1e-14)


# --- wrong arguments --------------------------------------------------------------------------------------------------


def _assemble(process=None, grid=None, boundary="no-flux"):
    return fokker_planck.assemble(process or student(0.5), grid or Grid.uniform((-3.0, 3.0, 10)), boundary)


def test_float32_is_refused(float32):
    with pytest.raises(RuntimeError, match=r'jax.config.update\("jax_enable_x64", True\)'):
        _assemble()


@pytest.mark.parametrize(
    ("boundary", "says"),
    [
        ("noflux", "Did you mean 'no-flux'"),
        ("Periodic", "Did you mean 'periodic'"),
        ("absorb", "Did you mean 'absorbing'"),
        ("xyz", "must be one of"),
        (("no-flux", "periodic"), "for each of the 1 axes"),
    ],
)
def test_unknown_boundaries_are_refused(boundary, says):
    with pytest.raises(ValueError, match=says):
        _assemble(boundary=boundary)


def test_an_axis_of_one_cell_is_refused():
    with pytest.raises(ValueError, match="at least two cells"):
        _assemble(grid=Grid.uniform((-3.0, 3.0, 10), (0.0, 1.0, 1)))


def test_a_process_of_another_dimension_is_refused():
    with pytest.raises(ValueError, match="one axis for each coordinate"):
        _assemble(process=linear(_turning, _turning_diffusion))
    with pytest.raises(ValueError, match="must return shape"):
        _assemble(process=Diffusion(lambda t, x: jnp.zeros(3), lambda t, x: jnp.ones(())))


def test_four_axes_are_refused():
    with pytest.raises(NotImplementedError, match=r"handles 1 to 3.*sde.simulate"):
        _assemble(grid=Grid.uniform(*[(-1.0, 1.0, 4)] * 4))


def test_negative_losses_are_found():
    with pytest.raises(ValueError, match=r"`noise\(t, x\)` is not finite.*add a constant to the loss"):
        _assemble(process=loss_proportional(lambda x: x @ x - 0.1, 0.5))


def test_infinite_drift_is_found():
    with pytest.raises(ValueError, match=r"`drift\(t, x\)` is not finite at 1 of .*x=\(0\)"):
        _assemble(Diffusion(lambda t, x: 1 / x, lambda t, x: jnp.ones(())), Grid.stretched((1.0, 5, 1.0)))


def test_degenerate_diffusion_is_refused_on_a_line():
    process = Diffusion(lambda t, x: -x, lambda t, x: 0.0 * x)
    with pytest.raises(NotImplementedError, match="diffusion of coordinate 0 is zero at"):
        _assemble(process=process, grid=Grid.uniform((-1.0, 1.0, 5)))


def test_diagonal_tensors_in_matrix_form_are_taken():
    # G is a rotation times a number: D is a multiple of the identity but for rounding.
    g = scipy.linalg.expm(np.array([[0.0, 0.3], [-0.3, 0.0]])) * 0.7
    process = Diffusion(lambda t, x: -x, lambda t, x: jnp.asarray(g))
    grid = Grid.uniform((-4.0, 4.0, 20), (-4.0, 4.0, 20))
    p = fokker_planck.stationary(_assemble(process=process, grid=grid))
    q = fokker_planck.stationary(_assemble(process=linear(np.eye(2), [0.245, 0.245]), grid=grid))
    np.testing.assert_allclose(p.mass, q.mass, rtol=1e-10)


def test_absorbed_processes_have_no_stationary_law():
    with pytest.raises(ValueError, match="no stationary law"):
        fokker_planck.stationary(_assemble(boundary="absorbing"))


def test_densities_on_other_grids_are_refused():
    with pytest.raises(ValueError, match="`p` must be a density on the grid"):
        fokker_planck.current(_assemble(), Density.point(Grid.uniform((-3.0, 3.0, 12)), [0.0]))


def test_results_describe_themselves():
    generator = _assemble(boundary=("absorbing",))
    assert "absorbing: reversible" in str(generator)
    assert "entropy production" in str(fokker_planck.current(generator, Density.point(generator.grid, [0.1])))


def test_law_keeps_its_digits_in_an_enormous_box():
    # log(mass) reaches -1e24 at the ends: summed from there, nothing would be left of the law. E x² = 0.8327...
    drift = lambda t, x: -x * (x**2 - 1)  # noqa: E731
    process = Diffusion(drift, lambda t, x: jnp.sqrt(jnp.asarray(0.5)))
    grid = Grid.stretched((1e6, 4000, 1.0))
    # With masses of centres: the sum over them converges faster than any power.
    p = fokker_planck.stationary(assemble_checked(process, grid, ("no-flux",), masses="points"))
    assert p.mass @ grid.centres[0] ** 2 == pytest.approx(0.83274548712838, rel=1e-9)
    q = fokker_planck.stationary(fokker_planck.assemble(process, grid))
    assert q.expect(lambda x: x @ x) == pytest.approx(0.83274548712838, rel=1e-5)
    cells = np.searchsorted(grid.edges[0], [0.0, 2.0])
    exact = grid.cell_averages(lambda x: jnp.exp(-((x[0] ** 2 - 1) ** 2)), nodes=5) * grid.volumes
    exact /= exact.sum()
    np.testing.assert_allclose(q.mass[slice(*cells)], exact[slice(*cells)], rtol=1e-11)


@pytest.mark.parametrize("turn", [0.0, 1e-4, 0.8])
def test_reversibility_is_found_in_an_enormous_box(turn):
    matrix = jnp.array([[1.0, turn], [-turn, 1.0]])
    process = Diffusion(lambda t, x: -(matrix @ x) * (1 + x @ x), lambda t, x: jnp.asarray(1.0))
    grid = Grid.stretched((1e3, 100, 1.0), (1e3, 100, 1.0))
    assert fokker_planck.assemble(process, grid).reversible == (turn == 0)


@pytest.mark.parametrize("tilt", [1e-2, 1.0, 1e4])
def test_a_tilted_ring_is_not_reversible(tilt):
    process = Diffusion(lambda t, x: tilt - jnp.sin(x), lambda t, x: jnp.asarray(1.0))
    generator = fokker_planck.assemble(process, Grid.uniform((0.0, 2 * np.pi, 64)), "periodic")
    assert not generator.reversible
    p = fokker_planck.stationary(generator)
    current = fokker_planck.current(generator, p).faces[0]
    assert np.ptp(current) < 1e-9 * np.max(np.abs(current))
    assert np.all(current > 0)


def test_values_found_axis_by_axis_make_the_same_generator(monkeypatch):
    """As on grids that are so large that drift and noise at all nodes would fill the memory."""
    process = loss_proportional(lambda x: 0.5 * (1 + x[0] ** 2 + 2 * x[1] ** 2 + 0.5 * x[0] * x[1]), 0.4)
    grid = Grid.uniform((-3.0, 2.0, 14), (-2.0, 2.5, 9))
    whole = fokker_planck.assemble(process, grid)
    monkeypatch.setattr(coefficients, "_points_at_once", 0)
    monkeypatch.setattr(process_values, "_points_per_call", 100)
    parts = fokker_planck.assemble(process, grid)
    np.testing.assert_allclose(parts.matrix.toarray(), whole.matrix.toarray(), rtol=1e-13)
    for name in ("up", "down", "log_ratios"):
        for a, b in zip(getattr(parts, name), getattr(whole, name), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(parts.log_weights, whole.log_weights, rtol=1e-12)
