"""Records to builtins and back, files written whole, and reports of another form refused."""

import json
import re
import threading
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pytest_quantbudget import records
from pytest_quantbudget.calibrate import Update
from pytest_quantbudget.estimate.memory import Estimate, LayerKind
from pytest_quantbudget.hardware import Commit, Gpu, Machine
from pytest_quantbudget.measurement import (
    Agreement,
    Answer,
    Device,
    Divergence,
    Failure,
    Measurement,
    Origin,
    Perplexity,
    Speed,
    TaskResult,
)
from pytest_quantbudget.noise import Noise, TaskNoise
from pytest_quantbudget.receipt import Layers, Receipt
from pytest_quantbudget.report import document
from pytest_quantbudget.report.document import BudgetReport, JudgedFrom, LimitReport, MethodReport, Report, Together
from pytest_quantbudget.request import Request, Rule, Subject, Task, Text, Workload
from pytest_quantbudget.stats import OVER
from pytest_quantbudget.usage import Clocks, GpuMemory, Occupant, PhaseMemory, Roofline
from pytest_quantbudget.verdict import Verdict

WORKLOAD = Workload(512, 128, 1, 2)
TASK = Task(
    "gsm8k", 100, 5, 0, "/data/q.jsonl", 256, 32, "strict", "gsm8k_cot", "/data/s.jsonl", "harness", True, "Be brief.",
    False, 1.5, True, "/data/t.yaml", 50, "acc", 20,
)  # fmt: skip
TEXT = Text("/data/wiki.txt", 512, 256)
ANSWER = Answer(7, "#### 2", "2", "2", True, True, False, 5, (3, 1, 4), -2.5, "00ff", 1.25)
AGREEMENT, DIVERGENCE = (
    Agreement("00ff", 100, 98, -40.0, -38.5, (60, 40), (59, 39), (0.5, 1.0)),
    Divergence(100, 97, 0.01, 0.5, 0.2, "fp16-00ff", (60, 40), (58, 39), (0.4, 0.6)),
)
SUBJECT = Subject("Qwen/Qwen3-8B", "abc", "nf4", "Qwen/x", {"double_quant": True, "group": -1, "t": 6.0}, "/data/c")
RULE = Rule("gsm8k", "drop", "max", ("*",), (2.5,), 0.95)
MEMORY = PhaseMemory("prefill", GpuMemory(7, 8, 9, 10, 1, 2), {"GPU-1": GpuMemory(7, 8, 9, 10, 1, 2)}, "pid 7")
ORIGIN = Origin("2026-01-01T00:00:00Z", True)
MEASUREMENT = Measurement(
    subject=SUBJECT,
    revision="abcdef",
    device=Device("NVIDIA L4", "GPU-1", 24 * 2**30, "8.9", "13.0", 4),
    quantized="/cache/x",
    quantize_s=12.5,
    load_time_s=2.0,
    weights=6 * 2**30,
    receipt=Receipt(
        (Layers("linear", "Linear4bit", "bitsandbytes.nn.modules", "bitsandbytes", 4, 252, 6_945_767_424),)
    ),
    load_memory=MEMORY,
    placement={"cuda:0": "all"},
    offloaded="parts of it are on cpu",
    loaded=ORIGIN,
    replies={"The three primary colours are": " red,\nyellow and \U0001f535 blue"},
    speeds=(
        Speed(
            WORKLOAD,
            (0.05, 0.06),
            (1.5, 1.6),
            7 * 2**30,
            8 * 2**30,
            ORIGIN,
            (7 * 2**30,),
            ("hot",),
            (0.04, 0.05),
            (1.4, 1.5),
            (2.5,),
            (MEMORY,),
            (Occupant("GPU-1", 123, "python", 2**30, True),),
            35,
            (Clocks("GPU-1", (1400,), (2600,), (312.5,), (61,), 1900, 3100, 400.0),),
            Roofline(6 * 2**30, 2**26, 0.02, 3e11, 0.7, 4),
        ),
    ),
    tasks=(
        TaskResult(
            TASK, (ANSWER,), 3.25, ORIGIN, 1, AGREEMENT, DIVERGENCE, "acc,none", 9, "decided", "00ff", "sha256:0"
        ),
    ),
    perplexities=(Perplexity(TEXT, 320.5, 100, ORIGIN, (60, 40), (200.0, 120.5), "sha256:00ff"),),
    failures=(Failure("task math", "error", "out of memory", "log\nlines", False),),
    libraries={"torch": "2.9.0"},
    notes=("the cache cannot be written",),
    checkpoint_revision="c0ffee",
    calibration="sha256:00ff",
)
GPU = Gpu(0, "NVIDIA L4", "GPU-1", 24 * 2**30, 23 * 2**30, "8.9", "580.1")
REPORT = Report(
    version=document.VERSION,
    created="2026-01-01T00:00:00+00:00",
    machine=Machine("Linux", "3.11.7", "a CPU", 4, 16 * 2**30, (GPU,), {"pytest": "9.0"}),
    commit=Commit("f" * 40, True),
    budgets=(
        BudgetReport(
            file="budgets/q.yaml",
            model="Qwen/Qwen3-8B",
            revision="abc",
            baseline="fp16",
            workload=WORKLOAD,
            text=TEXT,
            noise=Noise("fp16", 1, {"ttft": (0.05, 0.06)}, (TaskNoise("gsm8k", 100, (1,), (2,)),), ("a note",)),
            prompt="Hello",
            tasks=(TASK,),
            together=(Together("q.yaml::nf4::max_gsm8k_drop", 0.01, 0.02),),
            methods=(
                MethodReport(
                    "nf4",
                    MEASUREMENT,
                    (
                        LimitReport(
                            "q.yaml::nf4::max_vram",
                            "max_vram",
                            9,
                            Verdict(OVER, "over", 7.5, 7.0, "7 GiB", "GiB", "log", True, OVER, 7.25, 7.75, 0.95, 0.01),
                            Update("7 GiB", "7.6 GiB", "measured 7.50 GiB, margin 1.3 % (equal peaks)", 0.01, "why"),
                        ),
                    ),
                    Estimate(9, 8, (LayerKind("MLP", 9, 8, 1, 4),), 2, 1, 11, 12, ("taken to be so",)),
                ),
            ),
        ),
    ),
    judged_from=JudgedFrom("old.json", "2025-12-31T00:00:00+00:00"),
)


