"""The weak error between an optimiser and its process, on quadratics where both expectations are known exactly."""

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

import sgdsde as sg
from sgdsde.losses import FiniteSum
from sgdsde.theory import adaptive, linear_stability
from solvers import sde

# Errors of order 2 need larger rates to be seen in few runs.
_rates = {1: np.array([0.2, 0.1, 0.05]), 2: np.array([0.4, 0.2, 0.1])}
_functionals = {"x": lambda x: x[0], "x²": lambda x: x[0] ** 2}
_normal = sg.noise.Constant(0.5)


def _bowl(x):
    return 0.5 * x @ x


def _moments_of_sgd(eta, t):
    # x ← (1 - η)x + η ξ, Var ξ = 1, from 1.
    k = np.round(t / eta)
    return np.stack([(1 - eta) ** k, (1 - eta) ** (2 * k) + eta / (2 - eta) * (1 - (1 - eta) ** (2 * k))])


def _moments_of_process(eta, t, order):
    rate = 1 + (eta / 2 if order == 2 else 0 * eta)
    decay = np.exp(-2 * rate * t)
    return np.stack([np.exp(-rate * t), decay + eta / (2 * rate) * (1 - decay)])


@pytest.fixture(scope="module")
def studies():
    optimizer, start = sg.optimizers.SGD(1.0), np.ones(1)
    return {
        1: sg.validity(
            sg.SGD(_bowl, _normal, 1.0), optimizer, start, 2.0, _rates[1], _functionals, 0, 4000, svag=(1, 4)
        ),
        2: sg.validity(sg.ModifiedSGD(_bowl, _normal, 1.0), optimizer, start, 2.0, _rates[2], _functionals, 0, 32_768),
    }


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.slow("1")
def test_expectations_and_errors_are_exact_within_standard_errors(studies, order):
    study, rates = studies[order], _rates[order]
    sgd, process = _moments_of_sgd(rates, 2.0), _moments_of_process(rates, 2.0, order)
    assert study.coupled
    assert np.all(np.abs(study.optimizer_mean - sgd) < 4 * study.optimizer_sem)
    assert np.all(np.abs(study.process_mean - process) < 4 * study.process_sem)
    # WeakRK2 with dt = η/8 multiplies E x by 1 + dt²t/6, and is off by less in E x², all times E x = e^-2.
    bias = (rates / 8) ** 2 * 0.05 * (1 + rates)
    assert np.all(np.abs(study.errors - (sgd - process)) < 4 * study.sem + bias)
    # One Brownian motion: the difference of two independent ensembles would be known worse than either mean.
    assert np.all(study.sem < (0.2 if order == 1 else 0.4) * study.optimizer_sem)


@pytest.mark.parametrize("order", [1, 2])
def test_order_is_that_of_the_modified_equation(studies, order):
    study, rates = studies[order], _rates[order]
    exact = np.abs(_moments_of_sgd(rates, 2.0) - _moments_of_process(rates, 2.0, order))
    # The error of E x² of order 1 changes its sign.
    for k in range(order):
        low, high = study.intervals[k]
        # The local orders of the exact errors bracket what a fit can give.
        local = np.log2(exact[k, :-1] / exact[k, 1:])
        assert low - 0.1 < np.max(local)
        assert high + 0.1 > np.min(local)
        assert abs(study.orders[k] - order) < 0.35
        assert high - low < 0.4
    assert f"with order {study.orders[0]:.2f}" in study.verdict


def test_svag_climbs_to_the_process(studies):
    ladder = studies[1].ladder
    exact = _moments_of_process(np.array(0.2), 2.0, 1)
    for i, level in enumerate(ladder.levels):
        # SVAG_l on a quadratic with constant noise is SGD with η/l, whose noise is √l times as strong.
        eta, k = 0.2 / level, 10 * level
        mean = (1 - eta) ** k
        second = mean**2 + eta * level / (2 - eta) * (1 - mean**2)
        expected = np.array([mean, second]) - exact
        assert np.all(np.abs(ladder.errors[:, i] - expected) < 4 * ladder.sem[:, i] + 0.2**2 / 64)
    assert np.all(ladder.sem[:, -1] < 0.5 * np.abs(ladder.errors[:, -1]))


