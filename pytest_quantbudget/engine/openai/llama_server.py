"""Runs llama.cpp's own server from the prebuilt package xllamacpp, which has no command for it.

    python llama_server.py --model FILE.gguf --port N [--NAME VALUE ...]

It needs nothing of this project: in a budget's `command`, `{llama_server}` is its path, and any interpreter that has
xllamacpp runs it.
`NAME` is a field of xllamacpp's `CommonParams`, with dots for those inside: `--n_ctx 8192`, `--n_parallel 8`,
`--cpuparams.n_threads 4`, `--n_gpu_layers 99`. `--model` is the file of the model. For speculative decoding
`--speculative.types draft-simple`, and `--speculative.draft.mparams.path DRAFT.gguf`.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import Any


def settings(words: Sequence[str]) -> dict[str, str]:
    """The values by name. Raises ValueError for words that are not `--NAME VALUE` pairs."""
    names, values = words[::2], words[1::2]
    for name in names:
        if not name.startswith("--") or len(name) < 3:
            raise ValueError(f"{name!r} is not an option such as --n_ctx 8192")
    if len(names) != len(values):
        raise ValueError(f"{names[-1]} has no value")
    return {name[2:]: value for name, value in zip(names, values, strict=True)}


def apply(parameters: Any, name: str, text: str) -> None:
    """Set a field to the value that a text says, of the type that the field has. Raises ValueError."""
    *outer, last = name.split(".")
    holder = parameters
    for part in outer:
        holder = getattr(holder, part, None)
    if not hasattr(holder, last):
        raise ValueError(f"xllamacpp's CommonParams has no {name!r}")
    current = getattr(holder, last)
    value: Any = text
    if isinstance(current, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(f"--{name} takes true or false, not {text!r}")
        value = text.lower() == "true"
    elif isinstance(current, int | float):
        try:
            value = type(current)(text)
        except ValueError:
            raise ValueError(f"--{name} takes a number, not {text!r}") from None
    elif isinstance(current, list) and current and hasattr(type(current[0]), "__members__"):
        value = [_member(type(current[0]), name, word.strip()) for word in text.split(",")]
    elif not isinstance(current, str):
        raise ValueError(f"--{name} takes a {type(current).__name__}, which no command line can give")
    setattr(holder, last, value)


def _member(kind: Any, name: str, word: str) -> Any:
    """The value of an enumeration whose name ends so: `draft-simple` is COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE."""
    ending = word.upper().replace("-", "_")
    common = f"{kind.__name__.upper()}_"
    found = next((value for member, value in kind.__members__.items() if member == f"{common}{ending}"), None)
    if found is None:
        known = ", ".join(member.removeprefix(common).lower().replace("_", "-") for member in kind.__members__)
        raise ValueError(f"--{name} takes {known}, not {word!r}")
    return found


def main(words: Sequence[str]) -> None:
    """Serve until a signal ends it."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.hostnames = ["127.0.0.1"]
    parameters.endpoint_metrics = True
    for name, value in settings(words).items():
        apply(parameters, "model.path" if name == "model" else name, value)
    server = xllamacpp.Server(parameters)
    sys.stdout.write(f"listening on {server.listening_address}\n")
    sys.stdout.flush()
    signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, RuntimeError) as error:
        sys.exit(f"llama_server: {error}")
