"""What holds for every integrator: its declared orders, its dtype, and what it says of noise that it can't step.

The problems are in `sde_problems`, each solution there checked here by Itô's formula.
"""

import inspect
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_solvers import sde_problems as problems

from solvers import Diffusion, sde
from solvers.sde.brownian import increment, numbers_per_step


class Case(NamedTuple):
    """A method, and what is passed to `strong_order` and `weak_order` to measure its orders; None where it has none.

    A problem is a name in `pathwise`, or a process with its start. `dimension` is one that the method can step.
    """

    method: Any
    strong: tuple[Any, dict] | None
    weak: tuple[Any, dict] | None
    dimension: int = 3


def _steps(first, last):
    return [2.0**-k for k in range(first, last + 1)]


_pathwise = {"dts": _steps(4, 8), "paths": 2000}
_itself = {"dts": _steps(4, 7), "paths": 500}
_levy = problems.levy_area, jnp.zeros(3)
_mean_square = {"functional": lambda x: x[0] ** 2 + x[-1]}
_weak = _mean_square | {"dts": _steps(2, 5), "paths": 50_000}

# E[X_0² + X_1] of the geometric problem, and E[X² + X] of the fading one, at time 1.
_geometric = float(np.exp(-2 + 0.8**2) + 2 * np.exp(-1))
_fading = float(1.5**2 / 2 + 0.4**2 / 2 + 1.5 / np.sqrt(2))

# Every method that `sde` exports is here: add a new one with a problem on which each order shows.
cases = [
    Case(sde.EulerMaruyama(), ("tanh", _pathwise), ("geometric", _weak)),
    Case(
        sde.EulerMaruyama(noise="three-point"),
        None,
        ("geometric", _weak | {"exact": _geometric, "paths": 400_000, "dts": _steps(1, 4)}),
    ),
    Case(sde.Milstein(), ("two turning", _pathwise), ("geometric", _weak)),
    Case(sde.LeimkuhlerMatthews(), ("fading", _pathwise), ("fading", _weak)),
    Case(
        sde.LeimkuhlerMatthews(noise="three-point"),
        None,
        ("fading", _weak | {"exact": _fading, "paths": 400_000, "dts": _steps(1, 4)}),
    ),
    # From a start at which Euler-Maruyama explodes.
    Case(
        sde.TamedEuler(),
        ((problems.cubic, jnp.asarray([9.0])), _itself | {"dts": _steps(8, 11)}),
        ("geometric", _weak),
    ),
    Case(sde.StratonovichHeun(), (_levy, _itself), ("tanh", _weak)),
    Case(
        sde.SRA1(),
        ((problems.fading_wells, jnp.asarray([1.0, 0.5])), _itself),
        (
            (problems.wells, jnp.asarray([1.0, 0.5])),
            _weak | {"functional": lambda x: x[1] ** 2, "paths": 20_000},
        ),
    ),
    Case(sde.DriftImplicitEuler(), ("tanh", _pathwise), ("geometric", _weak | {"dts": _steps(2, 4), "paths": 20_000})),
    Case(sde.ExponentialEuler(), ("tanh", _pathwise | {"paths": 1000}), ("fading", _weak)),
    Case(sde.SKROCK(stages=3), ("tanh", _pathwise), ("geometric", _weak)),
    Case(sde.PSKROCK(stages=3), ("fading", _pathwise), ("fading", _weak)),
    Case(sde.Lamperti(), ("tanh", _pathwise), ("tanh", _weak | {"paths": 200_000}), dimension=1),
    # With one motion its strong order is 1; with more it follows no Brownian motion.
    Case(sde.WeakRK2(), None, ("geometric", _weak | {"paths": 300_000})),
    Case(sde.Diffrax(diffrax.Euler()), ("tanh", _pathwise), None),
    Case(sde.Diffrax(diffrax.ItoMilstein()), ("two turning", _pathwise), None),
    Case(sde.Diffrax(diffrax.EulerHeun()), (_levy, _itself), None),
    Case(
        sde.Diffrax(diffrax.ShARK()),
        ((problems.wells, jnp.asarray([1.0, 0.5])), _itself | {"dts": _steps(5, 8)}),
        None,
    ),
]


def _name(case):
    method = case.method
    parts = [type(getattr(method, "solver", None)).__name__] if isinstance(method, sde.Diffrax) else []
    parts += [method.noise] if getattr(method, "noise", "normal") != "normal" else []
    return "-".join([type(method).__name__, *parts])