@pytest.mark.slow
def test_minibatches_against_their_process_are_sampled_apart():
    h = np.array([0.5, 1.5])
    loss = FiniteSum(lambda x, c: 0.5 * c * x @ x, h)
    model, optimizer = sg.SGD(loss, sg.noise.Minibatch(loss, 1), 1.0), sg.optimizers.SGD(1.0, 1)
    study = sg.validity(model, optimizer, np.ones(1), 2.0, [0.5, 0.25], lambda x: x[0] ** 2, 1, 20_000, svag=(4,))
    assert not study.coupled
    limit = np.exp(2 * linear_stability.mean_square_rates(h, 0.5)[1])
    expected = linear_stability.second_moment(h, 0.5, 4, 4) - limit
    assert abs(study.ladder.errors[0, 0] - expected) < 4 * study.ladder.sem[0, 0] + (0.5 / 8) ** 2
    for i, eta in enumerate(study.learning_rates):
        sgd = linear_stability.second_moment(h, eta, round(2 / eta))
        process = np.exp(2 * linear_stability.mean_square_rates(h, eta)[1])
        assert abs(study.optimizer_mean[0, i] - sgd) < 4 * study.optimizer_sem[0, i]
        assert abs(study.process_mean[0, i] - process) < 4 * study.process_sem[0, i] + (eta / 8) ** 2
    assert "order" in study.verdict


def test_momentum_against_the_underdamped_process_moves_with_the_learning_rate():
    def model(eta):
        return sg.Momentum(_bowl, _normal, eta, 1 - eta, form="ema")

    def optimizer(eta):
        return sg.optimizers.Momentum(eta, momentum=1 - eta, form="ema")

    study = sg.validity(model, optimizer, np.ones(1), 2.0, [0.2, 0.1, 0.05], lambda x: x[0], 0, 1000)
    # m' = x - m, x' = -m: x = exp(-t/2)(cos ωt + sin ωt/√3) with ω = √3/2.
    omega = np.sqrt(3) / 2
    exact = np.exp(-1) * (np.cos(2 * omega) + np.sin(2 * omega) / np.sqrt(3))
    assert np.all(np.abs(study.process_mean - exact) < 4 * study.process_sem)
    # The noise of this model has the other sign than that of the optimiser, which the coupling must find out.
    assert study.coupled
    assert np.all(study.sem < 0.2 * study.process_sem)
    for eta, error, sem in zip(study.learning_rates, study.errors[0], study.sem[0], strict=True):
        x, m = 1.0, 0.0
        for _ in range(round(2 / eta)):
            m = (1 - eta) * m + eta * x
            x -= eta * m
        assert abs(error - (x - exact)) < 4 * sem + (eta / 8) ** 2 / 3


def _adaptive(name, form=None):
    """Model and optimiser with ηs = 1/2, ηε = 1 and (1-β)/η² = 2, for Adam's β₁ 4."""

    def noise(eta):
        return sg.noise.Constant(0.125 / eta**2)

    def numbers(eta):
        if name == "RMSProp":
            return {"decay": 1 - 2 * eta**2, "epsilon": 1 / eta}
        return {"beta1": 1 - 4 * eta**2, "beta2": 1 - 2 * eta**2, "epsilon": 1 / eta, "form": form}

    def optimizer(eta):
        start = {"initial": 0.25 / eta**2} if name == "RMSProp" else {}
        return getattr(sg.optimizers, name)(eta, **numbers(eta), **start)

    return lambda eta: getattr(sg, name)(_bowl, noise(eta), eta, **numbers(eta)), optimizer


@pytest.mark.parametrize("case", [("RMSProp",), ("Adam", "bias-corrected"), ("Adam", "simplified")])
def test_adaptive_methods_differ_from_their_processes_by_the_square_of_the_learning_rate(case):
    study = sg.validity(*_adaptive(*case), np.ones(1), 0.64, [0.4, 0.2], lambda x: x[0], 0, 4096, substeps=4)
    assert study.coupled
    if case[-1] != "simplified":
        one = {"curvature": 1.0, "noise": 0.25, "scale": 1.0, "epsilon": 1.0}
        exact = (
            adaptive.rmsprop_mean(1.0, 0.64, decay=2.0, u0=0.25, **one)
            if case == ("RMSProp",)
            else adaptive.adam_mean(1.0, 0.64, decay=4.0, **one)
        )
        assert np.all(np.abs(study.process_mean[0] - exact) < 4 * study.process_sem[0] + 0.005)
    low, high = study.intervals[0]
    assert high - low < 0.6
    # The next power of the time η² of a step bends the curve by about c₁η²/2 and less.
    assert low - 0.5 < 2 < high + 0.5


