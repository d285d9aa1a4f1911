"""Does an optimiser have the law of its process? Distributions of functionals at one time, and not only their means."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from solvers import sde
from solvers.sde.method import check_method

from .energy import disjoint_halves, distances, power, random_halves, tested
from .losses import ModelLoss
from .models import SGD
from .models.model import AbstractModel
from .noise import EqualTrace, Frozen
from .optimizers import SGD as DiscreteSGD, SVAG, AbstractOptimizer, run

# A time is a whole number of steps if it is one to this part of it.
_whole = 1e-4

# Halves of the runs are tested against each other.
_least_runs = 16

# Hessians are written down, and their traces computed from all their columns, up to this dimension.
_small = 100

# Outputs of a model whose joint law is compared by default.
_outputs = 3

# The shift, in standard deviations, whose power says what agreement is worth.
_shift = 0.5


class LawComparison(eqx.Module):
    """The outcome of `compare_laws`. Axis 0 of arrays counts functionals, axis 1 the `routes` beside the optimiser.

    `distance` is the energy distance over 2E|X - Y|, between 0 and 1 up to its standard error `sem`, and negative by
    chance where laws agree; `p` the p-value of the permutation test. `differs` is true where the test rejects, at the
    `level` for all tests together (Holm). `power` is how often the test at that level, alone and with half as many
    runs, tells the two laws apart; `shift_power`, for each functional, how often it would tell the optimiser's law from
    that shifted by half a standard deviation in all components. `lost` counts runs that became non-finite; a route with
    any is not tested. `samples` holds the functionals of all runs, by route, those of the optimiser first.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    routes: tuple[str, ...] = eqx.field(static=True)
    optimizer: str = eqx.field(static=True)
    t1: float
    learning_rate: float
    runs: int = eqx.field(static=True)
    level: float
    distance: Float[np.ndarray, "functionals routes"]
    sem: Float[np.ndarray, "functionals routes"]
    p: Float[np.ndarray, "functionals routes"]
    power: Float[np.ndarray, "functionals routes"]
    shift_power: Float[np.ndarray, " functionals"]
    lost: Int[np.ndarray, " routes"]
    samples: dict[str, dict[str, Float[np.ndarray, "n k"]]]

    @property
    def differs(self) -> Bool[np.ndarray, "functionals routes"]:
        """Where the laws are told apart, with all tests taken together (Holm's procedure)."""
        return _holm(self.p, self.level)

    @property
    def verdict(self) -> str:
        """One sentence a route: in which functionals its law is not that of the optimiser."""
        return "\n".join(self._sentence(k) for k in range(len(self.routes)))

    def plot(self, axes=None) -> np.ndarray:
        """Laws of the first functional by route, and the distances with error bars."""
        from .plots import law_comparison

        return law_comparison.laws(self, axes)

    def __str__(self) -> str:
        head = f"{self.optimizer} at t={self.t1:g}, η={self.learning_rate:g}, {self.runs} runs of each"
        lines = [["against", "law of", "distance", "p", "power"]]
        for k, route in enumerate(self.routes):
            for i, name in enumerate(self.names):
                if self.lost[k]:
                    lines.append([route, name, "-", "-", "-"])
                    continue
                distance = f"{self.distance[i, k]:.2g} ± {self.sem[i, k]:.1g}"
                lines.append([route, name, distance, f"{self.p[i, k]:.2g}", f"{self.power[i, k]:.2f}"])
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        table = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        shifts = ", ".join(f"{name} {p:.2f}" for name, p in zip(self.names, self.shift_power, strict=True))
        note = f"power against a shift of {_shift:g} standard deviations: {shifts}"
        return "\n".join([head, *table, note, self.verdict])

    def _sentence(self, k: int) -> str:
        if self.lost[k]:
            return f"{self.routes[k]}: not compared, since {self.lost[k]} of {self.runs} runs became non-finite."
        names = [name for name, differs in zip(self.names, self.differs[:, k], strict=True) if differs]
        if names:
            return f"{self.routes[k]}: DIFFERS in the law of {', '.join(names)}."
        return f"{self.routes[k]}: no difference is seen."