def _measure(study, case, problem, options):
    if isinstance(problem, str):
        process, x0, exact = problems.pathwise[problem]
        options = {"exact": exact} | options
    else:
        process, x0 = problem
    return study(process, case.method, x0, key=1, **options)


@pytest.mark.parametrize("case", [c for c in cases if c.strong], ids=_name)
@pytest.mark.slow(
    "Diffrax-ShARK",
    "Diffrax-ItoMilstein",
    "Diffrax-EulerHeun",
    "Diffrax-Euler",
    "ExponentialEuler",
    "PSKROCK",
    "Lamperti",
)
def test_strong_order(case):
    study = _measure(sde.strong_order, case, *case.strong)
    assert abs(study.order - case.method.strong_order) < 0.15, str(study)
    assert study.interval[1] - study.interval[0] < 0.15, str(study)


@pytest.mark.parametrize("case", [c for c in cases if c.weak], ids=_name)
@pytest.mark.slow(
    "Lamperti",
    "DriftImplicitEuler",
    "LeimkuhlerMatthews-three-point",
    "PSKROCK",
    "Milstein",
    "ExponentialEuler",
    "StratonovichHeun",
    "SRA1",
    "EulerMaruyama-three-point",
    "LeimkuhlerMatthews",
    "WeakRK2",
)
def test_weak_order(case):
    study = _measure(sde.weak_order, case, *case.weak)
    assert abs(study.order - case.method.weak_order) < 0.25, str(study)
    assert study.interval[1] - study.interval[0] < 0.4, str(study)


def test_every_method_is_measured():
    exported = [value for value in vars(sde).values() if inspect.isclass(value)]
    methods = {c for c in exported if issubclass(c, sde.AbstractMethod) and not inspect.isabstract(c)}
    assert methods == {type(case.method) for case in cases}


# dX = -X dt + dB is in the domain of every method.
_ou = Diffusion(lambda t, x: -x, lambda t, x: 1.0)


@pytest.mark.parametrize("case", cases, ids=_name)
@pytest.mark.slow("ExponentialEuler", "Diffrax-ItoMilstein", "DriftImplicitEuler", "Diffrax-ShARK", "Milstein")
def test_a_step_keeps_the_dtype_and_is_the_same_compiled_for_many_paths(case):
    method, d, n, dtype = case.method, case.dimension, 7, jnp.float32
    x = jnp.asarray(np.random.default_rng(0).normal(size=(n, d)), dtype)
    need = method.needs(_ou, x)
    t, dt = jnp.asarray(2.0, dtype), jnp.asarray(0.125, dtype)
    z = jnp.asarray(np.random.default_rng(1).normal(size=(n, numbers_per_step(need, d, 0.125))), dtype)

    def step(x, z):
        return method.step(_ou, t, x, dt, increment(need, d, dt, z))

    together = jax.jit(jax.vmap(step))(x, z)
    assert together.dtype == dtype
    alone = jax.jit(step)
    one_by_one = np.stack([alone(x[i], z[i]) for i in range(n)])
    np.testing.assert_allclose(together, one_by_one, rtol=20 * jnp.finfo(dtype).eps, atol=0)
    # Up to the local error, X(t + dt) = x e^-dt + dW.
    np.testing.assert_allclose(
        together, np.exp(-0.125) * np.asarray(x) + np.sqrt(0.125) * np.asarray(z)[:, :d], atol=0.12
    )


_dependent = {
    "isotropic": Diffusion(lambda t, x: -x, lambda t, x: jnp.sqrt(1 + x @ x)),
    "diagonal": Diffusion(lambda t, x: -x, lambda t, x: 1 + 0.1 * jnp.tanh(x)),
    "general": Diffusion(lambda t, x: -x, lambda t, x: jnp.eye(2) * (1 + 0.1 * jnp.sin(x[::-1]))[:, None]),
    "later": Diffusion(lambda t, x: -x, lambda t, x: 1 + jnp.maximum(t - 1, 0) * x[0] ** 2),
}


