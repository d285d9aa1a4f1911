"""Decay rates and modes, against exact spectra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import Diffusion, Grid, fokker_planck


def loss_proportional(f, kappa):
    return Diffusion(lambda t, x: -jax.grad(f)(x), lambda t, x: jnp.sqrt(2 * kappa * f(x)))


def gibbs(f, temperature):
    return Diffusion(lambda t, x: -jax.grad(f)(x), lambda t, x: jnp.sqrt(2 * jnp.asarray(temperature)))


def student(kappa):
    return loss_proportional(lambda x: 0.5 * (1 + x @ x), kappa)


def linear(a, diffusion):
    a, g = jnp.asarray(a), jnp.sqrt(2 * jnp.asarray(diffusion))
    return Diffusion(lambda t, x: -a @ x, lambda t, x: g)


def double_well(offset=0.0):
    return lambda x: offset + (x[0] ** 2 - 1) ** 2 / 4


_brownian = Diffusion(lambda t, x: jnp.zeros_like(x), lambda t, x: jnp.sqrt(jnp.asarray(2.0)))


def _spectrum(process, grid, k, boundary="no-flux"):
    return fokker_planck.spectrum(fokker_planck.assemble(process, grid, boundary), k=k)


def test_student_rates():
    # μ_n = n - κ n (n - 1)/2 below the continuous spectrum, for λ = 1.
    sp = _spectrum(student(0.5), Grid.stretched((1e7, 1600, 1.0)), 3)
    assert sp.rates[0] == 0
    np.testing.assert_allclose(sp.rates[1:], [1.0, 1.5], rtol=1e-6)
    assert sp.gap == sp.rates[1]
    sp = _spectrum(student(0.2), Grid.stretched((1e3, 800, 1.0)), 5)
    np.testing.assert_allclose(sp.rates[1:], [1.0, 1.8, 2.4, 2.8], rtol=2e-5)
    assert np.all(np.abs(sp.rates - [0, 1.0, 1.8, 2.4, 2.8]) <= sp.error)


@pytest.mark.parametrize(("cells", "order"), [((402, 802, 1602), 4), ((200, 400, 800), 6)])
@pytest.mark.slow("cells1-6")
def test_rates_are_second_order_and_higher_when_extrapolated(cells, order):
    # From two grids, as the number of cells can be halved once, or from three. The first rate is of higher order,
    # because its mode is linear.
    spectra = [_spectrum(student(0.2), Grid.stretched((1e3, n, 1.0)), 3) for n in cells]
    plain = np.abs([sp.matrix_rates[2] - 1.8 for sp in spectra])
    better = np.abs([sp.rates[2] - 1.8 for sp in spectra])
    np.testing.assert_allclose(np.log2(plain[-2] / plain[-1]), 2, atol=0.1)
    np.testing.assert_allclose(np.log2(better[-2] / better[-1]), order, atol=0.3)
    assert np.all(better <= [sp.error[2] for sp in spectra])


def test_student_modes_are_polynomials():
    # φ₁ ∝ x and φ₂ ∝ x² - M for κ = .2, with M = E x² = κ/(2 - κ) and E x⁴ = 3 κ²/((2 - κ)(2 - 3κ)).
    second_moment, fourth_moment = 1 / 9, 3 * 0.04 / (1.8 * 1.4)
    errors = []
    for n in (801, 1601):
        sp = _spectrum(student(0.2), Grid.stretched((1e4, n, 1.0)), 3)
        x = Grid.stretched((1e4, n, 1.0)).centres[0]
        bulk = np.abs(x) < 3
        first = x / np.sqrt(second_moment)
        second = (x**2 - second_moment) / np.sqrt(fourth_moment - second_moment**2)
        errors.append([np.max(np.abs(sp.modes[1] - first)[bulk]), np.max(np.abs(sp.modes[2] - second)[bulk])])
        overlap = np.einsum("ax,bx,x->ab", sp.modes, sp.modes, sp.weights)
        np.testing.assert_allclose(overlap, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(np.log2(np.divide(*errors)), 2, atol=0.1)
    np.testing.assert_allclose(errors[1], [0, 0], atol=1)


@pytest.mark.parametrize(
    ("process", "exact"),
    [
        (gibbs(double_well(), 0.25), [0.187170418087098538, 1.50102841771272685, 2.91517388941781509]),
        (gibbs(double_well(), 0.1), [0.0335452873080006109, 0.927372102607585942, 1.68026376738833445]),
        (loss_proportional(double_well(0.05), 0.5), [0.00569701813910133081, 1.03881869154637688, 1.67720237016586521]),
        (loss_proportional(double_well(0.25), 0.5), [0.0939357722539316525, 1.35895181190257324, 2.51291962868988925]),
        (loss_proportional(double_well(0.1), 1.0), [0.0946287869621886561, 1.55422201489027419, 2.80484473662801207]),
        (
            loss_proportional(double_well(0.05), 0.25),
            [0.000149543887885172617, 0.993523859712379281, 1.56036419239312738],
        ),
    ],
)
@pytest.mark.slow("process0-exact0", "process2-exact2", "process4-exact4")
def test_double_well_rates(process, exact):
    # At κ = 1/4 the wells are narrow, and the tails, x^-20, are far below rounding at 30.
    reach = 30.0 if exact[0] == 0.000149543887885172617 else 1e3
    grid = (
        Grid.uniform((-5.0, 5.0, 1000))
        if exact[0] in (0.187170418087098538, 0.0335452873080006109)
        else Grid.stretched((reach, 1200, 1.0))
    )
    sp = _spectrum(process, grid, 4)
    np.testing.assert_allclose(sp.rates[1:], exact, rtol=1e-8)
    assert np.all(np.abs(sp.rates[1:] - exact) <= sp.error[1:])


def test_a_gap_of_1e_28_has_all_its_digits():
    # V = (x² - 1)²/4, D = .004. An eigensolver for the full matrix would return rounding, about 1e-14.
    gaps = [_spectrum(gibbs(double_well(), 0.004), Grid.uniform((-2.0, 2.0, n)), 2) for n in (400, 800)]
    for sp in gaps:
        assert sp.matrix_rates[1] == pytest.approx(3.2159634056e-28, rel=2e-11)
        # The mode is a step from one well to the other.
        mode = sp.modes[1]
        np.testing.assert_allclose([mode[0], mode[-1]], [-1, 1], rtol=1e-6)
        np.testing.assert_allclose(mode, -mode[::-1], rtol=1e-9)
        assert np.all(np.diff(mode) >= -1e-12)


def test_every_mode_obeys_its_equation():
    for process, grid, kind in [
        (student(0.2), Grid.stretched((1e4, 150, 1.0)), "no-flux"),
        (gibbs(double_well(), 0.05), Grid.uniform((-4.0, 4.5, 100)), "absorbing"),
        (linear([[1.0, 2.0], [-1.0, 1.5]], [0.3, 0.5]), Grid.uniform((-3.0, 3.0, 30), (-3.0, 3.2, 32)), "no-flux"),
        (linear([[1.0, 2.0], [-1.0, 1.5]], [0.3, 0.5]), Grid.uniform((-1.0, 1.0, 30), (-1.0, 1.2, 30)), "absorbing"),
        (linear(np.diag([1.0, 2.0]), [0.03, 0.05]), Grid.uniform((-3.0, 3.0, 48), (-3.0, 3.0, 48)), "no-flux"),
    ]:
        generator = fokker_planck.assemble(process, grid, kind)
        sp = fokker_planck.spectrum(generator, k=4)
        a = generator.matrix
        for rate, mode in zip(sp.matrix_rates, sp.modes.reshape(4, -1), strict=True):
            residual = a.T @ mode + rate * mode
            # Everywhere, also where there is hardly any mass.
            np.testing.assert_allclose(np.abs(residual) / (np.abs(a.diagonal()) * (np.abs(mode) + 1e-3)), 0, atol=1e-8)
            assert np.sum(np.abs(mode) ** 2 * sp.weights.ravel()) == pytest.approx(1)


def test_student_rates_in_the_plane():
    # f = 1 + |x|², κ = .2: 2n - κ (n² - l²) = 0, 2 (twice), 3.2, 4 (twice), 4.4 (twice).
    process = loss_proportional(lambda x: 1 + x @ x, 0.2)
    sp = _spectrum(process, Grid.stretched((50.0, 96, 1.0), (50.0, 96, 1.0)), 8)
    np.testing.assert_allclose(sp.rates, [0, 2, 2, 3.2, 4, 4, 4.4, 4.4], rtol=1e-3)
    np.testing.assert_array_equal(sp.modes[0], 1)
    overlap = np.einsum("aij,bij,ij->ab", sp.modes, sp.modes, sp.weights)
    np.testing.assert_allclose(overlap, np.eye(8), atol=1e-8)


def test_gap_at_the_edge_of_the_continuum():
    # κ = 1/2 in the plane: the gap 2 is both the mode n = l = 1 and where the continuous spectrum starts.
    process = loss_proportional(lambda x: 1 + x @ x, 0.5)
    sp = _spectrum(process, Grid.stretched((1e4, 96, 1.0), (1e4, 96, 1.0)), 2)
    assert sp.gap == pytest.approx(2, rel=2e-3)


@pytest.mark.slow
def test_rates_below_rounding_are_refused_in_the_plane():
    # The coordinates are independent, and the gap is that of the well along x: 3e-28 at D = .004, see above.
    def well(x):
        return (x[0] ** 2 - 1) ** 2 / 4 + x[1] ** 2

    line, side = (-2.0, 2.0, 80), (-1.5, 1.5, 20)
    plane = _spectrum(gibbs(well, 0.05), Grid.uniform(line, side), 2)
    alone = _spectrum(gibbs(double_well(), 0.05), Grid.uniform(line), 2)
    assert plane.matrix_rates[1] == pytest.approx(alone.matrix_rates[1], rel=1e-9)
    # On a line rates are extrapolated once more.
    assert abs(plane.gap - alone.gap) < 2 * plane.error[1]
    with pytest.raises(RuntimeError, match="below its rounding error"):
        _spectrum(gibbs(well, 0.004), Grid.uniform(line, side), 2)


def test_unequal_noise_does_not_move_rates():
    # Rates of an Ornstein-Uhlenbeck process are n₁ l₁ + n₂ l₂, whatever the noise.
    sp = _spectrum(linear(np.diag([0.8, 2.2]), [0.1, 0.7]), Grid.uniform((-2.4, 2.4, 64), (-3.7, 3.7, 60)), 6)
    np.testing.assert_allclose(sp.rates, [0, 0.8, 1.6, 2.2, 2.4, 3.0], rtol=1e-3, atol=1e-12)


def test_asymmetric_drift_keeps_real_rates():
    # HC ≠ CH: not reversible, yet rates are n₁ l₁ + n₂ l₂ with l the eigenvalues of H.
    h = np.array([[2.0, 0.5], [0.5, 1.0]])
    low, high = np.linalg.eigvalsh(h)
    generator = fokker_planck.assemble(linear(h, [1.0, 0.2]), Grid.uniform((-4.0, 4.0, 80), (-3.0, 3.0, 80)))
    assert not generator.reversible
    sp = fokker_planck.spectrum(generator, k=5)
    assert sp.rates.dtype == np.float64
    np.testing.assert_allclose(sp.rates, [0, low, 2 * low, high, 3 * low], rtol=5e-3)


def test_rotation_has_complex_rates():
    a = np.array([[1.0, 2.0], [-1.0, 1.5]])
    low = np.linalg.eigvals(a)[0].real + 1j * abs(np.linalg.eigvals(a)[0].imag)
    sp = _spectrum(linear(a, [0.3, 0.5]), Grid.uniform((-4.0, 4.0, 96), (-4.0, 4.0, 96)), 6)
    exact = [0, low, low.conjugate(), 2 * low.real, 2 * low, 2 * low.conjugate()]
    order = [0, 1, 2, *(3 + np.argsort(np.abs(sp.rates[3:].imag), kind="stable"))]
    np.testing.assert_allclose(sp.rates[order], exact, rtol=0.01)
    assert sp.gap == pytest.approx(low.real, rel=5e-3)


@pytest.mark.parametrize(
    ("boundary", "wave"),
    [("no-flux", [0, 1, 2, 3]), ("absorbing", [1, 2, 3, 4]), ("periodic", [0, 2, 2, 4])],
)
def test_brownian_motion_in_a_box(boundary, wave):
    # D (n π / L)² with L = 1.3.
    grid = Grid.uniform((0.2, 1.5, 60))
    if boundary == "no-flux":
        sp = _spectrum(_brownian, grid, 4, boundary)
    else:
        sp = _spectrum(_brownian, grid, 4, boundary)
        assert (sp.rates[0] == 0) == (boundary == "periodic")
    exact = (np.array(wave) * np.pi / 1.3) ** 2
    np.testing.assert_allclose(sp.rates, exact, rtol=2e-4, atol=1e-12)
    np.testing.assert_allclose(sp.matrix_rates, exact, rtol=1.5e-2, atol=1e-12)
    assert np.all(np.abs(sp.rates - exact) <= sp.error + 1e-12)


def test_brownian_motion_in_a_rectangle():
    # One axis absorbs, the other is a circle: π² (m²/L² + 4 n²/M²).
    grid = Grid.uniform((0.0, 1.0, 32), (0.0, 2.0, 32))
    sp = _spectrum(_brownian, grid, 4, ("absorbing", "periodic"))
    np.testing.assert_allclose(sp.rates / np.pi**2, [1, 2, 2, 4], rtol=1e-3)
    assert sp.gap == sp.rates[0]


@pytest.mark.parametrize("drift", [-3.0, 3.0])
def test_absorbed_brownian_motion_with_drift(drift):
    # (n π / L)² D + b² / (4 D), and the modes are e^(-b x / (2 D)) sin(n π x / L), with D = 1 and L = 1.
    process = Diffusion(lambda t, x: drift + 0 * x, lambda t, x: jnp.sqrt(jnp.asarray(2.0)))
    grid = Grid.uniform((0.0, 1.0, 100))
    sp = _spectrum(process, grid, 2, "absorbing")
    np.testing.assert_allclose(sp.rates, (np.pi * np.array([1, 2])) ** 2 + drift**2 / 4, rtol=1e-5)
    x = grid.centres[0]
    ratio = sp.modes[0] / (np.exp(-drift * x / 2) * np.sin(np.pi * x))
    np.testing.assert_allclose(ratio / ratio[50], 1, atol=2e-3)
    assert sp.gap == sp.rates[0]


def test_grids_that_cannot_be_coarsened_give_no_error():
    sp = _spectrum(student(0.2), Grid.stretched((1e3, 201, 1.0)), 2)
    assert np.all(np.isnan(sp.error))
    np.testing.assert_array_equal(sp.rates, sp.matrix_rates)


def test_results_repeat():
    process, grid = linear(np.diag([0.8, 2.2]), [0.1, 0.7]), Grid.uniform((-2.4, 2.4, 20), (-3.7, 3.7, 20))
    first, second = _spectrum(process, grid, 4), _spectrum(process, grid, 4)
    np.testing.assert_array_equal(first.modes, second.modes)
    assert "Spectrum: rates 0 ± 0" in str(first)


@pytest.mark.parametrize("k", [0, -1, 11])
def test_k_must_fit(k):
    with pytest.raises(ValueError, match="`k` must be a whole number from 1 to 10"):
        _spectrum(_brownian, Grid.uniform((0.0, 1.0, 20)), k)


def test_a_gap_needs_two_rates():
    sp = _spectrum(_brownian, Grid.uniform((0.0, 1.0, 20)), 1)
    with pytest.raises(ValueError, match="k of at least 2"):
        _ = sp.gap