def compare_laws(
    model: AbstractModel,
    optimizer: AbstractOptimizer,
    x0: Any,
    t1: float,
    *,
    functionals: Callable | Mapping[str, Callable] | None = None,
    key: Any = 0,
    runs: int = 400,
    loss: Callable | None = None,
    method: sde.AbstractMethod | None = None,
    substeps: Sequence[int] = (1, 2, 4),
    svag: Sequence[int] = (4,),
    controls: Sequence[str] | None = None,
    permutations: int = 1999,
    level: float = 0.05,
) -> LawComparison:
    """Holds the law of an optimiser at the time `t1` against the laws of processes that stand for it.

    All start from `x0` (d,), and have `runs` independent runs:

    - `optimizer` itself, with minibatches of the finite sum `loss` (by default that of the model), or with the normal
      noise of the model if it has no `batch_size`;
    - `model` by `method` (Euler-Maruyama), with 1, 2 and 4 `substeps` a step of the optimiser. With 1 it is the
      optimiser with normal noise of the same covariance; with many, the process;
    - for SGD, `optimizers.SVAG` with the amplifications `svag`;
    - for SGD, `controls`: normal noise of the wrong kind, in steps of the optimiser: "constant" (the covariance at
      `x0`), and of the same trace at every point "diagonal", "isotropic" and "Hessian" (`noise.EqualTrace`). By default
      all, the last in up to 100 dimensions; () for none.

    `functionals` is φ(x) -> number or array, or several by name. By default the loss, and for `losses.from_model` the
    outputs for the first three inputs and, where labels are whole numbers, the accuracy; `hessian_trace(loss)` is one.

    Laws are compared by energy distance with a permutation test (`sgdsde.energy`): exact in level at any number of
    runs. A test that does not reject says little by itself: `power` and `shift_power` say what it would have seen, by
    testing random halves of the runs against each other, 200 times with 99 permutations.

    `ValueError` or `TypeError` for arguments that do not fit; `FloatingPointError` if runs of the optimiser become
    non-finite.
    """
    study = _Study(model, optimizer, _point(x0), float(t1), key, _checked_runs(runs), loss)
    if not 0 < level < 1:
        raise ValueError(f"`level` must be between 0 and 1, but got {level}.")
    if isinstance(permutations, bool) or int(permutations) != permutations or permutations < 1:
        raise ValueError(f"`permutations` must be a positive whole number, but got {permutations}.")
    functionals = _checked_functionals(functionals, study.loss_of(model))
    routes = study.routes(method, substeps, svag, controls)
    values = {name: _values(functionals, final()) for name, final in routes.items()}
    own, *others = values
    lost = {name: int(np.sum(_lost(found))) for name, found in values.items()}
    if lost[own]:
        raise FloatingPointError(
            f"{lost[own]} of {runs} runs of {own} became non-finite: there is no law to compare with. Use a smaller "
            "learning rate."
        )
    table = np.full((4, len(functionals), len(others)), np.nan)
    shift_power, rng = np.empty(len(functionals)), np.random.default_rng(0)
    for i, name in enumerate(functionals):
        x = values[own][name]
        shifted = distances(x, x + _shift * x.std(axis=0))
        shift_power[i] = power(shifted, disjoint_halves(len(x)), level, rng)
        for k, route in enumerate(others):
            if not lost[route]:
                table[:, i, k] = _compared(x, values[route][name], int(permutations), level, rng)
    return LawComparison(
        names=tuple(functionals),
        routes=tuple(others),
        optimizer=own,
        t1=float(t1),
        learning_rate=float(optimizer.learning_rate),
        runs=int(runs),
        level=float(level),
        distance=table[0],
        sem=table[1],
        p=table[2],
        power=table[3],
        shift_power=shift_power,
        lost=np.array([lost[route] for route in others]),
        samples=values,
    )


def hessian_trace(loss: Callable) -> Callable:
    """x ↦ tr H(x) of a loss, by d products of the Hessian with a vector, one after the other."""

    def trace(x: Float[Array, " d"]) -> Float[Array, ""]:
        _, product = jax.linearize(jax.grad(loss), x)
        entry = lambda k: product(jnp.zeros_like(x).at[k].set(1))[k]  # noqa: E731
        return jnp.sum(jax.lax.map(entry, jnp.arange(x.size)))

    return trace


