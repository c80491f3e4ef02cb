"""The tokenizer of a Hugging Face model as a GGUF file holds it, as far as llama.cpp can express it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.request import Trust
from pytest_quantbudget.models.methods import _llama_cpp

# Where the pre-tokenizers of models differ: digits, contractions, runs of spaces and marks, scripts.
PROBE = (
    "Adam's 3 boats: 1,234 km/h, 5678901 m; WE'RE here, I'll go, they've 42\u00b9\u00b2!\n\n\n \n\t\tdef f(x):\n"
    "    return x**2 != 0.5e-3  # ...???--- ===>\n \u00e9t\u00e9 \u2014 na\u00efve \u65e5\u672c\u8a9e "
    "\u0440\u0443\u0441 \ud55c\uad6d\uc5b4 \u0e44\u0e17\u0e22 \U0001f600\U0001f44d  a   b\r\n<x y='z'>&amp;</x> $12 "
    "3333333 'tis '' \"q\""
)
# llama.cpp's pre-tokenizers of byte-level BPE, the most used first (llama-vocab.cpp has the patterns behind them).
PRES = (
    "qwen2", "llama-bpe", "gpt-2", "smollm", "tekken", "gpt-4o", "deepseek-llm", "deepseek-coder", "deepseek-v3",
    "falcon", "starcoder", "refact", "command-r", "stablelm2", "olmo", "dbrx", "smaug-bpe", "mpt", "glm4",
    "chatglm-bpe", "viking", "jais", "poro-chat", "codeshell", "bloom", "exaone", "exaone4", "minerva-7b", "seed-coder",
    "superbpe", "kimi-k2", "hunyuan", "hunyuan-dense", "bailingmoe", "qwen35", "youtu", "afmoe", "grok-2", "default",
)  # fmt: skip
CUSTOM = "default"


def load(source: Path, trust: Trust) -> Any:
    """The tokenizer in a directory."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source, trust_remote_code=trust.remote_code)


def add(writer: Any, tokenizer: Any, source: Path, size: int, pre: str) -> None:
    """Add a tokenizer to a file: `size` tokens, the last of which may be padding, and its special tokens.

    `pre` is the name of llama.cpp's pre-tokenizer, which splits a text into words.
    """
    import gguf

    byte_level = is_byte_level(tokenizer)
    writer.add_tokenizer_model("gpt2" if byte_level else "llama")
    writer.add_tokenizer_pre(pre)
    texts, types = zip(*_tokens(tokenizer, size), strict=True)
    writer.add_token_list(list(texts))
    if not byte_level:
        writer.add_token_scores(_scores(tokenizer, texts))
    writer.add_token_types(list(types))
    gguf.SpecialVocab(source, load_merges=byte_level, n_vocab=size).add_to_gguf(writer, quiet=True)


def is_byte_level(tokenizer: Any) -> bool:
    """Whether its tokens spell bytes, as GPT-2's do; SentencePiece's spell characters, and bytes only as `<0x0A>`."""
    model = _description(tokenizer)["model"]
    return model.get("type") != "Unigram" and not model.get("byte_fallback")


def _description(tokenizer: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return found


def _tokens(tokenizer: Any, size: int) -> Iterator[tuple[str, int]]:
    """Text and type of each token."""
    from gguf import TokenType

    texts = {number: text for text, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    for number in range(size):
        text = texts.get(number)
        if text is None:
            yield f"[PAD{number}]", TokenType.UNUSED
        elif number in added:
            yield text, TokenType.CONTROL if added[number].special else TokenType.USER_DEFINED
        elif len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            yield text, TokenType.BYTE
        else:
            yield text, TokenType.NORMAL


def _scores(tokenizer: Any, texts: tuple[str, ...]) -> list[float]:
    """SentencePiece's score of each token: llama.cpp merges the pair with the highest one first."""
    model = _description(tokenizer)["model"]
    if model.get("type") == "Unigram":
        known = dict(model["vocab"])
    else:
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges", ())]
        ranks = [pair.replace(" ", "", 1) for pair in merges]
        known = {text: -float(rank) for rank, text in reversed(list(enumerate(ranks)))}
    return [known.get(text, -1e9) for text in texts]


def plain(tokenizer: Any, text: str) -> list[int]:
    """A text as the tokenizer's ids, without start and end tokens; special tokens in it are text."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def fitting(path: Path, tokenizer: Any) -> str | None:
    """The pre-tokenizer with which llama.cpp splits a text as the tokenizer does; None where it has none like it.

    `path` is a GGUF file with the tokenizer's tokens, whatever pre-tokenizer it names.
    """
    wanted = plain(tokenizer, PROBE)
    for pre in PRES if is_byte_level(tokenizer) else (CUSTOM,):
        try:
            with _llama_cpp.Vocabulary(path, pre) as vocabulary:
                if vocabulary.tokens(PROBE) == wanted:
                    return pre
        except ValueError:
            # A version that has another set of them.
            continue
    return None
