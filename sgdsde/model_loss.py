"""The loss of a model on data, a network above all, as a function of one point x of shape (d,) with its examples.

All that is written for losses in low dimension then works for it: its minibatches and their noise, its curvature, and
the way back from a point x to the model.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import jaxprs_in_params
from jaxtyping import Array, Float, Int

from ._checks import number
from ._finite_sum import AbstractFiniteSum, in_dtype_of, one_number

# How many numbers a chunk of examples keeps in memory for one point, about: 8 MiB in float64. Larger chunks are not
# faster on a CPU, and ensembles hold as many chunks as they have paths in a block.
_chunk_numbers = 1 << 20


def from_model(
    model: Any, per_example_loss: Callable, data: Any, *, predict: Callable | None = None, weight_decay=0.0, chunk=None
) -> "ModelLoss":
    """f(x) = (1/N) Σ_i l_i(x) + (λ/2)|x|², of any model and N examples; x is all its parameters in one vector.

    The parameters are the real floating-point arrays in the pytree `model`. What else is in it stays as it is.

    | model                                | loss of one example                                               |
    |--------------------------------------|-------------------------------------------------------------------|
    | a function, such as an equinox module | `per_example_loss(model(input), label)`, data (inputs, labels)     |
    | parameters, with `predict`           | `per_example_loss(predict(model, input), label)`, same data       |
    | parameters, without `predict`        | `per_example_loss(model, example)`, data any pytree of arrays     |

    In the first two forms the loss knows the outputs of the model, and with them Gauss-Newton matrices and accuracies
    (`sg.noise_report`). In all of them arrays of `data` have the first axis N, and functions get one example without
    that axis; real numbers come in the dtype of x. Functions with a random key or a state, such as dropout or batch
    normalisation, must be closed over one (a network in inference mode): the loss of an example is a function of x.

    `weight_decay` is λ. `chunk` is how many examples are computed at a time; by default what fits in a cache. The
    memory of a gradient is that of a chunk, and its cost that of a forward and backward pass over all examples.

    `loss.x0` is the vector of the given model, of dtype float32, or float64 if any parameter is; `loss.unravel(x)` is
    the model of a vector and `loss.ravel(model)` the way back; `loss.on(data)` is the loss on other examples.

        loss = losses.from_model(mlp, optax.softmax_cross_entropy_with_integer_labels, (images, digits))
        model = sg.SGD(loss, noise.Minibatch(loss, batch_size=32), learning_rate=0.1)
        out = sde.simulate(model, sde.EulerMaruyama(), loss.x0, t1=10.0, dt=0.05, key=key, paths=4)

    `ValueError` or `TypeError` if there are no parameters, complex ones, first axes that differ, or a loss that is not
    one number for one example.
    """
    for name, fn in (("per_example_loss", per_example_loss), ("predict", predict)):
        if not callable(fn) and not (name == "predict" and fn is None):
            raise TypeError(f"`{name}` must be a function, but got {fn!r}.")
    if predict is None and callable(model):
        predict = _call
    return _checked(model, per_example_loss, predict, _checked_data(data, predict is not None), weight_decay, chunk)


class ModelLoss(AbstractFiniteSum):
    """The loss of a model on data, made by `from_model`, which see.

    `x0` (d,) are the parameters of the model it was made from; `unravel` and `ravel` go from a vector to a model and
    back. `predict` is None if the loss of an example is no function of outputs.
    """

    x0: Float[Array, " d"]
    data: Any
    loss: Callable
    predict: Callable | None
    weight_decay: Float[Array, ""]
    rest: Any
    form: "_Form" = eqx.field(static=True)
    chunk: int = eqx.field(static=True)

    @property
    def count(self) -> int:
        return _length(self.data)

    def examples(self, x: Float[Array, " d"], index: Int[Array, " b"]) -> Float[Array, " b"]:
        model = self.unravel(x)
        values = self._over(index, lambda example: self._one(model, example, x))
        return values + 0.5 * self.weight_decay.astype(x.dtype) * (x @ x)

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        return jnp.mean(self.examples(x, jnp.arange(self.count)))

    def outputs(self, x: Float[Array, " d"], index: Int[Array, " b"]) -> Float[Array, "b ..."]:
        """What the model of parameters x returns for the inputs of examples; `ValueError` if it has no outputs."""
        model, predict = self.unravel(x), self._needs_outputs()
        return self._over(index, lambda example: _real(predict(model, _cast(x, example[0])), x))

    def of_outputs(self, outputs: Float[Array, "b ..."], index: Int[Array, " b"]) -> Float[Array, " b"]:
        """l_i of the outputs of the examples in `index`, without the weight decay."""
        self._needs_outputs()
        labels = jax.tree.map(lambda leaf: leaf[index], self.data[1])
        return jax.vmap(lambda z, y: one_number(self.loss(z, _cast(z, y)), z, "per_example_loss"))(outputs, labels)

    def unravel(self, x: Float[Array, " d"]) -> Any:
        """The model with the parameters x, in the dtype of x."""
        if x.shape != (self.form.size,):
            raise ValueError(f"`x` must hold the {self.form.size} parameters of the model, but has shape {x.shape}.")
        parts = jnp.split(x, self.form.ends[:-1])
        leaves = [part.reshape(shape) for part, shape in zip(parts, self.form.shapes, strict=True)]
        return eqx.combine(jax.tree.unflatten(self.form.tree, leaves), self.rest)

    def ravel(self, model: Any) -> Float[Array, " d"]:
        """The parameters of a model of the same form as one vector, in the dtype of `x0`."""
        leaves, tree = jax.tree.flatten(eqx.filter(model, eqx.is_inexact_array))
        if [leaf.shape for leaf in leaves] != list(self.form.shapes):
            raise ValueError(
                f"`model` must have parameters of the shapes {list(self.form.shapes)}, but has those of {tree}."
            )
        return _raveled(leaves, self.x0.dtype)

    def on(self, data: Any) -> "ModelLoss":
        """The same model and loss on other examples, such as those held out."""
        data = _checked_data(data, self.predict is not None)
        return _checked(self.unravel(self.x0), self.loss, self.predict, data, self.weight_decay, None)

    def _one(self, model: Any, example: Any, x: Float[Array, " d"]) -> Float[Array, ""]:
        example = _cast(x, example)
        if self.predict is None:
            return one_number(self.loss(model, example), x, "per_example_loss")
        # What the loss returns has the dtype of the outputs.
        outputs = _real(self.predict(model, example[0]), x)
        return one_number(self.loss(outputs, example[1]), x, "per_example_loss")

    def _over(self, index: Int[Array, " b"], one: Callable) -> Float[Array, "b ..."]:
        """one(example) for each example of `index`, a chunk at a time."""
        count = index.shape[0]
        chunks = max(1, -(-count // self.chunk))
        size = -(-count // chunks)

        def chunk(part: Int[Array, " c"]):
            return jax.vmap(lambda i: one(jax.tree.map(lambda leaf: leaf[i], self.data)))(part)

        # Of a chunk nothing is kept for the backward pass but which it is; one chunk alone keeps all that it can use.
        mapped = jax.checkpoint(chunk) if chunks > 1 else chunk
        # Some examples come twice, so that all chunks are of one size.
        filled = jnp.pad(index, (0, chunks * size - count)).reshape(chunks, size)
        values = lax.map(mapped, filled)
        return values.reshape(chunks * size, *values.shape[2:])[:count]

    def _needs_outputs(self) -> Callable:
        if self.predict is None:
            raise ValueError(
                "This loss has no outputs: make it of a function, or of parameters and `predict`, with "
                "`losses.from_model(params, per_example_loss, (inputs, labels), predict=apply)`."
            )
        return self.predict


@dataclasses.dataclass(frozen=True)
class _Form:
    """How the parameters of a model lie in one vector."""

    tree: Any
    shapes: tuple[tuple[int, ...], ...]

    @property
    def ends(self) -> list[int]:
        sizes = [math.prod(shape) for shape in self.shapes]
        return [sum(sizes[: k + 1]) for k in range(len(sizes))]

    @property
    def size(self) -> int:
        return self.ends[-1]


def _checked(
    model: Any, loss: Callable, predict: Callable | None, data: Any, weight_decay: Any, chunk: Any
) -> ModelLoss:
    parameters, rest = eqx.partition(model, eqx.is_inexact_array)
    leaves, tree = jax.tree.flatten(parameters)
    if not leaves:
        raise ValueError("`model` has no parameters: it must be a pytree with real floating-point arrays.")
    if bad := [leaf.dtype.name for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.complexfloating)]:
        raise TypeError(f"`model` must have real parameters, but has some of dtype {bad[0]}: keep their parts apart.")
    dtype = jnp.float64 if any(leaf.dtype == jnp.float64 for leaf in leaves) else jnp.float32
    made = ModelLoss(
        x0=_raveled(leaves, dtype),
        data=data,
        loss=loss,
        predict=predict,
        weight_decay=number("weight_decay", weight_decay, minimum=0),
        rest=rest,
        form=_Form(tree, tuple(leaf.shape for leaf in leaves)),
        chunk=2,
    )
    if chunk is not None and (isinstance(chunk, bool) or int(chunk) != chunk or chunk < 1):
        raise ValueError(f"`chunk` must be a positive whole number of examples, but got {chunk}.")
    # Also the first use of the functions, whose errors are raised here.
    needed = _numbers_per_example(made)
    fitting = max(1, min(made.count, _chunk_numbers // max(1, needed)))
    return dataclasses.replace(made, chunk=fitting if chunk is None else int(chunk))


def _numbers_per_example(loss: ModelLoss) -> int:
    """How many numbers a forward pass makes for each further example of a chunk."""

    def made(b: int) -> int:
        index = jax.ShapeDtypeStruct((b,), jnp.int32)
        return _made_by(jax.make_jaxpr(loss.examples)(loss.x0, index).jaxpr)

    return made(2) - made(1)


def _made_by(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        inner = list(jaxprs_in_params(equation.params))
        total += sum(map(_made_by, inner)) if inner else sum(math.prod(v.aval.shape) for v in equation.outvars)
    return total


def _checked_data(data: Any, labelled: bool) -> Any:
    if labelled and not (isinstance(data, (tuple, list)) and len(data) == 2):
        raise TypeError(
            f"`data` must be a pair (inputs, labels) for a model with outputs, but got {type(data).__name__}. For a "
            "loss of parameters and examples pass parameters that are no function, and no `predict`."
        )
    data = jax.tree.map(jnp.asarray, data)
    firsts = {leaf.shape[:1] for leaf in jax.tree.leaves(data)}
    if len(firsts) != 1 or firsts & {(), (0,)}:
        raise ValueError(
            "`data` must be arrays with one common first axis, of the examples, but their first axes are "
            f"{sorted(firsts)}."
        )
    return tuple(data) if labelled else data


def _call(model: Any, example: Any) -> Any:
    return model(example)


def _cast(x: Array, example: Any) -> Any:
    return jax.tree.map(lambda leaf: in_dtype_of(x, leaf), example)


def _real(outputs: Any, x: Float[Array, " d"]) -> Float[Array, "..."]:
    if not (isinstance(outputs, jax.Array) and jnp.issubdtype(outputs.dtype, jnp.floating)):
        raise TypeError(f"The model must return one real floating-point array for one input, but returned {outputs!r}.")
    return outputs.astype(x.dtype)


def _raveled(leaves: list, dtype: Any) -> Float[Array, " d"]:
    return jnp.concatenate([leaf.astype(dtype).ravel() for leaf in leaves])


def _length(data: Any) -> int:
    return jax.tree.leaves(data)[0].shape[0]
