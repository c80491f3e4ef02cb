"""Judging hand-made reports again: what may differ, and every other difference refused by its name."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from stored_reports import (
    ALL,
    COMMIT,
    GIB,
    H100,
    NF4,
    ON_CPU,
    ON_H100,
    TASK,
    TEXT,
    furnish,
    judged,
    judging,
    read,
    refused,
    report,
)

from pytest_quantbudget.core import files
from pytest_quantbudget.core.load import Level, LoadResult, Served
from pytest_quantbudget.core.measurement import Device, Failure, Measurement
from pytest_quantbudget.core.request import DUMMY, LOAD, Subject
from pytest_quantbudget.core.verdict import SKIPPED, LimitReport, Verdict
from pytest_quantbudget.report import again, table


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A directory with the files that the budget names."""
    return furnish(tmp_path)


def test_what_was_measured_as_the_budget_asks_is_judged(room: Path) -> None:
    verdicts = judged(room, TEXT, report(read(room, TEXT)))
    assert set(verdicts) == ALL
    assert refused(verdicts, "") == set()
    assert verdicts["nf4 max_sums_drop"].measured == pytest.approx(10)
    assert verdicts["nf4 max_kl"].measured == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("old", "new", "words", "limits"),
    [
        ("org/model", "org/modle", "model is org/modle here and org/model in report.json", ALL),
        ("org/model", "org/model\nrevision: v2", "revision is v2 here and not given in report.json", ALL),
        ("org/model", "org/model\nrevision: '0123457'", "revision is 0123457 here and 0123456 in report.json", ALL),
        ("quant: true", "quant: false", "measured: double_quant is false here and true in report.json", NF4),
        ("{double_quant: true}", "{compute_dtype: float16}", "compute_dtype is float16 here and bfloat16 in", NF4),
        ("org/awq", "org/qwa", "checkpoint is org/qwa here and org/awq in", {"awq-int4 max_weights"}),
        ("adapter: org/lora", "adapter: org/rola", "adapter is org/rola here and org/lora", {"awq-int4 max_weights"}),
        ("    adapter: org/lora\n", "", "adapter is not given here and org/lora in", {"awq-int4 max_weights"}),
        ("calibration.txt", "wiki.txt", "wiki.txt holds something else here than in", {"gptq-int4 max_weights"}),
        ("questions: 10", "questions: 12", "task sums: questions is 12 here and 10 in report.json", TASK),
        ("questions: 10", "questions: {start: 10, max: 12}", "questions is 12 here and 10 in report.json; start", TASK),
        ("sums.jsonl", "sums.jsonl, seed: 1", "task sums: seed is 1 here and 0 in report.json", TASK),
        ("sums.jsonl", "sums.jsonl, shots: 3", "task sums: shots is 3 here and 0 in", TASK),
        ("sums.jsonl", "sums.jsonl, style: gsm8k_cot", "; style is gsm8k_cot here and gsm8k in", TASK),
        ("sums.jsonl", "sums.jsonl, max_new_tokens: 9", "task sums: max_new_tokens is 9 here and 256 in", TASK),
        ("sums.jsonl", "sums.jsonl, system_prompt: Hm", "task sums: system_prompt is Hm here and not given in", TASK),
        ("sums.jsonl", "sums.jsonl, chat_template: true", "chat_template is true here and false in", TASK),
        ("sums.jsonl", "sums.jsonl, batch_size: 4", "batch_size is 4 here and not given in", TASK),
        ("sums.jsonl", "other.jsonl", "other.jsonl holds something else here than in report.json", TASK),
        ("sums.jsonl", "sums.jsonl, shots_file: other.jsonl", "other.jsonl here and not given in", TASK),
        (
            "workload: {", "workload: {compile: true, ",
            "compiled workload: compile is true here and false in report.json", {"nf4 max_vram"},
        ),
        ("new_tokens: 8", "new_tokens: 9", "workload: new_tokens is 9 here and 8 in report.json", {"nf4 max_vram"}),
        ("window: 64", "window: 80", "perplexity: window is 80 here and 64 in report.json", {"nf4 max_ppl_ratio"}),
        ("wiki.txt", "calibration.txt", "perplexity: file *calibration.txt holds", {"nf4 max_ppl_ratio"}),
        ("baseline: fp16", "baseline: gptq-int4", "compared with other logits than gptq-int4's", {"nf4 max_kl"}),
        ("baseline: fp16", "baseline: int8", "the baseline int8: report.json holds no measurement", NF4 - {
            "nf4 max_weights", "nf4 max_vram"}),
    ],
)  # fmt: skip
def test_a_difference_costs_the_limits_that_it_touches(
    room: Path, old: str, new: str, words: str, limits: set[str]
) -> None:
    (room / "other.jsonl").write_text((room / "sums.jsonl").read_text().replace("19 + 1", "1 + 19"))
    found = report(read(room, TEXT))
    text = TEXT.replace(old, new, 1)
    if "baseline: int8" in new:
        text = text.replace("  nf4:\n", "  int8: {}\n  nf4:\n")
    verdicts = judged(room, text, found)
    before, _, after = words.partition("*")
    assert refused(verdicts, before) == limits
    assert refused(verdicts, after) == limits


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("max_weights: 5 GiB", "max_weights: 2 GiB"),
        ("org/model", f"org/model\nrevision: '{COMMIT[:9]}'"),
        ("divergence: true", "divergence: true, extract: flexible, max_truncated: 50"),
        ("sums.jsonl", "moved.jsonl"),
        ("sums: {", "sums: {confidence: 0.9, undecided: pass, "),
        ("workload: {", "workload: {prompt: Hello, "),
        ("baseline: fp16", "baseline: fp16\ntimeout: 1 h\nmax_age: 1 s"),
    ],
)
def test_what_no_figure_depends_on_may_differ(room: Path, old: str, new: str) -> None:
    shutil.copy(room / "sums.jsonl", room / "moved.jsonl")
    found = report(read(room, TEXT))
    assert refused(judged(room, TEXT.replace(old, new, 1), found), "") == set()


