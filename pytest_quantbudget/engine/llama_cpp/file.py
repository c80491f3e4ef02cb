"""The GGUF file of a subject: which it is, whether it is whole, and whether it is the budget's model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pytest_quantbudget.core import files
from pytest_quantbudget.engine.llama_cpp.session import Session
from pytest_quantbudget.models.methods import _gguf_file, _gguf_tokenizer, _llama_cpp

MAGIC = b"GGUF"
PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def parts(path: Path) -> list[Path]:
    """The files of a model: the one at `path`, or all of one that is split, the first of which it has to be.

    A directory has to hold one model. Raises ValueError where it does not, where a part is missing, and where a file is
    no GGUF file.
    """
    first = _only(path) if path.is_dir() else path
    found = PART.fullmatch(first.name)
    if found is None:
        every = [first]
    else:
        name, number, count = found[1], int(found[2]), int(found[3])
        every = [first.with_name(f"{name}-{part:05}-of-{count:05}.gguf") for part in range(1, count + 1)]
        if number != 1:
            raise ValueError(f"{first.name} is part {number} of {count}: name the first, {every[0].name}")
        missing = [part.name for part in every if not part.is_file()]
        if missing:
            raise ValueError(f"{first.name} is one of {count} parts, and {', '.join(missing)} is not there")
    for part in every:
        check_magic(part)
    return every


def _only(folder: Path) -> Path:
    """The one model in a directory."""
    names = sorted(path.name for path in folder.glob("*.gguf"))
    firsts = [name for name in names if not PART.fullmatch(name) or PART.fullmatch(name)[2] == "00001"]  # type: ignore[index]
    if len(firsts) != 1:
        held = f"holds {', '.join(firsts)}: name one of them" if firsts else "holds no GGUF file"
        raise ValueError(f"{folder.name} {held}")
    return folder / firsts[0]


def check_magic(path: Path) -> None:
    """Raise ValueError for a file that does not begin as a GGUF file does; OSError for what is no regular file."""
    with files.opened(path) as file:
        begin = file.read(8)
    if len(begin) < 8:
        raise ValueError(f"{path.name} is no GGUF file: it holds {len(begin)} bytes")
    if begin[:4] != MAGIC:
        raise ValueError(f"{path.name} is no GGUF file: it begins with {begin[:4]!r}, not with {MAGIC!r}")


def check_model(session: Session, config: Any, path: Path, model: str) -> None:
    """Raise ValueError where a file is another model than the budget's, by its architecture and its shape."""
    config = config.get_text_config()
    architecture = session.meta("general.architecture") or "?"
    known = {_gguf_file.ARCHITECTURES.get(name) for name in config.architectures or ()} - {None}
    told: list[tuple[str, Any, Any]] = [
        ("architecture", architecture, known.pop() if known else architecture),
        ("vocabulary", session.vocabulary, config.vocab_size),
    ]
    for name, key in (("hidden_size", "embedding_length"), ("num_hidden_layers", "block_count")):
        theirs = session.meta(f"{architecture}.{key}")
        if theirs is not None and theirs.isdecimal() and isinstance(getattr(config, name, None), int):
            told.append((name, int(theirs), getattr(config, name)))
    other = [f"{name} {theirs} instead of {ours}" for name, theirs, ours in told if theirs != ours]
    if other:
        raise ValueError(f"{path.name} is another model than {model}: {', '.join(other)}")


def check_tokenizer(session: Session, tokenizer: Any, path: Path) -> str:
    """What is odd about how the file splits texts, in words; empty where it does as the model's tokenizer.

    Raises ValueError where its tokens are others, and where llama.cpp could split as the tokenizer does and the file
    does not have it do so.
    """
    llama = session.llama
    vocabulary = llama.llama_model_get_vocab(session.model)
    other = []
    for text, number in tokenizer.get_vocab().items():
        # The library breaks off where it is asked for a token that it does not have.
        if number < session.vocabulary:
            theirs = (llama.llama_vocab_get_text(vocabulary, number) or b"").decode("utf-8", "replace")
            if theirs != text:
                other.append((number, theirs, text))
    if other:
        number, theirs, text = min(other)
        raise ValueError(
            f"{path.name} has another vocabulary than the model: {len(other):,} tokens differ, such as {number}, "
            f"which is {theirs!r:.40} instead of {text!r:.40}"
        )
    ours = _gguf_tokenizer.plain(tokenizer, _gguf_tokenizer.PROBE)
    if _llama_cpp.tokenize(session.model, _gguf_tokenizer.PROBE) == ours:
        return ""
    named = session.meta("tokenizer.ggml.pre") or "none"
    fits = _gguf_tokenizer.fitting(path, tokenizer)
    if fits is not None:
        raise ValueError(
            f"{path.name} names the pre-tokenizer {named!r}, with which llama.cpp splits a text otherwise than the "
            f"model's tokenizer does; {fits!r} does as it"
        )
    return (
        "llama.cpp has no pre-tokenizer that splits texts as the model's tokenizer does: prompts were given as token "
        "ids, and a text given to llama.cpp itself may become other tokens"
    )


def other_template(session: Session, tokenizer: Any, path: Path) -> str:
    """How the file's chat template differs from the model's, in words; empty where it does not."""
    ours, theirs = tokenizer.chat_template, session.meta("tokenizer.chat_template")
    if ours == theirs:
        return ""
    lacking = "has no chat template, and the model has one" if theirs is None else "has another chat template"
    return f"{path.name} {lacking if ours is not None or theirs is None else 'has a chat template, and the model none'}"
