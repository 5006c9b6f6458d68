"""The command line: one module per command, and the table of them."""

from adapter_unlearn.cli.main import entry_point, main
from adapter_unlearn.cli.table import COMMANDS

__all__ = ["COMMANDS", "entry_point", "main"]
