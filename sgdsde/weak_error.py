"""Is the continuum model valid? The weak error between an optimiser and its process, over a range of learning rates."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from solvers import sde
from solvers.diagnosis import Diagnosis, judged
from solvers.provenance import Provenance, provenance_of
from solvers.result import AbstractResult
from solvers.sde.brownian import Need
from solvers.sde.method import check_method
from solvers.sde.order import power_law

from ._coupled import Pair, best_sign, coupled
from .models import EmbeddedSGD
from .models.model import AbstractModel
from .optimizers import SGD, SVAG, AbstractOptimizer, run

_Kind = TypeVar("_Kind")

# A time is a whole number of steps if it is one to this part of it.
_whole = 1e-4

# The fit of the order compares groups of runs.
_least_runs = 64

# An error counts as known when it is so many standard errors away from 0.
_significant = 3.0


class Ladder(eqx.Module):
    """SVAG_l against the process at the largest learning rate: l, and E φ(SVAG_l) - E φ(process) for each functional.

    l = 1 is SGD. Errors that fall like 1/l mean that the process is the limit it should be, and that what SGD differs
    from it by comes from the finite learning rate.
    """

    levels: tuple[int, ...] = eqx.field(static=True)
    learning_rate: float
    errors: Float[np.ndarray, "functionals levels"]
    sem: Float[np.ndarray, "functionals levels"]


class Validity(AbstractResult):
    """The outcome of `validity`. Axis 0 of arrays counts functionals, in the order of `names`.

    `optimizer_mean` and `process_mean` are E φ of both, with standard errors; `errors` is their difference, optimiser
    less process, and `sem` the standard error of that, which is far smaller if the two were `coupled`. `orders` are
    fitted to |error| = C η^p, `intervals` their 95 % intervals: infinite, and the order without meaning, if an error
    can't be told from 0, or if errors have different signs, which no power of η has. An interval covers the sampling
    error of the fit, not a bend of the curve at large η: the errors of E x² of SGD on x²/2 have order 1 and yet a
    fitted order of 0.7 from η = 0.05 to 0.2. Where runs of the optimiser became non-finite errors are NaN, and left
    out of the fit.
    """

    learning_rates: Float[np.ndarray, " rates"]
    t1: float
    names: tuple[str, ...] = eqx.field(static=True)
    optimizer_mean: Float[np.ndarray, "functionals rates"]
    optimizer_sem: Float[np.ndarray, "functionals rates"]
    process_mean: Float[np.ndarray, "functionals rates"]
    process_sem: Float[np.ndarray, "functionals rates"]
    errors: Float[np.ndarray, "functionals rates"]
    sem: Float[np.ndarray, "functionals rates"]
    orders: Float[np.ndarray, " functionals"]
    intervals: Float[np.ndarray, "functionals 2"]
    ladder: Ladder | None
    optimizer: str = eqx.field(static=True)
    process: str = eqx.field(static=True)
    coupled: bool = eqx.field(static=True)
    runs: int = eqx.field(static=True)
    provenance: Provenance | None = eqx.field(static=True, default=None)

    @property
    def verdict(self) -> str:
        """One sentence a functional: the order seen, or why none is."""
        return "\n".join(self._sentence(k) for k in range(len(self.names)))

    def plot(self, axes=None) -> np.ndarray:
        """Errors against the learning rate with slopes 1 and 2, and the ladder beside them if there is one."""
        from .plots import weak_error

        return weak_error.weak_errors(self, axes)

    def diagnose(self) -> Diagnosis:
        """Whether the optimiser stayed finite, and for each functional whether an order can be seen."""
        lost = self.learning_rates[np.isnan(self.errors).any(axis=0)]
        text = "every run of the optimiser stayed finite"
        if lost.size:
            text = f"the optimiser diverges at η = {', '.join(f'{eta:g}' for eta in lost)}"
        found = [judged("finite", lost.size == 0, text, "Use smaller `learning_rates`")]
        for k, (low, high) in enumerate(self.intervals):
            change = "Use more `runs`, or larger `learning_rates`; see `verdict`"
            found.append(judged(f"order of {self.names[k]}", bool(np.isfinite(high - low)), self._sentence(k), change))
        return Diagnosis(tuple(found))

    def __str__(self) -> str:
        how = "on one Brownian motion" if self.coupled else "independently"
        lines = [f"{self.optimizer} against {self.process} at t={self.t1:g}, {self.runs} runs of both {how}"]
        for k, name in enumerate(self.names):
            rows = zip(
                self.learning_rates,
                self.optimizer_mean[k],
                self.process_mean[k],
                self.errors[k],
                self.sem[k],
                strict=True,
            )
            lines += [
                f"  η {eta:<8.4g} E {name}: {a:.6g} and {b:.6g}, error {e: .3g} ± {s:.1g}" for eta, a, b, e, s in rows
            ]
        if self.ladder is not None:
            for name, errors, sems in zip(self.names, self.ladder.errors, self.ladder.sem, strict=True):
                rows = zip(self.ladder.levels, errors, sems, strict=True)
                lines += [
                    f"  SVAG l={level} at η {self.ladder.learning_rate:g}, E {name}: error {e: .3g} ± {s:.1g}"
                    for level, e, s in rows
                ]
        made = [] if self.provenance is None else [self.provenance.brief]
        return "\n".join([*lines, *made, self.verdict])

    def _sentence(self, k: int) -> str:
        name, (low, high) = self.names[k], self.intervals[k]
        lost = self.learning_rates[np.isnan(self.errors[k])]
        start = f"E {name}: "
        if lost.size:
            start += (
                f"{self.optimizer} diverges at η = {', '.join(f'{eta:g}' for eta in lost)}, so the model fails there; "
            )
        if self.learning_rates.size - lost.size < 2:
            return start + "too few learning rates are left to see an order."
        if _change_sign(self.errors[k], self.sem[k]):
            return start + "no order can be seen, since the error changes its sign: smaller η."
        if not np.isfinite(high - low):
            unclear = self.learning_rates[np.abs(self.errors[k]) < _significant * self.sem[k]]
            where = f" at η = {', '.join(f'{eta:g}' for eta in unclear)}" if unclear.size else ""
            return start + f"no order can be seen, since errors{where} are within the noise: more runs or larger η."
        seen = f"the error falls with order {self.orders[k]:.2f}, 95 % interval [{low:.2f}, {high:.2f}]"
        if low > 0:
            return start + seen + ", as η goes to 0."
        return (
            start + f"no fall of the error is seen: order {self.orders[k]:.2f}, 95 % interval [{low:.2f}, {high:.2f}]."
        )


def validity(
    model: AbstractModel | Callable,
    optimizer: AbstractOptimizer | Callable,
    x0: Any,
    t1: float,
    learning_rates: Sequence[float] | np.ndarray,
    functional: Callable | Mapping[str, Callable],
    key: Any,
    runs: int,
    *,
    loss: Callable | None = None,
    method: sde.AbstractMethod | None = None,
    substeps: int = 8,
    svag: Sequence[int] | None = None,
) -> Validity:
    """Measures E φ(x_k) - E φ(X_{t1}), k steps of the optimiser taking the time t1, for each learning rate.

    `model` and `optimizer` are given every learning rate in turn in the place of their own; where other numbers must
    move with it, as 1-β = γη does for the underdamped limit of momentum, give functions of η that return them. All
    start from `x0`, one point (d,), and both must start there with the same memory.

    RMSProp and Adam have a limit only if ηs, ηε and (1-β)/η² stay what they are as η → 0, s² = Var g: model and
    optimiser are functions of η, with noise that grows as 1/η. Their clock is η², so that errors fall with order 2 in
    η. `sg.RMSProp` starts at v = diag Σ, where `optimizers.RMSProp` does with `initial` = s².

    `functional` is φ(x) -> number, or several by name. t1 must be a whole number
    of steps of the optimiser for each learning rate.

    The optimiser's gradients are those of minibatches if it has a `batch_size`, of the finite sum `loss` or that of the
    model; or else have normal noise, that of the model. In the second case both are driven by one Brownian motion, if
    they have equally many, and few runs suffice. In the first the error must be seen through the fluctuations of
    both: `runs` of (std φ/error)² and more.

    The process is simulated by `method`, by default `sde.WeakRK2()`, with `substeps` steps in one of the optimiser.
    Its own error is of order (η/substeps)², which leaves a fitted order of 1 or 2 as it is and changes an error of
    order 2 by about 1/(2 substeps²) of itself; with a method of order 1 it would not do so.

    `svag` holds amplifications l, as (1, 2, 4, 8): SVAG_l at the largest learning rate against the process there. The
    optimiser must be SGD, and the process its first-order model.

    `ValueError` or `TypeError` for arguments that do not fit; `FloatingPointError` if the process becomes non-finite.
    """
    began, x0 = time.perf_counter(), _point(x0)
    rates = _rates(learning_rates)
    functionals = dict(functional) if isinstance(functional, Mapping) else {"φ": functional}
    method = sde.WeakRK2() if method is None else method
    check_method(method)
    if int(runs) != runs or runs < _least_runs:
        raise ValueError(f"`runs` must be a whole number of at least {_least_runs}, but got {runs}.")
    if int(substeps) != substeps or substeps < 1:
        raise ValueError(f"`substeps` must be a whole number of at least 1, but got {substeps}.")
    study = _Study(model, optimizer, x0, float(t1), functionals, key, int(runs), loss, method, int(substeps))
    # Steps are checked before anything is run.
    for eta in rates:
        study.steps(study.optimizer_at(eta), eta)
    ladder = None if svag is None else study.checked_levels(svag, rates.max())
    study = study.with_coupling(rates.max())
    found = [study.samples(study.optimizer_at(eta), eta) for eta in rates]
    discrete, continuous = (np.stack(part, axis=1) for part in zip(*[pair for pair, _ in found], strict=True))
    # Runs that were lost are no sample of the rest.
    differences = discrete - continuous
    fits = [_fit(rates, values) for values in differences]
    process = study.model_at(rates.max())
    state = process.initial(jnp.asarray(x0)).size
    seconds = time.perf_counter() - began
    return Validity(
        learning_rates=rates,
        t1=float(t1),
        names=tuple(functionals),
        optimizer_mean=discrete.mean(axis=2),
        optimizer_sem=_sem(discrete),
        process_mean=continuous.mean(axis=2),
        process_sem=_sem(continuous),
        errors=differences.mean(axis=2),
        sem=_sem(differences),
        orders=np.array([order for order, _ in fits]),
        intervals=np.array([interval for _, interval in fits]),
        ladder=None if ladder is None else study.ladder(ladder, float(rates.max())),
        optimizer=type(study.optimizer_at(rates[0])).__name__,
        process=f"the process {type(study.model_at(rates[0])).__name__}",
        coupled=all(together for _, together in found),
        runs=int(runs),
        provenance=provenance_of("sgdsde.validity", process, state, x0.dtype, key, seconds),
    )


class _Study(eqx.Module):
    """What is the same at all learning rates."""

    model: Any
    optimizer: Any
    x0: Float[np.ndarray, " d"]
    t1: float
    functionals: dict[str, Callable]
    key: Any
    runs: int
    loss: Callable | None
    method: sde.AbstractMethod
    substeps: int
    need: Need | None = None
    sign: float = 1.0

    def model_at(self, eta: float) -> AbstractModel:
        return _at("model", self.model, eta, AbstractModel, "sg.SGD(loss, noise, 0.1)")

    def optimizer_at(self, eta: float) -> AbstractOptimizer:
        return _at("optimizer", self.optimizer, eta, AbstractOptimizer, "sg.optimizers.SGD(0.1)")

    def with_coupling(self, eta: float) -> "_Study":
        """Knowing how the optimiser can be told of the motions that drive the model, if it can; tried out at η."""
        optimizer, model = self.optimizer_at(eta), self.model_at(eta)
        if optimizer.batch_size is not None or optimizer.needs == "labels":
            return self
        need = self.method.needs(model, model.initial(jnp.asarray(self.x0))[None])
        study = dataclasses.replace(self, need=need)
        pair, steps = study.pair(optimizer, model), self.steps(optimizer, eta)
        if pair is None:
            return study
        return dataclasses.replace(
            study, sign=best_sign(*coupled(pair, self.x0, steps, self.substeps, self.key, self.runs))
        )

    def steps(self, optimizer: AbstractOptimizer, eta: float) -> int:
        count = self.t1 / float(optimizer.clock)
        if not 0 < self.t1 < np.inf or round(count) < 1 or abs(count - round(count)) > _whole * count:
            raise ValueError(
                f"`t1` must be a whole number of steps of the optimiser, but t1={self.t1:g} is {count:.6g} steps of "
                f"{float(optimizer.clock):.6g} at the learning rate {eta:g}."
            )
        return round(count)

    def samples(self, optimizer: AbstractOptimizer, eta: float, substeps: int | None = None):
        """φ of every run of both, a pair of shape (functionals, runs), and whether they were coupled."""
        model, substeps = self.model_at(eta), substeps or self.substeps
        steps, pair = self.steps(optimizer, eta), self.pair(optimizer, model)
        if pair is not None:
            ends = coupled(pair, self.x0, steps, substeps, self.key, self.runs)
        else:
            ends = self._apart(optimizer, model, steps, substeps)
        discrete, continuous = (_values(self.functionals, x) for x in ends)
        if not np.all(np.isfinite(continuous)):
            raise FloatingPointError(
                f"Paths of {type(model).__name__} or values of `functional` became non-finite at the learning rate "
                f"{eta:g}: use more `substeps`, or smaller learning rates."
            )
        return (np.where(np.isfinite(discrete), discrete, np.nan), continuous), pair is not None

    def checked_levels(self, svag: Sequence[int], eta: float) -> tuple[int, ...]:
        optimizer, levels = self.optimizer_at(eta), tuple(int(level) for level in svag)
        if type(optimizer) is not SGD:
            raise TypeError(f"`svag` amplifies the noise of SGD, but `optimizer` is {type(optimizer).__name__}.")
        if not levels or any(level < 1 or level != given for level, given in zip(levels, svag, strict=True)):
            raise ValueError(f"`svag` must hold whole numbers from 1 on, as (1, 2, 4, 8), but got {svag}.")
        return levels

    def ladder(self, levels: tuple[int, ...], eta: float) -> Ladder:
        sgd, errors = self.optimizer_at(eta), []
        for level in levels:
            svag = SVAG(eta, sgd.batch_size, amplification=level, sampling=sgd.sampling)
            # Substeps of the process as for SGD: only its order-2 error depends on them.
            (discrete, continuous), _ = self.samples(svag, eta, max(1, -(-self.substeps // level)))
            errors.append(discrete - continuous)
        values = np.stack(errors, axis=1)
        return Ladder(levels, eta, values.mean(axis=2), _sem(values))

    def pair(self, optimizer: AbstractOptimizer, model: AbstractModel) -> Pair | None:
        """Both on one Brownian motion, or None if that can't be."""
        noise = self._noise(model)
        if noise is None or self.need is None:
            return None
        pair = Pair(optimizer, self._loss(model), noise, model, self.method, jnp.asarray(self.sign), self.need)
        return pair if pair.can_couple(jnp.asarray(self.x0)) else None

    def _noise(self, model: AbstractModel) -> Any:
        # Minibatches and noise on labels are noise enough.
        return None if self.need is None else getattr(model, "gradient_noise", None)

    def _loss(self, model: AbstractModel) -> Callable:
        loss = getattr(model, "loss", None) if self.loss is None else self.loss
        if loss is None:
            raise ValueError(f"`loss` must be given: {type(model).__name__} has none.")
        return loss

    def _apart(self, optimizer, model, steps: int, substeps: int):
        runs = run(
            optimizer,
            self._loss(model),
            self.x0,
            steps=steps,
            key=self.key,
            runs=self.runs,
            noise=self._noise(model),
            throw=False,
            progress=False,
        )
        start, dt = np.asarray(model.initial(jnp.asarray(self.x0))), float(optimizer.clock) / substeps
        paths = sde.simulate(
            model, self.method, start, steps * substeps * dt, dt, self.key, self.runs, throw=False, progress=False
        )
        return runs.final, np.asarray(model.position(jnp.asarray(paths.final)))