def test_a_task_may_have_another_name_and_both_extractions_are_there(room: Path) -> None:
    found = report(read(room, TEXT))
    text = TEXT.replace("sums:", "additions:").replace("_sums", "_additions")
    assert refused(judged(room, text, found), "") == set()
    flexible = judged(room, TEXT.replace("questions: 10", "questions: 10, extract: flexible"), found)
    assert flexible["nf4 max_sums_drop"].measured == 0.0
    more = TEXT.replace("perplexity:", "  more: {file: sums.jsonl, questions: 11}\nperplexity:").replace(
        "_sums", "_more"
    )
    assert refused(judged(room, more, found), "report.json holds no answers to more") == {
        "fp16 min_more", "nf4 max_more_drop",
    }  # fmt: skip


def test_files_and_models_are_the_same_wherever_they_lie(room: Path) -> None:
    """And where they are not there at all, they are taken by their name, with a note."""
    for name in ("there/smol", "here/smol"):
        (room / name).mkdir(parents=True)
        (room / name / "config.json").write_text("{}")
    text = TEXT.replace("org/model", "./there/smol")
    found = report(read(room, text))
    here = text.replace("./there", "./here")
    assert refused(judged(room, here, found), "") == set()
    (room / "here/smol/config.json").write_text("[]")
    assert refused(judged(room, here, found), "smol holds something else here than in report.json") == ALL

    shutil.rmtree(room / "here")
    for name in ("sums.jsonl", "wiki.txt", "calibration.txt"):
        (room / name).unlink()
    for written in (here, text.replace("./there/smol", "there/smol")):  # which may be a hub id, as far as one can see
        shutil.rmtree(room / "there", ignore_errors=True)
        assert refused(judged(room, written, found), "") == set()
    session = judging(room, found)
    budget = session.budgets.load(room / "b.yaml")
    for method in budget.methods:
        session.plan(budget, method, method.limits)
    notes = [note for method in budget.methods for note in session.measurer.measure(budget, method).notes]
    assert {note.partition(" by its name")[0] for note in notes} == {
        f"model there/smol is no directory here: taken for {room}/there/smol of report.json",
        *(f"{what} was compared with report.json" for what in ("file sums.jsonl", "file wiki.txt")),
        "calibration calibration.txt was compared with report.json",
    }
    other = here.replace("here/smol", "here/large")
    assert refused(judged(room, other, found), f"model is {room}/here/large here and {room}/there/smol in") == ALL


