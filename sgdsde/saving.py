"""Results of both packages from files; and whether those hold what was computed."""

import os
from typing import Any

import solvers


def load(path: str | os.PathLike[str]) -> Any:
    """The result, of `sgdsde` or of `solvers`, that was saved to the file `path` by its method `save`.

    Losses, models and other functions are not in files; a `solvers.NotSaved` is in their place. Raises `ValueError`
    for a file that is damaged, not of a result or of a newer version of the format, and `OSError` if it can't be read.
    """
    return solvers.load(path, ("solvers", "sgdsde"))