def fields_without_a_value(record: Any) -> list[str]:
    """The names of fields, at any depth, that hold None or nothing: what a round trip would not show."""
    if is_dataclass(record):
        values = {field.name: getattr(record, field.name) for field in fields(record)}
        empty = [f"{type(record).__name__}.{name}" for name, value in values.items() if value in (None, (), {})]
        return empty + [name for value in values.values() for name in fields_without_a_value(value)]
    return [name for item in record for name in fields_without_a_value(item)] if isinstance(record, tuple) else []


@pytest.mark.parametrize(
    "record",
    [
        MEASUREMENT,
        REPORT,
        Request(SUBJECT, True, (WORKLOAD,), (TASK,), ("Hello",), 60.0, 3600.0, (TEXT,), (TASK,), (RULE,), ("gsm8k",)),
    ],
)
def test_a_record_comes_back_equal_through_json(record: Any) -> None:
    assert fields_without_a_value(record) == []
    text = json.dumps(records.to_builtins(record), allow_nan=False)
    assert records.from_builtins(type(record), json.loads(text)) == record


def test_a_measurement_without_figures_comes_back_equal() -> None:
    bare = Measurement(SUBJECT)
    assert records.from_builtins(Measurement, records.to_builtins(bare)) == bare


def test_figures_stored_before_these_were_measured_are_read() -> None:
    data = records.to_builtins(Measurement(SUBJECT, speeds=(Speed(WORKLOAD, (0.05,), (1.5,), 7, 8),), weights=5))
    for field in ("load_memory", "placement", "offloaded"):
        del data[field]
    for field in (
        *("gpu_ttft_s", "gpu_decode_s", "warmup_s", "memory"),
        *("occupants", "busy_before", "clocks", "roofline"),
    ):
        del data["speeds"][0][field]
    (speed,) = records.from_builtins(Measurement, data).speeds
    assert (speed.peak_allocated, speed.shared, speed.roofline) == (7, "", None)