def test_tasks_of_the_harness_are_compared_by_what_their_files_hold(room: Path) -> None:
    """The library's version is not asked for: it need not be installed where a report is judged."""
    task = room / "ours.yaml"
    task.write_text("task: ours\ndataset_path: json\n")
    sums = "{file: sums.jsonl, questions: 10, divergence: true}"
    text = TEXT.replace(sums, "{harness: ours.yaml, limit: 10}").replace("max_kl: 0.5, ", "")
    budget = read(room, text.replace("ours.yaml", "arc_easy"))
    named = report(budget, **{m.name: _from_harness("lm-eval 0.4.13 arc_easy") for m in budget.methods})
    assert refused(judged(room, text.replace("ours.yaml", "arc_easy"), named), "") == set()
    words = "task sums: harness is arc_hard here and arc_easy in report.json"
    assert refused(judged(room, text.replace("ours.yaml", "arc_hard"), named), words) == TASK - {"nf4 max_kl"}

    budget = read(room, text)
    source = f"lm-eval 0.4.13 {files.file_hash(task)}"
    found = report(budget, **{m.name: _from_harness(source) for m in budget.methods})
    assert refused(judged(room, text, found), "") == set()
    task.write_text("task: ours\ndataset_path: csv\n")
    words = "ours.yaml holds something else here than in report.json"
    assert refused(judged(room, text, found), words) == TASK - {"nf4 max_kl"}


def _from_harness(source: str) -> Callable[[Measurement], Measurement]:
    return lambda record: replace(record, tasks=tuple(replace(t, source=source, metric="acc") for t in record.tasks))


def test_a_growing_task_is_judged_on_the_answers_there_are(room: Path) -> None:
    text = TEXT.replace("questions: 10", "questions: {start: 10, max: 15}").replace("drop: 20", "drop: 60")

    def grown(record: Measurement) -> Measurement:
        more = [replace(record.tasks[0].answers[0], question=n) for n in range(10, 15)]
        return replace(record, tasks=(replace(record.tasks[0], answers=(*record.tasks[0].answers, *more)),))

    def ended(record: Measurement) -> Measurement:
        return replace(record, tasks=(replace(record.tasks[0], planned=15, stopped="its limit was decided"),))

    found = report(read(room, text), fp16=grown, nf4=ended)
    verdict = judged(room, text.replace("drop: 60", "drop: 12"), found)["nf4 max_sums_drop"]
    assert (verdict.outcome, verdict.decision) == ("within", "undecided")
    assert "1 newly wrong, 0 newly right of 10; 10 of 15 questions asked: its limit was decided" in verdict.message
    more = judged(room, text.replace("max: 15", "max: 14"), found)
    assert refused(more, "task sums: questions is 14 here and 15 in report.json") == TASK


def test_gpus_are_those_of_the_report(room: Path) -> None:
    found = report(read(room, TEXT))
    by_name = judged(room, TEXT.replace("max_vram: 6 GiB", 'max_vram: {"NVIDIA H100*": 1 GiB, "*": 9 GiB}'), found)
    assert "max_vram measured 2.00 GiB, limit 1.00 GiB" in by_name["nf4 max_vram"].message
    assert refused(judged(room, f"gpu: {{min_vram: 80 GiB, min_capability: '9.0'}}\n{TEXT}", found), "") == set()
    for need, words in (
        ("{min_vram: 90 GiB}", "needs a GPU with 90.0 GiB; found: NVIDIA H100"),
        ("{count: 2}", "needs 2"),
    ):
        verdicts = judged(room, f"gpu: {need}\n{TEXT}", found)
        assert {v.outcome for v in verdicts.values()} == {"skipped"}
        assert all(words in v.message for v in verdicts.values())
    bare = replace(found, machine=replace(found.machine, gpus=()))  # the report's device speaks for itself
    assert refused(judged(room, f"gpu: true\n{TEXT}", bare), "") == set()


@pytest.mark.parametrize(("required", "outcome"), [(False, "skipped"), (True, "failed")])
def test_figures_of_a_cpu_are_none_where_a_gpu_is_asked_for(room: Path, required: bool, outcome: str) -> None:
    budget = read(room, TEXT)
    found = report(budget, **{m.name: lambda record: replace(record, device=ON_CPU) for m in budget.methods})
    found = replace(found, machine=replace(found.machine, gpus=()))
    verdicts = judged(room, f"gpu: true\n{TEXT}", found, require_gpu=required)
    assert {v.outcome for v in verdicts.values()} == {outcome}
    assert all("needs a GPU; no GPU was found" in v.message for v in verdicts.values())


