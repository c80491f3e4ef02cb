"""Turns hub ids into local directories and commits, and hashes the files of a directory."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import threading
from pathlib import Path

from pytest_quantbudget.core import codec, files
from pytest_quantbudget.core.request import Trust
from pytest_quantbudget.models import checkpoint

WITHOUT_WEIGHTS = ("*.json", "*.model", "*.txt", "*.jinja")
COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_SECONDS = 20


def patterns(trust: Trust, *, weights: bool = True) -> list[str]:
    """Patterns of the files that make up a model; what the command line does not trust is not even downloaded."""
    of_weights = ["*.safetensors", *["*.bin", "*.pt", "*.pth"] * trust.pickles]
    return [*WITHOUT_WEIGHTS, *["*.py"] * trust.remote_code, *of_weights * weights]


def fetch(name: str, revision: str | None, trust: Trust, *, weights: bool = True) -> tuple[Path, str]:
    """The local directory of a model, downloaded from the hub where needed, and its revision.

    Without `weights`, what a tokenizer needs is enough. The revision is the commit of a hub model, and a hash over the
    files of a directory. Raises ConnectionError where the hub does not answer and the model has not been downloaded
    before.
    """
    folder = Path(name)
    if folder.is_absolute():
        return folder, revision or content_hash(folder)
    return _downloaded(name, revision, patterns(trust, weights=weights))


def fetched(name: str, revision: str | None, trust: Trust, *, weights: bool = True) -> tuple[Path, str]:
    """`fetch`, checked for what may be loaded besides weights; a directory before it is hashed."""
    if Path(name).is_absolute():
        checkpoint.check(Path(name), trust, weights=False)
        return fetch(name, revision, trust)
    found, commit = fetch(name, revision, trust, weights=weights)
    checkpoint.check(found, trust, weights=False)
    return found, commit


def _downloaded(name: str, revision: str | None, wanted: list[str]) -> tuple[Path, str]:
    """The local directory of a hub model's files of these patterns, and its commit. Raises ConnectionError."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    # Asked first, because a download would try again for many minutes where the hub does not answer.
    _, silent = _asked_of_the_hub(name, revision, "model")
    try:
        path = snapshot_download(name, revision=revision, allow_patterns=wanted, local_files_only=bool(silent))
    except LocalEntryNotFoundError as error:
        where = f"the hub ({constants.ENDPOINT}) {silent or 'broke off: ' + str(error).splitlines()[0]}"
        raise ConnectionError(f"{name} is not on this machine, and {where}") from error
    return Path(path), Path(path).name


def fetch_gguf(name: str, revision: str | None, file_type: str) -> Path:
    """The GGUF file that a budget names, or the directory that holds it; of one that is split, the first part.

    Of a hub model's files, those are downloaded whose names hold the file type, such as Q4_K_M. Raises ValueError where
    not one model does, ConnectionError where the hub does not answer and the files have not been downloaded before.
    """
    if Path(name).is_absolute():
        return Path(name)
    # A file is chosen by the kind of the method, and the kind of any file chooses none.
    if not file_type:
        raise ValueError(f"which file of {name} is meant, a kind such as gguf-q4_k_m says; gguf does not")
    # BF16 holds F16, and is twice the download.
    ends = "[!A-Za-z0-9_]"
    wanted = [
        f"{before}{written}{after}.gguf"
        for before in ("", f"*{ends}")
        for written in (file_type.upper(), file_type.lower())
        for after in ("", f"{ends}*")
    ]
    folder, _ = _downloaded(name, revision, wanted)
    named = re.compile(rf"(^|[^A-Z0-9_]){file_type.upper()}($|[^A-Z0-9_])")
    paths = sorted(path for path in folder.rglob("*.gguf") if named.search(path.stem.upper()))
    firsts = [path for path in paths if not re.search(r"-(?!00001)\d{5}-of-\d{5}$", path.stem)]
    if len(firsts) != 1:
        held = f"several: {', '.join(path.name for path in firsts)}" if firsts else "none"
        raise ValueError(f"of {name}'s files one has to hold {file_type.upper()} in its name, and there are {held}")
    return firsts[0]


def revision_of(name: str, revision: str | None, memo: Path | None, *, kind: str = "model") -> str:
    """The revision that `fetch` will give, without downloading: from the hub, or from its cache where that is silent.

    Raises OSError where it cannot be found out.
    """
    folder = Path(name)
    if folder.is_absolute():
        return _remembered_hash(folder, memo) if memo is not None else content_hash(folder)
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    return _asked_of_the_hub(name, revision, kind)[0] or snapshot(name, revision, kind).name


@functools.cache
def _asked_of_the_hub(name: str, revision: str | None, kind: str) -> tuple[str | None, str | None]:
    """The commit, or None where the hub gives none; and why the hub did not answer, None where it did.

    Asked once in a process, so that all methods of a run get the same one, and a hub that stalls is waited for once.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return None, "is not asked: HF_HUB_OFFLINE is set"
    answers: list[tuple[str | None, str | None]] = []

    def ask() -> None:
        try:
            answers.append(
                (HfApi().repo_info(name, revision=revision, repo_type=kind, timeout=HUB_SECONDS / 2).sha, None)
            )
        except (HfHubHTTPError, ValueError):
            # There is no such model, or we may not have it: the download fails too, and says why.
            answers.append((None, None))
        except Exception as error:  # noqa: BLE001  # the exceptions differ with the version's HTTP library
            answers.append((None, f"cannot be reached: {type(error).__name__}: {error}"))

    # In a thread, because the library's own time limits start again with every byte that arrives.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_SECONDS)
    return answers[0] if answers else (None, f"has not answered within {HUB_SECONDS} s")


def snapshot(name: str, revision: str | None, kind: str = "model") -> Path:
    """The folder of a revision in the hub's cache, named after its commit. Raises OSError where none is known."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)
    if revision is None or not COMMIT.fullmatch(revision):
        revision = (folder / "refs" / (revision or "main")).read_text(encoding="utf-8").strip()
    return folder / "snapshots" / revision


def content_hash(folder: Path) -> str:
    """`sha256:` and a hash over names and contents of the files that make up a model; of a GGUF file its own."""
    digest = hashlib.sha256()
    for path in _files(folder):
        digest.update(path.name.encode() + b"\0")
        digest.update(files.digest(path))
    return "sha256:" + digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    known = [*patterns(Trust(remote_code=True, pickles=True)), "*.gguf"]
    return sorted({path for pattern in known for path in folder.glob(pattern) if path.is_file()})


def _remembered_hash(folder: Path, memo: Path) -> str:
    """`content_hash`, read from `memo` where the files have kept their inodes, sizes and times of change."""
    place = _memo_of(folder, memo)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(place.read_text(encoding="utf-8"))["hash"])
    content = content_hash(folder)
    with contextlib.suppress(OSError):
        memo.mkdir(parents=True, exist_ok=True)
        codec.write_json(place, {"folder": str(folder), "hash": content})
    return content


def is_hashed(folder: Path, memo: Path) -> bool:
    """Whether `memo` has the hash of a folder as it is now, so that it need not be read."""
    try:
        return _memo_of(folder, memo).is_file()
    except OSError:
        return False


def _memo_of(folder: Path, memo: Path) -> Path:
    """The file that keeps the hash of a folder whose files have these inodes, sizes and times of change."""
    state = [
        [path.name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        for path in _files(folder)
        for stat in [path.stat()]
    ]
    return memo / f"{codec.key_of([str(folder), state])}.json"
