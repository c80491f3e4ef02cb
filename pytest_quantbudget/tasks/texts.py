"""Texts whose perplexity is measured."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pytest_quantbudget.core import files

MAX_BYTES = 200_000_000  # of the file


def read_text(path: Path, state: str | None = None) -> str:
    """A file's text, its line ends as they are, a byte-order mark left out. Raises OSError and ValueError."""
    try:
        data = files.read(path, MAX_BYTES)
        if state is not None and f"sha256:{hashlib.sha256(data).hexdigest()}" != state:
            raise ValueError("was changed while the run was going on")
        return data.decode("utf-8-sig")
    except files.TooLarge as error:
        raise ValueError(f"{path.name} is {error}, and at most {MAX_BYTES:,} are read") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name}: byte {error.start:,} is not UTF-8 text") from None
    except OSError as error:
        raise OSError(error.errno, f"{path.name}: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{path.name} {error}") from None
