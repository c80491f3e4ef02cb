"""llama.cpp against transformers on the built-in model: the same answers, log-probabilities and logits."""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_models import TASK, answers, prompt_ids, running

from pytest_quantbudget import engine as engines
from pytest_quantbudget.core.engines import TRANSFORMERS
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.measurement import Device
from pytest_quantbudget.core.request import Subject, Workload
from pytest_quantbudget.engine import divergence
from pytest_quantbudget.engine.base import Decoded, Ends, Engine, NotFinite, NotOffered
from pytest_quantbudget.engine.llama_cpp.load import device
from pytest_quantbudget.engine.llama_cpp.speed import measure
from pytest_quantbudget.engine.machine.gpus import Gpus
from pytest_quantbudget.engine.machine.nvml import Card
from pytest_quantbudget.engine.out_of_memory import Batching

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"),
]
PARAMETERS, IN_MATRICES = 574_528, 573_440


@pytest.fixture(scope="module")
def baseline() -> Engine:
    engine: Engine = engines.module(TRANSFORMERS).load(Subject(str(BUILTIN_DIR), None, "fp32", None, {}, None))
    return engine


@pytest.fixture(scope="module")
def told(baseline: Engine) -> list[Decoded]:
    return answers(baseline)


@pytest.fixture(scope="module")
def cache(shared_folder: Path) -> Path:
    return shared_folder / "gguf"


