"""The command group, and how errors are printed.

This module and the command files import nothing heavy at the top: `knownot --help` does not wait
for torch.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from knownot import __version__
from knownot.cli import (
    audit,
    benchmark,
    demo,
    evaluate,
    export,
    info,
    predict,
    score,
    serve,
    train,
    triage,
)
from knownot.cli.allocator import keep_freed_memory
from knownot.errors import KnownotError
from knownot.interrupt import sigterm_as_ctrl_c

# Exit codes, also named in the help: 1 an error with its remedy, 2 a wrong command line (Typer),
# 130 interrupted.
_ERROR, _INTERRUPTED = 1, 130


class _Group(TyperGroup):
    """Says what is said of every command: that it was interrupted, or given an empty word."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse an empty word, which as a path would be the folder that one is in."""
        if "" in args:
            ctx.fail("an empty word ('') among the arguments; is a variable of the shell not set?")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _say_interrupted()
            raise typer.Exit(_INTERRUPTED) from None


app = typer.Typer(
    name="knownot",
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 an error that is explained, 2 a wrong command line, 130 interrupted.",
)
app.command()(demo.demo)
app.command()(train.train)
app.command()(evaluate.evaluate)
app.command()(audit.audit)
app.command()(predict.predict)
app.command()(export.export)
app.command()(serve.serve)
app.command()(triage.triage)
app.command()(score.score)
app.command()(benchmark.benchmark)
app.command()(info.info)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"knownot {__version__}")
        raise typer.Exit


@app.callback()
def group(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Image classifiers and object detectors that know when they don't know.

    Start with [bold]knownot demo[/], then [bold]knownot train photos/ -o model/[/].
    """


def main() -> None:
    """Entry point: run a command; an expected error is one sentence, not a traceback."""
    keep_freed_memory()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # Names of files need not be UTF-8, and are printed as they are.
        sys.stdout.reconfigure(errors="surrogateescape")
    try:
        with sigterm_as_ctrl_c():
            try:
                app()
            finally:
                sys.stdout.flush()
    except KnownotError as error:
        from knownot.cli.console import plain, stderr

        stderr().print(f"[bold red]error:[/] {plain(error)}", soft_wrap=True)
        sys.exit(_ERROR)
    except KeyboardInterrupt:  # before the command began
        _say_interrupted()
        sys.exit(_INTERRUPTED)
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        from knownot.cli.console import stderr

        stderr().print(f"[bold red]error:[/] the output cannot be written ({error.strerror})")
        # What is left of it would be tried once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_ERROR)


def _say_interrupted() -> None:
    from knownot.cli.console import stderr

    stderr().print("\ninterrupted")
