"""Full and degenerate diffusion tensors in the Fokker-Planck solver, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import scipy.sparse.csgraph
from hypothesis import given, settings, strategies as st

from solvers import Density, Diffusion, Grid, fokker_planck
from solvers.fokker_planck import memory
from solvers.fokker_planck.tensor_rates import tensor_rates

_kinds = ["no-flux", "absorbing", "periodic"]


def linear(matrix, diffusion):
    """dX = -A X dt + G dB with G Gᵀ = 2 D, and the covariance of its law."""
    matrix, diffusion = np.asarray(matrix, float), np.asarray(diffusion, float)
    a, g = jnp.asarray(matrix), jnp.asarray(np.linalg.cholesky(2 * diffusion))
    covariance = scipy.linalg.solve_continuous_lyapunov(matrix, 2 * diffusion)
    return Diffusion(lambda t, x: -a @ x, lambda t, x: g), covariance


def sigmas(covariance, reach, cells):
    return Grid.uniform(*[(-reach * s, reach * s, cells) for s in np.sqrt(np.diag(covariance))])


def gaussian(grid, covariance):
    precision = jnp.asarray(np.linalg.inv(covariance))
    return Density.from_function(grid, lambda x: jnp.exp(-0.5 * x @ precision @ x))


def second_moments(p):
    x = p.grid.points.reshape(-1, p.grid.ndim)
    return np.einsum("i,ia,ib->ab", p.mass.ravel(), x, x)


def distance(p, q):
    return np.abs(p.mass - q.mass).sum()


def orders(errors):
    """From errors on grids that are each twice as fine as the one before."""
    errors = np.abs(np.asarray(errors))
    return np.log2(errors[:-1] / errors[1:])


def with_law(log_law, g, stream):
    """The process with the noise g(x), the density e^(log_law) and the current (∂_j Q_ij), Q = stream(x) antisymmetric.

    b = D ∇log ρ + ∇·D + ∂_j Q_ij / ρ.
    """

    def tensor(x):
        return 0.5 * g(x) @ g(x).T

    def divergence(field, x):
        return jnp.trace(jax.jacfwd(field)(x), axis1=1, axis2=2)

    def drift(t, x):
        current = divergence(lambda y: stream(y) * jnp.exp(log_law(y) - log_law(x)), x)
        return tensor(x) @ jax.grad(log_law)(x) + divergence(tensor, x) + current

    return Diffusion(drift, lambda t, x: g(x))


def noise_2d(x):
    return jnp.array(
        [
            [1 + 0.3 * jnp.sin(x[1]), 0.2 * jnp.sin(x[0])],
            [0.8 + 0.2 * jnp.cos(x[0]), 0.6 + 0.1 * jnp.sin(x[0] + x[1])],
        ]
    )


def log_law_2d(x):
    return -0.5 * (x[0] ** 2 + x[0] * x[1] + 1.2 * x[1] ** 2) + 0.3 * jnp.sin(x[0])


def stream_2d(x):
    return jnp.array([[0.0, 1.0], [-1.0, 0.0]]) * (0.08 + 0.04 * jnp.sin(x[0]))


# Unequal curvatures and noise of correlation 0.95: a strong current.
_correlated, _covariance = linear(np.diag([1.0, 3.0]), [[1.0, 0.95], [0.95, 1.0]])


# --- the stationary law -----------------------------------------------------------------------------------------------


def test_correlated_noise():
    grid = sigmas(_covariance, 6, 128)
    generator = fokker_planck.assemble(_correlated, grid)
    assert not generator.reversible
    p, q = fokker_planck.stationary(generator), fokker_planck.stationary(generator, extrapolate=True)
    exact = gaussian(grid, _covariance)
    assert distance(p, exact) < 5e-3
    # From 128², 64² and 32² cells.
    assert distance(q, exact) < 5e-5
    assert p.error.sum() == pytest.approx(distance(p, exact), rel=0.05)
    assert distance(q, exact) < q.error.sum() < 10 * distance(q, exact)
    assert min(np.min(p.mass), np.min(q.mass)) > 0
    assert q.mass.sum() == pytest.approx(1, abs=1e-14)


def test_current_of_correlated_noise():
    # J = (D P⁻¹ - A) x ρ; the entropy production is tr(Ωᵀ D⁻¹ Ω P).
    d, precision = np.array([[1.0, 0.95], [0.95, 1.0]]), np.linalg.inv(_covariance)
    turn = d @ precision - np.diag([1.0, 3.0])
    errors = []
    for n in (64, 128):
        grid = sigmas(_covariance, 6, n)
        generator = fokker_planck.assemble(_correlated, grid)
        p = fokker_planck.stationary(generator)
        flow = fokker_planck.current(generator, p)
        x = grid.points
        rho = np.exp(-0.5 * np.einsum("ija,ab,ijb->ij", x, precision, x)) / np.sqrt(
            np.linalg.det(2 * np.pi * _covariance)
        )
        exact = np.einsum("ab,ijb->aij", turn, x) * rho
        production = np.trace(turn.T @ np.linalg.inv(d) @ turn @ _covariance)
        errors.append([np.max(np.abs(flow.vectors - exact)) / np.max(exact), flow.entropy_production / production - 1])
    assert errors[1][0] < 0.03
    assert errors[1][1] < 0.03
    assert np.all(orders(errors) > 1.6)


@pytest.mark.parametrize("kind", ["uniform", "stretched"])
@pytest.mark.slow("uniform")
def test_a_manufactured_law_with_a_varying_tensor(kind):
    process = with_law(log_law_2d, noise_2d, stream_2d)
    errors = []
    for n in (64, 128):
        grid = (
            Grid.uniform((-5.0, 5.0, n), (-5.5, 5.5, n))
            if kind == "uniform"
            else Grid.stretched((5.0, n, 4.0), (5.5, n, 4.0))
        )
        generator = fokker_planck.assemble(process, grid)
        assert not generator.reversible
        exact = Density.from_function(grid, lambda x: jnp.exp(log_law_2d(x)))
        p, q = fokker_planck.stationary(generator), fokker_planck.stationary(generator, extrapolate=True)
        errors.append([distance(p, exact), distance(q, exact)])
        assert p.error.sum() == pytest.approx(distance(p, exact), rel=0.3)
    assert orders(errors)[-1][0] > 1.8
    assert errors[-1][0] < 2e-3
    # The offsets change from place to place, and with them an error that is not smooth: no fourth order is left.
    assert errors[-1][1] < 0.6 * errors[-1][0]
    assert errors[-1][1] < q.error.sum()


@pytest.mark.slow
def test_a_reversible_law_with_a_varying_tensor_is_exact():
    process = with_law(log_law_2d, noise_2d, lambda x: jnp.zeros((2, 2)))
    for grid in (Grid.uniform((-4.0, 4.0, 20), (-4.5, 4.5, 24)), Grid.stretched((6.0, 30, 2.0), (7.0, 32, 3.0))):
        generator = fokker_planck.assemble(process, grid)
        assert generator.reversible
        difference = generator.log_weights - np.log(grid.volumes) - jax.vmap(jax.vmap(log_law_2d))(grid.points)
        assert np.ptp(difference) < 1e-10
        p = fokker_planck.stationary(generator)
        residual = generator.matrix @ p.mass.ravel() / (np.abs(generator.matrix.diagonal()) * p.mass.ravel())
        np.testing.assert_allclose(residual, 0, atol=1e-9)
        flow = fokker_planck.current(generator, p)
        assert np.max(np.abs(flow.vectors)) < 1e-9
        assert 0 <= flow.entropy_production < 1e-18


def test_strong_anisotropy_at_an_angle():
    # 400 : 1 at 25°, in the law of dX = -A X dt + ..., which turns.
    c, s = np.cos(np.pi * 25 / 180), np.sin(np.pi * 25 / 180)
    d = np.array([[c, -s], [s, c]]) @ np.diag([4.0, 0.01]) @ np.array([[c, s], [-s, c]])
    process, covariance = linear([[1.0, 0.02], [-0.02, 1.0]], d)
    errors = []
    for n in (64, 128):
        grid = sigmas(covariance, 6, n)
        p = fokker_planck.stationary(fokker_planck.assemble(process, grid))
        assert np.min(p.mass) >= 0
        errors.append(distance(p, gaussian(grid, covariance)))
    assert errors[1] < 0.05
    assert orders(errors)[-1] > 1.4


@pytest.mark.slow
def test_noise_proportional_to_loss_and_hessian():
    # D = κ f H, b = -∇f with f = c + xᵀHx/2: E[x xᵀ] = p I with p = κ c / (1 - κ tr H / 2).
    hessian, kappa, c = np.array([[1.0, 0.6], [0.6, 1.5]]), 0.1, 0.5
    root = jnp.asarray(scipy.linalg.sqrtm(2 * kappa * hessian).real)
    h = jnp.asarray(hessian)

    def loss(x):
        return c + 0.5 * x @ h @ x

    process = Diffusion(lambda t, x: -jax.grad(loss)(x), lambda t, x: root * jnp.sqrt(loss(x)))
    exact = kappa * c / (1 - kappa * np.trace(hessian) / 2) * np.eye(2)
    errors = []
    for n in (40, 80):
        p = fokker_planck.stationary(fokker_planck.assemble(process, Grid.stretched((12.0, n, 0.4), (12.0, n, 0.4))))
        errors.append(np.max(np.abs(second_moments(p) - exact)) / exact[0, 0])
    assert errors[-1] < 0.012
    assert orders(errors)[-1] > 1.7


def test_a_full_tensor_in_space():
    d = np.array([[1.0, 0.5, -0.3], [0.5, 1.2, 0.2], [-0.3, 0.2, 0.8]])
    process, covariance = linear([[1.0, 0.3, 0.0], [-0.2, 1.5, 0.1], [0.0, 0.1, 1.2]], d)
    errors = []
    for n in (10, 20):
        grid = sigmas(covariance, 4.5, n)
        generator = fokker_planck.assemble(process, grid)
        assert not generator.reversible
        assert generator.diagonals.longest == 1
        p, q = fokker_planck.stationary(generator), fokker_planck.stationary(generator, extrapolate=True)
        assert np.min(p.mass) > 0
        errors.append([distance(r, gaussian(grid, covariance)) for r in (p, q)])
    assert orders(errors)[-1][0] > 1.8
    assert errors[-1][0] < 0.03
    assert errors[-1][1] < 0.1 * errors[-1][0]
    np.testing.assert_allclose(second_moments(p), covariance, atol=3e-4)
    # Extrapolated masses are those in the cells: moments of the centres have Sheppard's h²/12 more.
    grouped = covariance + np.diag([np.diff(e)[0] ** 2 / 12 for e in grid.edges])
    np.testing.assert_allclose(second_moments(q), grouped, atol=2e-3)


@pytest.mark.slow
def test_a_manufactured_law_in_space():
    def g(x):
        return jnp.array(
            [
                [1 + 0.3 * jnp.sin(x[1]), 0.2 * jnp.sin(x[0]), 0.0],
                [0.5, 0.9 + 0.1 * jnp.sin(x[2]), 0.1],
                [-0.3 * jnp.cos(x[0]), 0.2, 0.8],
            ]
        )

    def log_law(x):
        return -0.5 * (x[0] ** 2 + 0.5 * x[0] * x[1] + x[1] ** 2 + x[2] ** 2 - 0.4 * x[1] * x[2]) + 0.2 * jnp.sin(x[2])

    def stream(x):
        return jnp.array([[0.0, 0.1, -0.05], [-0.1, 0.0, 0.05], [0.05, -0.05, 0.0]]) * (1 + 0.2 * jnp.sin(x[1]))

    process = with_law(log_law, g, stream)
    errors = []
    for n in (11, 22):
        grid = Grid.uniform(*[(-4.2, 4.2, n)] * 3)
        p = fokker_planck.stationary(fokker_planck.assemble(process, grid))
        errors.append(distance(p, Density.from_function(grid, lambda x: jnp.exp(log_law(x)))))
    assert errors[-1] < 0.03
    assert orders(errors)[-1] > 1.6


def test_three_axes_with_diagonal_noise():
    process = Diffusion(lambda t, x: -x * jnp.array([1.0, 2.0, 0.5]), lambda t, x: jnp.array([1.0, 1.0, 0.7]))
    grid = Grid.uniform((-4.0, 4.0, 20), (-3.0, 3.0, 18), (-4.0, 4.0, 16))
    generator = fokker_planck.assemble(process, grid)
    assert generator.diagonals is None
    p = fokker_planck.stationary(generator)
    np.testing.assert_allclose(p.expect(lambda x: jnp.outer(x, x)), np.diag([0.5, 0.25, 0.49]), rtol=4e-3, atol=1e-12)
    # The scheme's own rate is λ (1 - λ h²/(12 D)) with h = 0.5 and D = 0.245 along the slowest axis.
    assert fokker_planck.spectrum(generator, 2).matrix_rates[1] == pytest.approx(0.5 * (1 - 0.125 / 2.94), rel=5e-3)


# --- the generator ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", _kinds)
@pytest.mark.slow("absorbing", "no-flux")
def test_for_constant_diagonal_noise_both_ways_are_one(kind):
    process = Diffusion(lambda t, x: jnp.sin(x[::-1]) - x, lambda t, x: jnp.array([1.0, 0.6]))
    grid = Grid.stretched((2.0, 9, 1.0), (3.0, 8, 2.0))
    plain = fokker_planck.assemble(process, grid, kind)
    up, down, ratios, diagonals = tensor_rates(process, grid, (kind, kind), plain.resolved)
    assert diagonals.carried
    assert diagonals.source.size == 0
    for found, expected in zip((up, down, ratios), (plain.up, plain.down, plain.log_ratios), strict=True):
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


def test_drift_and_diffusion_of_the_jumps_are_those_of_the_process():
    # Itô: the mean of a jump is b and its mean product 2 D, with a tensor that varies, but not its offsets.
    def noise(t, x):
        return jnp.array([[1 + 0.2 * jnp.sin(x[1]), 0.0], [0.5 + 0.1 * jnp.cos(x[0]), 0.9 + 0.1 * x[1]]])

    process = Diffusion(lambda t, x: jnp.array([0.3 + 0.2 * x[1], -0.2]), noise)
    errors = []
    for n in (16, 32, 64):
        grid = Grid.uniform((0.0, 1.0, n), (0.0, 1.0, n))
        backward = fokker_planck.assemble(process, grid).matrix.T
        x = grid.points.reshape(-1, 2)
        inner = np.all((x > 0.2) & (x < 0.8), axis=1)
        drift = backward @ x
        squares = (backward @ (x[:, :, None] * x[:, None, :]).reshape(-1, 4)).reshape(-1, 2, 2)
        squares -= x[:, :, None] * drift[:, None, :] + drift[:, :, None] * x[:, None, :]
        b = np.stack([0.3 + 0.2 * x[:, 1], np.full(len(x), -0.2)], axis=1)
        g = np.asarray(jax.vmap(lambda y: noise(0.0, y))(x))
        exact = np.einsum("nij,nkj->nik", g, g)
        errors.append([np.max(np.abs(drift - b)[inner]), np.max(np.abs(squares - exact)[inner])])
    assert np.max(errors[-1]) < 1e-3
    np.testing.assert_allclose(orders(errors)[-1], 2, atol=0.1)


@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 3]), st.lists(st.sampled_from(_kinds), min_size=3, max_size=3))
@settings(max_examples=6, deadline=None)
def test_random_tensor_fields_give_positive_conserving_generators(seed, d, kinds):
    rng = np.random.default_rng(seed)
    base, waves, phase = rng.standard_normal((d, d)), 0.4 * rng.standard_normal((d, d)), 6 * rng.random(d)
    pull = jnp.asarray(rng.standard_normal((d, d)))

    def noise(t, x):
        return jnp.asarray(base + 1.5 * np.eye(d)) + jnp.asarray(waves) * jnp.sin(x + jnp.asarray(phase))

    process = Diffusion(lambda t, x: pull @ jnp.sin(x), noise)
    cells = (18, 17) if d == 2 else (12, 13, 12)
    grid = Grid([np.cumsum(np.append(0.0, np.exp(0.3 * np.sin(np.arange(n))))) * (6.283 / n) for n in cells])
    try:
        generator = fokker_planck.assemble(process, grid, kinds[:d])
    except ValueError as error:
        assert "times stronger along" in str(error)  # noqa: PT017
        return
    a, mass = generator.matrix, rng.random(grid.shape)
    mass /= mass.sum()
    assert np.min((a - np.diag(a.diagonal())).min()) >= 0
    scale = np.abs(a.diagonal())
    np.testing.assert_allclose((a.sum(axis=0) + generator.exit_rates.ravel()) / scale, 0, atol=1e-14)
    # The flows through the faces of a cell sum to its gain.
    flow = fokker_planck.current(generator, Density(grid, mass))
    gain = np.zeros(grid.shape)
    for k in range(d):
        area = grid.volumes / np.diff(grid.edges[k]).reshape(-1, *[1] * (d - k - 1))
        gain -= np.diff(flow.faces[k], axis=k) * area
    np.testing.assert_allclose(gain.ravel() / scale.max(), a @ mass.ravel() / scale.max(), atol=1e-14)


def test_moments_of_a_correlated_process_in_time():
    # m' = -A m and P' = -A P - P Aᵀ + 2 D. Where the start is, Ω is up to 1.1 and 0.55 on the edges of these grids, and
    # the drift of resolved edges is too strong by Ω²/24.
    matrix, d, t = np.array([[1.0, 1.0], [-1.0, 1.0]]), np.array([[1.0, 0.5], [0.5, 1.0]]), 0.1
    process, rest = linear(matrix, d)
    decay, errors = scipy.linalg.expm(-matrix * t), []
    for n in (32, 64):
        grid = Grid.uniform((-5.0, 5.0, n), (-5.0, 5.0, n))
        start = Density.from_function(grid, lambda x: jnp.exp(-jnp.sum((x - jnp.array([1.5, -0.8])) ** 2) / 0.32))
        (end,) = fokker_planck.evolve(fokker_planck.assemble(process, grid), start, [t], rtol=1e-5).densities
        (m0, p0), (m, p) = ((q.mass.ravel() @ grid.points.reshape(-1, 2), second_moments(q)) for q in (start, end))
        mean, covariance = decay @ m0, rest + decay @ (p0 - np.outer(m0, m0) - rest) @ decay.T
        errors.append([np.linalg.norm(m - mean), np.max(np.abs(p - np.outer(m, m) - covariance))])
    assert np.max(errors[-1]) < 5e-3
    np.testing.assert_allclose(orders(errors)[-1], 2, atol=0.1)


# --- boundaries -------------------------------------------------------------------------------------------------------


def still(diffusion):
    g = jnp.asarray(np.linalg.cholesky(2 * np.asarray(diffusion)))
    return Diffusion(lambda t, x: jnp.zeros_like(x), lambda t, x: g)


@pytest.mark.slow
def test_waves_on_a_torus_decay_at_the_rate_of_the_tensor():
    # e^(ik·x) decays at k·D k; the smallest of (1, 0), (0, 1) and (1, -1) here is 1.2 - 1.04 = 0.16 + ... from (1, -1).
    d = np.array([[0.6, 0.52], [0.52, 0.6]])
    exact = min(np.array(k) @ d @ np.array(k) for k in [(1, 0), (0, 1), (1, -1)])
    errors = []
    for n in (12, 24):
        grid = Grid.uniform((0.0, 2 * np.pi, n), (0.0, 2 * np.pi, 2 * n))
        generator = fokker_planck.assemble(still(d), grid, "periodic")
        assert generator.diagonals.longest == 2
        np.testing.assert_allclose(generator.matrix @ np.ones(grid.size), 0, atol=1e-11)
        errors.append(fokker_planck.spectrum(generator, 2).matrix_rates[1] - exact)
    assert abs(errors[-1]) < 5e-3
    np.testing.assert_allclose(orders(errors), 2, atol=0.1)


@pytest.mark.parametrize(("kind", "least"), [("absorbing", 1.8), ("no-flux", 0.9)])
@pytest.mark.slow("absorbing-1.8")
def test_decay_between_walls(kind, least):
    # Uniform along the other axis: with absorbing walls at 0 and 1 the rate is D_00 π², and so it is with no-flux.
    d = np.array([[1.0, 0.9], [0.9, 1.2]])
    errors = []
    for n in (16, 32):
        grid = Grid.uniform((0.0, 1.0, n), (0.0, 2.0, n))
        generator = fokker_planck.assemble(still(d), grid, (kind, "periodic"))
        assert generator.diagonals.longest == 2
        rate = fokker_planck.spectrum(generator, 6).matrix_rates
        wanted = np.pi**2 * d[0, 0]
        errors.append(np.min(np.abs(rate - wanted)))
    assert errors[-1] < 0.1 * wanted
    assert orders(errors)[-1] > least


# --- degenerate noise -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_noise_in_the_velocity_alone():
    # dy = x dt, dx = -(y + x) dt + sqrt(2) dB: independent standard normal y and x.
    process = Diffusion(lambda t, x: jnp.array([x[1], -x[0] - x[1]]), lambda t, x: jnp.array([[0.0], [np.sqrt(2.0)]]))
    errors = []
    for n in (40, 80):
        grid = Grid.uniform((-6.0, 6.0, n), (-6.0, 6.0, n))
        generator = fokker_planck.assemble(process, grid)
        assert not generator.diagonals.carried
        assert not generator.reversible
        p = fokker_planck.stationary(generator)
        errors.append(np.max(np.abs(second_moments(p) - np.eye(2))))
    assert errors[-1] < 0.2
    np.testing.assert_allclose(orders(errors)[-1], 1, atol=0.25)
    flow = fokker_planck.current(generator, p)
    assert flow.entropy_production == np.inf
    x = grid.points
    rho = np.exp(-0.5 * np.sum(x**2, axis=-1)) / (2 * np.pi)
    np.testing.assert_allclose(flow.vectors[0], x[..., 1] * rho, atol=0.02)


# The law is a narrow ridge, and the order of the error is what is measured.
@pytest.mark.filterwarnings("ignore:The grid does not resolve the law")
def test_noise_along_a_diagonal_of_the_cells():
    # D = (1, 1)(1, 1)ᵀ / 2: what the noise can't carry drifts upwind. b = -A x, as above by Lyapunov's equation.
    matrix, d = np.array([[1.0, 0.3], [-0.5, 2.0]]), np.full((2, 2), 0.5)
    covariance = scipy.linalg.solve_continuous_lyapunov(matrix, 2 * d)
    process = Diffusion(lambda t, x: -jnp.asarray(matrix) @ x, lambda t, x: jnp.ones((2, 1)))
    errors = []
    for n in (50, 100):
        p = fokker_planck.stationary(fokker_planck.assemble(process, Grid.uniform((-5.0, 5.0, n), (-5.0, 5.0, n))))
        errors.append(np.max(np.abs(second_moments(p) - covariance)))
    np.testing.assert_allclose(orders(errors)[-1], 1, atol=0.3)


@pytest.mark.parametrize("cells", [20, 21])
def test_a_loss_with_a_zero_traps(cells):
    # f = |x|²/2 with D = f/5: all mass gathers at the zero, in the middle of a cell or in a corner of four.
    process = Diffusion(lambda t, x: -x, lambda t, x: jnp.sqrt(0.2 * (x @ x)))
    grid = Grid.uniform((-2.0, 2.0, cells), (-2.0, 2.0, cells))
    with pytest.warns(UserWarning, match="does not resolve the law"):
        p = fokker_planck.stationary(fokker_planck.assemble(process, grid))
    near = np.max(np.abs(grid.points), axis=-1) < 0.15
    assert p.mass[near].sum() > 0.99


# --- other results ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_laws_and_rates_in_time():
    # Means decay with e^(-At), and the rates of linear drift are those of A.
    process, covariance = linear([[1.0, 0.4], [0.1, 2.0]], [[1.0, 0.7], [0.7, 1.0]])
    grid = sigmas(covariance, 5, 36)
    generator = fokker_planck.assemble(process, grid)
    centre = 0.8 * np.sqrt(np.diag(covariance))
    start = Density.from_function(grid, lambda x: jnp.exp(-4 * jnp.sum((x - centre) ** 2 / np.diag(covariance))))
    sol = fokker_planck.evolve(generator, start, [0.3, 12.0])
    before = np.einsum("ij,ija->a", start.mass, grid.points)
    after = np.einsum("ij,ija->a", sol.densities[0].mass, grid.points)
    np.testing.assert_allclose(after, scipy.linalg.expm(-0.3 * np.array([[1.0, 0.4], [0.1, 2.0]])) @ before, atol=1e-2)
    assert sol.mass_error < 1e-12
    assert distance(sol.densities[1], fokker_planck.stationary(generator)) < 1e-4
    slow = np.sort(np.linalg.eigvals([[1.0, 0.4], [0.1, 2.0]]).real)[0]
    assert fokker_planck.spectrum(generator, 2).gap == pytest.approx(slow, rel=1e-2)


def test_the_error_of_a_density_follows_it():
    grid = sigmas(_covariance, 6, 32)
    p = fokker_planck.stationary(fokker_planck.assemble(_correlated, grid))
    assert p.marginal(0).error.sum() == pytest.approx(p.error.sum())
    assert p.on(grid.coarsen()).error.sum() == pytest.approx(p.error.sum())
    assert "error about" in str(p)
    with pytest.raises(ValueError, match="`error` must have the shape of the grid"):
        Density(grid, p.mass, error=np.zeros(3))


def test_laws_without_an_estimate_are_left_alone():
    # Odd numbers of cells have no coarser grid.
    grid = Grid.uniform((-7.0, 7.0, 31), (-4.0, 4.0, 33))
    generator = fokker_planck.assemble(_correlated, grid)
    p, q = fokker_planck.stationary(generator), fokker_planck.stationary(generator, extrapolate=True)
    assert p.error is None
    np.testing.assert_array_equal(p.mass, q.mass)


def test_generators_say_how_far_they_jump():
    generator = fokker_planck.assemble(_correlated, sigmas(_covariance, 6, 32))
    assert str(generator).endswith("jumps of up to 2 cells")
    assert fokker_planck.coarsen(generator).diagonals.longest == 2


# --- wrong arguments --------------------------------------------------------------------------------------------------


def test_diffusion_that_needs_long_jumps_is_refused():
    process = Diffusion(lambda t, x: -x, lambda t, x: jnp.array([[1.0], [np.sqrt(2.0)]]))
    with pytest.raises(ValueError, match=r"times stronger along .* than across it, and jumps of more than 10 cells"):
        fokker_planck.assemble(process, Grid.uniform((-1.0, 1.0, 20), (-1.0, 1.0, 20)))


def test_noise_that_is_not_finite_is_found():
    process = Diffusion(lambda t, x: -x, lambda t, x: jnp.array([[1.0, 0.5], [0.5, 1.0]]) * jnp.sqrt(x[0]))
    with pytest.raises(ValueError, match=r"`noise\(t, x\)` is not finite"):
        fokker_planck.assemble(process, Grid.uniform((-1.0, 1.0, 20), (-1.0, 1.0, 20)))


def test_coordinates_that_do_not_move_are_found():
    process = Diffusion(lambda t, x: jnp.array([-x[0], 0.0]), lambda t, x: jnp.array([1.0, 0.0]))
    generator = fokker_planck.assemble(process, Grid.uniform((-4.0, 4.0, 20), (-1.0, 1.0, 10)))
    with pytest.raises(RuntimeError, match="more than one stationary law: 10 sets"):
        fokker_planck.stationary(generator)


def test_generators_that_do_not_fit_are_refused(monkeypatch):
    # A diagonal tensor would fit in half of it.
    monkeypatch.setattr(memory, "_installed", lambda: 1e8)
    with pytest.raises(MemoryError, match=r"16384 cells, takes about .* more than half of this machine's"):
        fokker_planck.assemble(_correlated, sigmas(_covariance, 6, 128))
    monkeypatch.setattr(memory, "_installed", lambda: 1e6)
    with pytest.raises(MemoryError, match=r"4096 cells, takes about .* more than half of this machine's"):
        fokker_planck.assemble(Diffusion(lambda t, x: -x, lambda t, x: jnp.ones(2)), sigmas(_covariance, 6, 64))


@pytest.mark.parametrize("shape", [(64, 64), (40, 24)])
@pytest.mark.slow("shape1")
def test_corners_that_all_edges_leave_are_joined_to_the_rest(shape):
    """Strong correlation in a wide box: in two of its corners every jump of the decomposition leads out."""
    process, covariance = linear(np.diag([1.0, 3.0]), 0.25 * np.array([[1.0, 0.95], [0.95, 1.0]]))
    grid = Grid.uniform((-3.5, 3.5, shape[0]), (-2.2, 2.2, shape[1]))
    generator = fokker_planck.assemble(process, grid)
    jumps = generator.matrix - scipy.sparse.diags(generator.matrix.diagonal())
    assert scipy.sparse.csgraph.connected_components(jumps, connection="strong")[0] == 1
    p = fokker_planck.stationary(generator)
    assert p.mass.min() > 0
    np.testing.assert_allclose(second_moments(p), covariance, rtol=0.2)
