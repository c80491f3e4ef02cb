"""A method's `engine_options` as flags of vLLM's server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def flags(options: Mapping[str, Any]) -> list[str]:
    """The flags that options stand for.

    `max_model_len: 8192` is `--max-model-len=8192`; `true` and `false` are `--flag` and `--no-flag`; a mapping is JSON,
    and so is one within a list, which is given value by value. Raises ValueError for a value that is none.
    """
    return [word for name, value in options.items() for word in _words(name, value)]


def _words(name: str, value: Any) -> Iterator[str]:
    flag = name.replace("_", "-")
    if value is None:
        raise ValueError(f"engine_options: {name} has no value; leave it out for vLLM's default")
    if isinstance(value, bool):
        yield f"--{flag}" if value else f"--no-{flag}"
    elif isinstance(value, list | tuple):
        yield f"--{flag}"
        for each in value:
            if isinstance(each, str) and each.startswith("-"):
                raise ValueError(f"engine_options: {name} holds {each!r}, which vLLM would take for another flag")
            yield _text(each)
    else:
        yield f"--{flag}={_text(value)}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
