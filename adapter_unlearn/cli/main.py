"""Run a command, and print a user's error as one line. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import jsonargparse

from adapter_unlearn import signals
from adapter_unlearn.cli.command import PROGRAM
from adapter_unlearn.cli.table import COMMANDS
from adapter_unlearn.errors import OutputError, RecipeError, UserError, printable
from adapter_unlearn.recipe import home
from adapter_unlearn.version import __version__

LESS_MEMORY = "lower training.batch_size (or --batch_size), or set training.gradient_checkpointing to true"
DESCRIPTION = "Make a language model stop reciting given texts with a removable LoRA adapter, and measure the effect."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words of the command line; None takes those of the process.

    Returns:
        The exit code: 0; 1 if runs of a comparison failed; 2 after a user's error; 130 or 143 after SIGINT or SIGTERM;
        141, as a shell reports SIGPIPE, if nobody reads the output any more.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [_with_home(word) for word in words if word != "--debug"]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that can't show a character must not lose the result
    try:
        with signals.handled():
            code = _dispatch(words, debug)
            if sys.stdout is not None:  # as after >&-
                sys.stdout.flush()
            return code
    except signals.Interrupted as stop:
        _print_error(_with_notes(str(stop), stop))
        return 128 + stop.number
    except BrokenPipeError:
        _close_output()
        return 141
    except UserError as error:
        if debug:
            raise
        _print_error(_with_notes(str(error), error))
        return 2
    except Exception as error:
        line = None if debug else _line(error)
        if line is None:
            raise
        _print_error(_with_notes(line, error))
        return 2


def _with_notes(line: str, error: BaseException) -> str:
    """A line about an error, and what was noted about it, as one line."""
    return " ".join("; ".join([line, *getattr(error, "__notes__", [])]).split())


def entry_point() -> None:
    """The console script."""
    sys.exit(main())


def _line(error: Exception) -> str | None:
    """One line about an exception that any library may raise on any machine; None for a bug."""
    if type(error).__name__ == "OutOfMemoryError":
        return f"out of memory on the accelerator; {LESS_MEMORY}"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # torch has no type for the host
        return f"out of memory; {LESS_MEMORY}"
    if isinstance(error, OSError):
        from adapter_unlearn.runs.folder import FULL

        if error.errno in FULL:
            return f"{error.filename or 'a file'}: can't be written ({error.strerror}); free the disk"
    return None


def _with_home(word: str) -> str:
    """A word of the command line with `~` expanded at its start or after `=`, as a shell does it only for the first."""
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{flag}{equals}{home.expanded(value)}"


def _close_output() -> None:
    """Send what is still in the buffer of stdout nowhere, so that Python does not fail on it when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    _check_working_directory()
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


def _check_working_directory() -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise OutputError("the working directory does not exist any more; change to one that does") from error


def _usage() -> str:
    commands = "\n".join(f"  {name:10} {command.help}" for name, command in COMMANDS.items())
    return (
        f"usage: {PROGRAM} COMMAND [flags]\n\n{DESCRIPTION}\n\ncommands:\n{commands}\n\n"
        f"`{PROGRAM} COMMAND --help` lists a command's flags; --debug shows tracebacks; --version the version."
    )


class _PrintableFormatter(logging.Formatter):
    """Messages hold ids and names from files of strangers."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable(super().formatMessage(record))


def _set_up_logging(debug: bool) -> None:
    """Show this package's messages on stderr, and those of libraries only with --debug."""
    handler = logging.StreamHandler()
    handler.setFormatter(_PrintableFormatter(f"{PROGRAM}: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
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
