"""Tokenizers of two kinds."""

from __future__ import annotations

import pytest
from data_helpers import build


@pytest.fixture(scope="module")
def plain():
    """As GPT-2's: no bos unasked, and no pad token."""
    return build(bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def marking():
    """As Llama's, with a trailing eos besides: <s> text </s>."""
    return build("<s> $A </s>", bos_token="<s>", eos_token="</s>", pad_token="</s>")
