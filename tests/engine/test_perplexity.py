"""Perplexity of a text: against the definition, worked token by token, and through the whole way."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_quantbudget.core import files
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.request import NO_TRUST, Request, Subject, Text
from pytest_quantbudget.engine import perplexity
from pytest_quantbudget.engine.base import NotFinite
from pytest_quantbudget.engine.hf import load, predictions, ragged_cache
from pytest_quantbudget.engine.hf.engine import Transformers
from pytest_quantbudget.measure import keys as identity


@pytest.fixture(scope="module")
def loaded() -> Transformers:
    """The built-in model in fp32, in this process."""
    return Transformers(load.load(Subject(str(BUILTIN_DIR), None, "fp32", None, {}, None), None))


@pytest.fixture
def text(tmp_path: Path) -> Text:
    """A few hundred tokens that the model knows, and some that it does not."""
    path = tmp_path / "text.txt"
    path.write_text((BUILTIN_DIR / "questions.jsonl").read_text()[:1000] + "\nZwölf Boxkämpfer jagen Viktor.\n")
    return Text(str(path), 64, 32)


def plainly(loaded: Transformers, text: Text) -> tuple[float, int]:
    """The same by hand: each token's context is fed anew, and nothing of an earlier pass is used."""
    import torch

    ids = loaded.tokenizer(Path(text.file).read_text())["input_ids"]
    nll, scored = 0.0, 0
    for target in range(1, len(ids)):
        # The first window that holds the token; windows begin at 0, stride, 2 * stride and so on.
        begin = 0
        while begin + text.window <= target:
            begin += text.stride
        if begin < target:
            with torch.inference_mode():
                logits = loaded.model(input_ids=torch.tensor([ids[begin:target]])).logits[0, -1].double()
            nll -= float(logits.log_softmax(-1)[ids[target]])
            scored += 1
    return nll, scored


@pytest.mark.parametrize(("window", "stride"), [(64, 32), (64, 64), (7, 3), (512, 256)])
def test_it_is_what_the_definition_says_token_by_token(
    loaded: Transformers, text: Text, window: int, stride: int
) -> None:
    if window == 7:
        Path(text.file).write_text(Path(text.file).read_text()[:200])
    text = replace(text, window=window, stride=stride)
    found = perplexity.measure(loaded, text)
    nll, scored = plainly(loaded, text)
    tokens = len(loaded.tokenizer(Path(text.file).read_text())["input_ids"])
    assert tokens > (300 if window > 7 else 50)
    assert found.tokens == scored
    assert scored == (tokens - 1 if stride < window else tokens - math.ceil(tokens / window))
    assert found.nll == pytest.approx(nll, rel=1e-5)
    assert found.value == pytest.approx(math.exp(nll / scored), rel=1e-5)


def test_window_and_stride_are_heeded(loaded: Transformers, text: Text) -> None:
    values = [
        perplexity.measure(loaded, replace(text, window=window, stride=stride)).value
        for window, stride in [(512, 256), (64, 32), (64, 64), (8, 8)]
    ]
    assert len(set(values)) == 4


@pytest.mark.parametrize(
    ("tokens", "window", "stride", "expected"),
    [
        (2, 512, 256, [(0, 1, 2)]),
        (10, 4, 2, [(0, 1, 4), (2, 4, 6), (4, 6, 8), (6, 8, 10)]),
        (9, 4, 2, [(0, 1, 4), (2, 4, 6), (4, 6, 8), (6, 8, 9)]),
        (9, 4, 4, [(0, 1, 4), (4, 5, 8)]),
        (5, 4, 1, [(0, 1, 4), (1, 4, 5)]),
    ],
)
def test_windows_hold_every_token_once(
    tokens: int, window: int, stride: int, expected: list[tuple[int, int, int]]
) -> None:
    assert list(perplexity.windows(tokens, window, stride)) == expected


