"""How a model continues the prefixes of a sequence greedily: the input of the generation metrics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Continuations:
    """How the model goes on, greedily, after prefixes of one sequence of T tokens.

    Where the model's choice after a prefix is the text's own next token, it goes on as it does after the prefix that
    is longer by that token. So a continuation is the text up to the next miss, and only what follows misses is kept.

    Attributes:
        tokens: int, shape (T,): the text.
        tails: length of a prefix after which the model errs -> its continuation to length T, shape (T - length,).
        hits: bool, shape (T-1,): hits[t] says that the first choice after tokens 0..t is token t+1.
        prefix_tokens: tokens given before the rest must be recited; 1 or more.
        scored_from: index of the first token whose prediction counts; 1 or more.
    """

    tokens: np.ndarray
    tails: dict[int, np.ndarray]
    hits: np.ndarray
    prefix_tokens: int
    scored_from: int

    def after(self, start: int) -> np.ndarray:
        """The greedy continuation of the first `start` tokens to the length of the text, shape (T - start,)."""
        miss = next_miss(self.hits, start)
        return self.tokens[start:] if miss is None else np.concatenate((self.tokens[start:miss], self.tails[miss]))


def next_miss(hits: np.ndarray, start: int) -> int | None:
    """The shortest prefix of at least `start` tokens after which the first choice is not the text's next token."""
    wrong = ~hits[start - 1 :]
    return start + int(wrong.argmax()) if wrong.any() else None
