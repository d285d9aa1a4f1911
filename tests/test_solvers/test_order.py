"""Strong and weak orders, against exact solutions where there is one, told apart to a tenth."""

import jax.numpy as jnp
import numpy as np
import pytest

from solvers import Diffusion, sde
from solvers.sde import order

_dts = [2.0**-k for k in range(4, 9)]


def _geometric(m):
    """dX_i = -X_i dt + s_i X_i dB_i, exact in W; with one motion for all components if m = 1."""
    s = jnp.asarray([0.8, 0.5])
    if m == 1:
        process = Diffusion(lambda t, x: -x, lambda t, x: (s * x)[:, None])
    else:
        process = Diffusion(lambda t, x: -x, lambda t, x: s * x)
    return process, lambda x0, t, w: x0 * jnp.exp((-1 - s**2 / 2) * t + s * w)


def _commuting():
    """dX = -X dt + X (a dB_1 + b dB_2): a general matrix whose columns commute."""
    a, b = 0.6, 0.5
    process = Diffusion(lambda t, x: -x, lambda t, x: jnp.stack([a * x, b * x], axis=1))
    return process, lambda x0, t, w: x0 * jnp.exp((-1 - (a**2 + b**2) / 2) * t + a * w[0] + b * w[1])


_exact = {"scalar": _geometric(1), "diagonal": _geometric(2), "matrix": _commuting()}


@pytest.mark.parametrize("noise", list(_exact))
@pytest.mark.parametrize("method", [sde.EulerMaruyama(), sde.Milstein()])
@pytest.mark.slow("method1-matrix", "method1-diagonal", "method0-diagonal")
def test_strong_order_against_exact_solutions(method, noise):
    process, exact = _exact[noise]
    study = sde.strong_order(process, method, jnp.array([1.0, 1.2]), dts=_dts, key=1, paths=4000, exact=exact)
    # Not yet at the limit: at these steps Euler-Maruyama's additive part still adds a few hundredths.
    assert abs(study.order - method.strong_order) < 0.1, str(study)
    assert study.interval[1] - study.interval[0] < 0.1
    assert study.interval[0] < study.order < study.interval[1]
    assert study.reference == "the exact solution"


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("method", [sde.EulerMaruyama(), sde.Milstein()])
@pytest.mark.slow("method1-2", "method0-2", "method0-3")
def test_strong_order_under_isotropic_loss_proportional_noise(method, d):
    process = Diffusion(lambda t, x: -x, lambda t, x: jnp.sqrt(0.5 * (1 + x @ x)))
    study = sde.strong_order(process, method, jnp.ones(d), dts=_dts[:-1], key=2, paths=1000)
    assert abs(study.order - method.strong_order) < 0.1, str(study)
    assert study.interval[1] - study.interval[0] < 0.15


@pytest.mark.slow
def test_strong_order_under_general_noise_that_does_not_commute():
    process = Diffusion(
        lambda t, x: -x, lambda t, x: jnp.array([[1.0, 0.0], [0.0, 1.0]]) * (1 + 0.5 * x[::-1])[:, None]
    )
    study = sde.strong_order(process, sde.Milstein(), jnp.ones(2), dts=_dts[:-1], key=2, paths=1000)
    assert abs(study.order - 1) < 0.1, str(study)


class _DiagonalMilstein(sde.AbstractMethod):
    """The trap: Milstein's formula for diagonal noise, on isotropic noise that depends on x."""

    strong_order = 1.0
    weak_order = 1.0
    calculus = "ito"

    def needs(self, process, x):
        return "increment"

    def step(self, process, t, x, dt, increment):
        g, slope = jnp.diag(process.noise(t, x).as_matrix()), x * 0.5 / jnp.sqrt(0.5 * (1 + x @ x))
        return x + process.drift(t, x) * dt + g * increment.dw + 0.5 * g * slope * (increment.dw**2 - dt)


