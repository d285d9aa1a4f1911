"""The command line: `sgdsde compare` holds a model's invariant law by every route against the closed forms;
`sgdsde run NAME` runs one of the experiments that `sgdsde list` names.
"""

import argparse
import os
import sys
import time

_default_loss = "0.5*(1+x**2)"
_noises = ("loss-proportional", "constant", "hessian-matched")

_description = """\
Continuous-time stochastic gradient descent: particles, Fokker-Planck and closed forms of one process.
"""

_compare_description = f"""\
Runs the process dX = -∇f dt + sqrt(2D) dB of SGD by particles (Euler-Maruyama and Milstein), by the
Fokker-Planck equation and as discrete SGD, holds each against Gibbs exp(-f/ησ) and the power law
f^(-1-1/ησ), prints the table with error bars and a verdict, and writes one figure.

With no arguments: the loss {_default_loss} under loss-proportional noise, D = ησ f I, and under
constant noise, D = ησ I. The laws swap roles.
"""


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="sgdsde", description=_description)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    compare = commands.add_parser(
        "compare",
        help="the invariant law of a loss by every route",
        description=_compare_description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument(
        "--loss",
        default=_default_loss,
        help="a formula in x, y (or x1, x2, r2 = |x|²) such as '(x**2-1)**2/4 + 0.1', or module:function, whose code "
        "is then imported from here and run (default: %(default)s)",
    )
    compare.add_argument(
        "--noise", choices=_noises, help="the gradient noise (default: loss-proportional, then constant)"
    )
    compare.add_argument("--sigma", type=float, default=5.0, help="σ, with D = ησ f I or ησ I (default: %(default)s)")
    compare.add_argument("--learning-rate", type=float, default=0.1, help="η (default: %(default)s)")
    compare.add_argument(
        "--floor", type=float, default=0.1, help="least eigenvalue for hessian-matched (default: %(default)s)"
    )
    compare.add_argument("--dim", type=int, help="dimension, 1 or 2 (default: that of the formula)")
    compare.add_argument("--paths", type=int, default=100_000, help="particles (default: %(default)s)")
    compare.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: %(default)s)")
    compare.add_argument("--out", default="sgdsde_compare.png", help="file of the figure (default: %(default)s)")
    compare.add_argument("--save", metavar="FILE", help="also write the results to FILE.npz, for `sgdsde verify`")
    compare.set_defaults(command=_compare)
    verify = commands.add_parser("verify", help="whether the file of a result is whole and, if it can be, right")
    verify.add_argument("result", metavar="RESULT", help="a file written by `--save` or by the method `save`")
    verify.set_defaults(command=_verify)
    commands.add_parser("list", help="the experiments").set_defaults(command=_list)
    run = commands.add_parser("run", help="one experiment: its table, its claims and its figure")
    run.add_argument("name", metavar="NAME", help="as `sgdsde list` shows it")
    run.add_argument("--fast", action="store_true", help="a reduced configuration")
    run.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: %(default)s)")
    run.add_argument("--out", help="file of the figure (default: sgdsde_NAME.png)")
    run.set_defaults(command=_run)
    arguments = parser.parse_args(argv)
    try:
        return arguments.command(arguments)
    except (ValueError, TypeError, NotImplementedError, FloatingPointError, ImportError, OSError) as error:
        print(f"sgdsde: error: {error}", file=sys.stderr)
        return 2


def _compare(arguments: argparse.Namespace) -> int:
    # Imported here: `sgdsde --help` must not wait for JAX.
    import jax

    jax.config.update("jax_enable_x64", True)
    import sgdsde as sg

    began = time.perf_counter()
    out = _writable(arguments.out)
    saved = _writable(arguments.save, ".npz") if arguments.save else None
    results = _comparisons(arguments)
    if saved:
        from .comparisons import Comparisons

        given = {name: getattr(arguments, name) for name in _decisive}
        print(f"results: {Comparisons(given, results).save(saved)}")
    sg.plots.save_comparisons(results, out)
    print(f"figure: {out}; {time.perf_counter() - began:.0f} s, jax {jax.__version__}, sgdsde {sg.__version__}")
    return 0


# The arguments of `compare` that decide its results.
_decisive = ("loss", "noise", "sigma", "learning_rate", "floor", "dim", "paths", "seed")


