"""Divergence from the baseline's distributions: against a plain computation, and through the whole way."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from builders import COUNTING

from pytest_quantbudget.core.answers import TaskResult
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.request import Subject, Task
from pytest_quantbudget.engine import divergence, logits_file
from pytest_quantbudget.engine.base import NotFinite
from pytest_quantbudget.engine.hf import load as loading
from pytest_quantbudget.engine.hf import ragged_cache
from pytest_quantbudget.engine.hf.engine import Transformers
from pytest_quantbudget.measure import ask
from pytest_quantbudget.measure.kept_answers import KeptAnswers
from pytest_quantbudget.tasks import prompts

TASK = Task("wordmath", 12, 0, 3, str(BUILTIN_DIR / "questions.jsonl"), 96, 12, "strict", divergence=True)


def load(method: str) -> Transformers:
    """The built-in model, in this process."""
    options = {"double_quant": True, "compute_dtype": "bfloat16"} if method == "nf4" else {}
    return Transformers(loading.load(Subject(str(BUILTIN_DIR), None, method, None, options, None), None))


@pytest.fixture(scope="module")
def base() -> Transformers:
    return load("fp32")


@pytest.fixture(scope="module")
def answered(base: Transformers) -> TaskResult:
    """The baseline's answers."""
    return ask.run(base, TASK, prompts.sample(TASK), KeptAnswers(TASK))[0]


@pytest.fixture(scope="module")
def pairs(base: Transformers, answered: TaskResult) -> divergence.Sample:
    """Prompts and the baseline's answers to them."""
    return divergence.sample(base.tokenizer, TASK, prompts.sample(TASK), answered.answers)


@pytest.fixture
def kept(base: Transformers, pairs: divergence.Sample, tmp_path: Path) -> Path:
    """The file of the baseline's logits."""
    path = tmp_path / "divergence" / "fp32-0123.safetensors"
    divergence.keep(base, pairs, path)
    return path


def test_a_model_does_not_diverge_from_itself(base: Transformers, pairs: divergence.Sample, kept: Path) -> None:
    found = divergence.compare(base, pairs, kept)
    assert found.tokens == found.same_top == sum(len(answer) for _, answer in pairs)
    assert (found.mean_kl, found.max_kl, found.p99_kl) == (0, 0, 0)
    assert found.against == kept.stem


