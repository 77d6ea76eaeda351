"""The command line: data on stdout, talk on stderr.

Exit codes: 0 done, 1 our error, 2 usage or bad input, 3 a claim failed, 4 undecided and 5 some rows failed (both only
under ``--strict``), 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
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
        str | None,
        typer.Option(
            help="Catalogue ids, class names, families or 'all', separated by commas; settings after a colon: "
            "elr,sam:rho=0.2,smoothness. Default: those against overfitting, wrong or few labels, if the budget "
            "holds them."
        ),
    ] = None,
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
def papers(
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
    status: Annotated[
        str | None, typer.Option(help="Only planned, built, verified, null, contradicted or stale ones.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print a JSON list, evidence included.")] = False,
) -> None:
    """List every paper of the catalogue and how far it is."""
    from .workbench.listing import paper_listing, print_papers

    rows = paper_listing(family, status)
    if json_:
        print(json.dumps(rows, indent=1, sort_keys=True))
    else:
        print_papers(rows, Console(highlight=False))


@app.command()
def search(
    text: Annotated[list[str], typer.Argument(help="What goes wrong, or words of a title, mechanism or card.")],
    limit: Annotated[int, typer.Option(help="At most so many hits.")] = 10,
    json_: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Find papers and techniques: "my labels are wrong", "prune to 2:4", "loss of plasticity"."""
    from .workbench.listing import hint, hits, print_hits

    asked = " ".join(text)
    found = hits(asked, limit)
    if json_:
        print(json.dumps(found, indent=1, sort_keys=True))
    else:
        print_hits(found, Console(highlight=False))
    better = hint(asked, found)
    if not found:
        print(f"nothing found; {better}", file=sys.stderr)
    elif better:
        print(better, file=sys.stderr)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Catalogue id, or the name of a class or function.")],
    json_: Annotated[bool, typer.Option("--json", help="Print paper, cards and evidence as JSON.")] = False,
) -> None:
    """Print a paper or technique: what it does, its cards, its evidence."""
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
    timeout: Annotated[str, typer.Option(help="What one claim may take: 90s, 10m, 1h.")] = "10m",
    within: Annotated[
        str | None, typer.Option(help="Time for all: the shortest claims first, and those left out are named.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
    strict: Annotated[bool, typer.Option(help="Exit 4 if a claim is undecided.")] = False,
) -> None:
    """Run papers' claims again, each also with its technique damaged, and compare with the evidence that is there."""
    from .papers import reproduce as claims
    from .papers.progress import Progress
    from .workbench.compare import seconds_of

    chosen = claims.chosen(ids or (), all=all_, stale=stale, family=family)
    results: list[claims.Result] = []
    progress: Progress | None = None
    with ExitStack() as stack:

        def begin(todo: Sequence[str]) -> None:
            nonlocal progress
            if results:
                talk().print(f"{len(results)} claims were done before the interruption")
            expected = {id: claims.expected_seconds(id) for id in todo}
            progress = stack.enter_context(Progress(talk(), expected, claims.jobs_for(len(todo), jobs)))

        def told(result: claims.Result) -> None:
            results.append(result)
            if progress:
                progress.ended(result.id)
            if not json_:
                print(result, flush=True)

        try:
            found = claims.reproduce(
                chosen, seeds=seeds, first_seed=first_seed, jobs=jobs,
                timeout=seconds_of(timeout, "--timeout"), within=seconds_of(within, "--within") if within else None,
                watch=claims.Watch(begin, lambda id: progress.started(id) if progress else None, told),
            )  # fmt: skip
        except KeyboardInterrupt:
            stack.close()
            command = " ".join(["wellposed", *map(_quote, sys.argv[1:])])
            talk().print(f"interrupted: {len(results)} of {len(chosen)} claims are done; go on with: {command}")
            raise typer.Exit(130) from None
    if json_:
        print(json.dumps([r.document() for r in found], indent=1, sort_keys=True))
    elif contradicted := [r.id for r in found if r.contradicted]:
        print(f"contradicted here as before: {', '.join(contradicted)}")
    if left := sorted(set(chosen) - {r.id for r in found}):
        talk().print(f"left for lack of time: {', '.join(left)}")
    if code := claims.exit_code(found, strict):
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
