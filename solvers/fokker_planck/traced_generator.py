"""What `assemble` gives for a process some of whose numbers JAX traces: for derivatives, `vmap` and `jit`."""

import dataclasses
from typing import Any, Literal

from .._tracing import Static
from ..grid import Grid
from ..process import AbstractDiffusion

Boundary = Literal["no-flux", "absorbing", "periodic"]


class Layout:
    """What compiled functions depend on: a grid, its boundary and the limit up to which an edge counts as resolved.

    Two are equal if their numbers are.
    """

    def __init__(self, grid: Grid, boundary: tuple[Boundary, ...], resolved: float):
        self.grid, self.boundary, self.resolved = grid, boundary, resolved
        self._key = (Static(grid), boundary, resolved)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Layout) and self._key == other._key

    @property
    def is_line(self) -> bool:
        """Whether there is one axis with two ends: such a process has detailed balance."""
        return self.grid.ndim == 1 and self.boundary != ("periodic",)

    @property
    def conserving(self) -> bool:
        """Whether no face absorbs."""
        return "absorbing" not in self.boundary


@dataclasses.dataclass(frozen=True, eq=False)
class TracedGenerator:
    """What `assemble` returns for a process that holds tracers; `stationary` and `spectrum` take it.

    It has no matrix, and does not tell whether the process is reversible: these depend on values.
    """

    process: AbstractDiffusion
    layout: Layout

    @property
    def grid(self) -> Grid:
        """The grid."""
        return self.layout.grid

    @property
    def boundary(self) -> tuple[Boundary, ...]:
        """The boundary of each axis."""
        return self.layout.boundary

    def coarsen(self) -> "TracedGenerator":
        """The generator of the same process with two cells made one along each axis, as `coarsen` makes it."""
        wide = Layout(self.grid.coarsen(), self.boundary, 2 * self.layout.resolved)
        return TracedGenerator(self.process, wide)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"A generator has no {name!r} while JAX traces its process (`jax.grad`, `jit` or `vmap`): `stationary` and "
            "`spectrum` are what it is for. Assemble the process with numbers to look at the rest."
        )

    def __str__(self) -> str:
        return f"Generator of a traced process on {self.grid}, boundary {' × '.join(self.boundary)}"
