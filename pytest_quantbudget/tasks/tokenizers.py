"""Whether two tokenizers make the same tokens: a hash of what each knows and does."""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Any

# Where tokenizers differ: blanks, digits, case, accents, other scripts, code, and what is more than one code point.
PROBE = (
    "The quick brown fox doesn't jump over 12,345.67 lazy dogs.\n\n  Was kostet 1 Äpfel? \t$18.00 = 9 * 2\n"
    "e\u0301tude \u00e9tude \u4e2d\u6587\u6a21\u578b \u0440\u0443\u0441\u0441\u043a\u0438\u0439 "
    "def f(x):\n    return x ** 2  # \U0001f600\U0001f44d\U0001f3fd <|end|> </s>"
)


@functools.lru_cache(maxsize=4)
def state(tokenizer: Any) -> str:
    """A short hash of a tokenizer's vocabulary, and of how it splits a text that tells tokenizers apart.

    It does not depend on how a library writes the tokenizer down, which changes between versions.
    """
    known = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
    ids = [int(token) for token in tokenizer(PROBE)["input_ids"]]
    text = json.dumps([sorted(known.items()), ids])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
