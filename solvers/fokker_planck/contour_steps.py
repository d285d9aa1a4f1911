r"""Time steps of any length: exp(t A) m as an integral over a contour around the spectrum, by the midpoint rule,

    exp(tA) m = (1 / 2πi) ∫ e^z (z - tA)⁻¹ m dz ≈ Σ_k c_k (z_k - tA)⁻¹ m,     c_k = e^(z_k) z'(θ_k) / (iN),

with Talbot's contour as modified by Weideman, z(θ) = N (0.5017 θ cot(0.6407 θ) - 0.6122 + 0.2645 iθ), whose error
falls as 3.89^(-N) uniformly on the negative real axis (Trefethen, Weideman and Schmelzer, BIT 46 (2006) 653). Nodes
come in conjugate pairs, so that N/2 complex solves make a step of any length. The sum is divided by its value at z = 0:
then it keeps mass and the stationary law to rounding.

For a reversible process this error is one in the norm of L²(1/π), π the stationary law: the sum of |mass error| is at
most ‖m(0)‖ times as large, and that is enormous for a start where π is tiny. Such a start is first carried towards
equilibrium by uniformization.
"""

import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from jaxtyping import Complex, Float

from . import tridiagonal
from .assembly import Generator
from .uniformization import Uniformization, root_law

# The error on the negative axis is about 4 · 3.89^-N; a tenth of rtol is asked of it. With more than 26 nodes rounding
# would be larger, because the weights grow.
_constant, _convergence, _most_nodes = 40.0, 3.89, 26

# The distance from equilibrium ‖m‖ that the nodes are to allow for, if there may be so many.
_allowed_distance = 1e4

# For spectra that leave the contour, an interval has at most so many substeps.
_most_substeps = 1 << 16

# At Re z = 0 the contour has Im z = 0.33 N, or 0.66 per conjugate pair of nodes; half of that is well inside.
_reach = 0.33

# Systems of these lengths are factored in blocks after so many uses: that takes as long as to solve two of them by
# LAPACK, and then each one half as long. Shorter ones gain nothing, and the factors of longer ones fill the memory.
_long, _longest, _patience = 1 << 15, 1 << 18, 4

# Steps whose factors are kept: an interval, its half, and those of one other interval.
_steps_kept = 4


def talbot(nodes: int) -> tuple[Complex[np.ndarray, " m"], Complex[np.ndarray, " m"]]:
    """The poles z_k and weights c_k in the upper half plane of e^z ≈ 2 Re Σ c_k / (z_k - z), m = nodes / 2.

    Scaled so that the sum is 1 at z = 0.
    """
    theta = np.pi * np.arange(1, nodes, 2) / nodes
    a = 0.6407 * theta
    z = nodes * (0.5017 * theta / np.tan(a) - 0.6122 + 0.2645j * theta)
    dz = nodes * (0.5017 / np.tan(a) - 0.5017 * a / np.sin(a) ** 2 + 0.2645j)
    c = np.exp(z) * dz / (1j * nodes)
    return z, c / np.sum(2 * (c / z).real)