class _Study(eqx.Module):
    """What is run, each route with random numbers of its own."""

    model: AbstractModel
    optimizer: AbstractOptimizer
    x0: Float[np.ndarray, " d"]
    t1: float
    key: Any
    runs: int
    loss: Callable | None

    def __check_init__(self):
        if not isinstance(self.model, AbstractModel):
            raise TypeError(f"`model` must be one such as `sg.SGD(loss, noise, 0.1)`, but got {self.model!r}.")
        if not isinstance(self.optimizer, AbstractOptimizer):
            raise TypeError(f"`optimizer` must be one such as `sg.optimizers.SGD(0.1)`, but got {self.optimizer!r}.")
        rates = [float(one.learning_rate) for one in (self.model, self.optimizer)]  # pyright: ignore
        if abs(rates[0] - rates[1]) > _whole * rates[1]:
            raise ValueError(
                f"`model` and `optimizer` must have one learning rate, but have {rates[0]:g} and {rates[1]:g}."
            )

    def loss_of(self, model: AbstractModel) -> Callable:
        loss = getattr(model, "loss", None) if self.loss is None else self.loss
        if loss is None:
            raise ValueError(f"`loss` must be given: {type(model).__name__} has none.")
        return loss

    def routes(self, method: Any, substeps: Any, svag: Any, controls: Any) -> dict[str, Callable]:
        """What returns the final positions, by name; the optimiser first."""
        method = sde.EulerMaruyama() if method is None else method
        check_method(method)
        simple = type(self.optimizer) is DiscreteSGD and type(self.model) is SGD
        found = {type(self.optimizer).__name__: lambda: self._discrete(self.optimizer, 0)}
        for k in _counts("substeps", substeps):
            name = "process, dt = η" + (f"/{k}" if k > 1 else "")
            found[name] = lambda k=k: self._process(self.model, method, k, k)
        if simple:
            for level in _counts("svag", svag):
                found[f"SVAG, l = {level}"] = lambda level=level: self._amplified(level)
        for name, model in self._controls(controls, simple).items():
            # In steps of the optimiser, as normal noise of the right kind with one substep.
            found[f"{name} noise"] = lambda model=model, name=name: self._process(
                model, sde.EulerMaruyama(), 1, _streams[name]
            )
        return found

    def _controls(self, controls: Any, simple: bool) -> dict[str, SGD]:
        names = list(_streams) if controls is None else list(controls)
        if unknown := [name for name in names if name not in _streams]:
            raise ValueError(f"`controls` must be some of {', '.join(_streams)}, but got {unknown[0]!r}.")
        if not simple:
            if controls:
                raise ValueError("`controls` are those of `sg.SGD` and `optimizers.SGD` alone: leave them out.")
            return {}
        if controls is None and self.x0.size > _small:
            names.remove("Hessian")
        assert isinstance(self.model, SGD)
        noise, made = self.model.gradient_noise, {}
        for name in names:
            control = Frozen(noise, self.x0) if name == "constant" else EqualTrace(noise, name)  # pyright: ignore
            made[name] = SGD(self.model.loss, control, self.model.learning_rate)
        return made

    def _amplified(self, level: int) -> Float[np.ndarray, "n d"]:
        sgd = self.optimizer
        svag = SVAG(sgd.learning_rate, sgd.batch_size, amplification=level, sampling=sgd.sampling)
        return self._discrete(svag, _amplified + level)

    def _discrete(self, optimizer: AbstractOptimizer, stream: int) -> Float[np.ndarray, "n d"]:
        own = optimizer.batch_size is None and optimizer.needs != "labels"
        return run(
            optimizer,
            self.loss_of(self.model),
            self.x0,
            steps=self._steps(optimizer),
            key=self._key(stream),
            runs=self.runs,
            noise=getattr(self.model, "gradient_noise", None) if own else None,
            throw=False,
            progress=False,
        ).final

    def _process(
        self, model: AbstractModel, method: sde.AbstractMethod, substeps: int, stream: int
    ) -> Float[np.ndarray, "n d"]:
        dt = float(self.optimizer.clock) / substeps
        t1, start = self._steps(self.optimizer) * substeps * dt, np.asarray(model.initial(jnp.asarray(self.x0)))
        key = self._key(stream)
        paths = sde.simulate(model, method, start, t1, dt, key, self.runs, throw=False, progress=False)
        return np.asarray(model.position(jnp.asarray(paths.final)))

    def _key(self, stream: int) -> Any:
        key = jax.random.key(self.key) if isinstance(self.key, (int, np.integer)) else self.key
        return jax.random.fold_in(key, stream)

    def _steps(self, optimizer: AbstractOptimizer) -> int:
        count = self.t1 / float(optimizer.clock)
        if not 0 < self.t1 < np.inf or round(count) < 1 or abs(count - round(count)) > _whole * count:
            raise ValueError(
                f"`t1` must be a whole number of steps of the optimiser, but t1={self.t1:g} is {count:.6g} steps of "
                f"{float(optimizer.clock):.6g}."
            )
        return round(count)