@pytest.mark.parametrize("noise", list(_dependent))
@pytest.mark.parametrize("method", [sde.LeimkuhlerMatthews(), sde.SRA1(), sde.Diffrax(diffrax.ShARK())])
def test_methods_for_additive_noise_refuse_noise_that_depends_on_the_state(method, noise):
    with pytest.raises(ValueError, match=r"needs noise that does not depend on x.*`TimeChanged`.*`EulerMaruyama`"):
        sde.simulate(_dependent[noise], method, jnp.zeros(2), t1=1.0, dt=0.1, key=0, paths=4)


def test_noise_that_depends_on_time_alone_is_additive():
    for method in (sde.LeimkuhlerMatthews(), sde.SRA1()):
        assert method.needs(problems.fading_wells, jnp.zeros((1, 2))) in ("increment", "time")


@pytest.mark.parametrize("method", [sde.EulerMaruyama, sde.LeimkuhlerMatthews])
def test_unknown_noise_is_refused(method, unchecked):
    with pytest.raises(ValueError, match='`noise` must be "normal", or "three-point"'):
        method(noise="two-point")


# The problems


@pytest.mark.parametrize("name", list(problems.pathwise))
@pytest.mark.slow("two turning", "four turning", "geometric")
def test_solutions_obey_itos_formula(name):
    # X = u(t, W) solves dX = b dt + G dB if ∂_t u + ½ Σ ∂²u/∂w_j² = b(t, u) and ∂u/∂w = G(t, u).
    process, x0, exact = problems.pathwise[name]
    m = process.noise(jnp.asarray(0.0), x0).in_size()
    random = np.random.default_rng(0)
    t, w = jnp.asarray(random.uniform(0, 3, size=10)), jnp.asarray(random.normal(size=(10, m)))

    def sides(t, w):
        x = exact(x0, t, w)
        curvature = jnp.trace(jax.hessian(exact, 2)(x0, t, w), axis1=1, axis2=2)
        left = jax.jacfwd(exact, 1)(x0, t, w) + 0.5 * curvature, jax.jacfwd(exact, 2)(x0, t, w)
        return left, (process.drift(t, x), process.noise(t, x).as_matrix())

    left, right = jax.jit(jax.vmap(sides))(t, w)
    for a, b in zip(left, right, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(exact(x0, jnp.asarray(0.0), jnp.zeros(m)), x0, rtol=1e-14)


def test_moments_of_the_levy_area():
    # Milstein's step is exact here: one step samples the area itself.
    out = sde.simulate(problems.levy_area, sde.Milstein(), jnp.zeros(3), t1=2.0, dt=1.0, key=3, paths=400_000)
    x, y, z = out.final.T
    for value, moment in ((z**2, 2**2), (z**4, 5 * 2**4), (((x * y + z) / 2) ** 4, 7 / 4 * 2**4)):
        assert abs(value.mean() - moment) < 4 * value.std() / np.sqrt(len(z))


@pytest.mark.parametrize("method", [sde.EulerMaruyama(), sde.StratonovichHeun()])
@pytest.mark.slow("method1")
def test_methods_without_levy_areas_have_a_known_error_in_them(method):
    # Both leave out 2A in each step, of variance dt²: E X_3² = T² - T dt.
    t1, dt = 2.0, 0.5
    out = sde.simulate(problems.levy_area, method, jnp.zeros(3), t1=t1, dt=dt, key=3, paths=200_000)
    square = out.final[:, 2] ** 2
    assert abs(square.mean() - (t1**2 - t1 * dt)) < 4 * square.std() / np.sqrt(len(square))


@pytest.mark.parametrize("method", [sde.EulerMaruyama(), sde.Milstein(), sde.StratonovichHeun()])
@pytest.mark.slow("method1", "method0")
def test_rotated_increments_give_a_brownian_motion(method):
    # The law is N(x0, T I) whatever the rotation. Methods that read the noise in another sense would drift.
    x0, t1 = jnp.asarray([0.3, -0.2]), 1.0
    out = sde.simulate(problems.rotated, method, x0, t1=t1, dt=1 / 64, key=5, paths=20_000)
    x = (out.final - np.asarray(x0)) / np.sqrt(t1)
    # Besides the sampling error, the weak error of order 1; the wrong sense is a drift of length 1/√8.
    allowed = 4 / np.sqrt(len(x)) + 1 / 64
    assert np.all(np.abs(x.mean(0)) < allowed)
    assert np.all(np.abs(np.cov(x.T) - np.eye(2)) < np.sqrt(2) * allowed)
