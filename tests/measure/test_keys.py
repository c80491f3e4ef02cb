"""A stored figure is found again only where everything that it depends on is the same."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import adapters
import pytest

from pytest_quantbudget.core import entry_points
from pytest_quantbudget.core.engines import Adapter
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.gpus import Gpu
from pytest_quantbudget.core.request import NO_TRUST, LoadTime, Part, Reply, Request, Subject, Task, Trust, Workload
from pytest_quantbudget.measure import keys as identity
from pytest_quantbudget.measure.keys import Keys
from pytest_quantbudget.models import hub, methods

L4 = Gpu(0, "NVIDIA L4", "GPU-1", 24 * 2**30, 23 * 2**30, "8.9", "580.1")
WORKLOAD = Workload(16, 8, 1, 2)


@pytest.fixture
def given(tmp_path: Path) -> tuple[Request, list[Gpu]]:
    """A request for a model of its own directory, with a task and a calibration file, on a GPU."""
    model = tmp_path / "model"
    shutil.copytree(BUILTIN_DIR, model)
    task = Task("math", 20, 1, 0, str(model / "questions.jsonl"), 96, 8, "strict")
    subject = Subject(str(model), None, "gptq-int4", None, {"group_size": 128}, str(model / "calibration.jsonl"))
    return Request(subject, (LoadTime(), WORKLOAD, Reply("Hello"), task)), [L4]


def names(request: Request, gpus: list[Gpu], memo: Path, trust: Trust = NO_TRUST) -> dict[str, str]:
    """The entry of each figure."""
    keys = identity.keys_of(request, gpus, trust, memo)
    assert keys is not None
    return {
        "load": keys.load().name,
        "load time": keys.of(LoadTime()).name,
        "workload": keys.of(request.of(Workload)[0]).name,
        "reply": keys.of(Reply("Hello")).name,
        "task": keys.of(request.of(Task)[0]).name,
        "batch": keys.batch(request.of(Task)[0], 0).name,
    }


ALL = {"load", "load time", "workload", "reply", "task", "batch"}
TIMINGS = {"load time", "workload"}
ANSWERS = {"task", "batch"}
Change = Callable[[Request, list[Gpu]], tuple[Request, list[Gpu]]]


def subject(**more: Any) -> Change:
    return lambda request, gpus: (replace(request, subject=replace(request.subject, **more)), gpus)


def task(**more: Any) -> Change:
    return lambda request, gpus: (with_part(request, replace(request.of(Task)[0], **more)), gpus)


def with_part(request: Request, part: Part) -> Request:
    """The request with this part instead of the one of its kind."""
    others = (part if type(other) is type(part) else other for other in request.parts)
    return replace(request, parts=tuple(others))


def gpu(**more: Any) -> Change:
    return lambda request, gpus: (request, [replace(gpus[0], **more)])


def rewritten(name: str) -> Change:
    def change(request: Request, gpus: list[Gpu]) -> tuple[Request, list[Gpu]]:
        path = Path(request.subject.model) / name
        path.write_bytes(path.read_bytes() + b"\n")
        return request, gpus

    return change


CHANGES: dict[str, tuple[Change, set[str]]] = {
    "weights": (rewritten("model.safetensors"), ALL),
    "tokenizer": (rewritten("tokenizer.json"), ALL),
    "calibration text": (rewritten("calibration.jsonl"), ALL),
    "method": (subject(kind="awq-int4"), ALL),
    "options": (subject(options={"group_size": 64}), ALL),
    "its name": (subject(method="mine"), set()),
    "engine": (subject(engine="vllm"), ALL),
    "engine options": (subject(engine_options={"max_model_len": 8}), ALL),
    "checkpoint": (subject(checkpoint=str(BUILTIN_DIR)), ALL),
    "adapter": (subject(adapter=Adapter(str(BUILTIN_DIR))), ALL),
    "GPU name": (gpu(name="NVIDIA L40"), ALL),
    "driver": (gpu(driver="590.1"), ALL),
    "no GPU": (lambda request, gpus: (request, []), ALL),
    "two GPUs": (lambda request, gpus: (request, gpus * 2), ALL),
    "another card of that name": (gpu(uuid="GPU-2"), TIMINGS),
    "free memory": (gpu(free=1), set()),
    "questions": (rewritten("questions.jsonl"), ANSWERS),
    "number of questions": (task(questions=21), ANSWERS),
    "shots": (task(shots=2), ANSWERS),
    "seed": (task(seed=1), ANSWERS),
    "max_new_tokens": (task(max_new_tokens=97), ANSWERS),
    "batch size": (task(batch_size=9), ANSWERS),
    "which extraction counts": (task(extract="flexible"), set()),
    "compile": (lambda request, gpus: (with_part(request, Workload(16, 8, 1, 2, compile=True)), gpus), {"workload"}),
    "workload": (lambda request, gpus: (with_part(request, Workload(17, 8, 1, 2)), gpus), {"workload"}),
    "timeout": (lambda request, gpus: (replace(request, timeout_s=5.0), gpus), set()),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_figure_is_measured_again_where_what_it_depends_on_changes(
    tmp_path: Path, given: tuple[Request, list[Gpu]], what: str
) -> None:
    change, touched = CHANGES[what]
    before = names(*given, tmp_path)
    assert names(*given, tmp_path) == before
    after = names(*change(*given), tmp_path)
    assert {figure for figure in before if before[figure] != after[figure]} == touched


@pytest.mark.parametrize(
    ("target", "value"),
    [
        ("pytest_quantbudget.models.methods.libraries", lambda: {"torch": "0.1", "pytest-quantbudget": "0"}),
        ("pytest_quantbudget.measure.keys.own_sources", lambda: "other"),
        ("pytest_quantbudget.measure.hardware.cpu", lambda: "Z80"),
        ("os.sched_getaffinity", lambda pid: {0}),
        ("platform.python_version", lambda: "3.99"),
    ],
    ids=["libraries", "this package", "CPU", "threads", "Python"],
)
def test_a_figure_is_measured_again_on_another_machine(
    tmp_path: Path, given: tuple[Request, list[Gpu]], monkeypatch: pytest.MonkeyPatch, target: str, value: Any
) -> None:
    if target == "os.sched_getaffinity" and len(os.sched_getaffinity(0)) == 1:
        value = lambda pid: {0, 1}  # noqa: E731
    before = names(*given, tmp_path)
    monkeypatch.setattr(target, value)
    after = names(*given, tmp_path)
    assert all(before[figure] != after[figure] for figure in ALL)


def test_environment_trust_and_host_belong_to_the_key(
    tmp_path: Path, given: tuple[Request, list[Gpu]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = names(*given, tmp_path)
    assert all(before[figure] != names(*given, tmp_path, Trust(pickles=True))[figure] for figure in ALL)
    monkeypatch.setattr("platform.node", lambda: "elsewhere")
    assert {figure for figure in ALL if before[figure] != names(*given, tmp_path)[figure]} == TIMINGS
    monkeypatch.setenv("OMP_NUM_THREADS", "1" if os.environ.get("OMP_NUM_THREADS") != "1" else "2")
    assert all(before[figure] != names(*given, tmp_path)[figure] for figure in ALL)


def test_a_library_that_the_method_does_not_use_changes_nothing(
    tmp_path: Path, given: tuple[Request, list[Gpu]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = names(*given, tmp_path)
    versions = methods.libraries()
    monkeypatch.setattr(methods, "libraries", lambda: {**versions, "bitsandbytes": "99", "pytest": "99"})
    assert names(*given, tmp_path) == before


def test_packages_that_add_something_belong_to_every_key(
    tmp_path: Path, given: tuple[Request, list[Gpu]], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "site" / "acme_quant-1.0.dist-info"
    told.mkdir(parents=True)
    (told / "entry_points.txt").write_text("[pytest_quantbudget.metrics]\nx = acme_quant:X\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    found = []
    for version in ("1.0", "1.1"):
        (told / "METADATA").write_text(f"Name: acme-quant\nVersion: {version}\n")
        entry_points.packages.cache_clear()
        found.append(names(*given, tmp_path))
    entry_points.packages.cache_clear()
    assert not set(found[0].values()) & set(found[1].values())


def test_how_llama_cpp_was_compiled_belongs_to_its_keys(
    tmp_path: Path, given: tuple[Request, list[Gpu]], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "site" / "llama_cpp_python-0.3.36.dist-info"
    told.mkdir(parents=True)
    (told / "METADATA").write_text("Name: llama-cpp-python\nVersion: 0.3.36\n")

    def compiled(library: str, page: str = "00") -> None:
        lines = f"llama_cpp/lib/libggml-cpu.so.0,sha256={library},9\nllama_cpp/__init__.py,sha256={page},9\nx.pyc,,\n"
        (told / "RECORD").write_text(lines)

    compiled("11")
    monkeypatch.syspath_prepend(tmp_path / "site")
    ours, other = subject(engine="llama.cpp", kind="gguf-q8_0")(*given), given
    before = names(*ours, tmp_path), names(*other, tmp_path)
    compiled("11", "22")
    assert (names(*ours, tmp_path), names(*other, tmp_path)) == before
    monkeypatch.setenv("GGML_CUDA_FORCE_MMQ", "1")
    assert not set(names(*ours, tmp_path).values()) & set(before[0].values())
    monkeypatch.delenv("GGML_CUDA_FORCE_MMQ")
    compiled("33")
    assert not set(names(*ours, tmp_path).values()) & set(before[0].values())
    assert names(*other, tmp_path) == before[1]


def test_what_an_engines_options_name_and_what_it_reads_belong_to_the_key(
    tmp_path: Path, given: tuple[Request, list[Gpu]], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_text("one")
    scales = tmp_path / "scales.json"
    scales.write_text("{}")
    options = {"lora_modules": [{"name": "a", "path": str(adapter)}], "scales": str(scales), "enable_lora": True}
    changed = subject(engine="vllm", engine_options=options)(*given)
    before = names(*changed, tmp_path)
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert names(*changed, tmp_path) == before
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")
    other = names(*changed, tmp_path)
    assert not set(before.values()) & set(other.values())
    (adapter / "adapter_model.safetensors").write_text("two, which is longer")
    third = names(*changed, tmp_path)
    assert not set(other.values()) & set(third.values())
    scales.write_text("[]")
    assert not set(third.values()) & set(names(*changed, tmp_path).values())


def test_an_adapter_belongs_to_the_key_by_its_content_and_how_it_is_used(
    tmp_path: Path, given: tuple[Request, list[Gpu]], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = adapters.write(tmp_path / "own"), adapters.write(tmp_path / "other")
    before = names(*subject(adapter=Adapter(str(own)))(*given), tmp_path)
    assert names(*subject(adapter=Adapter(str(other)))(*given), tmp_path) == before
    merged = names(*subject(adapter=Adapter(str(own), merge=True))(*given), tmp_path)
    assert not set(before.values()) & set(merged.values())
    plain = names(*given, tmp_path)
    monkeypatch.setattr("pytest_quantbudget.core.versions.installed", lambda wanted: {"peft": "0.1"})
    assert not set(before.values()) & set(names(*subject(adapter=Adapter(str(own)))(*given), tmp_path).values())
    without = names(*given, tmp_path)
    monkeypatch.setattr("pytest_quantbudget.core.versions.installed", lambda wanted: {"peft": "0.2"})
    assert names(*given, tmp_path) == without != plain
    monkeypatch.undo()
    adapters.write(own, lora_alpha=5)
    assert not set(before.values()) & set(names(*subject(adapter=Adapter(str(own)))(*given), tmp_path).values())
    keys = identity.keys_of(subject(adapter=Adapter(str(own)))(*given)[0], [], NO_TRUST, tmp_path)
    assert keys is not None
    assert keys.adapter_revision == hub.content_hash(own)


def test_keys_cross_to_the_measuring_process_as_plain_values(tmp_path: Path, given: tuple[Request, list[Gpu]]) -> None:
    keys = identity.keys_of(*given, NO_TRUST, tmp_path)
    assert keys is not None
    assert Keys(**json.loads(json.dumps(vars(keys)))).load().name == keys.load().name


def test_a_content_hash_is_remembered_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "model"
    shutil.copytree(BUILTIN_DIR, model)
    hashed: list[Path] = []
    plain = hub.content_hash

    def counted(folder: Path) -> str:
        hashed.append(folder)
        return plain(folder)

    monkeypatch.setattr(hub, "content_hash", counted)
    first = hub.revision_of(str(model), None, tmp_path / "memo")
    assert hub.revision_of(str(model), None, tmp_path / "memo") == first == plain(model)
    assert len(hashed) == 1
    weights = model / "model.safetensors"
    stat = weights.stat()
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    os.utime(
        weights, ns=(stat.st_atime_ns, stat.st_mtime_ns)
    )  # same size, same time of change as far as one can fake it
    assert hub.revision_of(str(model), None, tmp_path / "memo") != first


@pytest.mark.model
def test_a_hub_revision_is_a_commit_that_the_hub_or_its_cache_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef" * 2 + "01234567"
    assert hub.revision_of("acme/x", commit, tmp_path) == commit
    with pytest.raises(OSError, match="refs"):
        hub.revision_of("acme/x", None, tmp_path)
    (tmp_path / "models--acme--x" / "refs").mkdir(parents=True)
    (tmp_path / "models--acme--x" / "refs" / "main").write_text(commit)
    assert hub.revision_of("acme/x", None, tmp_path) == commit
    request = Request(Subject("acme/y", None, "fp32", None, {}, None))
    assert identity.keys_of(request, [], NO_TRUST, tmp_path) is None
