"""Ensembles: the exact law of each scheme at finite dt, equal bits in every layout, and what is said of bad input."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from solvers import Density, Diffusion, Grid, sde
from solvers.sde import choice, ensemble, loops

_kappa = 0.5


def _student(d=1, kappa=_kappa):
    """Loss-proportional noise on f = (1 + |x|²)/2: D = κ f I."""
    return Diffusion(lambda t, x: -x, lambda t, x: jnp.sqrt(kappa * (1 + x @ x)))


def _close(value, sem, exact):
    assert abs(value - exact) < 4 * sem, f"{value} ± {sem} against {exact}"


def _simulate(process, method, x0, **kwargs):
    return sde.simulate(process, method, x0, key=jax.random.key(11), **kwargs)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_euler_maruyama_has_its_own_variance_on_ou(dtype):
    # dX = -hX dt + s dW: stationary variance s²/(2h - h²dt), not the SDE's s²/2h.
    h, s, dt = 1.5, 0.7, 0.25
    process = Diffusion(lambda t, x: -h * x, lambda t, x: s)
    out = _simulate(process, sde.EulerMaruyama(), jnp.zeros(2, dtype), t1=20.0, dt=dt, paths=200_000)
    assert out.final.dtype == dtype
    square = out.final.astype(np.float64) ** 2
    _close(square.mean(), square.mean(1).std() / np.sqrt(len(square)), s**2 / (2 * h - h**2 * dt))
    assert abs(square.mean() - s**2 / (2 * h)) > 10 * square.mean(1).std() / np.sqrt(len(square))


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("method", [sde.EulerMaruyama(), sde.Milstein()])
@pytest.mark.slow("method1-3", "method0-2", "method1-2")
def test_second_moment_of_each_scheme_under_isotropic_noise(d, method):
    # E|x'|² = (1-h)²E|x|² + dκh(1+E|x|²) for Euler-Maruyama; Milstein adds E|½((v·W)W - vh) + Aᵀv|² with v = κx,
    # which is κ²h²E|x|²·d/2: (d+1)/4 from the increments and (d-1)/4 from the Lévy areas.
    kappa, h, steps = 1.0, 0.25, 3
    x0 = jnp.asarray([2.0, -1.0, 1.5][:d])
    out = _simulate(_student(kappa=kappa), method, x0, t1=steps * h, dt=h, paths=400_000)
    exact = float(x0 @ x0)
    for _ in range(steps):
        milstein = kappa**2 * h**2 * d / 2 * exact if isinstance(method, sde.Milstein) else 0
        exact = (1 - h) ** 2 * exact + d * kappa * h * (1 + exact) + milstein
    square = np.sum(out.final**2, axis=1)
    _close(square.mean(), square.std() / np.sqrt(len(square)), exact)


def test_euler_maruyama_stationary_variance_under_loss_proportional_noise():
    dt = 0.1
    moments = sde.Moments(lambda t, x: x @ x)
    out = _simulate(
        _student(),
        sde.EulerMaruyama(),
        jnp.zeros(1),
        t1=40.0,
        dt=dt,
        paths=50_000,
        observe={"x2": moments},
        burn_in=12.0,
    )
    _close(out["x2"].mean, out["x2"].sem, _kappa / (2 - dt - _kappa))


def _noises():
    a = jnp.asarray([[0.5, 0.1, 0.0], [0.2, 0.3, -0.4]])
    return {
        "scalar": (lambda t, x: 0.5 + 0.1 * x[0] ** 2, lambda x: (0.5 + 0.1 * x[0] ** 2) * np.eye(2)),
        "diagonal": (lambda t, x: jnp.stack([1 + x[1], x[0]]), lambda x: np.diag([1 + x[1], x[0]])),
        "matrix": (lambda t, x: a * (1 + x[0]), lambda x: np.asarray(a) * (1 + x[0])),
        "operator": (lambda t, x: lx.MatrixLinearOperator(a * (1 + x[0])), lambda x: np.asarray(a) * (1 + x[0])),
    }


@pytest.mark.parametrize("kind", list(_noises()))
@pytest.mark.slow("operator", "matrix")
def test_one_step_has_the_covariance_of_its_noise(kind):
    noise, dense = _noises()[kind]
    x0, dt = np.array([0.4, -0.3]), 0.2
    process = Diffusion(lambda t, x: jnp.stack([x[1], -x[0]]), noise)
    out = _simulate(process, sde.EulerMaruyama(), x0, t1=dt, dt=dt, paths=200_000)
    assert np.allclose(out.final.mean(0), x0 + dt * np.array([x0[1], -x0[0]]), atol=5e-3)
    exact = dense(x0) @ dense(x0).T * dt
    assert np.allclose(np.cov(out.final.T), exact, atol=4 * np.max(exact) * np.sqrt(2 / len(out.final)))


def test_time_reaches_drift_and_noise():
    # dX = t dt + √t dB from 0: at finite dt, mean Σ k dt² and variance Σ k dt².
    process = Diffusion(lambda t, x: t * jnp.ones_like(x), lambda t, x: jnp.sqrt(t))
    dt, n = 0.1, 20
    out = _simulate(process, sde.EulerMaruyama(), jnp.zeros(1), t1=2.0, dt=dt, paths=100_000)
    exact = dt**2 * n * (n - 1) / 2
    _close(out.final.mean(), np.sqrt(exact / len(out.final)), exact)
    _close(out.final.var(), exact * np.sqrt(2 / len(out.final)), exact)


def _processes():
    matrix = jnp.asarray([[2.0, 0.3, 0.1], [0.3, 1.0, 0.2], [0.1, 0.2, 0.5]])

    def network(x):
        return jnp.sum(jnp.tanh(matrix @ x) ** 2) + 0.1 * jnp.prod(jnp.cos(x)) + 0.05 * x @ x

    return {
        "loss-proportional": (_student(), 1),
        "ring": (
            Diffusion(
                jax.tree_util.Partial(lambda t, x: -x * (x @ x - 1)), lambda t, x: jnp.sqrt(0.05 + (x @ x - 1) ** 2 / 4)
            ),
            2,
        ),
        "transcendental": (
            Diffusion(lambda t, x: jnp.sin(x[::-1]) - x + 0.01 * jnp.exp(-x * x), lambda t, x: 0.3 + 0.1 * jnp.tanh(x)),
            3,
        ),
        "network": (Diffusion(lambda t, x: -jax.grad(network)(x), lambda t, x: 0.2 * matrix.astype(x.dtype)), 3),
        "separable": (Diffusion(lambda t, x: jnp.sin(x) - x**3, lambda t, x: 0.3 + 0.1 * jnp.tanh(x)), 6),
        "linear": (Diffusion(lambda t, x: 0.1 - _symmetric(6) @ x, lambda t, x: 0.2 * _symmetric(6)), 6),
    }


def _symmetric(d):
    q, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(d, d)))
    return jnp.asarray((q * np.linspace(0.2, 3.0, d)) @ q.T)


# Each case compiles several programs: one case for every form of loop in either precision, and other methods where
# their steps take other numbers.
_layout_cases = [
    *((name, sde.EulerMaruyama(), True) for name in ("loss-proportional", "network", "separable", "linear")),
    ("ring", sde.Milstein(), True),
    ("transcendental", sde.EulerMaruyama(), False),
    ("loss-proportional", sde.EulerMaruyama(), False),
    ("ring", sde.Milstein(), False),
    ("network", sde.EulerMaruyama(), False),
    ("separable", sde.EulerMaruyama(), False),
    ("linear", sde.EulerMaruyama(), False),
]


@pytest.mark.parametrize(("name", "method", "x64"), _layout_cases)
@pytest.mark.slow(
    *("ring-method6-True", "linear-method5-True", "separable-method4-True", "separable-method10-False"),
    *("ring-method1-True", "transcendental-method2-True", "loss-proportional-method7-False"),
)
def test_same_bits_in_every_layout(name, method, x64, monkeypatch):
    monkeypatch.setattr(ensemble, "_block_sizes", (64, 1024))
    # States that are seen often are stepped one at a time, as in long runs.
    monkeypatch.setattr(choice, "_steps_worth_a_loop", 0)
    with jax.enable_x64(x64), jax.numpy_dtype_promotion("standard"):
        process, d = _processes()[name]
        n = 2577
        x0 = 0.5 * np.random.default_rng(0).normal(size=(n, d)).astype(np.float64 if x64 else np.float32)
        grid = Grid.uniform(*[(-2.0, 2.0, 9)] * d)
        observe = {"x": sde.Moments(), "p": sde.Histogram(grid), "r": sde.Moments(lambda t, x: x @ x)}
        run = {"t1": 0.4, "dt": 0.02, "key": jax.random.key(5)}
        whole = sde.simulate(process, method, x0, **run, observe=observe, burn_in=0.1, every=3)
        assert np.all(np.isfinite(whole.final))
        layouts = [
            {"chunk": 500},
            {"segment": 7, "chunk": 2048},
            {"mesh": jax.make_mesh((2,), ("paths",)), "chunk": 1, "segment": 3},
        ]
        for layout in layouts:
            other = sde.simulate(process, method, x0, **run, observe=observe, burn_in=0.1, every=3, **layout)
            assert np.array_equal(other.final, whole.final), layout
            for k in ("x", "r"):
                assert np.array_equal(other[k].mean, whole[k].mean), layout
                assert np.array_equal(other[k].cov, whole[k].cov), layout
                assert np.array_equal(other[k].sem, whole[k].sem), layout
            assert np.array_equal(other["p"].mass, whole["p"].mass), layout
            assert np.array_equal(other["p"].replicates, whole["p"].replicates), layout
        bare = sde.simulate(process, method, x0, **run)
        assert np.array_equal(bare.final, whole.final)
        saved = sde.simulate(process, method, x0, **run, save_at=[0.0, 0.14, 0.4])
        assert np.array_equal(saved.xs[0], x0)
        assert np.array_equal(saved.xs[2], whole.final)
        half = sde.simulate(process, method, x0, **(run | {"t1": 0.14}))
        assert np.array_equal(half.final, saved.xs[1])
        rest = sde.simulate(process, method, half.final, **run, t0=0.14)
        if "eigenvectors" in whole.engine:
            assert np.allclose(rest.final, whole.final, rtol=1e-5, atol=1e-6)
        else:
            assert np.array_equal(rest.final, whole.final)


def test_paths_do_not_share_noise_and_keys_matter():
    out = _simulate(_student(), sde.EulerMaruyama(), jnp.zeros(1), t1=0.1, dt=0.1, paths=1000)
    assert len(np.unique(out.final)) == 1000
    other = sde.simulate(_student(), sde.EulerMaruyama(), jnp.zeros(1), t1=0.1, dt=0.1, key=12, paths=1000)
    assert not np.any(other.final == out.final)


def test_moments_match_the_saved_paths():
    times = np.arange(6, 21) / 10
    observe = {"x": sde.Moments(), "s": sde.Moments(lambda t, x: t * x[0])}
    out = _simulate(
        _student(),
        sde.EulerMaruyama(),
        jnp.ones(2),
        t1=2.0,
        dt=0.1,
        paths=333,
        save_at=times,
        observe=observe,
        burn_in=0.5,
    )
    samples = out.xs.reshape(-1, 2)
    assert np.allclose(out["x"].mean, samples.mean(0), rtol=1e-12)
    assert np.allclose(out["x"].cov, np.cov(samples.T, ddof=0), rtol=1e-10)
    assert np.allclose(out["x"].sem, out.xs.mean(0).std(0, ddof=1) / np.sqrt(333), rtol=1e-10)
    assert out["s"].mean.shape == out["s"].cov.shape == ()
    assert np.isclose(out["s"].mean, np.mean(times[:, None] * out.xs[:, :, 0]), rtol=1e-12)


def test_histogram_matches_the_saved_paths():
    grid = Grid.stretched((3.0, 8, 1.0), (2.0, 5, 0.5))
    out = _simulate(
        _student(),
        sde.EulerMaruyama(),
        jnp.ones(2),
        t1=1.0,
        dt=0.1,
        paths=501,
        save_at=[0.2, 0.4, 0.6, 0.8, 1.0],
        observe={"p": sde.Histogram(grid)},
        every=2,
    )
    expected = Density.from_samples(grid, out.xs.reshape(-1, 2))
    assert np.allclose(out["p"].mass, expected.mass, atol=1e-15)
    assert out["p"].outside == pytest.approx(expected.outside)
    assert np.allclose(out["p"].replicates.mean(0), out["p"].mass, atol=2e-3)


def test_histogram_of_a_function():
    grid = Grid.uniform((0.0, 4.0, 10))
    out = _simulate(
        _student(),
        sde.EulerMaruyama(),
        jnp.ones(2),
        t1=0.5,
        dt=0.1,
        paths=100,
        observe={"r": sde.Histogram(grid, lambda t, x: jnp.sqrt(x @ x)[None])},
        every=5,
    )
    assert np.allclose(out["r"].mass, np.histogram(np.linalg.norm(out.final, axis=1), grid.edges[0])[0] / 100)


@pytest.mark.parametrize("observable", [sde.Moments(), sde.Histogram(Grid.uniform((-2.0, 2.0, 5), (-2.0, 2.0, 4)))])
@pytest.mark.slow("observable1")
def test_observables_merge_associatively(observable):
    blocks = np.random.default_rng(0).normal(size=(3, 50, 2))
    t = jnp.asarray(0.0)
    parts = []
    for b, x in enumerate(blocks):
        x = jnp.asarray(x)
        state = observable.init(t, x, False)
        for sample in (x, 2 * x, x - 1):
            state = observable.update(state, t, sample, jnp.arange(50) % 7 != b)
        parts.append(observable.reduce(jax.tree.map(np.asarray, state), b))
    left = observable.result(observable.merge(observable.merge(parts[0], parts[1]), parts[2]))
    right = observable.result(observable.merge(parts[0], observable.merge(parts[1], parts[2])))
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert np.allclose(a, b, rtol=1e-13, atol=1e-15)


def test_changing_a_parameter_does_not_compile_anew():
    traces = []

    def process(h):
        return Diffusion(jax.tree_util.Partial(drift, h), lambda t, x: 1.0)

    def drift(h, t, x):
        traces.append(0)
        return -h * x

    noise = process(jnp.asarray(1.0)).noise_fn
    for h in (1.0, 2.0, 3.0):
        sde.simulate(
            Diffusion(jax.tree_util.Partial(drift, jnp.asarray(h)), noise),
            sde.EulerMaruyama(),
            jnp.zeros(1),
            t1=h,
            dt=0.1,
            key=0,
            paths=8,
        )
        if h == 1.0:
            first = len(traces)
    # Each call looks once at the shapes; the compiled step is traced in the first call alone.
    assert len(traces) - first <= 4


_blow_up = Diffusion(lambda t, x: x**3, lambda t, x: 0.1)


def test_paths_that_blow_up_are_reported():
    x0 = np.zeros((100, 1))
    x0[17] = 4.0
    with pytest.raises(
        FloatingPointError, match=r"1 of 100 paths became non-finite.*path 17\).*Use a smaller `dt`"
    ) as error:
        _simulate(_blow_up, sde.EulerMaruyama(), x0, t1=2.0, dt=0.1)
    assert "throw=False" in str(error.value)
    out = _simulate(
        _blow_up,
        sde.EulerMaruyama(),
        x0,
        t1=2.0,
        dt=0.1,
        throw=False,
        save_at=[0.1, 2.0],
        observe={"x": sde.Moments()},
        burn_in=1.0,
    )
    assert out.nonfinite == 1
    assert np.isnan(out.final[17]).all()
    assert np.isfinite(np.delete(out.final, 17)).all()
    assert np.isfinite(out.xs[0]).all()
    assert np.isnan(out.xs[1, 17]).all()
    assert out["x"].paths == 99
    assert np.isfinite(out["x"].mean).all()
    assert "1 paths became non-finite" in str(out)


def test_negative_variance_is_explained():
    process = Diffusion(lambda t, x: -x, lambda t, x: jnp.sqrt(x @ x - 1))
    with pytest.raises(FloatingPointError, match=r"square root of a negative number.*add a constant"):
        _simulate(process, sde.EulerMaruyama(), jnp.asarray([1.5]), t1=5.0, dt=0.1, paths=10)


_ou = Diffusion(lambda t, x: -x, lambda t, x: 1.0)
_good = {"t1": 1.0, "dt": 0.1, "key": 0, "paths": 4}


@pytest.mark.parametrize(
    ("x0", "changes", "text"),
    [
        (jnp.array([0, 1]), {}, "`x0` must have a floating-point dtype, float32 or float64, got int"),
        ([1, 2], {}, "`x0` must have a floating-point dtype"),
        (jnp.zeros((2, 2, 2)), {}, r"`x0` must have shape \(d,\)"),
        (jnp.asarray(1.0), {}, r"`x0` must have shape \(d,\)"),
        (jnp.array([jnp.nan]), {}, "`x0` must be finite"),
        (jnp.zeros((3, 2)), {}, "`paths` is 4, but `x0` has 3 rows"),
        (jnp.zeros(1), {"paths": 0}, "`paths` must be a positive whole number"),
        (jnp.zeros(1), {"dt": 0.3}, r"whole number of steps `dt`, but t1 - t0 = 1 and dt = 0.3.*dt = 0.333"),
        (jnp.zeros(1), {"dt": -0.1}, "`dt` must be positive"),
        (jnp.zeros(1), {"dt": np.nan}, "`dt` must be positive"),
        (jnp.zeros(1), {"t1": 0.0}, "`t1` must be finite and later than `t0`"),
        (jnp.zeros(1), {"t0": -1.0}, "`t0` must not be negative"),
        (jnp.zeros(1), {"t1": 1e6, "dt": 1e-6}, "fewer than 2"),
        (jnp.zeros(1), {"save_at": [0.05]}, "`save_at` must hold times"),
        (jnp.zeros(1), {"save_at": [0.5, 1.1]}, "`save_at` must hold times"),
        (jnp.zeros(1), {"save_at": [0.5, 0.2]}, "`save_at` must be increasing"),
        (jnp.zeros(1), {"observe": {"x": lambda t, x: x}}, "must be an observable such as"),
        (jnp.zeros(1), {"observe": {"x": sde.Moments()}, "burn_in": 1.0}, "leave no sample"),
        (jnp.zeros(1), {"burn_in": -1.0}, "`burn_in` must be"),
        (jnp.zeros(1), {"every": 0}, "`every` must be"),
        (jnp.zeros(1), {"chunk": 0}, "`chunk` must be"),
        (jnp.zeros(1), {"segment": 0}, "`segment` must be"),
        (jnp.zeros(1), {"checkpoint": __file__}, "`checkpoint` must be a directory"),
        (
            jnp.zeros(2),
            {"observe": {"p": sde.Histogram(Grid.uniform((0.0, 1.0, 2)))}},
            "`grid` of `Histogram` has 1 axes",
        ),
        (
            jnp.zeros(2),
            {"observe": {"m": sde.Moments(lambda t, x: jnp.outer(x, x))}},
            "must return a scalar or a vector",
        ),
    ],
)
def test_bad_arguments(x0, changes, text):
    with pytest.raises((ValueError, TypeError, NotImplementedError), match=text):
        sde.simulate(_ou, sde.EulerMaruyama(), x0, **(_good | changes))


@pytest.mark.parametrize(
    ("process", "text"),
    [
        (Diffusion(lambda t, x: x[0], lambda t, x: 1.0), r"`drift\(t, x\)` must return shape \(2,\)"),
        (Diffusion(lambda t, x: -x, lambda t, x: jnp.ones(3)), r"`noise\(t, x\)` must return a scalar"),
        (Diffusion(lambda t, x: -x, lambda t, x: 1j), "must return real numbers"),
        (Diffusion(lambda t, x: None, lambda t, x: 1.0), "must return a real array"),
    ],
)
def test_bad_processes(process, text):
    with pytest.raises((ValueError, TypeError), match=text):
        sde.simulate(process, sde.EulerMaruyama(), jnp.zeros(2), **_good)


@pytest.mark.parametrize(
    ("drift", "text"),
    [
        (lambda t, x: -x if x[0] > 0 else x, r"jnp.where instead of `if`"),
        (lambda t, x: -np.tanh(x), r"jax.numpy instead of numpy"),
        (lambda t, x: -float(x[0]) * x, r"`drift\(t, x\)`, or the loss, cannot be compiled"),
    ],
)
def test_functions_that_cannot_be_traced_are_named(drift, text):
    with pytest.raises(TypeError, match=text):
        sde.simulate(Diffusion(drift, lambda t, x: 1.0), sde.EulerMaruyama(), jnp.zeros(2), **_good)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"process": lambda x: x @ x}, "`process` must be a `solvers.Diffusion"),
        ({"method": sde.EulerMaruyama}, r"`method` must be an integrator such as `sde.EulerMaruyama\(\)`"),
        ({"method": "milstein"}, "`method` must be an integrator"),
        ({"observe": sde.Moments()}, "`observe` must be a dictionary"),
        ({"observe": {"x": sde.Moments(lambda t, x: (x, x))}}, "must return one real array, got tuple"),
        (
            {"observe": {"x": sde.Moments(lambda t, x: jax.lax.complex(x, x))}},
            "must return one real array, got complex128",
        ),
        ({"x0": np.zeros(1, np.float16)}, "got float16"),
    ],
)
def test_wrong_kinds_of_arguments(arguments, text, unchecked):
    with pytest.raises(TypeError, match=text):
        sde.simulate(**({"process": _ou, "method": sde.EulerMaruyama(), "x0": jnp.zeros(1)} | _good | arguments))


def test_a_step_without_its_levy_area_says_so():
    increment = sde.Increment(jnp.ones(2))
    with pytest.raises(ValueError, match="needs the Lévy area"):
        sde.Milstein().step(_student(), jnp.asarray(0.0), jnp.ones(2), jnp.asarray(0.1), increment)


def test_milstein_refuses_what_it_cannot_do():
    process = Diffusion(lambda t, x: -x, lambda t, x: jnp.ones((2, 40)) * x[:, None])
    with pytest.raises(ValueError, match=r"limited to 32.*Use `EulerMaruyama`"):
        sde.simulate(process, sde.Milstein(), jnp.zeros(2), **_good)


def test_ensemble_without_such_an_observable():
    out = sde.simulate(_ou, sde.EulerMaruyama(), jnp.zeros(1), **_good)
    with pytest.raises(KeyError, match="no observable 'p'"):
        out["p"]
    assert "4 paths in 1 dimensions, EulerMaruyama, 10 steps of 0.1, float64" in str(out)


def test_float32_runs_without_touching_the_configuration(float32):
    with jax.numpy_dtype_promotion("standard"):
        out = sde.simulate(_student(), sde.Milstein(), jnp.zeros(2), t1=1.0, dt=0.1, key=0, paths=50)
    assert out.final.dtype == np.float32
    assert np.all(np.isfinite(out.final))


@pytest.mark.parametrize("n", [1, 4])
def test_large_states_are_stepped_path_by_path(n, monkeypatch):
    rng = np.random.default_rng(0)
    matrix, x, z = rng.normal(size=(5, 5)), rng.normal(size=(5, n)), rng.normal(size=(3, n))
    monkeypatch.setattr(loops, "_path_by_path", 4)
    step = jax.jit(lambda x, z: loops._over_paths(lambda x, z: jnp.tanh(matrix @ x) + z.sum(), x, z))
    np.testing.assert_allclose(step(x, z), np.tanh(matrix @ x) + z.sum(axis=0), rtol=1e-14)
    # A loop over paths on a CPU, no axis for them in the product.
    assert ("while" in step.lower(x, z).as_text()) == (n > 1)