def test_a_study_can_tell_a_false_milstein():
    process = Diffusion(lambda t, x: -x, lambda t, x: jnp.sqrt(0.5 * (1 + x @ x)))
    levels = {"dts": _dts[:-1], "key": 2, "paths": 1000, "reference": sde.Milstein()}
    true = sde.strong_order(process, sde.Milstein(), jnp.ones(2), **levels)
    false = sde.strong_order(process, _DiagonalMilstein(), jnp.ones(2), **levels)
    assert true.interval[0] > 0.9
    assert false.interval[1] < 0.75
    assert true.reference_dt == false.reference_dt == _dts[-2] / 32


@pytest.mark.slow
def test_weak_order_against_each_reference():
    process, exact = _geometric(1)
    method = sde.EulerMaruyama()
    functional = lambda x: x[0] ** 2 + x[1]  # noqa: E731
    levels = {"dts": [2.0**-k for k in range(2, 6)], "key": 3, "functional": functional}
    pathwise = sde.weak_order(process, method, jnp.array([1.0, 2.0]), paths=200_000, exact=exact, **levels)
    assert abs(pathwise.order - 1) < 0.15, str(pathwise)
    mean = float(jnp.exp(-2 + 0.8**2) + 2 * jnp.exp(-1))
    number = sde.weak_order(process, method, jnp.array([1.0, 2.0]), paths=200_000, exact=mean, **levels)
    assert abs(number.order - 1) < 0.25, str(number)
    assert number.reference == "the exact expectation"
    itself = sde.weak_order(process, method, jnp.array([1.0, 2.0]), paths=100_000, **levels)
    assert abs(itself.order - 1) < 0.25, str(itself)


def test_weak_errors_are_those_of_the_scheme():
    # Euler-Maruyama's mean on dX = -X dt is (1-dt)^n whatever the noise: the errors are known, not only their order.
    process, exact = _geometric(1)
    study = sde.weak_order(
        process,
        sde.EulerMaruyama(),
        jnp.array([1.0, 2.0]),
        dts=[0.25, 0.125],
        key=3,
        paths=100_000,
        functional=lambda x: x[1],
        exact=exact,
    )
    known = [abs(2 * (1 - dt) ** round(1 / dt) - 2 * np.exp(-1)) for dt in study.dts]
    assert np.all(np.abs(study.errors - known) < 4 * study.sem)
    assert np.all(study.sem < 0.1 * study.errors)


def test_interval_covers_the_order_as_often_as_it_says():
    # Errors that follow dt^1 exactly with independent noise, 100 times: 95 % of intervals cover, give or take 3 sigma.
    random = np.random.default_rng(0)
    dts = np.array([0.1, 0.05, 0.025])
    ladder = order._ladder(dts, 1.0, 1)
    hits = 0
    for _ in range(100):
        samples = dts[:, None] * (1 + 0.3 * random.normal(size=(3, 640)))
        low, high = order._study(ladder, samples, False, "weak", "a", "b").interval
        hits += low < 1 < high
    assert hits >= 88


def test_fit_accounts_for_the_error_of_the_reference():
    dts, finest = np.array([0.1, 0.05, 0.025]), 0.0125
    errors = 3 * (dts**1.5 - finest**1.5)
    assert order._fit(dts, errors, finest, np.ones(3)) == pytest.approx(1.5, abs=1e-3)


_ou = Diffusion(lambda t, x: -x, lambda t, x: 1.0)


def test_no_interval_for_errors_that_are_noise():
    # 64 paths against the exact mean: sampling noise is far above the error of the scheme.
    process, _ = _geometric(1)
    functional = lambda x: x[1]  # noqa: E731
    levels = {"dts": [1 / 32, 1 / 64], "paths": 64, "key": 0, "functional": functional}
    study = sde.weak_order(process, sde.EulerMaruyama(), jnp.ones(2), exact=float(np.exp(-1)), **levels)
    assert study.interval == (-np.inf, np.inf)


def test_dependence_on_other_coordinates_at_later_times_is_seen():
    process = Diffusion(lambda t, x: -x, lambda t, x: t * x[::-1])
    assert sde.Milstein().needs(process, jnp.ones((1, 2))) == "matrix"
    assert sde.Milstein().needs(_geometric(2)[0], jnp.ones((1, 2))) == "increment"


