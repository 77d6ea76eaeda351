"""The command line: data on stdout, talk on stderr.

Exit codes: 0 done, 1 our error, 2 usage or bad input, 3 a claim failed, 4 undecided and 5 some rows failed (both only
under ``--strict``), 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from . import __version__

MISSING = "the command line needs the workbench extra: pip install 'wellposed[workbench]'"

try:
    import typer
    from rich.console import Console
except ModuleNotFoundError:  # the light install has no command line; say so without a traceback
    print(MISSING, file=sys.stderr)
    raise SystemExit(2) from None

app = typer.Typer(
    name="wellposed",
    help="Regularization for PyTorch: which technique helps, how strong, and at what cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def talk() -> Console:
    """Console for people, on stderr."""
    return Console(stderr=True, highlight=False)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def compare(
    data: Annotated[
        str,
        typer.Option(
            help="digits, breast_cancer, wine, diabetes, text; a CSV, TSV, Parquet or .npz file; "
            "a folder of images; or package.module:function."
        ),
    ] = "digits",
    target: Annotated[str | None, typer.Option(help="Column to predict, for tables.")] = None,
    task: Annotated[
        str | None, typer.Option(help="classification or regression, where the guess from the target is wrong.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="mlp, cnn, transformer, or package.module:function. Default: by kind of data.")
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            help="Catalogue ids, class names, families or 'all', separated by commas; settings after a colon: "
            "elr,sam:rho=0.2,smoothness."
        ),
    ] = "all",
    label_noise: Annotated[
        float | None, typer.Option(help="Share of training and validation labels made wrong. Default for digits: 0.4.")
    ] = None,
    train_size: Annotated[int | None, typer.Option(help="Training rows. Default for digits: 600.")] = None,
    corrupt: Annotated[
        str | None, typer.Option(help="Shift of the test inputs, NAME[:SEVERITY]: gaussian:0.3, blur, dropout ...")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Paired seeds for every row; default by budget.")] = None,
    budget: Annotated[str | None, typer.Option(help="Time to plan for: 90s, 2m, 1h. Default: 2m.")] = None,
    metric: Annotated[str | None, typer.Option(help="What ranks the rows. Default: accuracy, rmse or nll.")] = None,
    worth: Annotated[float | None, typer.Option(help="Smallest gain worth having, in units of the metric.")] = None,
    tune: Annotated[bool, typer.Option(help="Choose each row's strength on validation data.")] = True,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training rows.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows of a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of AdamW.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Worker processes. Default: one a core.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of runs and results. Default: .wellposed/<name>.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the results document on stdout.")] = False,
    strict: Annotated[bool, typer.Option(help="Exit 4 if nothing is decided, 5 if a row failed.")] = False,
    brief: Annotated[bool, typer.Option("--brief", help="Leave out the rows that a race dropped.")] = False,
) -> None:
    """Train with and without each technique on the same seeds: which help, how sure is that, what does each cost?"""
    from .workbench.compare import Request
    from .workbench.compare import compare as run

    request = Request(
        data=data, target=target, task=task, model=model, methods=methods, label_noise=label_noise,
        train_size=train_size, corrupt=corrupt, seeds=seeds, budget=budget, metric=metric, worth=worth, tune=tune,
        epochs=epochs, batch_size=batch_size, lr=lr, jobs=jobs, out=out,
        command=" ".join(["wellposed", *map(_quote, sys.argv[1:])]),
    )  # fmt: skip
    console = talk()
    document, folder = run(request, console)
    if json_:
        print(json.dumps(document, indent=1, sort_keys=True))
    else:
        from .workbench.table import print_table

        print_table(document, Console(highlight=False), all=not brief, out=folder)
    if strict:
        verdicts = {row["verdict"] for row in document["rows"]}
        if "failed" in verdicts:
            raise typer.Exit(5)
        if "undecided" in verdicts and not verdicts & {"better", "worth it"}:
            raise typer.Exit(4)


@app.command()
def methods(
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List every technique: family, slots, cost in passes, paper and defaults."""
    from .core.registry import FAMILIES
    from .workbench.errors import BadInput
    from .workbench.listing import listing

    if family is not None and family not in FAMILIES:
        raise BadInput(f"unknown family '{family}'; families are {', '.join(FAMILIES)}")
    rows = [r for r in listing() if family in (None, r["family"])]
    if json_:
        print(json.dumps(rows, indent=1, sort_keys=True))
        return
    from .workbench.listing import print_listing

    print_listing(rows, Console(highlight=False))


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Catalogue id or class name.")],
    json_: Annotated[bool, typer.Option("--json", help="Print the card as JSON.")] = False,
) -> None:
    """Print the card of a technique or paper."""
    from .workbench.listing import describe, print_card

    found = describe(name)
    if json_:
        print(json.dumps(found, indent=1, sort_keys=True))
    else:
        print_card(found, Console(highlight=False))


@app.command()
def reproduce(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Papers whose claims to run.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every paper that has a claim.")] = False,
    stale: Annotated[bool, typer.Option("--stale", help="Those whose code changed since, or never run.")] = False,
    family: Annotated[str | None, typer.Option(help="Those of this family.")] = None,
    seeds: Annotated[int | None, typer.Option(help="At most so many paired seeds, at least 5.")] = None,
    first_seed: Annotated[int | None, typer.Option(help="Fresh seeds from here on; evidence is left alone.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Worker processes. Default: one a core.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
    strict: Annotated[bool, typer.Option(help="Exit 4 if a claim is undecided.")] = False,
) -> None:
    """Run papers' claims again and compare with the evidence in the repository."""
    from .papers import reproduce as claims

    results = claims.reproduce(
        claims.chosen(ids or (), all=all_, stale=stale, family=family), seeds=seeds, first_seed=first_seed, jobs=jobs,
        on_result=(lambda r: None) if json_ else (lambda r: print(r, flush=True)),
    )  # fmt: skip
    if json_:
        print(json.dumps([r.document() for r in results], indent=1, sort_keys=True))
    if code := claims.exit_code(results, strict):
        raise typer.Exit(code)


def _quote(text: str) -> str:
    import shlex

    return shlex.quote(text)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with one of the codes above; bad input never shows a traceback."""
    from .core import RecipeError
    from .workbench.errors import BadInput
    from .workbench.protocol import ProtocolError

    code: Any = 0
    try:
        code = app(args=arguments, standalone_mode=False) or 0
    except (BadInput, RecipeError, ProtocolError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # somebody closed the pipe: nothing to say, and nobody to say it to
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
        else:
            print(f"error: {error.strerror or error}: {error.filename or 'while reading or writing'}", file=sys.stderr)
            code = 2
    except KeyboardInterrupt:
        code = 130
    except typer.Exit as stop:
        code = stop.exit_code
    except typer.Abort:
        code = 130
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's usage errors carry their own message
            raise
        print(f"error: {error.format_message()}", file=sys.stderr)
        code = 2
    sys.exit(code)


if __name__ == "__main__":
    main()