def test_figures_of_unlike_devices_are_not_compared(room: Path) -> None:
    other = replace(ON_H100, name="NVIDIA L4", uuid="GPU-2")
    found = report(read(room, TEXT), fp16=lambda record: replace(record, device=other))
    words = "measured on NVIDIA H100 80GB HBM3, and fp16 on NVIDIA L4"
    assert refused(judged(room, TEXT, found), words) == NF4 - {"nf4 max_weights", "nf4 max_vram"}


def test_of_a_server_on_another_machine_only_answers_are_compared(room: Path) -> None:
    elsewhere = Device("gpu.example.org", None, None, None, None, 0)
    text = TEXT.replace("{max_weights: 5 GiB, ", "{max_weights_ratio: 1, min_speedup: 0.5, max_weights: 5 GiB, ")
    found = report(read(room, text), nf4=lambda record: replace(record, device=elsewhere))
    words = "measured on gpu.example.org, and fp16 on NVIDIA H100 80GB HBM3"
    told = judged(room, text, found)
    assert refused(told, words) == {"nf4 max_weights_ratio", "nf4 min_speedup"}
    assert told["nf4 max_sums_drop"].measured is not None
    # The table shows the same figures.
    lines = [re.split(r"\s{2,}", line.text.strip()) for line in table.lines(found)]
    head, row = (next(cells for cells in lines if cells[0] == first) for first in ("method", "nf4"))
    nf4 = dict(zip(head, row, strict=True))
    assert (nf4["ratio"], nf4["speed-up"], nf4["drop"]) == ("-", "-", "10.0")


ENGINES = """
model: org/model
methods:
  q8:
    kind: gguf-q8_0
    engine: llama.cpp
    engine_options: {n_ctx: 512}
    budget: {max_weights: 5 GiB}
  prod:
    kind: served
    engine: openai
    server: {url: "http://127.0.0.1:8000/v1", model: m}
    load: {prompt_tokens: 8, new_tokens: 3, requests: 9}
    budget: {max_ttft_p50: 1 s}
"""


@pytest.mark.parametrize(
    ("old", "new", "words", "limits"),
    [
        (
            "requests: 9",
            "requests: 9, timeout: 3 min",
            "load: timeout_s is 180.0 here and 120.0 in",
            {"prod max_ttft_p50"},
        ),
        ("requests: 9", "requests: 10", "load: requests is 10 here and 9 in report.json", {"prod max_ttft_p50"}),
        ("requests: 9", "requests: 9, rate: 2", "load: ", {"prod max_ttft_p50"}),
        (
            "8000",
            "8001",
            "server.url is http://127.0.0.1:8001/v1 here and http://127.0.0.1:8000/v1 in",
            {"prod max_ttft_p50"},
        ),
        ("model: m}", "model: n}", "server.model is n here and m in report.json", {"prod max_ttft_p50"}),
        ("n_ctx: 512", "n_ctx: 1024", "n_ctx is 1024 here and 512 in report.json", {"q8 max_weights"}),
        ("gguf-q8_0", "gguf-q4_0", "kind is gguf-q4_0 here and gguf-q8_0 in report.json", {"q8 max_weights"}),
        ("kind: served", "kind: checkpoint", "kind is checkpoint here and served in", {"prod max_ttft_p50"}),
    ],
)
def test_a_difference_in_what_runs_a_method_costs_its_limits(
    room: Path, old: str, new: str, words: str, limits: set[str]
) -> None:
    budget = read(room, ENGINES, elsewhere=True)
    load = budget.method("prod").load
    assert load is not None
    served = (Served(0.0, 0.1, "1000 1000", 3),) * 9
    result = LoadResult(load, (Level("concurrency", 1, 1.0, served),))
    found = report(budget, prod=lambda record: replace(record, loads=(result,)))
    assert refused(judged(room, ENGINES, found), "") == set()
    assert refused(judged(room, ENGINES.replace(old, new, 1), found), words) == limits


