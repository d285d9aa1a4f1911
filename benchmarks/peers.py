"""FiPy, fplanck and py-pde on the problem of the Fokker-Planck benchmark, each as its experienced user would run it.

The problem is a tilted double well under constant noise: ∂tρ = ∇·(D∇ρ + ρ∇f), D = 1/20, on [-2.2, 2.2]^d,

    f = (x₀² - 1)²/4 + Σ_(k>0) x_k²/2 + 0.3 x₀ x₁,

from a Gaussian of width 0.2 around (0.2, 0.3, 0).
"""

import os

# FiPy picks the fastest suite that it finds; this is the only one that all machines have.
os.environ.setdefault("FIPY_SOLVERS", "scipy")

from collections.abc import Callable

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

TEMPERATURE, HALF, TILT, WIDTH = 0.05, 2.2, 0.3, 0.2
CENTRE = (0.2, 0.3, 0.0)


def slope(x):
    """∇f, component by component."""
    if len(x) == 1:
        return [x[0] ** 3 - x[0]]
    return [x[0] ** 3 - x[0] + TILT * x[1], x[1] + TILT * x[0], *x[2:]]


def centres(n: int) -> np.ndarray:
    return -HALF + 2 * HALF * (np.arange(n) + 0.5) / n


def start(n: int, d: int) -> np.ndarray:
    """The masses of the start in n^d cells."""
    x = np.meshgrid(*[centres(n)] * d, indexing="ij")
    m = np.exp(-sum((y - c) ** 2 for y, c in zip(x, CENTRE, strict=False)) / (2 * WIDTH**2))
    return m / m.sum()


class FiPy:
    """Implicit steps, and Crank-Nicolson steps made of them; densities in FiPy's order of cells."""

    def __init__(self, n: int, d: int, tolerance: float, solver: str = "LinearGMRESSolver"):
        import fipy

        grids = {1: fipy.Grid1D, 2: fipy.Grid2D, 3: fipy.Grid3D}
        names = "xyz"[:d]
        sizes = {f"n{a}": n for a in names} | {f"d{a}": 2 * HALF / n for a in names}
        mesh = grids[d](**sizes) + [[-HALF]] * d
        faces = np.array(mesh.faceCenters)
        drift = fipy.FaceVariable(
            mesh=mesh, rank=1, value=-np.array(slope(faces) if d > 1 else [faces[0] ** 3 - faces[0]])
        )
        # Walls reflect.
        drift.setValue(0.0, where=mesh.exteriorFaces)
        self.initial = start(n, d).ravel(order="F")
        self.variable = fipy.CellVariable(mesh=mesh, value=self.initial)
        self.equation = fipy.TransientTerm() == fipy.DiffusionTerm(TEMPERATURE) - fipy.ExponentialConvectionTerm(drift)
        self.solver = getattr(fipy, solver)(tolerance=tolerance, iterations=2000)

    def step(self, tau: float) -> None:
        """One implicit Euler step."""
        self.equation.solve(self.variable, dt=tau, solver=self.solver)

    def reset(self) -> None:
        self.variable.setValue(self.initial)

    def crank_nicolson(self, t: float, steps: int) -> np.ndarray:
        """Two implicit Euler steps, each half as long, then implicit midpoints: m' = 2 m(half way) - m."""
        self.reset()
        tau = t / steps
        self.step(tau / 2)
        self.step(tau / 2)
        for _ in range(steps - 1):
            before = self.variable.value.copy()
            self.step(tau / 2)
            self.variable.setValue(2 * self.variable.value - before)
        return self.variable.value.copy()

    def matrix(self) -> scipy.sparse.csr_matrix:
        """A of dm/dt = A m, from the matrix of one implicit step."""
        self.equation.cacheMatrix()
        self.reset()
        self.step(1.0)
        step = self.equation.matrix.matrix.tocsr()
        volume = 1.0 * self.variable.mesh.cellVolumes
        scaled = scipy.sparse.diags(1 / volume) @ step
        return (scipy.sparse.identity(len(volume)) - scaled).tocsr()

    def exact(self, t: float) -> np.ndarray:
        """The law at time t without any error in time."""
        return scipy.sparse.linalg.expm_multiply(t * self.matrix().tocsc(), self.initial)


def py_pde(n: int, steps: int) -> Callable[[int], np.ndarray]:
    """A function that takes so many explicit Euler steps, of 1 / `steps` each, in n² cells; compiled already."""
    import pde

    grid = pde.CartesianGrid([[-HALF, HALF]] * 2, n)
    a, b = TEMPERATURE, TILT
    equation = pde.PDE(
        {"c": f"{a}*laplace(c) + (x**3-x+{b}*y)*d_dx(c) + (y+{b}*x)*d_dy(c) + 3*x**2*c"}, bc={"derivative": 0}
    )
    initial = pde.ScalarField(grid, start(n, 2))
    step = pde.EulerSolver(equation, backend="numba").make_stepper(initial, dt=1 / steps)

    def run(count: int) -> np.ndarray:
        field = initial.copy()
        step(field, 0.0, count / steps)
        return field.data

    run(1)
    return run


def fplanck_model(n: int, d: int):
    """fplanck's model of the problem, in n^d cells."""
    # fplanck 0.2.2 was written for NumPy 1.
    vars(np).setdefault("product", np.prod)
    import fplanck
    from scipy.constants import k

    def potential(*x):
        well = (x[0] ** 2 - 1) ** 2 / 4 + sum(0.5 * y**2 for y in x[1:])
        return well + (TILT * x[0] * x[1] if len(x) > 1 else 0.0)

    return fplanck.fokker_planck(
        temperature=TEMPERATURE / k,
        drag=1.0,
        extent=[2 * HALF] * d,
        resolution=2 * HALF / n * (1 + 1e-12),
        potential=potential,
    )
