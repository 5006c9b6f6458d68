"""The greedy continuations of the prefixes of a sequence: the input of generated metrics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Continuations:
    """Greedy continuations of prefixes of one sequence of T tokens.

    Where the model's first choice after a prefix is the next token of the text, the continuation is that of the prefix
    that is one token longer. So a continuation is the text up to the next miss, followed by the continuation from that
    miss, and only continuations from misses are stored.

    Attributes:
        tokens: int, shape (T,): the text.
        tails: length of a prefix followed by a miss -> its continuation to length T, shape (T - length,).
        hits: bool, shape (T - 1,): whether the first choice after tokens 0..t is token t+1.
        prefix_tokens: length of the sequence's prefix; 1 or more.
        scored_from: index of the first token whose prediction counts; 1 or more.
    """

    tokens: np.ndarray
    tails: dict[int, np.ndarray]
    hits: np.ndarray
    prefix_tokens: int
    scored_from: int

    def after(self, start: int) -> np.ndarray:
        """The greedy continuation of the first `start` tokens up to the length of the text, shape (T - start,)."""
        miss = next_miss(self.hits, start)
        return self.tokens[start:] if miss is None else np.concatenate((self.tokens[start:miss], self.tails[miss]))


def next_miss(hits: np.ndarray, start: int) -> int | None:
    """Length of the shortest prefix of at least `start` tokens that is followed by a miss; None if there is none."""
    misses = ~hits[start - 1 :]
    return start + int(misses.argmax()) if misses.any() else None