def test_what_failed_or_was_skipped_comes_out_as_it_was(room: Path) -> None:
    crash = Failure("task sums", "error", "the measuring process died (SIGSEGV)", "its last words")
    missing = Failure(LOAD, "skip", "gptq-int4 needs gptqmodel: pip install it")
    budget = read(room, TEXT)
    found = report(
        budget,
        nf4=lambda record: replace(record, tasks=(), perplexities=(), failures=(crash,)),
        **{
            "gptq-int4": lambda record: Measurement(record.subject, failures=(missing,)),
            "awq-int4": lambda _: None,
        },
    )
    verdicts = judged(room, TEXT, found)
    died = [verdicts[f"nf4 {name}"] for name in ("max_sums_drop", "max_kl", "max_ppl_ratio")]
    assert {(v.outcome, v.detail) for v in died} == {("failed", "its last words")}
    assert all(v.message.endswith("not measured: the measuring process died (SIGSEGV)") for v in died)
    assert verdicts["nf4 max_weights"].outcome == "within"
    assert verdicts["gptq-int4 max_weights"].message == "gptq-int4: max_weights not measured: " + missing.message
    assert verdicts["gptq-int4 max_weights"].outcome == "skipped"
    never = verdicts["awq-int4 max_weights"]
    assert (never.outcome, never.message[-48:]) == (
        "failed",
        "not measured: report.json holds no measurement of it"[-48:],
    )

    why = Verdict(SKIPPED, "awq-int4: max_weights needs a GPU; no GPU was found", for_want_of_gpu=True)
    (mine,) = found.budgets
    limits = (LimitReport("b.yaml::awq-int4::max_weights", "max_weights", 1, why),)
    mine = replace(mine, methods=(*mine.methods[:-1], replace(mine.methods[-1], limits=limits)))
    never = judged(room, TEXT, replace(found, budgets=(mine,)))["awq-int4 max_weights"]
    assert (never.outcome, never.for_want_of_gpu) == ("skipped", True)
    assert never.message.endswith("not measured: skipped in report.json: needs a GPU; no GPU was found")


def test_of_several_budgets_the_one_that_fits_is_taken_and_else_the_nearest_is_named(room: Path) -> None:
    other = TEXT.replace("double_quant: true", "double_quant: false").replace("org/model", "org/other")
    first, second = (report(read(room, text, name)) for text, name in ((other, "b.yaml"), (TEXT, "c.yaml")))
    both = replace(first, budgets=(*first.budgets, *second.budgets))
    assert refused(judged(room, TEXT, both), "") == set()
    text = TEXT.replace("org/model", "org/third")
    assert refused(judged(room, text, both), "model is org/third here and org/other in report.json") == ALL


def test_a_strangers_report_cannot_steer_the_terminal(room: Path) -> None:
    evil = Failure(LOAD, "error", "\x1b[2Jgone\n::warning::x")
    found = report(read(room, TEXT), nf4=lambda record: Measurement(record.subject, failures=(evil,)))
    message = judged(room, TEXT, found)["nf4 max_weights"].message
    assert "gone" in message
    assert message.isprintable()


def test_the_gpus_of_a_spread_model_are_those_of_its_name(room: Path) -> None:
    twin, small = replace(H100, index=1, uuid="GPU-2"), replace(H100, index=2, name="NVIDIA T4", uuid="GPU-3")
    found = report(read(room, TEXT))
    source = again.Stored("r", replace(found, machine=replace(found.machine, gpus=(twin, small, H100))), room)
    assert [(gpu.uuid, gpu.free) for gpu in source.gpus(ON_H100)] == [("GPU-1", 80 * GIB), ("GPU-2", 80 * GIB)]


def test_figures_of_dummy_weights_are_none_of_real_ones(room: Path) -> None:
    made = report(read(room, TEXT))
    (budget,) = made.budgets
    methods = tuple(
        replace(m, measurement=m.measurement and replace(m.measurement, subject=_dummy(m.measurement.subject)))
        for m in budget.methods
    )
    verdicts = judged(room, TEXT, replace(made, budgets=(replace(budget, methods=methods),)))
    assert refused(verdicts, "load_format is auto here and dummy in report.json") == ALL


def _dummy(subject: Subject) -> Subject:
    return replace(subject, load_format=DUMMY)