class _Integral(sde.AbstractMethod):
    """Adds up what a step is told, for a state (W, ∫ W dt): exact at every dt."""

    strong_order = 1.5
    weak_order = 2.0
    calculus = "ito"

    def needs(self, process, x):
        return "time"

    def step(self, process, t, x, dt, increment):
        return jnp.stack([x[0] + increment.dw[0], x[1] + x[0] * dt + increment.dz[0]])


_integrated = Diffusion(lambda t, x: jnp.stack([jnp.zeros_like(t), x[0]]), lambda t, x: jnp.asarray([[1.0], [0.0]]))


def test_time_integrals_of_every_step_size_are_those_of_one_path():
    study = sde.strong_order(_integrated, _Integral(), jnp.zeros(2), 2.0, dts=[1.0, 0.5, 0.25], key=0, paths=100)
    assert np.all(study.errors < 1e-13)
    levels = {"dts": [1.0, 0.5], "key": 0, "paths": 100_000, "functional": lambda x: x[1] ** 2}
    # The end point of all is ∫ W dt, of variance T³/3.
    study = sde.weak_order(_integrated, _Integral(), jnp.zeros(2), 2.0, **levels, exact=2.0**3 / 3)
    assert np.all(study.errors < 4 * study.sem)


def test_methods_that_need_different_parts_of_the_path_are_not_compared():
    levels = {"dts": [0.5, 0.25], "key": 0, "paths": 100, "reference": sde.Milstein()}
    process = Diffusion(lambda t, x: -x, lambda t, x: jnp.sqrt(1 + x @ x))
    with pytest.raises(ValueError, match=r"need 'matrix' and 'time' of.*Pass a `reference`"):
        sde.strong_order(process, _Integral(), jnp.zeros(2), **levels)


class _Numbers(sde.AbstractMethod):
    """A state that holds the weak numbers of its first step."""

    need: str = "signs"

    strong_order = 0.5
    weak_order = 1.0
    calculus = "ito"

    def needs(self, process, x):
        return self.need

    def step(self, process, t, x, dt, increment):
        signs = jnp.zeros(1) if increment.signs is None else increment.signs
        return jnp.where(t == 0, jnp.concatenate([increment.dw, signs]), x)


@pytest.mark.parametrize("need", ["three-point", "signs"])
def test_numbers_that_follow_no_brownian_motion_are_drawn_for_each_step_size(need):
    process = Diffusion(lambda t, x: -x, lambda t, x: jnp.ones((3, 2)))
    ladder = order._ladder([1.0, 0.5, 0.25], 1.0, 1)
    methods = order._methods(_Numbers(need), None, ladder)
    assert order._common_need(process, methods, np.zeros(3)) == need
    ends = order._independent(process, methods, need, np.zeros(3), ladder, 7, 20_001)
    dw, signs = ends[..., :2] / np.sqrt(ladder.dts)[:, None, None], ends[..., 2]
    flat = np.moveaxis(dw, 1, 0).reshape(20_001, -1)
    # No two levels, and no two motions, share a number.
    assert np.all(np.abs(np.corrcoef(flat.T) - np.eye(6)) < 4 / np.sqrt(20_001))
    if need == "signs":
        assert set(np.unique(signs)) == {-1.0, 1.0}
        assert np.all(np.abs(np.corrcoef(signs) - np.eye(3)) < 4 / np.sqrt(20_001))
    else:
        assert np.allclose(np.unique(np.round(flat, 12)), [-np.sqrt(3), 0, np.sqrt(3)])
        for value, chance in ((0, 2 / 3), (np.sqrt(3), 1 / 6), (-np.sqrt(3), 1 / 6)):
            share = np.mean(np.isclose(flat, value), axis=0)
            assert np.all(np.abs(share - chance) < 4 * np.sqrt(chance * (1 - chance) / 20_001))


