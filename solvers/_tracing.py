"""What JAX says about functions that it cannot trace, said in terms of the user's function."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax


@contextmanager
def traceable(what: str) -> Iterator[None]:
    """Turns JAX's errors about values that are not known while tracing into a `TypeError` that names the function."""
    try:
        yield
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError,
        jax.errors.NonConcreteBooleanIndexError,
    ) as error:
        raise TypeError(
            f"{what} cannot be compiled, because it asks for the value of x (or t) while JAX traces it. Use jax.numpy "
            "instead of numpy, math or float(), and jnp.where instead of `if`. JAX says: " + str(error).split("\n")[0]
        ) from error
