"""Several independent gradient noises at once."""

from .._operators import SideBySide
from .gradient_noise import AbstractGradientNoise


class Sum(AbstractGradientNoise):
    """The sum of independent noises: D = Σ D_i, driven by the Brownian motions of all of them.

    For SGD with noise on its labels, away from interpolation:
    `Sum(Minibatch(loss, B), LabelNoise(loss, std, B))`. `TypeError` for what is no noise, `ValueError` for none.
    """

    noises: tuple[AbstractGradientNoise, ...]

    def __init__(self, *noises: AbstractGradientNoise):
        if not noises:
            raise ValueError("`noises` must be at least one noise, but got none.")
        for noise in noises:
            if not isinstance(noise, AbstractGradientNoise):
                raise TypeError(f"`noises` must be noises such as `noise.Constant(0.5)`, but got {noise!r}.")
        self.noises = noises

    def operator(self, loss, learning_rate, x):
        return SideBySide(tuple(noise.operator(loss, learning_rate, x) for noise in self.noises))
