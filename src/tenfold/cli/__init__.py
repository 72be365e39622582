"""The command line: ``tenfold init``, ``doctor``, ``up``, ``measure``, ``verify`` and those of patterns."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer
from typer.exceptions import TyperException

import tenfold
from tenfold.errors import TenfoldError

__all__ = ["main"]

# Short help and an example. Each command is a module with a function of that name; its docstring is the help.
COMMANDS = {
    "init": ("Write tenfold.toml and a first locustfile.", "tenfold init --app shop.app:app"),
    "doctor": ("List the tools and servers that are installed or missing.", "tenfold doctor --json | jq .ok"),
    "up": ("Start the whole stack on this machine.", "tenfold up shop.app:app"),
    "top": ("Show what the running service does now.", "tenfold top --once --json"),
    "measure": (
        "Measure the capacity and find what limits it.",
        "tenfold measure --p95-ms 150 --html report.html",
    ),
    "cache": ("Show, invalidate or explain a service's query cache.", "tenfold cache invalidate products"),
    "edge": ("Explain a cache policy, attack caches, purge tags.", "tenfold edge explain /api/products"),
    "render": ("Write configuration files for monitoring.", "tenfold render monitoring -o deploy"),
    "shards": ("Create, check, plan and migrate shards.", "tenfold shards plan shard5 --by rows"),
    "tasks": ("Run workers, watch queues, run failed tasks again.", "tenfold tasks status shop.tasks:celery"),
    "autoscale": ("Check scalers, render manifests.", "tenfold autoscale lint hpa.yaml"),
    "simulate": (
        "Send request rates through a scaler.",
        "tenfold simulate hpa.yaml --trace daily --peak 5000 --capacity 120",
    ),
    "size": ("Say what so many users need.", "tenfold size --users 1000000 --capacity 120"),
    "verify": ("Run the checks of every pattern against the stack.", "tenfold verify --only measure"),
}


def _application(asked: str) -> typer.Typer:
    """Register all commands, and load the code of the ``asked`` one only: ``--help`` has to be quick."""
    app = typer.Typer(
        name="tenfold",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        invoke_without_command=True,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
        epilog="Example: tenfold init && tenfold doctor && tenfold measure",
        callback=_tenfold,
    )
    for name, (short_help, example) in COMMANDS.items():
        function = getattr(import_module(f"tenfold.cli.{name}"), name) if name == asked else _not_loaded
        app.command(name, short_help=short_help, epilog=f"Example: {example}")(function)
    return app


def _tenfold(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
    with_traceback: Annotated[
        bool, typer.Option("--traceback", help="Show an error's traceback; so does TENFOLD_TRACEBACK=1.")
    ] = False,
) -> None:
    """Take a Python web service from 100 users to a million, and prove every step."""
    if version:
        typer.echo(f"tenfold {tenfold.__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _not_loaded() -> None:
    """Placeholder in the list of commands for one whose code is not loaded."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 means yes, 1 no (a check failed, an objective does not hold), 2 that there is no result or that usage or
    settings are wrong, 130 Ctrl-C. An error is one sentence on stderr.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without ✔ must not raise an error
            stream.reconfigure(errors="replace")
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = words[: words.index("--")] if "--" in words else words
    with_traceback = "--traceback" in options or os.environ.get("TENFOLD_TRACEBACK") == "1"
    if "--traceback" in options:  # accepted anywhere, not only before the command
        words.remove("--traceback")
    asked = next((word for word in words if not word.startswith("-")), "")
    try:
        command = typer.main.get_command(_application(asked))
        result = command(words, prog_name="tenfold", standalone_mode=False)
    except TenfoldError as error:
        return _report_error(str(error), with_traceback)
    except TyperException as error:
        message = " ".join(error.format_message().split()).rstrip(".")
        return _report_error(f"{message[:1].lower()}{message[1:]}; see --help", with_traceback)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception:
        traceback.print_exc()
        return _report_error("this is a bug in tenfold, please report it with the lines above", False)
    return result if isinstance(result, int) else 0


def _report_error(sentence: str, with_traceback: bool) -> int:
    if with_traceback:
        traceback.print_exc()
    print(f"tenfold: {sentence}", file=sys.stderr)
    return 2
