"""Tables for the terminal: they fit into 80 columns and are readable as plain text."""

import io
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

WIDTH = 80


def new_table(first: str, columns: Sequence[str], **options: Any) -> Table:
    """An empty table: a wide column of labels, then columns of figures. Keywords are those of the first column."""
    padding = (0, 0, 0, 1) if len(columns) > 5 else (0, 1)  # many columns stand closer together
    table = Table(box=box.SIMPLE_HEAD, caption_justify="left", caption_style="dim", pad_edge=False, padding=padding)
    first_column: dict[str, Any] = {"ratio": 1, "overflow": "fold"} | options
    table.add_column(first, **first_column)
    for column in columns:
        table.add_column(Text(column, justify="right"), justify="right", no_wrap=True)
    return table


def render_text(renderable: RenderableType, width: int = WIDTH) -> str:
    """Render as plain text without colours and escape codes, for logs, pipes, notebooks and tests."""
    stream = io.StringIO()
    plain: dict[str, Any] = {"no_color": True, "force_terminal": False, "legacy_windows": False}
    # Without force_jupyter=False, rich would display a cell's output in a notebook instead of writing to the stream.
    Console(file=stream, width=width, force_jupyter=False, **plain).print(renderable)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"
