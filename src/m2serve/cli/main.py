"""The command `m2`: parses, calls, prints. An M2Error ends as one sentence and an exit code."""

from __future__ import annotations

import os
import sys

import typer

from m2serve import __version__
from m2serve.cli import bench
from m2serve.cli.chat import chat
from m2serve.cli.doctor import doctor
from m2serve.cli.inspect import inspect
from m2serve.cli.plan import plan
from m2serve.cli.serve import serve
from m2serve.errors import M2Error

app = typer.Typer(
    help="Serve the MiniMax-M2 language models right and fast on the hardware you have.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(serve)
app.command()(chat)
app.command()(inspect)
app.command()(doctor)
app.command()(plan)
app.add_typer(bench.app, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"m2serve {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Options that stand before the verb."""


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except M2Error as error:
        if os.environ.get("M2_DEBUG") == "1":
            raise
        print(f"m2: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
