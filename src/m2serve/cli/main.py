"""The command `m2`: parses, calls, prints. An M2Error ends as one sentence and an exit code.

A verb's module is imported when the verb is called: `m2 plan` does not pay for a web server.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib import import_module

import typer

from m2serve import __version__
from m2serve.errors import M2Error

# Verb by verb the module that holds it, a function of that name or an `app` of verbs.
VERBS = ("serve", "chat", "inspect", "doctor", "plan", "bench")


def make_app(verbs: Iterable[str] = VERBS) -> typer.Typer:
    """The command with these verbs alone."""
    made = typer.Typer(
        help="Serve the MiniMax-M2 language models right and fast on the hardware you have.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    made.callback()(options)
    for verb in verbs:
        module = import_module(f"m2serve.cli.{verb}")
        if hasattr(module, "app"):
            made.add_typer(module.app, name=verb)
        else:
            made.command()(getattr(module, verb))
    return made


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"m2serve {__version__}")
        raise typer.Exit


def options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Options that stand before the verb."""


def main() -> None:
    """Entry point of the console script."""
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        make_app((verb,) if verb in VERBS else VERBS)()
    except M2Error as error:
        if os.environ.get("M2_DEBUG") == "1":
            raise
        print(f"m2: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def __getattr__(name: str) -> typer.Typer:
    """`app`: every verb, for whoever imports it."""
    if name == "app":
        return make_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    main()