def _verify(arguments: argparse.Namespace) -> int:
    import jax

    jax.config.update("jax_enable_x64", True)
    from .comparisons import verify

    whole = verify(arguments.result, lambda given: _comparisons(argparse.Namespace(**given)), print)
    return 0 if whole else 1


def _comparisons(arguments: argparse.Namespace) -> dict:
    """What `compare` prints and returns, by the name of the noise."""
    import sgdsde as sg

    loss, dim = _loss(arguments.loss, arguments.dim)
    noises = {
        "loss-proportional": lambda: sg.noise.LossProportional(arguments.sigma),
        "constant": lambda: sg.noise.Constant(arguments.sigma),
        "hessian-matched": lambda: sg.noise.HessianMatched(arguments.sigma, floor=arguments.floor),
    }
    chosen = [arguments.noise] if arguments.noise else ["loss-proportional", "constant"]
    results = {}
    for name in chosen:
        print(
            f"f = {arguments.loss}, {name} noise, σ = {arguments.sigma:g}, η = {arguments.learning_rate:g}, "
            f"ησ = {arguments.learning_rate * arguments.sigma:g}, {arguments.paths} paths, seed {arguments.seed}\n",
            flush=True,
        )
        model = sg.SGD(loss, noises[name](), arguments.learning_rate)
        result = sg.compare_invariant(model, dim=dim, paths=arguments.paths, key=arguments.seed)
        print(f"{result}\n", flush=True)
        results[f"{name} noise"] = result
    return results


def _list(arguments: argparse.Namespace) -> int:
    from . import experiments

    width = max(map(len, experiments.names), default=0)
    for name in experiments.names:
        print(f"{name.ljust(width)}  {_first_sentence(name)}")
    return 0


def _first_sentence(name: str) -> str:
    # Read, not imported: the list must not wait for JAX.
    import ast
    import importlib.util

    spec = importlib.util.find_spec(f"sgdsde.experiments.{name}")
    assert spec is not None
    assert spec.origin is not None
    with open(spec.origin, encoding="utf-8") as file:
        text = ast.get_docstring(ast.parse(file.read())) or ""
    return text.partition("\n\n")[0].replace("\n", " ")


def _run(arguments: argparse.Namespace) -> int:
    from . import experiments

    if arguments.name not in experiments.names:
        import difflib

        near = difflib.get_close_matches(arguments.name, experiments.names, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"there is no experiment {arguments.name!r}.{hint} `sgdsde list` names them all.")
    out = _writable(arguments.out or f"sgdsde_{arguments.name}.png")
    import jax

    jax.config.update("jax_enable_x64", True)
    began = time.perf_counter()
    experiment = getattr(experiments, arguments.name)
    config = experiment.Config.fast() if arguments.fast else experiment.Config()
    print(f"{_first_sentence(arguments.name)}\n{config}, seed {arguments.seed}\n", flush=True)
    result = experiment.run(config, arguments.seed)
    print(f"{result}\n", flush=True)
    panels = result.plot()
    panels.ravel()[0].figure.savefig(out, dpi=150)
    print(f"figure: {out}; {time.perf_counter() - began:.0f} s, jax {jax.__version__}")
    return 0 if all(claim.holds for claim in result.claims) else 1


def _loss(text: str, dim: int | None):
    """The loss and its dimension, from a formula or from `module:function`."""
    if ":" not in text:
        from .formula import parse

        loss = parse(text, dim)
        return loss, loss.dim  # pyright: ignore[reportFunctionMemberAccess]
    import importlib

    module, _, name = text.partition(":")
    sys.path.insert(0, "")
    loss = getattr(importlib.import_module(module), name, None)
    if not callable(loss):
        raise ValueError(f"`--loss {text}`: the module {module!r} has no function {name!r}.")
    return loss, 1 if dim is None else dim


def _writable(path: str, ending: str = ".png") -> str:
    """`path` as the name of a file, with the ending if it has none; `OSError` if it can't be written."""
    if not os.path.splitext(path)[1]:
        path += ending
    # Now, rather than after a minute of work.
    new = not os.path.exists(path)
    with open(path, "ab"):
        pass
    if new:
        os.remove(path)
    return path


if __name__ == "__main__":
    sys.exit(main())
