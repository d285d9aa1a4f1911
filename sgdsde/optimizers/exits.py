"""When runs leave a region for the first time: `sde.FirstPassage` for a discrete algorithm."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from solvers._tracing import traceable
from solvers.sde.observables import AbstractObservable
from solvers.sde.passage_result import FirstPassageResult

# What has become of a run: it is still inside, it left, it became non-finite before that, or it only fills a block.
_INSIDE, _OUT, _LOST, _ABSENT = range(4)


class Exits(AbstractObservable):
    """The first step after which each run is outside, and where; `update` comes after every step.

    A point is inside where `inside` is true or positive. Between two steps an algorithm is nowhere: exit times are
    whole numbers of steps, times `clock`.
    """

    inside: Callable
    clock: Float[Array, ""]
    exists: Bool[Array, " n"] | None = None

    def among(self, exists: Bool[Array, " n"]) -> "Exits":
        """This observable for a block in which these runs exist: what `init` is called of."""
        return Exits(self.inside, self.clock, exists)

    def init(self, t, x, weighted):
        assert self.exists is not None
        status = jnp.where(self.exists, jnp.where(self.holds(x), _INSIDE, _OUT), _ABSENT)
        return (), _Watch(status.astype(jnp.int32), jnp.zeros(len(x), jnp.int32), x)

    def update(self, state, t, x, weight):
        old = state[1]
        watched = old.status == _INSIDE
        now = jnp.where(weight, jnp.where(self.holds(x), _INSIDE, _OUT), _LOST).astype(jnp.int32)
        # A run that is lost was inside up to the step before.
        steps = old.steps + (watched & (now != _LOST)).astype(jnp.int32)
        return (), _Watch(
            jnp.where(watched, now, old.status), steps, jnp.where((watched & weight)[:, None], x, old.point)
        )

    def reduce(self, state, block):
        status, steps, point = (np.asarray(a) for a in (state[1].status, state[1].steps, state[1].point))
        present = status != _ABSENT
        return {block: (status[present], steps[present] * float(self.clock), point[status == _OUT])}

    def merge(self, a, b):
        return a | b

    def result(self, total):
        status, watched, points = (np.concatenate([total[b][i] for b in sorted(total)]) for i in range(3))
        return FirstPassageResult(
            times=np.where(status == _OUT, watched, np.nan),
            points=points,
            watched=np.where(status == _LOST, np.nan, watched),
            nonfinite=int(np.sum(status == _LOST)),
            uncorrected=0,
        )

    def holds(self, x: Float[Array, "n d"]) -> Bool[Array, " n"]:
        """Whether each point is inside."""
        with traceable("`inside(x)` of `FirstPassage`"):
            level = jax.vmap(self.inside)(x)
        if level.shape != x.shape[:1]:
            raise ValueError(
                f"`inside(x)` of `FirstPassage` must return one boolean or number, got shape {level.shape[1:]}."
            )
        return level if level.dtype == bool else level > 0


class _Watch(eqx.Module):
    status: Int32[Array, " n"]
    steps: Int32[Array, " n"]
    point: Float[Array, "n d"]