@pytest.mark.parametrize("name", ["SAM", "USAM"])
def test_sharpness_aware_steps_follow_their_flow_to_first_order(name):
    # Of all examples at once, so without noise: errors are exact. Those of Euler's method are a sixteenth of them.
    loss = FiniteSum(lambda x, c: 0.5 * c * x @ x + 0.1 * jnp.sum(x**4), np.array([0.5, 1.5]))

    def radius(eta):
        return 0.3 * np.sqrt(eta)

    study = sg.validity(
        lambda eta: getattr(sg, name)(loss, eta, radius(eta), [[0, 1]]),
        lambda eta: getattr(sg.optimizers, name)(eta, radius=radius(eta)),
        np.full(1, 1.5), 1.0, [0.04, 0.02, 0.01], lambda x: x[0], 0, 64,
        method=sde.EulerMaruyama(), substeps=16,
    )  # fmt: skip
    assert np.max(study.sem) < 1e-9
    assert study.orders[0] == pytest.approx(1, abs=0.1)


def test_sign_descent_and_its_process_agree_to_first_order():
    model, optimizer = sg.SignSGD(_bowl, _normal, 1.0), sg.optimizers.SignSGD(1.0)
    study = sg.validity(model, optimizer, np.ones(1), 1.2, [0.4, 0.2], lambda x: x[0], 0, 16_384, substeps=4)
    assert study.coupled
    low, high = study.intervals[0]
    assert low - 0.2 < 1 < high + 0.2
    assert high - low < 1


def test_embedded_process_has_no_error():
    H, C = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.3], [-0.3, 2.0]])
    study = sg.validity(
        lambda eta: sg.EmbeddedSGD(H, C, eta, 4), sg.optimizers.SGD(1.0), np.ones(2), 1.0, [0.25, 0.125],
        {"x": lambda x: x[0], "xy": lambda x: x[0] * x[1]}, 0, 4096,
    )  # fmt: skip
    # That of `SGD` is 0.08 and 0.04 in E x. WeakRK2 has a relative error of (aη/8)²t/6, a up to 3.
    assert np.all(np.abs(study.errors) < 4 * study.sem + 2e-3)
    assert np.all(study.sem < 0.005)


def test_label_noise_on_a_quadratic_is_exact_at_both_ends():
    # f = x²/2 + const, and labels shake the gradient with the variance s²/2 of two examples with a = ±1.
    loss = sg.losses.LeastSquares(np.array([[1.0], [-1.0]]), np.zeros(2))
    model, optimizer = sg.SGD(loss, sg.noise.LabelNoise(loss, 1.0, 2), 1.0), sg.optimizers.LabelNoiseSGD(1.0, std=1.0)
    study = sg.validity(model, optimizer, np.ones(1), 1.0, [0.5, 0.25], _functionals, 0, 20_000)
    assert not study.coupled
    for i, eta in enumerate(study.learning_rates):
        sgd, process = (1 - eta) ** (2 / eta), np.exp(-2)
        shaken = sgd + 0.5 * eta / (2 - eta) * (1 - sgd), process + 0.25 * eta * (1 - process)
        for found, sem, mean, square in (
            (study.optimizer_mean[:, i], study.optimizer_sem[:, i], np.sqrt(sgd), shaken[0]),
            (study.process_mean[:, i], study.process_sem[:, i], np.exp(-1), shaken[1]),
        ):
            assert np.all(np.abs(found - np.array([mean, square])) < 4 * sem + (eta / 8) ** 2 / 4)


def test_an_error_that_changes_its_sign_has_no_order(studies):
    # Of E x², which the process of order 1 has too low at η = 0.2 and too high at η = 0.05.
    study = studies[1]
    assert study.errors[1, 0] > 3 * study.sem[1, 0]
    assert study.errors[1, 2] < -3 * study.sem[1, 2]
    assert np.isnan(study.orders[1])
    assert "E x²: no order can be seen, since the error changes its sign" in study.verdict


@pytest.mark.slow
def test_a_diverged_optimiser_and_unclear_errors_are_said():
    steep = sg.SGD(lambda x: 0.25 * jnp.sum(x**4), _normal, 1.0)
    # The process at the larger rate is as tame as ever, but SGD overshoots: 3 → 3 - 27.
    study = sg.validity(
        steep, sg.optimizers.SGD(1.0), np.full(1, 3.0), 8.0, [1.0, 0.02, 0.01], lambda x: x[0] ** 2, 0, 64, substeps=64
    )
    assert np.isnan(study.errors[0, 0])
    assert np.isfinite(study.errors[0, 1:]).all()
    assert "SGD diverges at η = 1, so the model fails there" in study.verdict
    tiny = sg.validity(
        sg.ModifiedSGD(_bowl, _normal, 1.0), sg.optimizers.SGD(1.0), np.ones(1), 1.0, [0.02, 0.01], _functionals, 0, 64
    )
    assert np.all(np.isinf(tiny.intervals))
    assert "no order can be seen" in tiny.verdict