def _at(name: str, thing: Any, eta: float, kind: type[_Kind], example: str) -> _Kind:
    """`thing` with the learning rate η."""
    if isinstance(thing, EmbeddedSGD):
        raise TypeError(
            "`model` must be a function of η, as `lambda eta: sg.EmbeddedSGD(H, C, eta)`: its coefficients are those "
            "of one learning rate."
        )
    if isinstance(thing, kind):
        rate = thing.learning_rate  # pyright: ignore[reportAttributeAccessIssue]
        return eqx.tree_at(lambda one: one.learning_rate, thing, jnp.asarray(eta, rate.dtype))
    made = thing(eta) if callable(thing) else None
    if not isinstance(made, kind):
        raise TypeError(
            f"`{name}` must be one such as `{example}`, or a function of η that returns one: got {thing!r}."
        )
    return made


def _values(functionals: dict[str, Callable], x: np.ndarray) -> Float[np.ndarray, "functionals n"]:
    points, found = jnp.asarray(x), []
    for name, phi in functionals.items():
        values = np.asarray(_mapped(phi, points), np.float64)
        if values.ndim != 1:
            raise ValueError(
                f"`functional` {name!r} must return one number for one point, got shape {values.shape[1:]}."
            )
        found.append(values)
    return np.stack(found)


