"""Records to builtins and back, files written whole, and reports of another form refused."""

import json
import re
import threading
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from builders import (
    MEASUREMENT,
    REPORT,
    RULE,
    SUBJECT,
    TASK,
    TEXT,
    WORKLOAD,
)

from pytest_quantbudget.core import codec
from pytest_quantbudget.core.measurement import Measurement, Speed
from pytest_quantbudget.core.request import DivergenceOf, LoadTime, Reply, Request, Subject, Trust
from pytest_quantbudget.measure.job import Job
from pytest_quantbudget.measure.keys import Keys
from pytest_quantbudget.models.methods import Prepared
from pytest_quantbudget.report import document

PARTS = (LoadTime(), WORKLOAD, Reply("Hello"), TASK, DivergenceOf(TASK), TEXT)
REQUEST = Request(SUBJECT, PARTS, 60.0, 3600.0, (RULE,), ("gsm8k",))
(ANSWERED,) = MEASUREMENT.tasks
OTHER = replace(TASK, name="other")
JOB = Job(
    REQUEST,
    "/cache",
    "/scratch",
    Keys("nf4-00ff", "abc", "def", {"gpus": [], "threads": 2}, {"host": "here"}, {"/data/q.jsonl": "sha256:00"}),
    "/store",
    True,
    "load",
    "/cache/quantized/nf4",
    Prepared({"backend": "marlin"}, ("compiled",)),
    Trust(True, True),
    {"CUDA_VISIBLE_DEVICES": "GPU-1"},
    True,
    "/scratch/t",
    {TASK: ANSWERED, OTHER: replace(ANSWERED, task=OTHER)},
    {TASK: Path("/cache/divergence/x.safetensors"), OTHER: Path("/y")},
    {TASK: ANSWERED},
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
        REQUEST,
        JOB,
    ],
)
def test_a_record_comes_back_equal_through_json(record: Any) -> None:
    assert fields_without_a_value(record) == []
    text = json.dumps(codec.to_builtins(record), allow_nan=False)
    assert codec.from_builtins(type(record), json.loads(text)) == record


def test_a_job_of_the_least_comes_back_equal_with_a_request_that_may_take_forever() -> None:
    bare = Job(Request(SUBJECT), "/cache", "/scratch")
    assert codec.from_builtins(Job, json.loads(json.dumps(codec.to_builtins(bare)))) == bare


@pytest.mark.parametrize("data", [{"gsm8k": "/x"}, [1], [[1]], [["k", "v"]], [[{}, {}, {}]], "text"], ids=str)
def test_what_is_no_list_of_pairs_is_no_mapping_of_records(data: Any) -> None:
    with pytest.raises(ValueError, match=r"Job.references"):
        codec.from_builtins(Job, {**codec.to_builtins(JOB), "references": data})


def test_a_measurement_without_figures_comes_back_equal() -> None:
    bare = Measurement(SUBJECT)
    assert codec.from_builtins(Measurement, codec.to_builtins(bare)) == bare


def test_figures_stored_before_these_were_measured_are_read() -> None:
    data = codec.to_builtins(Measurement(SUBJECT, speeds=(Speed(WORKLOAD, (0.05,), (1.5,), 7, 8),), weights=5))
    for field in ("load_memory", "placement", "offloaded"):
        del data[field]
    for field in (
        *("gpu_ttft_s", "gpu_decode_s", "warmup_s", "memory"),
        *("occupants", "busy_before", "clocks", "roofline"),
    ):
        del data["speeds"][0][field]
    (speed,) = codec.from_builtins(Measurement, data).speeds
    assert (speed.peak_allocated, speed.shared, speed.roofline) == (7, "", None)


def test_a_full_report_is_valid_by_its_schema() -> None:
    jsonschema.Draft202012Validator(document.schema()).validate(codec.to_builtins(REPORT))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["weights"], "6 GiB", "Measurement.weights: must be int, not '6 GiB'"),
        (["weights"], 6.5, "Measurement.weights: must be int, not 6.5"),
        (["weights"], True, "Measurement.weights: must be int, not True"),
        (["load_time_s"], "2", "Measurement.load_time_s: must be float, not '2'"),
        (["load_time_s"], True, "Measurement.load_time_s: must be float, not True"),
        (["subject"], None, "Measurement.subject: must be an object, not NoneType"),
        (["subject", "method"], None, "Measurement.subject.method: must be str, not None"),
        (["subject", "options"], [], "Measurement.subject.options: must be an object, not list"),
        (["speeds"], {}, "Measurement.speeds: must be a list, not dict"),
        (["speeds", 0, "ttft_s", 1], "x", "Measurement.speeds[0].ttft_s[1]: must be float, not 'x'"),
        (["tasks", 0, "answers", 0, "strict_correct"], 1, "tasks[0].answers[0].strict_correct: must be bool, not 1"),
        (["libraries", "torch"], 2, "Measurement.libraries.torch: must be str, not 2"),
        (["receipt", "layers", 0, "bits"], "4", "Measurement.receipt.layers[0].bits: must be int, not '4'"),
        (["replies"], {"Hello": 1}, "Measurement.replies.Hello: must be str, not 1"),
        (["device", "colour"], "red", "Measurement.device: missing or unknown: colour"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, list) else None,
)
def test_what_has_another_form_is_refused_with_its_place(path: list[Any], value: object, message: str) -> None:
    data = codec.to_builtins(MEASUREMENT)
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        codec.from_builtins(Measurement, data)