def test_what_is_kept_is_exact_and_half_as_large_in_16_bits(pairs: divergence.Sample, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    half = load("bf16")
    divergence.keep(half, pairs, tmp_path / "x.safetensors")
    logits = load_file(tmp_path / "x.safetensors")["logits"]
    assert logits.dtype == torch.bfloat16
    assert divergence.compare(half, pairs, tmp_path / "x.safetensors").max_kl == 0


def by_hand(own: Any, base: Any, pairs: divergence.Sample) -> tuple[Any, Any, int]:
    """From one forward pass per model and question: divergences, what rounding can add to each, and equal choices.

    A divergence is half the variance, under the baseline, of the differences between the two models' logits. Rounding
    to bfloat16 moves a logit by up to u, 2^-8 of the largest one, and differences of up to u have a variance of at
    most 4 p (1 - p) u^2, where p is the probability of the likeliest token.
    """
    import torch

    values, rounding, same = [], [], 0
    for prompt, answer in pairs:
        ids = torch.tensor([[*prompt, *answer[:-1]]])
        with torch.inference_mode():
            mine, theirs = (
                model(input_ids=ids, logits_to_keep=len(answer)).logits[0].double() for model in (own, base)
            )
        q, p = mine.softmax(-1), theirs.softmax(-1)
        values.append((p * (p / q).log()).sum(-1))
        likeliest = p.amax(-1)
        moved = torch.finfo(torch.bfloat16).eps * theirs.abs().amax(-1)
        rounding.append(2 * likeliest * (1 - likeliest) * moved**2)
        same += int((mine.argmax(-1) == theirs.argmax(-1)).sum())
    return torch.cat(values), torch.cat(rounding), same


@pytest.mark.parametrize("method", ["bf16", "nf4"])
@pytest.mark.parametrize("fed", ["in blocks", "plain"])
def test_it_is_what_the_definition_says(
    base: Transformers,
    pairs: divergence.Sample,
    kept: Path,
    method: str,
    fed: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if method == "nf4":
        pytest.importorskip("bitsandbytes")
    own = load(method)
    if fed == "plain":
        monkeypatch.setattr(ragged_cache, "unfit", lambda model, longest: "a test says so")
    found = divergence.compare(own, pairs, kept)
    values, rounding, same = by_hand(own.model, base.model, pairs)
    assert found.tokens == len(values)
    if fed == "plain":  # the same sums in the same order
        assert found.mean_kl == pytest.approx(float(values.mean()), rel=1e-3)
        assert found.max_kl == pytest.approx(float(values.max()), rel=1e-3)
        assert found.p99_kl == pytest.approx(float(values.quantile(0.99)), rel=1e-3)
        assert found.same_top == same
    else:
        # Other sums, which round otherwise, and on a CPU with instructions for bfloat16 otherwise again. The root of a
        # divergence is a distance, so roots differ by no more than the root of what rounding adds.
        assert abs(found.mean_kl**0.5 - float(values.mean()) ** 0.5) <= float(rounding.mean()) ** 0.5
        assert abs(found.max_kl**0.5 - float(values.max()) ** 0.5) <= float(rounding.max()) ** 0.5
        assert abs(found.p99_kl**0.5 - float(values.quantile(0.99)) ** 0.5) <= float(rounding.max()) ** 0.5
        assert abs(found.same_top - same) <= 2  # ties
    assert found.mean_kl > 0
    assert tuple(map(len, found.tokens_kl)) == found.each_tokens
    assert [sum(each) for each in found.tokens_kl] == pytest.approx(found.each_kl, abs=1e-6)
    assert max(kl for each in found.tokens_kl for kl in each) == pytest.approx(found.max_kl, abs=1e-9)


def test_divergences_of_what_is_impossible() -> None:
    import torch

    low = -torch.inf
    base = torch.tensor([[0.0, 0.0, low], [0.0, 0.0, low], [0.0, low, low]])
    own = torch.tensor([[0.0, 0.0, low], [0.0, 0.0, 0.0], [0.0, 0.0, low]])
    assert divergence.divergences(base, own).tolist() == pytest.approx([0, math.log(1.5), math.log(2)])
    assert divergence.divergences(own[1:2], base[1:2]).tolist() == [math.inf]


def test_the_sample_is_the_first_tokens_and_fits_into_its_file(
    base: Transformers,
    answered: TaskResult,
    pairs: divergence.Sample,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = len(pairs[0][1])
    few = divergence.sample(base.tokenizer, TASK, prompts.sample(TASK), answered.answers, first + 5)
    assert few == [pairs[0], (pairs[1][0], pairs[1][1][:5])]
    assert [list(a.ids) for a in answered.answers] == [answer for _, answer in pairs]
    monkeypatch.setattr(logits_file, "MAX_BYTES", (first + 5) * 640 * 4 + 3)
    path = tmp_path / "x.safetensors"
    divergence.keep(base, pairs, path)
    assert logits_file.check(path) == [list(map(list, pair)) for pair in few]
    found = divergence.compare(base, pairs, path)
    assert found.tokens == first + 5
    assert found.max_kl < 1e-9


def test_a_damaged_or_foreign_file_is_never_trusted(
    base: Transformers, answered: TaskResult, pairs: divergence.Sample, kept: Path
) -> None:
    def refused(data: bytes | None = None, *, path: Path = kept, asked: divergence.Sample = pairs) -> str:
        if data is not None:
            kept.write_bytes(data)
        with pytest.raises(logits_file.Unusable) as caught:
            divergence.compare(base, asked, path)
        return str(caught.value)

    whole = kept.read_bytes()
    assert logits_file.fault(kept) is None
    assert logits_file.fault(kept.with_name("none")) == logits_file.MISSING
    assert refused(whole[:-1] + bytes([whole[-1] ^ 1])) == "its checksum is wrong"
    assert refused(whole[:-100]) == "its checksum is wrong"
    assert refused(b"") == "its header cannot be read"
    assert refused(b"\xff" * 100) == "it is no safetensors file"
    assert refused(b"\x02" + b"\0" * 7 + b"[]") == "its header cannot be read"
    kept.write_bytes(whole)
    other = kept.rename(kept.with_name("fp32-4567.safetensors"))
    assert refused(path=other) == "it belongs to another measurement"
    kept.write_bytes(whole)
    assert refused(asked=pairs[1:]) == "it holds the logits of other tokens"
    (shape,) = [line for line in [b'"shape":[%d,640]' % sum(len(a) for _, a in pairs)] if line in whole]
    assert "cannot be read" in refused(whole.replace(shape, shape.replace(b",640", b",64 ")))


def test_other_words_and_other_vocabularies_are_refused(
    base: Transformers, answered: TaskResult, pairs: divergence.Sample, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    with pytest.raises(ValueError, match=r"was asked question \d+ of wordmath in other words"):
        divergence.sample(base.tokenizer, TASK, prompts.sample(TASK)[::-1], answered.answers)
    monkeypatch.setattr(divergence, "_load_logits", lambda path, pairs: torch.zeros(5, 641))
    with pytest.raises(ValueError, match="the vocabulary holds 640 tokens, the baseline's 641"):
        divergence.compare(base, pairs, kept)


def test_logits_that_break_down_are_noticed(pairs: divergence.Sample, kept: Path) -> None:
    import torch

    own = load("fp32")
    with torch.no_grad():
        own.model.model.norm.weight[0] = float("nan")
    with pytest.raises(NotFinite, match="NaN or infinite"):
        divergence.compare(own, pairs, kept)


BUDGET = """
model: builtin
baseline: fp32
workload: {prompt_tokens: 16, new_tokens: 8, repeats: 2}
perplexity: {file: text.txt, window: 64, stride: 32}
tasks:
  wordmath: {file: builtin, questions: 12, max_new_tokens: 96, max_truncated: 100, divergence: true}
methods:
  fp32: {}
  bf16: {budget: {max_ppl_ratio: 1.05, max_kl: 0.0000000001, min_top1_agreement: 90, max_wordmath_drop: 30}}
"""


@pytest.fixture
def room(pytester: pytest.Pytester) -> pytest.Pytester:
    """A room with a budget of which one limit is broken, whose runs note which methods they start."""
    Path("text.txt").write_text((BUILTIN_DIR / "questions.jsonl").read_text()[:500])
    Path("b.yaml").write_text(BUDGET)
    pytester.makeconftest(COUNTING)
    return pytester


def run(room: pytest.Pytester, *more: str) -> tuple[pytest.RunResult, list[str], Any]:
    """A run of the budget; which methods it started; what it measured of bf16."""
    Path("started.txt").write_text("")
    Path("r.json").unlink(missing_ok=True)
    options = more if "--quant-no-cache" in more else ("--quant-cache", "kept", *more)
    result = room.runpytest("--quant-budget", "b.yaml", "--quant-report", "r.json", *options)
    methods = {m["name"]: m["measurement"] for m in json.loads(Path("r.json").read_text())["budgets"][0]["methods"]}
    return result, Path("started.txt").read_text().split(), methods.get("bf16")


def files() -> list[Path]:
    return sorted(Path("kept/divergence").iterdir())


def test_a_budget_with_a_broken_limit_fails_in_words_and_is_measured_once(
    room: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result, started, first = run(room)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        [
            "measured 0.00* nats, limit 0.0000000001 nats, 95 % bounds * (* tokens, at most *)",
            "b.yaml:10: this line",
            "method * agreement  ppl ratio  answer ppl * KL  verdict",
            "bf16 * % * 1.00* *1 OVER",
            "on cpu, *perplexity of text.txt",
        ]
    )
    assert started == ["fp32", "bf16"]
    (path,) = files()
    (task,) = first["tasks"]
    assert task["divergence"]["against"] == path.stem
    assert 0 < task["divergence"]["mean_kl"] < task["divergence"]["p99_kl"] <= task["divergence"]["max_kl"]
    assert task["divergence"]["tokens"] >= task["divergence"]["same_top"] > 0

    _, started, second = run(room)
    assert started == []
    assert second["tasks"][0]["divergence"] == task["divergence"]
    path.unlink()
    _, started, third = run(room)
    assert started == [], "what is stored needs no file"
    assert third["tasks"][0]["divergence"] == task["divergence"]


@pytest.mark.slow
def test_only_what_is_missing_is_measured(room: pytest.Pytester) -> None:
    plain = ("-k", "drop")
    result, started, measured = run(room, *plain)
    result.assert_outcomes(passed=1, deselected=3)
    assert started == ["fp32", "bf16"]
    assert measured["tasks"][0]["divergence"] is None
    assert not Path("kept/divergence").exists(), "nobody asked for it"

    _, started, compared = run(room, "-k", "top1 or drop")
    assert started == ["fp32", "bf16"], "the baseline's answers were stored, and its logits were not"
    assert compared["tasks"][0]["divergence"]["tokens"] > 0
    assert compared["tasks"][0]["answers"] == measured["tasks"][0]["answers"]
    assert compared["tasks"][0]["origin"]["reused"], "the answers are those of the first run"

    budget = Path("b.yaml")
    budget.write_text(budget.read_text().replace("  bf16:", "  fp16: {budget: {max_kl: 1}}\n  bf16:"))
    result, started, _ = run(room, "-k", "fp16")
    result.assert_outcomes(passed=1, deselected=4)
    assert started == ["fp16"], "the file of logits is there"
    assert run(room, *plain)[2]["tasks"][0]["divergence"] is None, "no selected limit is on it"


@pytest.mark.parametrize(
    "damage", ["deleted", *[pytest.param(how, marks=pytest.mark.slow) for how in ("altered", "another's")]]
)
def test_a_file_that_has_gone_or_was_altered_is_made_again(room: pytest.Pytester, damage: str) -> None:
    _, _, before = run(room, "-k", "max_kl")
    (path,) = files()
    data = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    else:
        at = -1 if damage == "altered" else data.index(path.stem.encode())
        path.write_bytes(data[:at] + b"?" + data[at:][1:])
    for entry in Path("kept/results").rglob("bf16-*/*task-*.entry"):
        entry.unlink()
    result, started, after = run(room, "-k", "max_kl")
    assert started == ["fp32", "bf16"]
    assert logits_file.fault(path) is None
    assert after["tasks"][0]["divergence"] == before["tasks"][0]["divergence"]
    why = {"altered": "its checksum is wrong", "another's": "it belongs to another measurement"}.get(damage)
    notes = [f"the kept logits of fp32 for task wordmath were made again: {why}"] if why else []
    assert after["notes"] == notes
    result.stdout.no_fnmatch_line("*Error*")


@pytest.mark.slow
def test_a_baseline_that_cannot_be_loaded_again_costs_only_what_needs_it(room: pytest.Pytester) -> None:
    run(room, "-k", "drop")
    # Answers in the store, and no room for the logits: a file stands where their folder should be.
    Path("kept/divergence").write_text("")
    result, started, measured = run(room)
    assert started == ["fp32", "bf16"], "what failed once is not tried again in the same run"
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["not measured: no logits of fp32: *File exists*"])
    assert measured["tasks"][0]["divergence"] is None
    assert measured["perplexities"]


@pytest.mark.slow
def test_another_baseline_is_another_comparison(room: pytest.Pytester) -> None:
    _, _, first = run(room, "-k", "max_kl")
    budget = Path("b.yaml")
    budget.write_text(BUDGET.replace("fp32", "fp16"))
    _, started, second = run(room, "-k", "max_kl")
    assert started[0] == "fp16"
    against = [measured["tasks"][0]["divergence"]["against"] for measured in (first, second)]
    assert [name.partition("-")[0] for name in against] == ["fp32", "fp16"]


@pytest.mark.slow
def test_it_works_without_a_cache_and_with_workers(room: pytest.Pytester) -> None:
    result, started, measured = run(room, "--quant-no-cache", "-k", "max_kl or top1")
    result.assert_outcomes(passed=1, failed=1, deselected=2)
    assert started == ["fp32", "bf16"]
    alone = measured["tasks"][0]["divergence"]
    arguments = ("--quant-budget", "b.yaml", "--quant-report", "r.json", "-n", "2", "--quant-cache", "kept")
    Path("started.txt").write_text("")
    room.runpytest_subprocess(*arguments).assert_outcomes(passed=3, failed=1)
    assert sorted(Path("started.txt").read_text().split()) == ["bf16", "fp32"]
    methods = json.loads(Path("r.json").read_text())["budgets"][0]["methods"]
    found = methods[1]["measurement"]["tasks"][0]["divergence"]
    assert {**found, "against": ""} == {**alone, "against": ""}