# Streams of random numbers: 0 is the optimiser, k the process with k substeps.
_streams = {"constant": 1 << 20, "diagonal": 2 << 20, "isotropic": 3 << 20, "Hessian": 4 << 20}
_amplified = 5 << 20


def _compared(x, y, permutations: int, level: float, rng: np.random.Generator) -> tuple[float, float, float, float]:
    between = distances(x, y)
    found = tested(between, len(x), permutations, rng)
    # Without any distance there is no scale either.
    scale = 2 * found.scale if found.scale > 0 else 1.0
    seen = power(between, random_halves(len(x), len(y)), level, rng)
    return found.distance / scale, found.sem / scale, found.p, seen


def _holm(p: Float[np.ndarray, "functionals routes"], level: float) -> Bool[np.ndarray, "functionals routes"]:
    known = p[np.isfinite(p)]
    order = np.sort(known)
    passed = order <= level / np.arange(len(order), 0, -1)
    count = len(order) if np.all(passed) else int(np.argmin(passed))
    return np.isfinite(p) & (p <= (order[count - 1] if count else -1.0))


def _checked_functionals(functionals: Any, loss: Callable) -> dict[str, Callable]:
    if functionals is not None:
        found = dict(functionals) if isinstance(functionals, Mapping) else {"φ": functionals}
        if not found or not all(callable(phi) for phi in found.values()):
            raise TypeError(
                f"`functionals` must be a function of a point, or several by name, but got {functionals!r}."
            )
        return found
    found = {"loss": loss}
    if isinstance(loss, ModelLoss) and loss.predict is not None:
        first = jnp.arange(min(_outputs, loss.count))
        found["outputs"] = lambda x: loss.outputs(x, first)
        labels = loss.data[1]
        if isinstance(labels, jax.Array) and labels.ndim == 1 and jnp.issubdtype(labels.dtype, jnp.integer):
            found["accuracy"] = lambda x: _accuracy(loss, x)
    return found


def _accuracy(loss: ModelLoss, x: Float[Array, " d"]) -> Float[Array, ""]:
    outputs, labels = loss.outputs(x, jnp.arange(loss.count)), loss.data[1]
    answers = jnp.argmax(outputs.reshape(loss.count, -1), axis=1)
    return jnp.mean((answers.astype(labels.dtype) == labels).astype(x.dtype))


def _values(functionals: dict[str, Callable], x: np.ndarray) -> dict[str, Float[np.ndarray, "n k"]]:
    points = jnp.asarray(x)
    return {name: np.asarray(_mapped(phi, points), np.float64).reshape(len(x), -1) for name, phi in functionals.items()}


@eqx.filter_jit
def _mapped(phi, points):
    return jax.lax.map(phi, points, batch_size=_at_once)


# Points at which functionals are computed at a time.
_at_once = 64


def _lost(values: dict[str, Float[np.ndarray, "n k"]]) -> Bool[np.ndarray, " n"]:
    return np.any([~np.isfinite(found).all(axis=1) for found in values.values()], axis=0)


def _counts(name: str, counts: Any) -> list[int]:
    if any(isinstance(k, bool) or int(k) != k or k < 1 for k in counts):
        raise ValueError(f"`{name}` must hold whole numbers from 1 on, as (1, 2, 4), but got {counts}.")
    return [int(k) for k in counts]


def _checked_runs(runs: int) -> int:
    if isinstance(runs, bool) or int(runs) != runs or runs < _least_runs:
        raise ValueError(f"`runs` must be a whole number of at least {_least_runs}, but got {runs}.")
    return int(runs)


def _point(x0: Any) -> Float[np.ndarray, " d"]:
    x0 = np.asarray(x0)
    if x0.ndim != 1 or not np.issubdtype(x0.dtype, np.floating):
        raise ValueError(f"`x0` must be one point of shape (d,) and floating dtype, got shape {x0.shape}, {x0.dtype}.")
    return x0.astype(jax.dtypes.canonicalize_dtype(x0.dtype))
