"""The engine `transformers`: models that Hugging Face transformers runs in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantbudget.core.engines import TRANSFORMERS
from pytest_quantbudget.core.measurement import Speed
from pytest_quantbudget.core.request import NO_TRUST, Subject, Task, Trust, Workload
from pytest_quantbudget.engine.base import Decoded, Description, Ends, Engine, Hear, Scored, Sequences
from pytest_quantbudget.engine.hf import generation, logits, memory
from pytest_quantbudget.engine.hf import load as loading
from pytest_quantbudget.engine.machine.gpus import Gpus
from pytest_quantbudget.engine.out_of_memory import Batching
from pytest_quantbudget.models import engines, hub, methods
from pytest_quantbudget.models.methods import Prepared

if TYPE_CHECKING:
    import torch

AT_ONCE = 256  # prompts where the budget says `auto` and memory allows
SHARE_OF_FREE = 0.4  # of the free memory, for keys and values: they are copied when rows leave or join


def load(
    subject: Subject,
    gpus: Gpus | None = None,
    quantized: str | None = None,
    trust: Trust = NO_TRUST,
    pins: tuple[str, str | None] | None = None,
    prepared: Prepared | None = None,
) -> Transformers:
    """Load a subject, and check that it computes numbers; arguments and errors as those of `load.load`.

    Raises NotFinite besides, where its logits are NaN, infinite, or all the same.
    """
    loaded = loading.load(subject, quantized, trust, pins, gpus, prepared)
    logits.check(loaded.model)
    return Transformers(loaded, gpus)


def prepare(subject: Subject, quantized: str | None, trust: Trust, pins: tuple[str, str | None] | None) -> Prepared:
    """Choose and compile the subject's kernels; arguments as those of `load.load`.

    Raises Lacking where the weights will not fit: compiling takes minutes.
    """
    found = loading.find(subject, quantized, trust, pins)
    loading.check_room(found.spec, found.source, found.device, trust)
    return loading.prepare(found, trust)


def quantize(subject: Subject, trust: Trust, pin: str | None, cache: Path, temporary: Path) -> Path:
    """The directory of the subject's own quantization, or of its merged weights, made unless the `cache` has it.

    `pin` is the model's revision where it is known already.
    """
    from pytest_quantbudget.engine import quantize

    spec = methods.spec(subject.kind)
    loading.settle(spec)
    source, revision = hub.fetch(subject.model, pin or subject.revision, trust)
    loading.check_format(spec, source, ready=False, trust=trust)
    if engines.merged_first(subject):
        from pytest_quantbudget.engine import merge

        source, revision = merge.merged(subject, source, revision, cache, trust)
    if spec.quantize is None:
        return source
    # gptqmodel writes its logs into the working directory.
    os.chdir(temporary)
    return quantize.quantized(subject, spec, source, revision, cache, trust)


class Transformers(Engine):
    """A model of transformers in this process, on the CPU or on its GPUs."""

    name = TRANSFORMERS

    def __init__(self, loaded: loading.Loaded, gpus: Gpus | None = None) -> None:
        self.model, self.tokenizer, self._description = loaded.model, loaded.tokenizer, loaded.description
        generation.settle(self.model)
        self.gpus = gpus

    def describe(self) -> Description:
        """As it was when the model had been loaded: with the first pass, libraries move scales out of sight."""
        return self._description

    def time(self, workload: Workload) -> Speed:
        """As `speed.measure`."""
        from pytest_quantbudget.engine.hf import speed

        return speed.measure(self.model, workload, self.gpus, self._description.weights)

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        ends: Ends,
        hear: Hear,
        batching: Batching,
        drafts: Sequence[Sequence[int]] | None = None,
        what: str = "prompts",
    ) -> None:
        """By `decoding.Decoder`, or by transformers' `generate` where the model does not fit that, without drafts."""
        from pytest_quantbudget.engine.hf import plain_generate, ragged_cache
        from pytest_quantbudget.engine.hf.decoding import Decoder, shared_prefix

        longest = max(map(len, prompts)) + ends.most
        why = ragged_cache.unfit(self.model, longest)
        batching.slow = f"come from transformers' generate, and without drafts: {why}" if why else ""
        batching.size = batching.size or self._fitting(longest, known=not why)
        decoder = Decoder(self.model, ends, batching.size, shared_prefix(prompts), what)
        left = list(range(len(prompts)))

        def heard(places: Sequence[int], new: Mapping[int, Decoded]) -> None:
            done = {places[i]: answer for i, answer in new.items()}
            left[:] = [i for i in left if i not in done]
            hear(done)

        def decode() -> None:
            places = left.copy()
            if not why:
                decoder.size = batching.size
                guesses = [drafts[i] for i in places] if drafts is not None else None
                decoder.run([prompts[i] for i in places], guesses, lambda new: heard(places, new))
                return
            for start in range(0, len(places), batching.size):
                part = places[start : start + batching.size]
                answers = plain_generate.generate(self.model, self.tokenizer, [prompts[i] for i in part], ends, what)
                heard(part, dict(enumerate(answers)))

        while left:
            batching.attempt(decode, lambda: len(left))

    def _fitting(self, longest: int, *, known: bool) -> int:
        """How many sequences' keys and values fit into the free memory at once, where their size is known."""
        from pytest_quantbudget.engine.hf import ragged_cache

        free = memory.free_bytes(self.model)
        if free is None or not known:
            return AT_ONCE
        return int(max(1, min(AT_ONCE, SHARE_OF_FREE * free // (longest * ragged_cache.bytes_a_token(self.model)))))

    def score(self, sequences: Sequences) -> Iterator[list[Scored]]:
        """Log-softmax in float32."""
        import torch

        from pytest_quantbudget.engine.scoring import scored

        predictor = self._predictor(sequences)
        for ids, first in sequences:
            values: list[Scored] = []
            for at, block in predictor.blocks(ids, first):
                values += scored(block, torch.tensor(ids[at : at + len(block)], device=block.device))
            yield values

    def logits(self, sequences: Sequences) -> Iterator[tuple[int, torch.Tensor]]:
        """In the model's own data type, on its device."""
        predictor = self._predictor(sequences)
        for index, (ids, first) in enumerate(sequences):
            for _, block in predictor.blocks(ids, first):
                yield index, block

    def _predictor(self, sequences: Sequences) -> Any:
        from pytest_quantbudget.engine.hf.predictions import Predictor

        return Predictor(self.model, max(len(ids) for ids, _ in sequences))

    def harness_model(self, task: Task, batch_size: int) -> Any:
        """The harness's own class for models of transformers."""
        from pytest_quantbudget.engine.hf.harness_model import HarnessModel

        return HarnessModel(self.model, self.tokenizer, task, batch_size)

    def close(self) -> None:
        """Let go of the model."""
        self.model = None