def test_plot_shows_the_errors(studies):
    panels = studies[1].plot()
    assert len(panels) == 2
    assert np.allclose(panels[0].containers[0].lines[0].get_ydata(), np.abs(studies[1].errors[0]))
    assert len(studies[2].plot()) == 1
    plt.close("all")


def test_public_names_stay_functions():
    assert sg.validity.__name__ == "validity"
    assert sg.Validity.__name__ == "Validity"


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"t1": 1.05}, ValueError, "`t1` must be a whole number of steps"),
        ({"learning_rates": [0.1]}, ValueError, "`learning_rates` must be at least two"),
        ({"x0": np.ones((2, 1))}, ValueError, "`x0` must be one point"),
        ({"runs": 10}, ValueError, "`runs` must be"),
        ({"substeps": 0}, ValueError, "`substeps` must be"),
        ({"model": 3}, TypeError, "`model` must be one such as"),
        ({"model": sg.EmbeddedSGD(np.eye(1), np.eye(1), 0.1)}, TypeError, "`model` must be a function of η"),
        ({"optimizer": lambda eta: eta}, TypeError, "`optimizer` must be one such as"),
        ({"svag": (0.5,)}, ValueError, "`svag` must hold whole numbers"),
        ({"svag": (2,), "optimizer": sg.optimizers.Momentum(0.1)}, TypeError, "`svag` amplifies the noise of SGD"),
        ({"functional": lambda x: x}, ValueError, "must return one number"),
    ],
)
def test_bad_arguments(unchecked, change, error, match):
    good = {
        "model": sg.SGD(_bowl, _normal, 0.1),
        "optimizer": sg.optimizers.SGD(0.1),
        "x0": np.ones(1),
        "t1": 1.0,
        "learning_rates": [0.2, 0.1],
        "functional": lambda x: x[0],
        "key": 0,
        "runs": 64,
    }
    with pytest.raises(error, match=match):
        sg.validity(**(good | change))


# Linear stability of two quadratics


def test_second_moments_are_those_of_every_order_of_draws():
    h, eta = np.array([0.2, 3.8]), 0.7
    factors = np.array([(1 - eta * a) * (1 - eta * b) * (1 - eta * c) for a in h for b in h for c in h])
    assert linear_stability.second_moment(h, eta, 3) == pytest.approx(np.mean(factors**2), rel=1e-13)
    assert linear_stability.mean_square_rates(h, eta)[0] == pytest.approx(np.log(np.mean(factors**2)) / (3 * eta))
    # SVAG of many levels is the SDE: 1/l away from it.
    limit = np.exp(eta * linear_stability.mean_square_rates(h, eta)[1])
    errors = [linear_stability.second_moment(h, eta, 1, levels=count) / limit - 1 for count in (1000, 2000)]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.01)


def test_edges_are_where_the_rates_change_sign():
    h = np.array([0.2, 3.8])
    for k, edge in enumerate(linear_stability.mean_square_edge(h)):
        assert linear_stability.mean_square_rates(h, edge)[k] == pytest.approx(0, abs=1e-13)
        assert linear_stability.mean_square_rates(h, 1.01 * edge)[k] > 0
    assert linear_stability.mean_square_edge([4.0]) == (0.5, np.inf)


def test_sgd_escapes_surely_where_its_sde_never_does():
    h, eta = np.array([0.2, 3.8]), 0.7
    discrete, continuous = linear_stability.lyapunov_exponents(h, eta)
    assert discrete == pytest.approx(0.5 * np.log(0.86 * 1.66) / 0.7)
    assert discrete > 0
    assert continuous == pytest.approx(-2 - 0.35 * 3.24)
    # The scale function |x|^γ of the SDE: γ(γ - 1)ηs²/2 - aγ = 0.
    gamma = -np.log(linear_stability.escape_probability(h, eta, 10.0)) / np.log(10)
    assert gamma * (gamma - 1) * eta * 3.24 / 2 - 2 * gamma == pytest.approx(0, abs=1e-12)
    assert linear_stability.escape_probability(h, eta, 1.0) == 1


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: linear_stability.mean_square_edge([-1.0, 0.5]), "`curvatures` must have a positive mean"),
        (lambda: linear_stability.mean_square_rates([np.nan], 0.1), "`curvatures` must be finite"),
        (lambda: linear_stability.escape_probability([1.0], 0.1, 0.5), "`ratio` must be at least 1"),
        (lambda: linear_stability.escape_probability([-3.0, 1.0], 0.1, 2.0), "`curvatures` of mean"),
    ],
)
def test_bad_curvatures(call, match):
    with pytest.raises(ValueError, match=match):
        call()