def test_blocks_and_the_plain_pass_give_the_same(
    loaded: Transformers, text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = perplexity.measure(loaded, text)
    monkeypatch.setattr(predictions, "BLOCK_LOGITS", 5 * 640)
    monkeypatch.setattr(predictions, "BLOCK_TOKENS", 7)
    assert perplexity.measure(loaded, text).nll == pytest.approx(whole.nll, rel=1e-6)
    monkeypatch.setattr(ragged_cache, "unfit", lambda model, longest: "a test says so")
    plain = perplexity.measure(loaded, text)
    assert plain.tokens == whole.tokens
    assert plain.nll == pytest.approx(whole.nll, rel=1e-6)


def test_what_has_no_perplexity_is_refused_by_name(loaded: Transformers, text: Text, tmp_path: Path) -> None:
    def measure(text: Text, state: str | None = None) -> Any:
        return perplexity.measure(loaded, text, state)

    path = tmp_path / "odd.txt"
    odd = replace(text, file=str(path))
    with pytest.raises(ValueError, match="needs 513 tokens and the model has 512 positions"):
        measure(replace(text, window=513))
    with pytest.raises(FileNotFoundError, match=r"odd\.txt"):
        measure(odd)
    for content, why in [(b"", "makes 0 tokens"), (b"a", "makes 1 tokens"), (b"ab\xff", "byte 2 is not UTF-8")]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"odd\.txt.* {why}"):
            measure(odd)
    with pytest.raises(ValueError, match=r"odd\.txt was changed while"):
        measure(odd, "sha256:00")
    with path.open("wb") as file:
        file.truncate(200_000_001)
    with pytest.raises(ValueError, match=r"odd\.txt is 200,000,001 bytes long, and at most 200,000,000 are read"):
        measure(odd)
    assert measure(text, files.file_hash(Path(text.file))).tokens > 300


def test_logits_that_break_down_are_noticed(text: Text) -> None:
    import torch

    own = Transformers(load.load(Subject(str(BUILTIN_DIR), None, "fp32", None, {}, None), None))
    with torch.no_grad():
        own.model.model.norm.weight[0] = float("nan")
    with pytest.raises(NotFinite, match="NaN or infinite"):
        perplexity.measure(own, text)


def test_it_is_found_again_by_what_the_file_holds_and_how_it_was_read(text: Text, tmp_path: Path) -> None:
    def key(text: Text) -> str:
        request = Request(Subject(str(BUILTIN_DIR), None, "fp32", None, {}, None), (text,))
        keys = identity.keys_of(request, [], NO_TRUST, tmp_path / "memo")
        assert keys is not None
        return keys.of(text).name

    copy = tmp_path / "copy.txt"
    copy.write_bytes(Path(text.file).read_bytes())
    assert key(replace(text, file=str(copy))) == key(text)
    copy.write_bytes(copy.read_bytes() + b".")
    others = [replace(text, file=str(copy)), replace(text, window=65), replace(text, stride=31)]
    assert len({key(other) for other in (text, *others)}) == 4


BUDGET = """
model: builtin
baseline: fp32
workload: {prompt_tokens: 16, new_tokens: 8, repeats: 2}
perplexity: {file: text.txt, window: 64, stride: 32}
methods:
  fp32: {}
  bf16: {budget: {max_ppl_ratio: RATIO}}
"""


def test_the_ratio_is_judged_stored_and_measured_again_when_the_file_changes(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = Path("text.txt")
    text.write_text((BUILTIN_DIR / "questions.jsonl").read_text()[:1000])

    def run(ratio: str) -> tuple[pytest.RunResult, list[dict[str, Any]]]:
        Path("b.yaml").write_text(BUDGET.replace("RATIO", ratio))
        options = ("--quant-budget", "b.yaml", "--quant-cache", "kept", "--quant-report", "r.json")
        result = pytester.runpytest(*options)
        methods = json.loads(Path("r.json").read_text())["budgets"][0]["methods"]
        return result, [method["measurement"]["perplexities"][0] for method in methods]

    result, first = run("1.05")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["method *ppl ratio  verdict", "fp32 * -  -", "bf16 * 1.*  1 within"])
    assert not any(found["origin"]["reused"] for found in first)
    result, again = run("0.5")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["measured 1*, limit 0.5*(* against fp32's *)"])
    assert all(found["origin"]["reused"] for found in again)
    assert [(f["nll"], f["tokens"]) for f in again] == [(f["nll"], f["tokens"]) for f in first]
    text.write_text(text.read_text() + "And more.")
    assert not any(found["origin"]["reused"] for found in run("1.05")[1])