def test_a_full_report_is_valid_by_its_schema() -> None:
    jsonschema.Draft202012Validator(document.schema()).validate(records.to_builtins(REPORT))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["weights"], "6 GiB", "Measurement.weights: wants int, not '6 GiB'"),
        (["weights"], 6.5, "Measurement.weights: wants int, not 6.5"),
        (["weights"], True, "Measurement.weights: wants int, not True"),
        (["load_time_s"], "2", "Measurement.load_time_s: wants float, not '2'"),
        (["load_time_s"], True, "Measurement.load_time_s: wants float, not True"),
        (["subject"], None, "Measurement.subject: wants an object, not NoneType"),
        (["subject", "method"], None, "Measurement.subject.method: wants str, not None"),
        (["subject", "options"], [], "Measurement.subject.options: wants an object, not list"),
        (["speeds"], {}, "Measurement.speeds: wants a list, not dict"),
        (["speeds", 0, "ttft_s", 1], "x", "Measurement.speeds[0].ttft_s[1]: wants float, not 'x'"),
        (["tasks", 0, "answers", 0, "strict_correct"], 1, "tasks[0].answers[0].strict_correct: wants bool, not 1"),
        (["libraries", "torch"], 2, "Measurement.libraries.torch: wants str, not 2"),
        (["receipt", "layers", 0, "bits"], "4", "Measurement.receipt.layers[0].bits: wants int, not '4'"),
        (["replies"], {"Hello": 1}, "Measurement.replies.Hello: wants str, not 1"),
        (["device", "colour"], "red", "Measurement.device: missing or unknown: colour"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, list) else None,
)
def test_what_has_another_form_is_refused_with_its_place(path: list[Any], value: object, message: str) -> None:
    data = records.to_builtins(MEASUREMENT)
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        records.from_builtins(Measurement, data)


def test_a_missing_field_is_named() -> None:
    data = records.to_builtins(MEASUREMENT)
    del data["speeds"][0]["decode_s"]
    with pytest.raises(ValueError, match=r"Measurement\.speeds\[0\]: missing or unknown: decode_s"):
        records.from_builtins(Measurement, data)


def test_a_whole_number_serves_as_a_float() -> None:
    data = {**records.to_builtins(MEASUREMENT), "load_time_s": 2}
    found = records.from_builtins(Measurement, data).load_time_s
    assert isinstance(found, float)


@dataclass(frozen=True)
class Odd:
    thing: object


@pytest.mark.parametrize("thing", [Path("x"), {1, 2}, b"bytes", Odd], ids=["path", "set", "bytes", "class"])
def test_what_json_cannot_hold_does_not_belong_in_a_record(thing: object) -> None:
    with pytest.raises(TypeError, match="does not belong in a record"):
        records.to_builtins(Odd(thing))


