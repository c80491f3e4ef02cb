"""GGUF files of the built-in model, and engines that run them, for tests that have llama.cpp."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pytest_quantbudget import engine as engines
from pytest_quantbudget.core.engines import LLAMA_CPP
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.request import NO_TRUST, Subject, Task
from pytest_quantbudget.engine.base import Decoded, Ends, Engine
from pytest_quantbudget.engine.out_of_memory import Batching
from pytest_quantbudget.tasks import prompts

TASK = Task("wordmath", 100, 0, 0, str(BUILTIN_DIR / "questions.jsonl"), 96, None, "strict")


def subject(kind: str, model: Path = BUILTIN_DIR, checkpoint: Path | None = None, **options: Any) -> Subject:
    """A method of llama.cpp."""
    ready = str(checkpoint) if checkpoint is not None else None
    return Subject(str(model), None, kind, ready, {}, None, engine=LLAMA_CPP, engine_options=options)


def made(kind: str, cache: Path, model: Path = BUILTIN_DIR) -> Path:
    """The directory of a model's GGUF file, which is made once in a cache."""
    path: Path = engines.module(LLAMA_CPP).quantize(subject(kind, model), NO_TRUST, None, cache, cache)
    return path


@contextmanager
def running(kind: str, cache: Path, **options: Any) -> Iterator[Engine]:
    """A loaded engine with a GGUF file of the built-in model."""
    engine: Engine = engines.module(LLAMA_CPP).load(subject(kind, **options), quantized=str(made(kind, cache)))
    try:
        yield engine
    finally:
        engine.close()


def prompt_ids(engine: Engine, task: Task = TASK) -> list[list[int]]:
    """The prompts of a task as token ids."""
    prompter = prompts.Prompter(engine.tokenizer, task, "2026-01-01T00:00:00Z")
    texts = [prompter.text(each) for each in prompts.sample(task, None)]
    return [list(ids) for ids in prompter.tokens(texts, engine.describe().end_tokens)]


def answers(
    engine: Engine, drafts: Sequence[Sequence[int]] | None = None, size: int = 0, task: Task = TASK
) -> list[Decoded]:
    """An engine's answers to a task's questions."""
    stops = prompts.Prompter(engine.tokenizer, task, "").style.stops
    ends = Ends(engine.tokenizer, engine.describe().end_tokens, stops, task.max_new_tokens)
    found: dict[int, Decoded] = {}
    ids = prompt_ids(engine, task)
    engine.answer(ids, ends, found.update, Batching(size), drafts)
    return [found[i] for i in range(len(ids))]


def metadata(path: Path) -> dict[str, Any]:
    """The entries of a file besides its tensors."""
    import gguf

    fields = gguf.GGUFReader(path).fields
    return {name: field.contents() for name, field in fields.items() if not name.startswith("GGUF.")}


def rewritten(source: Path, target: Path, changes: Mapping[str, Any] = MappingProxyType({}), split: int = 0) -> Path:
    """The file `source` with other entries, written to `target`; with `split` in parts of so many tensors."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "qwen3", split_max_tensors=split)
    for name, value in metadata(source).items():
        types = reader.fields[name].types
        if name != "general.architecture":
            writer.add_key_value(name, changes.get(name, value), types[0], types[-1] if len(types) > 1 else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
