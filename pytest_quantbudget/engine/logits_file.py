"""The file of a baseline's logits, with which methods are compared: is it whole, and is it the right one?

It is a safetensors file with one tensor, so that all behind its header is what the checksum is over. Reading and
checking it here needs no torch.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from pytest_quantbudget.core import codec, files

MAX_BYTES = 512_000_000  # of logits in one file
MISSING = "it is missing"
MAX_HEADER = 10_000_000  # of token ids, and the tensor's shape and type


def fault(path: Path) -> str | None:
    """Why a file of logits cannot be used, or None where it can."""
    try:
        check(path)
    except FileNotFoundError:
        return MISSING
    except (OSError, Unusable) as error:
        return str(error)
    return None


class Unusable(ValueError):
    """A file of logits that is damaged, or belongs to another measurement; the message says why."""


def check(path: Path) -> Any:
    """The token ids in a file's header: a list of prompts, each with its answer.

    Raises FileNotFoundError where there is none, Unusable where it is not whole or not what its name says, OSError
    where it cannot be read. The ids are JSON values of any form.
    """
    with files.opened(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_BYTES + MAX_HEADER + 8:
            raise Unusable("it is too large")
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise Unusable("it is no safetensors file")
        try:
            header: Any = codec.read_json(file.read(length))
            metadata = header["__metadata__"]
            checksum, against = metadata["sha256"], metadata["against"]
            ids = codec.read_json(metadata["ids"].encode())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Unusable("its header cannot be read") from None
        if against != path.stem:
            raise Unusable("it belongs to another measurement")
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        if digest.hexdigest() != checksum:
            raise Unusable("its checksum is wrong")
    return ids
