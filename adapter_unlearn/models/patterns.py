"""Match the patterns in an adapter's config in bounded time.

PEFT passes them to `re`, which can take hours for a pattern of twenty characters. Here they are matched by `regex`,
whose matches can be given a time limit; PEFT then gets the names of the modules that matched.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import regex

from adapter_unlearn.errors import ModelError

SECONDS = 2.0
"""Time for matching one pattern with all names."""
LONGEST = 2000
"""Characters in a pattern."""
_LITERAL = re.compile(r"\^?(?:[\w.-]|\\[^\w\s])*\$?")


def is_literal(pattern: str) -> bool:
    """Whether a pattern is a plain module name, escaped or not: `re` matches it in linear time."""
    return len(pattern) <= LONGEST and _LITERAL.fullmatch(pattern) is not None


def matching(pattern: str, names: Iterable[str], place: str) -> list[str]:
    """The names that a pattern matches as a whole.

    Args:
        pattern: a regular expression.
        names: of modules.
        place: file and key, for the message.

    Raises:
        ModelError: the pattern is no regular expression, is too long, or takes too long.
    """
    deadline = time.monotonic() + SECONDS
    try:
        if len(pattern) > LONGEST:
            raise ValueError(f"{len(pattern)} characters")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about syntax with another meaning in a later version
            re.compile(pattern)  # refuses what only `regex` knows, such as recursion
            compiled = regex.compile(pattern)
        return [name for name in names if compiled.fullmatch(name, timeout=max(deadline - time.monotonic(), 1e-3))]
    except TimeoutError as error:
        raise ModelError(f"{place}: this pattern takes too long to match; give the modules' names") from error
    except (re.error, regex.error, ValueError, RecursionError, OverflowError, MemoryError) as error:
        raise ModelError(f"{place}: is no regular expression ({error!s:.100}); give a valid one") from error


def by_name(patterns: Mapping[str, Any], names: Iterable[str], place: str) -> dict[str, Any]:
    """Name -> the value of the first pattern that matches the name or its end, as in PEFT's get_pattern_key."""
    values: dict[str, Any] = {}
    left = list(names)
    for pattern, value in patterns.items():
        where = f"{place}, {pattern[:60]!r}"
        values |= dict.fromkeys(matching(rf"(.*\.)?({pattern})", left, where), value)
        left = [name for name in left if name not in values]
    return {name: patterns[name] for name in left if name in patterns} | values
