"""Run a command, and print a user's error as one line. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence

import jsonargparse

from adapter_unlearn import signals
from adapter_unlearn.cli.command import PROGRAM
from adapter_unlearn.cli.table import COMMANDS
from adapter_unlearn.errors import RecipeError, UserError
from adapter_unlearn.version import __version__

DESCRIPTION = "Make a language model stop reciting given texts with a removable LoRA adapter, and measure the effect."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words of the command line; None takes those of the process.

    Returns:
        The exit code: 0; 1 if runs of a comparison failed; 2 after a user's error; 130 or 143 after SIGINT or SIGTERM.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        with signals.handled():
            return _dispatch(words, debug)
    except signals.Interrupted as stop:
        _print_error(_line(stop))
        return 128 + stop.number
    except UserError as error:
        if debug:
            raise
        _print_error(_line(error))
        return 2
    except Exception as error:
        if debug or type(error).__name__ != "OutOfMemoryError":
            raise
        fix = "lower training.batch_size (or --batch_size), or set training.gradient_checkpointing to true"
        _print_error(f"out of memory on the accelerator; {'; '.join([fix, *_notes(error)])}")
        return 2


def _line(error: BaseException) -> str:
    """An error with its notes, as one line."""
    return " ".join("; ".join([str(error), *_notes(error)]).split())


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def entry_point() -> None:
    """The console script."""
    sys.exit(main())


def _print_error(message: str) -> None:
    """Print one line on stderr, only on the first process of a launch: the others have the same error."""
    if os.environ.get("RANK", "0") == "0":
        print(f"{PROGRAM}: error: {message}", file=sys.stderr)


def _dispatch(words: list[str], debug: bool) -> int:
    if words[:1] == ["--version"]:
        print(__version__)
        return 0
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        raise RecipeError(f"unknown command {name!r}; choose from {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    parser = jsonargparse.ArgumentParser(
        prog=f"{PROGRAM} {name}", description=command.help, exit_on_error=False, add_help=True
    )
    command.add_arguments(parser)
    if rest and rest[0] in ("-h", "--help"):
        parser.print_help()
        return 0
    _set_up_logging(debug)
    return command.run(parser, rest) or 0


def _usage() -> str:
    commands = "\n".join(f"  {name:10} {command.help}" for name, command in COMMANDS.items())
    return (
        f"usage: {PROGRAM} COMMAND [flags]\n\n{DESCRIPTION}\n\ncommands:\n{commands}\n\n"
        f"`{PROGRAM} COMMAND --help` lists a command's flags; --debug shows tracebacks; --version the version."
    )


def _set_up_logging(debug: bool) -> None:
    """Show this package's messages on stderr, and those of libraries only with --debug."""
    logging.basicConfig(format=f"{PROGRAM}: %(message)s", level=logging.WARNING)
    first = os.environ.get("RANK", "0") == "0"
    level = logging.DEBUG if debug else logging.INFO
    logging.getLogger("adapter_unlearn").setLevel(level if first else logging.ERROR)
    if debug:
        return
    warnings.simplefilter("ignore")
    import datasets
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