@eqx.filter_jit
def _mapped(phi, points):
    return jax.vmap(phi)(points)


def _sem(values: Float[np.ndarray, "... n"]) -> Float[np.ndarray, "..."]:
    return values.std(axis=-1, ddof=1) / np.sqrt(values.shape[-1])


def _fit(rates, differences: Float[np.ndarray, "rates n"]) -> tuple[float, tuple[float, float]]:
    finite = np.all(np.isfinite(differences), axis=1)
    if np.sum(finite) < 2 or _change_sign(differences.mean(axis=1), _sem(differences)):
        return np.nan, (-np.inf, np.inf)
    fit = power_law(rates[finite], differences[finite])
    return fit.order, fit.interval


def _change_sign(errors: Float[np.ndarray, " rates"], sem: Float[np.ndarray, " rates"]) -> bool:
    """Whether some errors are clearly positive and others clearly negative; NaN is neither."""
    return bool(np.any(errors > _significant * sem) and np.any(errors < -_significant * sem))


def _point(x0: Any) -> Float[np.ndarray, " d"]:
    x0 = np.asarray(x0)
    if x0.ndim != 1 or not np.issubdtype(x0.dtype, np.floating):
        raise ValueError(f"`x0` must be one point of shape (d,) and floating dtype, got shape {x0.shape}, {x0.dtype}.")
    return x0.astype(jax.dtypes.canonicalize_dtype(x0.dtype))


def _rates(learning_rates: Any) -> Float[np.ndarray, " rates"]:
    rates = np.asarray(learning_rates, np.float64)
    if rates.ndim != 1 or len(rates) < 2 or not np.all(rates > 0) or len(np.unique(rates)) != len(rates):
        raise ValueError(f"`learning_rates` must be at least two different positive numbers, but got {learning_rates}.")
    return rates