class ContourSteps:
    """exp(h A) for the steps h that occur, keeping the matrix factors of the last few.

    `longest` is the longest of them. For a process without detailed balance, and the law `start` of its kind, it is
    found out how long a step may be.
    """

    def __init__(self, generator: Generator, rtol: float, start: Float[np.ndarray, " n"], longest: float):
        self.generator = generator
        self.rtol = rtol
        nodes = int(np.ceil(np.log(_constant * _allowed_distance / rtol) / np.log(_convergence)))
        nodes = min(nodes + nodes % 2, _most_nodes)
        self.poles, self.weights = talbot(nodes)
        self.distance = rtol * _convergence**nodes / _constant
        self.jumps = Uniformization(generator)
        self.leaving = generator.exit_rates.ravel()
        self.matrix, self.scale = _balanced(generator, self.jumps.log_law)
        self.banded = generator.grid.ndim == 1 and generator.boundary != ("periodic",)
        self.factors: dict[float, list] = {}
        self.longest = longest if generator.reversible else self._longest_step(start, longest)

    def advance(
        self, mass: Float[np.ndarray, " n"], outside: float, h: float
    ) -> tuple[Float[np.ndarray, " n"], float, float]:
        """The mass in the cells and outside after an interval h, of which nothing is left to do."""
        mass, outside, h = self.jumps.carry(mass, outside, h, self.distance)
        if h > 0:
            mass, outside = (self._reversible if self.generator.reversible else self._circling)(mass, outside, h)
        return mass, outside, 0.0

    def _circling(self, mass, outside, h):
        n = max(1, int(np.ceil(h / self.longest * (1 - 1e-9))))
        coarse = self._steps(mass, outside, h, n)
        while n < _most_substeps:
            fine = self._steps(mass, outside, h, 2 * n)
            if np.abs(fine[0] - coarse[0]).sum() <= self.rtol:
                return fine
            n, coarse = 2 * n, fine
        raise RuntimeError(
            f"The law did not settle to rtol={self.rtol} with {_most_substeps} substeps in an interval of {h:.6g}: "
            "the drift circulates too fast. Ask for closer times, or for a larger `rtol`."
        )

    def _reversible(self, mass, outside, h):
        once = self._steps(mass, outside, h, 1)
        if self.jumps.distance(mass) <= self.distance:
            return once
        # Still too far for the bound: a law that is caught in a rare well. The bound need not be met, but the error.
        twice = self._steps(mass, outside, h, 2)
        change = np.abs(once[0] - twice[0]).sum()
        if change > self.rtol:
            raise RuntimeError(
                f"The law starts too far from equilibrium: over an interval of {h:.6g} two approximations differ by "
                f"{change:.2g}, more than rtol={self.rtol}. Ask for closer times, or use a smaller box or fewer cells."
            )
        return twice

    def _longest_step(self, mass, h):
        # The longest step that agrees with two of half its length, coming from steps short enough to be right. To
        # start with long ones is not safe: where the contour leaves out a slowly decaying mode that turns fast, the
        # approximation is almost zero, for the half steps, too.
        short = h * _turning_rate(self.generator, self.jumps.log_law) / (_reach * len(self.poles))
        n = 2 ** int(np.ceil(np.log2(max(short, 1.0))))
        while n > 1:
            once = self._steps(mass, 0.0, 2 * h / n, 1)[0]
            twice = self._steps(mass, 0.0, 2 * h / n, 2)[0]
            if np.abs(once - twice).sum() > self.rtol:
                break
            n //= 2
        return h / n

    def _steps(self, mass, outside, h, n):
        solves = self._resolvents(h / n)
        for _ in range(n):
            start = (mass / self.scale).astype(np.complex128)
            moved, absorbed = np.zeros_like(mass), 0.0
            for z, c, solve in zip(self.poles, self.weights, solves, strict=True):
                x = solve(start) * self.scale
                moved += 2 * (c * x).real
                # A cemetery that collects what leaves: its mass is h ∫ leaving·m, in the same approximation.
                absorbed += 2 * (c / z * (self.leaving @ x)).real * h / n
            mass, outside = moved, outside + absorbed
        return mass, outside

    def _resolvents(self, h):
        # Functions that solve (z - hA) x = m, one for each pole; steps that agree to rounding count as one.
        key = float(f"{h:.12e}")
        if key not in self.factors:
            if len(self.factors) >= _steps_kept:
                self.factors.pop(next(iter(self.factors)))
            make = self._tridiagonal if self.banded else self._sparse
            self.factors[key] = [make(z, key) for z in self.poles]
        return self.factors[key]

    def _tridiagonal(self, z, h):
        a = self.matrix
        bands = np.zeros((3, self.leaving.size), np.complex128)
        bands[0, 1:], bands[1], bands[2, :-1] = -h * a.diagonal(1), z - h * a.diagonal(), -h * a.diagonal(-1)
        return _Tridiagonal(bands)

    def _sparse(self, z, h):
        shifted = (z * scipy.sparse.identity(self.leaving.size, format="csc") - h * self.matrix).tocsc()
        return scipy.sparse.linalg.splu(
            shifted, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.01, options={"SymmetricMode": True}
        ).solve


class _Tridiagonal:
    """A long system by LAPACK, which factors it every time; once it has come up often, with factors that are kept."""

    def __init__(self, bands: Complex[np.ndarray, "3 n"]):
        self.bands, self.uses = bands, 0
        self.factors: tridiagonal.Factors | None = None

    def __call__(self, v: Complex[np.ndarray, " n"]) -> Complex[np.ndarray, " n"]:
        self.uses += 1
        if self.uses <= _patience or not _long <= v.size <= _longest:
            return scipy.linalg.solve_banded((1, 1), self.bands, v)
        blocks = tridiagonal.blocks_for(v.size)
        if self.factors is None:
            upper, diagonal, lower = self.bands
            diagonals = (np.roll(lower, 1), diagonal, np.roll(upper, -1))
            self.factors = tridiagonal.factor(*map(jnp.asarray, diagonals), blocks)
        x = tridiagonal.solve(self.factors, tridiagonal.folded(jnp.asarray(v), blocks))
        return np.asarray(tridiagonal.unfolded(x, v.size))


def _balanced(
    generator: Generator, log_law: Float[np.ndarray, " n"]
) -> tuple[scipy.sparse.csc_matrix, Float[np.ndarray, " n"]]:
    """The matrix S of the generator for v = m / scale.

    With detailed balance S is symmetric for scale = sqrt(π). As a matrix for masses A is so far from normal that the
    rounding of a resolvent can be exp(U/2) times larger, U the range of log π: more than 1 in a large box.
    """
    a = generator.matrix
    if not generator.reversible:
        return a, np.ones(len(log_law))
    diagonal = scipy.sparse.diags(a.diagonal())
    traffic = scipy.sparse.csc_matrix((a - diagonal).multiply((a - diagonal).T))
    traffic.data = np.sqrt(traffic.data)
    symmetric = scipy.sparse.csc_matrix(traffic + diagonal)
    return symmetric, root_law(log_law)


def _turning_rate(generator: Generator, log_law: Float[np.ndarray, " n"]) -> float:
    """A bound on the imaginary parts of A's eigenvalues, by its antisymmetric part in L²(1/π), π the stationary law."""
    root = np.sqrt(np.maximum(np.exp(log_law), np.finfo(np.float64).tiny))
    scaled = scipy.sparse.csc_matrix(scipy.sparse.diags(1 / root) @ generator.matrix @ scipy.sparse.diags(root))
    return float(np.max(np.abs(scaled - scaled.T).sum(axis=0))) / 2