def test_keys_are_the_same_for_equal_records_and_differ_for_others() -> None:
    again = records.from_builtins(Subject, records.to_builtins(SUBJECT))
    reordered = replace(SUBJECT, options=dict(reversed(SUBJECT.options.items())))
    assert SUBJECT.key == again.key == reordered.key
    others = [replace(SUBJECT, model="m"), replace(SUBJECT, revision=None), replace(SUBJECT, options={})]
    assert len({SUBJECT.key, *(other.key for other in others)}) == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_not_written_and_the_old_file_stays(tmp_path: Path, value: float) -> None:
    path = tmp_path / "r.json"
    records.write_json(path, MEASUREMENT)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.write_json(path, replace(MEASUREMENT, quantize_s=value))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "Expecting value: line 1 column 1"),
        (b'{"a": 1', "Expecting ',' delimiter"),
        (b"1 2", "Extra data"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8 text"),
        (b"NaN", "NaN is not a finite number"),
        (b"[-Infinity]", "-Infinity is not a finite number"),
        (b"1e999", "1e999 is not a finite number"),
        (b"9" * 10_000, "a whole number of 10,000 digits"),
        (b'{"a": 1, "b": {"c": 1, "c": 1}}', "the key 'c' stands twice in one object"),
        (b'["\\udc9f"]', "'\\udc9f' is half a character"),
        (b'{"\\ud83d": 1}', "'\\ud83d' is half a character"),
        (b"[" * 65 + b"0" + b"]" * 65, "more than 64 levels deep"),
        (b'{"a":' * 100_000, "more than 64 levels deep"),
        (b"[" + b"[]," * records.MAX_HOLDERS + b"0]", "more than 5,000,000 lists and objects"),
        (b"[[" * 500_000 + b"]", "more than 64 levels deep"),
    ],
    ids=[
        "empty",
        "cut off",
        "two",
        "latin-1",
        "NaN",
        "-inf",
        "inf",
        "digits",
        "twice",
        "half",
        "half a key",
        "65",
        "{",
        "holders",
        "[",
    ],
)
def test_json_that_readers_take_in_different_ways_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        records.read_json(data)


def test_json_is_read_as_it_stands() -> None:
    value: object = {"a": [1, -2.5, 1e300, True, None, "\U0001f535", 10**99], "b": {"c": {}}, "d": [[[]]]}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False), "\ufeff" + json.dumps(value)):
        assert records.read_json(text.encode()) == value


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "r.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        records.write_json(tmp_path / "r.json", MEASUREMENT)
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    large = replace(MEASUREMENT, replies={"x": "y" * 1_000_000})
    records.write_json(path, large)

    def write() -> None:
        for _ in range(30):
            records.write_json(path, large)

    writer = threading.Thread(target=write)
    writer.start()
    sizes = set()
    while writer.is_alive():
        sizes.add(len(path.read_bytes()))
    writer.join()
    assert sizes == {path.stat().st_size}


def test_a_written_file_has_the_rights_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    records.write_json(tmp_path / "r.json", MEASUREMENT)
    assert (tmp_path / "r.json").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    document.write(tmp_path / "r.json", REPORT)
    assert document.read(tmp_path / "r.json") == REPORT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "r.json is not JSON"),
        (b'{"version": 1, "created"', "r.json is not JSON"),
        (b"\xff\xfe", "r.json is not JSON"),
        (b'{"version": 999}', "r.json is a report of version 999; this release reads version"),
        (b"{}", "r.json is a report of version None"),
        (b"[]", "r.json is a report of version None"),
        (
            f'{{"version": {document.VERSION}}}'.encode(),
            "Report: missing or unknown: budgets, commit, created, machine",
        ),
    ],
    ids=["empty", "cut off", "binary", "newer", "no version", "list", "no content"],
)
def test_what_is_no_report_of_this_version_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        document.read(tmp_path / "r.json")


def test_a_table_of_more_cells_than_any_budget_has_is_refused(tmp_path: Path) -> None:
    budget = replace(REPORT.budgets[0], methods=REPORT.budgets[0].methods * document.MAX_ROWS)
    data = records.to_builtins(replace(REPORT, budgets=(budget,)))
    data["budgets"][0]["methods"].append(data["budgets"][0]["methods"][0])
    (tmp_path / "r.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"Report\.budgets\[0\]: more than 100 tasks or 100 methods"):
        document.read(tmp_path / "r.json")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero here")
def test_a_report_without_end_is_not_opened() -> None:
    with pytest.raises(OSError, match="not a regular file"):
        document.read(Path("/dev/zero"))