def test_weak_numbers_have_no_strong_order_and_no_solution_on_their_path():
    process, exact = _geometric(1)
    three_point = sde.EulerMaruyama(noise="three-point")
    levels = {"dts": [0.5, 0.25], "key": 0, "paths": 100}
    with pytest.raises(ValueError, match=r"three-point numbers of `EulerMaruyama` follow none. Use `weak_order`"):
        sde.strong_order(process, three_point, jnp.ones(2), **levels)
    with pytest.raises(ValueError, match="`exact` must be the number"):
        sde.weak_order(process, three_point, jnp.ones(2), **levels, functional=lambda x: x[0], exact=exact)


def test_a_method_is_compared_with_itself_at_independent_numbers():
    process, _ = _geometric(1)
    three_point = sde.EulerMaruyama(noise="three-point")
    levels = {"dts": [0.5, 0.25, 0.125], "key": 0, "paths": 200_000, "functional": lambda x: x[0] ** 2 + x[1]}
    study = sde.weak_order(process, three_point, jnp.asarray([1.0, 2.0]), **levels)
    assert abs(study.order - 1) < 0.25, str(study)
    assert study.reference_dt == 0.125 / 16


def test_a_state_that_depends_on_the_increment_after_it_is_on_the_same_path():
    # Without drift x(T) = x0 + W(T) + ½ (ΔW_N - ΔW_0): an error of mean square dt/2, of which ΔW_N is half.
    process = Diffusion(lambda t, x: 0 * x, lambda t, x: 1.0)
    study = sde.strong_order(
        process,
        sde.LeimkuhlerMatthews(),
        jnp.zeros(1),
        dts=[0.5, 0.25, 0.125],
        key=0,
        paths=20_000,
        exact=lambda x0, t, w: x0 + w,
    )
    known = np.sqrt(2 / np.pi) * np.sqrt(study.dts / 2)
    assert np.all(np.abs(study.errors - known) < 4 * study.sem)
    # Both step sizes look ahead along one path: with ΔW_N of coarse and fine drawn apart, they would differ by more.
    coupled = sde.strong_order(
        process,
        sde.LeimkuhlerMatthews(),
        jnp.zeros(1),
        dts=[0.5, 0.25],
        key=0,
        paths=20_000,
        reference=sde.LeimkuhlerMatthews(),
    )
    # The difference is ½ (w(T, T + dt) - w(T, T + dt')) and the same at 0: of mean square ½ (dt - dt').
    known = np.sqrt(2 / np.pi) * np.sqrt((coupled.dts - coupled.reference_dt) / 2)
    assert np.all(np.abs(coupled.errors - known) < 4 * coupled.sem)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"dts": [0.1]}, "`dts` must be at least two"),
        ({"t1": 0.0}, "`t1` must be positive"),
        ({"dts": [0.1, 0.3]}, "must divide `t1`"),
        ({"dts": [0.25, 0.2]}, "be a multiple of the smallest"),
        ({"paths": 10}, "`paths` must be a whole number of at least 64"),
        ({"x0": jnp.zeros((2, 1))}, "`x0` must be one point"),
        ({"x0": jnp.zeros(1, int)}, "`x0` must be one point"),
        ({"exact": lambda x0, t, w: w[0]}, r"`exact\(x0, t, w\)` must return shape"),
    ],
)
def test_bad_arguments(changes, text):
    arguments = {"x0": jnp.zeros(1), "dts": [0.2, 0.1], "paths": 64, "key": 0} | changes
    with pytest.raises(ValueError, match=text):
        sde.strong_order(_ou, sde.EulerMaruyama(), **arguments)


def test_functional_must_be_scalar():
    with pytest.raises(ValueError, match=r"`functional\(x\)` must return a scalar"):
        sde.weak_order(_ou, sde.EulerMaruyama(), jnp.zeros(2), dts=[0.2, 0.1], paths=64, key=0, functional=lambda x: x)


def test_additive_noise_gives_euler_maruyama_order_one():
    study = sde.strong_order(_ou, sde.EulerMaruyama(), jnp.ones(1), dts=_dts[:-1], key=0, paths=1000)
    assert abs(study.order - 1) < 0.1, str(study)
    assert "strong order of EulerMaruyama" in str(study)
