"""One figure of a table, as text: shared by all tables of reports, cards, comparisons and the terminal."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One figure as text.

    Attributes:
        text: the figure.
        change: its change against the base, where that is what counts.
        spread: the 95 % interval of the change, or of the figure itself where no change is shown.
    """

    text: str
    change: str = ""
    spread: str = ""