def test_a_missing_field_is_named() -> None:
    data = codec.to_builtins(MEASUREMENT)
    del data["speeds"][0]["decode_s"]
    with pytest.raises(ValueError, match=r"Measurement\.speeds\[0\]: missing or unknown: decode_s"):
        codec.from_builtins(Measurement, data)


def test_a_whole_number_serves_as_a_float() -> None:
    data = {**codec.to_builtins(MEASUREMENT), "load_time_s": 2}
    found = codec.from_builtins(Measurement, data).load_time_s
    assert isinstance(found, float)


@dataclass(frozen=True)
class Odd:
    thing: object


@pytest.mark.parametrize("thing", [{1, 2}, b"bytes", Odd], ids=["set", "bytes", "class"])
def test_what_json_cannot_hold_does_not_belong_in_a_record(thing: object) -> None:
    with pytest.raises(TypeError, match="does not belong in a record"):
        codec.to_builtins(Odd(thing))


def test_keys_are_the_same_for_equal_records_and_differ_for_others() -> None:
    again = codec.from_builtins(Subject, codec.to_builtins(SUBJECT))
    reordered = replace(SUBJECT, options=dict(reversed(SUBJECT.options.items())))
    assert SUBJECT.key == again.key == reordered.key
    others = [replace(SUBJECT, model="m"), replace(SUBJECT, revision=None), replace(SUBJECT, options={})]
    assert len({SUBJECT.key, *(other.key for other in others)}) == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_not_written_and_the_old_file_stays(tmp_path: Path, value: float) -> None:
    path = tmp_path / "r.json"
    codec.write_json(path, MEASUREMENT)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        codec.write_json(path, replace(MEASUREMENT, quantize_s=value))
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
        (b'{"a": 1, "b": {"c": 1, "c": 1}}', "the key 'c' is given twice in one object"),
        (b'["\\udc9f"]', "'\\udc9f' is half a character"),
        (b'{"\\ud83d": 1}', "'\\ud83d' is half a character"),
        (b"[" * 65 + b"0" + b"]" * 65, "more than 64 levels deep"),
        (b'{"a":' * 100_000, "more than 64 levels deep"),
        (b"[" + b"[]," * codec.MAX_HOLDERS + b"0]", "more than 5,000,000 lists and objects"),
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
        codec.read_json(data)


def test_json_is_read_as_it_stands() -> None:
    value: object = {"a": [1, -2.5, 1e300, True, None, "\U0001f535", 10**99], "b": {"c": {}}, "d": [[[]]]}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False), "\ufeff" + json.dumps(value)):
        assert codec.read_json(text.encode()) == value


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "r.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        codec.write_json(tmp_path / "r.json", MEASUREMENT)
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    large = replace(MEASUREMENT, replies={"x": "y" * 1_000_000})
    codec.write_json(path, large)

    def write() -> None:
        for _ in range(30):
            codec.write_json(path, large)

    writer = threading.Thread(target=write)
    writer.start()
    sizes = set()
    while writer.is_alive():
        sizes.add(len(path.read_bytes()))
    writer.join()
    assert sizes == {path.stat().st_size}


def test_a_written_file_has_the_rights_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    codec.write_json(tmp_path / "r.json", MEASUREMENT)
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
        (b"{}", "r.json is no report: --quant-report writes one"),
        (b"[]", "r.json is no report"),
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
    data = codec.to_builtins(replace(REPORT, budgets=(budget,)))
    data["budgets"][0]["methods"].append(data["budgets"][0]["methods"][0])
    (tmp_path / "r.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"Report\.budgets\[0\]: more than 100 tasks or 100 methods"):
        document.read(tmp_path / "r.json")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero here")
def test_a_report_without_end_is_not_opened() -> None:
    with pytest.raises(OSError, match="not a regular file"):
        document.read(Path("/dev/zero"))
