"""The problems of the benchmark, and everyone who solves them: each in as few lines as its users would write.

All take the same Euler-Maruyama (or Milstein) steps of the same problem from the same point, in steps of 2⁻⁷, a number
that adds up exactly. Random numbers differ, so laws are compared, not paths.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np

import sgdsde as sg
from solvers import sde

DT = 2.0**-7
PATHS = 100_000

# `simulate` streams moments at every so many steps; its rivals stream nothing.
EVERY = 16

# Steps of the tree, whose cost a step grows with their number: few flatter it. Its most dimensions, for time's sake.
TREE_STEPS, TREE_DIMENSIONS = 32, 10

# Steps in one scan of the naive contestant.
SCAN_STEPS = 32

LEARNING_RATE = 0.1


@dataclass(frozen=True)
class Problem:
    """dX = -∇f dt + √(2κf) dB, or with √(2κH) dB for a quadratic f with Hessian H.

    `by_hand` is one step (x, z, h) -> x in NumPy; `exact(n)` is E|X|² after n steps of the scheme, where it is known.
    `targets` are the ratios to reach against contestants.
    """

    name: str
    loss: Callable
    by_hand: Callable
    d: int = 1
    kappa: float = 0.1
    start: float = 0.0
    milstein: bool = False
    hessian: np.ndarray | None = None
    dtype: type = np.float32
    exact: Callable | None = None
    targets: dict[str, float] = field(default_factory=dict)

    @property
    def x0(self) -> np.ndarray:
        return np.full(self.d, self.start / np.sqrt(self.d), self.dtype)

    def root(self) -> np.ndarray:
        """The symmetric root of the Hessian."""
        values, vectors = np.linalg.eigh(self.hessian)
        return ((vectors * np.sqrt(values)) @ vectors.T).astype(self.dtype)

    def model(self) -> sg.SGD:
        noise = sg.noise.LossProportional if self.hessian is None else sg.noise.HessianMatched
        return sg.SGD(self.loss, noise(self.kappa / LEARNING_RATE), LEARNING_RATE)

    def method(self) -> sde.AbstractMethod:
        return sde.Milstein() if self.milstein else sde.EulerMaruyama()


# Who: each takes a problem and a number of paths, and gives run(steps, seed) -> states (n, d).


def library(p: Problem, n: int, observe: dict | None = None, every: int = EVERY) -> Callable:
    model, method = p.model(), p.method()
    observe = {"|x|^2": sde.Moments(radius2)} if observe is None else observe

    def run(steps, seed):
        x0 = jnp.asarray(p.x0)
        t1 = steps * DT
        return sde.simulate(model, method, x0, t1, DT, key=seed, paths=n, observe=observe, every=every).final

    return run


def radius2(t, x):
    return x @ x


def diffrax_paths(tree: bool, p: Problem, n: int) -> Callable | None:
    """diffrax as in its documentation: `vmap` over paths."""
    if tree and p.d > TREE_DIMENSIONS:
        return None
    drift, noise = _terms(p)
    shape = jax.ShapeDtypeStruct((p.d,), p.dtype)
    solver = diffrax.ItoMilstein() if p.milstein else diffrax.Euler()

    def operator(t, x, args):
        if p.hessian is not None:
            return lx.MatrixLinearOperator(np.sqrt(p.dtype(2 * p.kappa)) * p.root())
        return lx.DiagonalLinearOperator(noise(x, jnp.ones_like(x)))

    def path(key, t1, x0):
        brownian = (
            diffrax.VirtualBrownianTree(0.0, t1, tol=DT / 2, shape=shape, key=key)
            if tree
            else diffrax.UnsafeBrownianPath(shape=shape, key=key)
        )
        return _diffrax_end(drift, operator, brownian, solver, t1, x0)

    @jax.jit
    def ends(key, t1, x0):
        return jax.vmap(lambda k: path(k, t1, x0))(jax.random.split(key, n))

    return lambda steps, seed: ends(jax.random.key(seed), p.dtype(steps * DT), p.x0).block_until_ready()


def diffrax_one_state(p: Problem, n: int) -> Callable | None:
    """diffrax with all paths as one state: faster, if the user thinks of it."""
    if p.milstein:
        return None
    drift, noise = map(jax.vmap, _terms(p))
    shape = jax.ShapeDtypeStruct((n, p.d), p.dtype)

    def operator(t, x, args):
        return lx.FunctionLinearOperator(lambda z: noise(x, z), shape)

    @jax.jit
    def ends(key, t1, x0):
        brownian = diffrax.UnsafeBrownianPath(shape=shape, key=key)
        return _diffrax_end(drift, operator, brownian, diffrax.Euler(), t1, jnp.broadcast_to(x0, (n, p.d)))

    return lambda steps, seed: ends(jax.random.key(seed), p.dtype(steps * DT), p.x0).block_until_ready()


def _diffrax_end(drift, operator, brownian, solver, t1, x0):
    terms = diffrax.MultiTerm(
        diffrax.ODETerm(lambda t, x, args: drift(x)),
        diffrax.ControlTerm(operator, brownian),
    )
    return diffrax.diffeqsolve(
        terms,
        solver,
        0.0,
        t1,
        DT,
        x0,
        saveat=diffrax.SaveAt(t1=True),
        adjoint=diffrax.ForwardMode(),
        max_steps=None,
    ).ys[0]


def naive(p: Problem, n: int) -> Callable:
    """The scan that everybody writes."""
    value_and_grad = jax.value_and_grad(p.loss)
    root = None if p.hessian is None else p.root()

    def step(x, z):
        f, g = value_and_grad(x)
        if root is not None:
            return x - DT * g + np.sqrt(p.dtype(2 * p.kappa * DT)) * (root @ z)
        new = x - DT * g + jnp.sqrt(2 * p.kappa * DT * f) * z
        return new + 0.5 * p.kappa * DT * g * (z * z - 1) if p.milstein else new

    @jax.jit
    def some_steps(x, key, first):
        def body(x, k):
            return jax.vmap(step)(x, jax.random.normal(jax.random.fold_in(key, k), x.shape, x.dtype)), None

        return jax.lax.scan(body, x, first + jnp.arange(SCAN_STEPS))[0]

    def run(steps, seed):
        x, key = jnp.broadcast_to(p.x0, (n, p.d)), jax.random.key(seed)
        for first in range(0, steps, SCAN_STEPS):
            x = some_steps(x, key, first)
        return x.block_until_ready()

    return run


def numpy(p: Problem, n: int) -> Callable:
    def run(steps, seed):
        rng = np.random.default_rng(seed)
        x = np.tile(p.x0, (n, 1))
        for _ in range(steps):
            x = p.by_hand(x, rng.standard_normal(x.shape, p.dtype), DT)
        return x

    return run


def _terms(p: Problem) -> tuple[Callable, Callable]:
    """The drift at x, and the noise at x times z."""
    if p.hessian is not None:
        root = p.root()
        return lambda x: -jax.grad(p.loss)(x), lambda x, z: np.sqrt(p.dtype(2 * p.kappa)) * (root @ z)
    return lambda x: -jax.grad(p.loss)(x), lambda x, z: jnp.sqrt(2 * p.kappa * p.loss(x)) * z


OURS, UBP, ONE, TREE, NAIVE, NUMPY = "simulate", "diffrax UBP", "diffrax one state", "diffrax tree", "naive", "numpy"
CONTESTANTS: dict[str, Callable[[Problem, int], Callable | None]] = {
    OURS: library,
    UBP: partial(diffrax_paths, False),
    ONE: diffrax_one_state,
    TREE: partial(diffrax_paths, True),
    NAIVE: naive,
    NUMPY: numpy,
}

# What: problems.


def parabola(x):
    return 1 + x @ x


def valley(x):
    return 0.25 * (x @ x - 1) ** 2 + 0.01


def _euler(value_and_grad, kappa, x, z, h):
    f, g = value_and_grad(x)
    return x - h * g + np.sqrt(2 * kappa * h * f) * z


def _milstein(value_and_grad, kappa, x, z, h):
    return _euler(value_and_grad, kappa, x, z, h) + 0.5 * kappa * h * value_and_grad(x)[1] * (z * z - 1)


def _parabola(x):
    return 1 + x * x, 2 * x


def _valley(x):
    r2 = (x * x).sum(axis=1, keepdims=True)
    return 0.25 * (r2 - 1) ** 2 + 0.01, (r2 - 1) * x


def parabola_moment(kappa: float, h: float, milstein: bool, steps: float) -> float:
    """E X² after so many steps on f = 1 + x² from 0; of the stationary law for steps = ∞.

    Squaring x' = (1 - 2h) x + √(2κh f) z + κhx (z² - 1), the last term Milstein's, gives m' = a m + 2κh.
    """
    a = (1 - 2 * h) ** 2 + 2 * kappa * h + (2 * (kappa * h) ** 2 if milstein else 0)
    return 2 * kappa * h * (1 - a**steps) / (1 - a)


def _quadratic(d: int = 10, condition: float = 100.0, kappa: float = 0.1) -> Problem:
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(d, d)))
    values = np.geomspace(1 / np.sqrt(condition), np.sqrt(condition), d)
    H = (q * values) @ q.T
    root, H32 = ((q * np.sqrt(values)) @ q.T).astype(np.float32), H.astype(np.float32)

    def loss(x):
        return 0.5 * x @ (jnp.asarray(H, x.dtype) @ x)

    def by_hand(x, z, h):
        return x - h * x @ H32 + np.sqrt(np.float32(2 * kappa * h)) * (z @ root)

    def exact(steps):
        a = (1 - values * DT) ** 2
        return float(np.sum(2 * kappa * DT * values * (1 - a**steps) / (1 - a)))

    return Problem(
        "10-D quadratic, Hessian-matched", loss, by_hand, d, kappa, hessian=H, exact=exact, targets={UBP: 15}
    )


def _parabola_problem(name: str, targets: dict, milstein: bool = False, dtype: type = np.float32) -> Problem:
    return Problem(
        name,
        parabola,
        partial(_milstein if milstein else _euler, _parabola, 0.1),
        milstein=milstein,
        dtype=dtype,
        exact=partial(parabola_moment, 0.1, DT, milstein),
        targets=targets,
    )


def _radial(d: int, target: float) -> Problem:
    kappa = 0.02
    by_hand = partial(_euler, _valley, kappa)
    return Problem(f"radial quartic, d = {d}", valley, by_hand, d, kappa, 0.6, targets={NAIVE: target})


LINE = _parabola_problem("1-D, Euler-Maruyama", {UBP: 40, NAIVE: 8})
RING = Problem("2-D ring", valley, partial(_euler, _valley, 0.1), 2, 0.1, 0.6, targets={UBP: 15, NAIVE: 6})
QUADRATIC = _quadratic()
PROBLEMS = [
    LINE,
    _parabola_problem("1-D, Milstein", {UBP: 40, NAIVE: 8}, milstein=True),
    RING,
    QUADRATIC,
    _radial(3, 5),
    _radial(10, 25),
    _radial(50, 5),
    _parabola_problem("1-D, Euler-Maruyama, float64", {UBP: 12}, dtype=np.float64),
]
