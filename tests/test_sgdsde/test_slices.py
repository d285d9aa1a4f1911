"""Losses and models on lines and planes: closed forms of least squares, and SGD confined to a slice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

import sgdsde as sg
from sgdsde import losses, noise, optimizers
from solvers import Density, Grid, fokker_planck, sde
from solvers.process import noise_structure

rng = np.random.default_rng(0)
A, labels = rng.normal(size=(20, 5)), rng.normal(size=20)
loss = losses.LeastSquares(A, labels)
centre = np.linalg.lstsq(A, labels, rcond=None)[0]
directions = rng.normal(size=(2, 5))

# Gradients of single examples along a line through the minimum: α_i (α_i y + β_i).
line = sg.Plane(centre, directions[0])
alpha, beta = A @ np.asarray(line.directions[0]), A @ centre - labels
curvature = np.mean(alpha**2)

eta, batch = 0.05, 2
model = sg.SGD(loss, noise.Minibatch(loss, batch), eta)
grid = Grid.uniform((-0.48, 0.48, 160))


def variance(y):
    """C(y), a quadratic polynomial."""
    return np.var(alpha * (alpha * y + beta))


@pytest.fixture(scope="module")
def confined():
    return sg.restrict(model, centre, directions[0])


@pytest.fixture(scope="module")
def law(confined):
    return fokker_planck.stationary(fokker_planck.assemble(confined, grid))


def test_coordinates_and_points():
    plane = sg.Plane(centre, directions)
    v = np.asarray(plane.directions)
    np.testing.assert_allclose(v @ v.T, np.eye(2), atol=1e-15)
    np.testing.assert_allclose(
        plane.point(plane.coordinates(jnp.asarray(centre + directions[1]))), centre + directions[1]
    )
    # In their order: the first is the first coordinate, at its own length.
    length = np.linalg.norm(directions[0])
    np.testing.assert_allclose(plane.point(jnp.array([length, 0.0])), centre + directions[0], rtol=1e-14)
    # What lies across the plane is left out.
    across = np.linalg.svd(v)[2][-1]
    np.testing.assert_allclose(plane.coordinates(jnp.asarray(centre + across)), 0, atol=1e-14)


@pytest.mark.parametrize("replacement", [True, False])
def test_curvature_and_covariance_are_those_of_the_whole_projected(replacement):
    full = noise.Minibatch(loss, 3, replacement)
    slice_ = sg.restrict(sg.SGD(loss, full, 0.3), centre + 0.1, directions)
    v, y = np.asarray(slice_.loss.plane.directions), jnp.array([0.4, -0.7])
    x = centre + 0.1 + np.asarray(y) @ v
    single = A * (A @ x - labels)[:, None] @ v.T
    sigma = np.cov(single.T, ddof=0) / 3 * (1 if replacement else 17 / 19)
    own = noise.Minibatch(slice_.loss, 3, replacement)
    hessian, drift, diffusion, covariance = jax.jit(
        lambda y: (jax.hessian(slice_.loss)(y), slice_.drift(0.0, y), slice_.diffusion(0.0, y), own.covariance(y))
    )(y)
    np.testing.assert_allclose(hessian, v @ A.T @ A @ v.T / 20, atol=1e-13)
    np.testing.assert_allclose(drift, -single.mean(axis=0), atol=1e-14)
    np.testing.assert_allclose(diffusion, 0.3 * sigma / 2, atol=1e-14)
    np.testing.assert_allclose(covariance, sigma, atol=1e-14)
    # Two Brownian motions, and not one for each example.
    assert noise_structure(slice_, y) == ("general", 2)


def test_every_noise_is_projected():
    square = np.diag([3.0, 1.0, 0.5])
    f = losses.Quadratic(square, floor=0.2)
    plane = sg.Plane(np.ones(3), directions[:, :3])
    v, y = np.asarray(plane.directions), jnp.array([0.3, 0.2])
    x = plane.point(y)
    for whole, expected in [
        (noise.Constant(0.5), 0.1 * 0.5 * np.eye(2)),
        (noise.LossProportional(0.5), 0.1 * 0.5 * float(f(x)) * np.eye(2)),
        (noise.Sum(noise.Covariance(square, 4), noise.Constant(0.5)), 0.1 * (v @ square @ v.T / 8 + 0.5 * np.eye(2))),
    ]:
        restricted = sg.restrict(sg.SGD(f, whole, 0.1), np.ones(3), directions[:, :3])
        found = jax.jit(lambda y, m=restricted: m.diffusion(0.0, y))(y)
        np.testing.assert_allclose(found, expected, atol=1e-15)
    assert isinstance(sg.restrict(f, np.ones(3), v), sg.slices.Slice)


def test_minibatch_steps_stay_in_the_plane():
    # y ← y - η Vᵀ g(x + Vy) with the minibatches that SGD in the whole space sees.
    f = sg.restrict(loss, centre, directions)
    v = np.asarray(f.plane.directions)
    step = optimizers.SGD(0.2, 3)
    small = optimizers.run(step, f, jnp.array([0.4, -0.7]), steps=1, runs=5, key=3).final
    whole = optimizers.run(step, loss, f.plane.point(jnp.array([0.4, -0.7])), steps=1, runs=5, key=3).final
    np.testing.assert_allclose(small, (whole - centre) @ v.T, atol=1e-13)


def test_label_noise_of_a_slice():
    f = sg.restrict(loss, centre, directions[0])
    assert isinstance(f, losses.AbstractSquaredLoss)
    of_slice = sg.SGD(f, noise.LabelNoise(f, 2.0, 4), 0.1)
    found = jax.jit(lambda y: of_slice.diffusion(0.0, y))(jnp.zeros(1))
    np.testing.assert_allclose(found, [[0.1 / 2 * 4 / 4 * curvature]], rtol=1e-13)


def test_stationary_law_of_least_squares_on_a_line(law):
    # dy = -h y dt + √(η C(y)/B) dW with C = a((y-m)² + s²): a Pearson diffusion, whose density is
    # ((y-m)² + s²)^(-1-q/2) exp(-(qm/s) atan((y-m)/s)), q = 2hB/(ηa).
    a, b, c = np.polyfit([-1.0, 0.0, 1.0], [variance(y) for y in (-1.0, 0.0, 1.0)], 2)
    m, q = -b / (2 * a), 2 * curvature * batch / (eta * a)
    s = np.sqrt(c / a - m**2)

    def unscaled(y):
        z = (y - m) / s
        return np.exp(-(1 + q / 2) * np.log1p(z**2) - q * m / s * np.arctan(z))

    edges = grid.edges[0]
    # Below the tolerance: three Gauss-Legendre nodes a cell.
    nodes, weights = np.polynomial.legendre.leggauss(8)
    mass = unscaled(0.5 * (edges[1:] + edges[:-1])[:, None] + 0.5 * np.diff(edges)[:, None] * nodes) @ weights
    np.testing.assert_allclose(law.mass, mass / mass.sum(), atol=1e-9)
    assert mass.max() / mass.min() > 1e10


def test_confined_sgd_has_the_law_of_the_slice(confined, law):
    # Ten relaxation times; the law of SGD differs by terms of relative size ηh ≈ 0.04, in the variance by half of that.
    steps = round(10 / (eta * curvature))
    out = optimizers.run(optimizers.SGD(eta, batch), confined.loss, jnp.zeros(1), steps=steps, runs=3000, key=0)
    bins = grid.coarsen().coarsen().coarsen()
    sampled = Density.from_samples(bins, out.final)
    assert sg.compare(sampled, law).excess < 4
    # Of a batch twice as large, it would have been seen.
    other = sg.restrict(sg.SGD(loss, noise.Minibatch(loss, 2 * batch), eta), centre, directions[0])
    wrong = fokker_planck.stationary(fokker_planck.assemble(other, grid))
    assert sg.compare(sampled, wrong).excess > 10


def test_exit_times_of_a_slice(confined):
    reach = 0.06
    solved = fokker_planck.exit_time(confined, grid, inside=lambda y: jnp.abs(y[0]) < reach)
    # The formula of mean exit times, T = ∫∫ of speed and scale, with D = ηC/(2B).
    fine = np.linspace(-reach, reach, 4001)
    diffusion = eta * np.array([variance(y) for y in fine]) / (2 * batch)
    phi = integrate.cumulative_simpson(-curvature * fine / diffusion, x=fine, initial=0)
    speed = integrate.cumulative_simpson(np.exp(phi) / diffusion, x=fine, initial=0)
    scale = integrate.cumulative_simpson(np.exp(-phi), x=fine, initial=0)
    lost = integrate.cumulative_simpson(np.exp(-phi) * speed, x=fine, initial=0)
    # From the centre of a cell, where nothing is interpolated.
    exact, start = scale[2100] / scale[-1] * lost[-1] - lost[2100], fine[2100]
    np.testing.assert_allclose(solved.values[80], exact, rtol=1e-7)
    dt = 0.02 / curvature
    out = sde.simulate(
        confined, sde.Milstein(), jnp.array([start]), t1=dt * np.ceil(12 * exact / dt), dt=dt, key=0, paths=1000,
        observe={"exit": sde.FirstPassage(lambda y: reach - jnp.abs(y[0]))},
    )  # fmt: skip
    times = out["exit"]
    assert abs(times.mean - exact) < 4 * times.sem + 0.01 * exact


@pytest.mark.slow
def test_a_plane_has_a_full_tensor_that_the_solver_takes():
    plane = sg.restrict(model, centre, directions)
    tensor = jax.jit(lambda y: plane.diffusion(0.0, y))(jnp.zeros(2))
    assert abs(tensor[0, 1]) > 0.05 * np.sqrt(tensor[0, 0] * tensor[1, 1])
    p = fokker_planck.stationary(fokker_planck.assemble(plane, Grid.uniform((-0.6, 0.6, 48), (-0.6, 0.6, 48))))
    # The drift is linear, and C quadratic: HP + PH = η E C/B closes on the second moments.
    v = np.asarray(plane.loss.plane.directions)
    a = A @ v.T
    h = a.T @ a / 20
    second = np.array([[p.expect(lambda y, i=i, j=j: y[i] * y[j]) for j in range(2)] for i in range(2)])
    outer = a[:, :, None] * a[:, None, :]
    force = np.einsum("nij,jk,nkl->il", outer, second, outer) / 20 - h @ second @ h
    cross = np.einsum("ni,n,nj->ij", a, beta**2, a) / 20
    mean = np.array([p.expect(lambda y, i=i: y[i]) for i in range(2)])
    skew = np.einsum("ni,nj,nk,n,k->ij", a, a, a, beta, mean) / 20
    right = eta / batch * (force + cross + skew + skew.T)
    np.testing.assert_allclose(h @ second + second @ h, right, atol=0.02 * np.max(np.abs(right)))


def test_top_directions_of_a_quadratic():
    for d in (5, 90):
        q = np.linalg.qr(rng.normal(size=(d, d)))[0]
        values = np.concatenate([[9.0, 7.0, 4.0], np.linspace(-12, 2, d - 3)])
        f = losses.Quadratic(q @ np.diag(values) @ q.T / 2 + (q @ np.diag(values) @ q.T).T / 2)
        found = np.asarray(sg.top_directions(f, jnp.ones(d), 3))
        overlap = np.abs(found @ q[:, :3])
        np.testing.assert_allclose(overlap, np.eye(3), atol=1e-6)
        assert np.all(found[range(3), np.abs(found).argmax(axis=1)] > 0)


@pytest.mark.usefixtures("unchecked")
def test_messages():
    for call, kind, message in [
        (lambda: sg.restrict(loss, centre, directions[:, :4]), ValueError, "`directions` must be at most 5 vectors"),
        (
            lambda: sg.restrict(loss, centre, [directions[0], -2 * directions[0]]),
            ValueError,
            "independent, but number 1",
        ),
        (lambda: sg.restrict(loss, centre, np.zeros(5)), ValueError, "must not be zero"),
        (lambda: sg.restrict(loss, centre * np.nan, directions), ValueError, "`x` must be finite"),
        (lambda: sg.restrict(loss, "a", directions), TypeError, "`x` must be real numbers"),
        (lambda: sg.restrict(loss, centre[None], directions), ValueError, "`x` must be one point"),
        (lambda: sg.restrict(loss, centre[:4], directions[:, :4]), ValueError, "`loss` can't be evaluated"),
        (lambda: sg.restrict(3, centre, directions), TypeError, "`loss_or_model` must be a function"),
        (lambda: sg.restrict(sg.SignSGD(loss, noise.Constant(1.0), 0.1), centre, directions), TypeError, "sg.SGD"),
        (
            lambda: sg.top_directions(loss, centre, 6),
            ValueError,
            "`k` must be a whole number.* from 1 to 5",
        ),
        (lambda: sg.top_directions(loss, centre[None], 1), ValueError, "`x` must be one point"),
    ]:
        with pytest.raises(kind, match=message):
            call()