@pytest.fixture(scope="module")
def f32(cache: Path) -> Iterator[Engine]:
    with running("gguf-f32", cache, type_k="f32", type_v="f32", flash_attn=False, n_threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def q4_0(cache: Path) -> Iterator[Engine]:
    with running("gguf-q4_0", cache, n_threads=1) as engine:
        yield engine


def same(ours: list[Decoded], theirs: list[Decoded]) -> int:
    return sum(a.ids == b.ids for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("kind", ["gguf-f16", "gguf-bf16", "gguf-q8_0"])
def test_answers_are_those_of_transformers_in_full_precision(kind: str, cache: Path, told: list[Decoded]) -> None:
    with running(kind, cache, n_threads=1) as engine:
        assert same(answers(engine), told) == 100


def test_in_full_precision_all_figures_are_those_of_transformers(
    f32: Engine, baseline: Engine, told: list[Decoded]
) -> None:
    ours = answers(f32)
    assert same(ours, told) == 100
    assert [a.cut_off for a in ours] == [a.cut_off for a in told]
    assert [a.logprob for a in ours] == pytest.approx([a.logprob for a in told], abs=1e-4)
    drafted = answers(f32, [answer.ids for answer in told])
    assert same(drafted, told) == 100
    assert [a.agreed for a in drafted] == [len(a.ids) for a in told]
    assert [a.draft_logprob for a in drafted] == pytest.approx([a.logprob for a in told], abs=1e-4)
    pairs = [(prompt + answer.ids, len(prompt)) for prompt, answer in zip(prompt_ids(f32), told, strict=True)]
    for own, other in zip(f32.score(pairs), baseline.score(pairs), strict=True):
        assert [token.logprob for token in own] == pytest.approx([token.logprob for token in other], abs=1e-4)
        assert [token.greedy for token in own] == [token.greedy for token in other]


def test_the_divergence_from_transformers_is_nearly_none_and_that_of_four_bits_is_some(
    f32: Engine, q4_0: Engine, baseline: Engine, told: list[Decoded], tmp_path: Path
) -> None:
    pairs = [(prompt, answer.ids) for prompt, answer in zip(prompt_ids(f32), told[:20], strict=False)]
    path = tmp_path / "kept.safetensors"
    divergence.keep(baseline, pairs, path)
    exact, rounded = (divergence.compare(engine, pairs, path) for engine in (f32, q4_0))
    assert exact.tokens == exact.same_top == sum(len(ids) for _, ids in pairs)
    assert exact.mean_kl < 1e-9
    assert 1e-5 < rounded.mean_kl < 0.01


def test_drafts_change_no_answer_and_tell_where_the_model_would_have_differed(
    q4_0: Engine, baseline: Engine, told: list[Decoded]
) -> None:
    alone = answers(q4_0)
    wrong = [[*answer.ids[:5], 7, *answer.ids[6:]] for answer in told]
    drafted = answers(q4_0, wrong)
    assert same(drafted, alone) == 100
    pairs = [(prompt + draft, len(prompt)) for prompt, draft in zip(prompt_ids(q4_0), wrong, strict=True)]
    wanted = [sum(token.logprob for token in scored) for scored in q4_0.score(pairs)]
    assert [a.draft_logprob for a in drafted] == pytest.approx(wanted, rel=1e-3)
    greedy = [block.argmax(-1).tolist() for _, block in q4_0.logits(pairs)]
    agreed = [sum(a == b for a, b in zip(each, draft, strict=True)) for each, draft in zip(greedy, wrong, strict=True)]
    assert [a.agreed for a in drafted] == agreed


@pytest.mark.parametrize("size", [1, 3, 100])
def test_answers_do_not_depend_on_how_many_are_given_at_once(f32: Engine, told: list[Decoded], size: int) -> None:
    assert same(answers(f32, size=size), told) == 100


def test_what_all_prompts_begin_with_is_computed_once(
    f32: Engine, baseline: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = replace(TASK, questions=12, shots=4)
    fed: list[int] = []
    session: Any = f32.session  # type: ignore[attr-defined]
    decode = session._decode

    def counted(count: int) -> Any:
        fed.append(count)
        return decode(count)

    monkeypatch.setattr(session, "_decode", counted)
    ours = answers(f32, task=task)
    assert same(ours, answers(baseline, task=task)) == 12
    prompts, said = prompt_ids(f32, task), sum(len(answer.ids) for answer in ours)
    assert sum(fed) < sum(map(len, prompts)) / 2 + said


def test_memory_that_runs_out_means_fewer_at_once(
    f32: Engine, told: list[Decoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    session: Any = f32.session  # type: ignore[attr-defined]
    shape = session.shape

    def scarce(sequences: int, tokens: int, what: str) -> None:
        if sequences > 5:
            raise MemoryError("llama.cpp makes no context: failed to allocate buffer")
        shape(sequences, tokens, what)

    monkeypatch.setattr(session, "shape", scarce)
    batching = Batching(0)
    found: dict[int, Decoded] = {}
    ends = Ends(f32.tokenizer, f32.describe().end_tokens, ("Question:",), 96)
    f32.answer(prompt_ids(f32), ends, found.update, batching)
    assert (batching.tried, batching.size) == (16, 4)
    assert same([found[i] for i in range(100)], told) == 100


def test_the_description_is_the_librarys_own(q4_0: Engine) -> None:
    told = q4_0.describe()
    assert told.receipt.parameters == PARAMETERS
    assert told.receipt.fraction == IN_MATRICES / PARAMETERS
    assert told.receipt.main_bits == 4
    # The embedding, which is the output layer too, is in q8_0.
    assert told.weights == 640 * 128 * 34 // 32 + (IN_MATRICES - 640 * 128) * 18 // 32 + 1088 * 4
    assert told.disk == told.weights + 17_664
    assert told.facts is not None
    assert told.facts.version
    assert told.facts.kv_tokens == 512
    # 3 layers, keys and values of 128 values in 16 bits.
    assert told.facts.buffers["kv"] == 512 * 3 * 2 * 128 * 2
    assert told.facts.buffers["model"] >= told.weights
    assert told.facts.buffers["compute"] > 0
    assert told.positions == 512
    assert told.end_tokens == (0,)
    assert told.device.name == "cpu"
    assert told.device.threads == 1
    assert told.placement is not None
    assert all(device.startswith("CPU") for device in told.placement)
    held = sum(float(size.removesuffix(" MiB")) for size in told.placement.values())
    assert held == pytest.approx(told.facts.buffers["model"] / 2**20, abs=0.02)


def test_weights_that_are_packed_anew_go_by_the_name_of_their_kernel(cache: Path, q4_0: Engine) -> None:
    with running("gguf-q4_0", cache, repack=False) as plain:
        kept = plain.describe().receipt
    assert kept.runs_on("q4_0")
    packed = q4_0.describe().receipt
    if not q4_0.session.repacked:  # type: ignore[attr-defined]
        pytest.skip("llama.cpp has no other form of q4_0 for this CPU")
    assert packed.runs_on("q4_0_*")
    assert not packed.runs_on("q4_0")
    assert packed.parameters == kept.parameters


def test_a_workload_is_timed_by_its_repeats(f32: Engine) -> None:
    workload = Workload(prompt_tokens=16, new_tokens=8, batch_size=3, repeats=4)
    speed = f32.time(workload)
    assert len(speed.ttft_s) == len(speed.decode_s) == 4
    assert 1 <= len(speed.warmup_s) <= 3
    assert speed.peak_allocated is None
    assert speed.median_tokens_per_s > 0


def test_buffers_on_gpus_are_the_memory_of_a_workload(f32: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    session: Any = f32.session  # type: ignore[attr-defined]
    assert session.on_gpus == {}
    held = (("model", "CUDA0", 7), ("kv", "CUDA0", 2), ("kv", "CUDA1", 4), ("model", "CUDA_Host", 9))
    for name, place, size in held:
        monkeypatch.setitem(session.buffers[name], place, size)
    monkeypatch.setattr(session, "shape", lambda *_: None)
    assert session.on_gpus == {"CUDA0": 9, "CUDA1": 4}
    speed = measure(session, Workload(4, 2, 1, 3), Gpus({}), on_gpu=True)
    assert (speed.peak_allocated, speed.peak_reserved, speed.peaks) == (13, 13, (13, 13, 13))


def test_a_gpu_that_torch_does_not_know_goes_by_its_name_all_the_same() -> None:
    gpus = Gpus({})
    assert device({}, gpus, 4) == Device("cpu", None, None, None, None, 4)
    assert device({"Vulkan0": 9}, gpus, 4) == Device("Vulkan0", None, None, None, None, 4)
    gpus.cards = [Card("GPU-1", None)]
    assert device({"CUDA0": 9}, gpus, 4) == Device("GPU", "GPU-1", None, None, None, 4)


def test_each_prompt_of_a_workload_is_another_and_all_are_continued(
    f32: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session: Any = f32.session  # type: ignore[attr-defined]
    feed = session.feed
    fed: list[list[tuple[int, int, list[int]]]] = []

    def noted(rows: Any) -> Any:
        fed.append([(number, at, [int(token) for token in new]) for number, at, new, _ in rows])
        return feed(rows)

    monkeypatch.setattr(session, "feed", noted)
    f32.time(Workload(prompt_tokens=16, new_tokens=4, batch_size=2, repeats=1))
    assert len(fed) % 4 == 0
    (_, _, first), (_, _, second) = fed[0]
    assert len(first) == len(second) == 16
    assert first != second
    assert [[(number, at) for number, at, _ in step] for step in fed[1:4]] == [
        [(0, at), (1, at)] for at in (16, 17, 18)
    ]


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda engine: engine.time(Workload(16, 8, 1, 1, compile=True)), "llama.cpp has no steps to compile"),
    ],
)
def test_what_the_engine_does_not_have_is_not_offered(f32: Engine, act: Callable[[Engine], object], said: str) -> None:
    with pytest.raises(NotOffered, match=said):
        act(f32)


def test_work_that_does_not_fit_is_refused_in_words(f32: Engine, cache: Path) -> None:
    with pytest.raises(ValueError, match="the workload needs 513 tokens and the model has 512 positions"):
        f32.time(Workload(505, 8, 1, 1))
    with (
        running("gguf-f32", cache, n_ctx=20) as small,
        pytest.raises(ValueError, match="the workload needs 24 tokens of context, and n_ctx is 20"),
    ):
        small.time(Workload(16, 8, 1, 1))


def test_logits_that_are_no_numbers_end_every_verb(f32: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    session: Any = f32.session  # type: ignore[attr-defined]
    feed = session.feed

    def broken(rows: Any) -> Any:
        logits = feed(rows).copy()
        logits[:, 3] = float("nan")
        return logits

    monkeypatch.setattr(session, "feed", broken)
    with pytest.raises(NotFinite, match="while answering prompts"):
        answers(f32)
    with pytest.raises(NotFinite, match="while reading"):
        list(f32.score([([5, 6, 7], 1)]))
    with pytest.raises(NotFinite, match="8 of 5,120 logits are NaN or infinite on 8 random tokens"):
        f32.check_numbers()  # type: ignore[attr-defined]
    monkeypatch.setattr(session, "feed", lambda rows: torch.full((8, 640), 2.0).numpy())
    with pytest.raises(NotFinite, match="all 5,120 logits are 2: the weights do nothing"):
        f32.check_numbers()  # type: ignore[attr-defined]
