"""The engine `llama.cpp`: a GGUF file, run in this process by the low-level functions of llama-cpp-python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_quantbudget.core.engines import LLAMA_CPP
from pytest_quantbudget.core.measurement import Speed
from pytest_quantbudget.core.request import NO_TRUST, Subject, Trust, Workload
from pytest_quantbudget.engine.base import (
    Decoded,
    Description,
    Ends,
    Engine,
    Hear,
    NotFinite,
    NotOffered,
    Scored,
    Sequences,
    check_positions,
)
from pytest_quantbudget.engine.llama_cpp import load as loading
from pytest_quantbudget.engine.machine.gpus import Gpus
from pytest_quantbudget.engine.out_of_memory import Batching
from pytest_quantbudget.models.methods import Prepared

if TYPE_CHECKING:
    import torch

CHECKED_TOKENS = 8


def load(
    subject: Subject,
    gpus: Gpus | None = None,
    quantized: str | None = None,
    trust: Trust = NO_TRUST,
    pins: tuple[str, str | None] | None = None,
    prepared: Prepared | None = None,
) -> LlamaCpp:
    """Load a subject, and check that it computes numbers; arguments and errors as those of `load.load`.

    Raises NotFinite besides, where its logits are NaN, infinite, or all the same.
    """
    gpus = gpus or Gpus({})
    engine = LlamaCpp(loading.load(subject, quantized, trust, pins, gpus), gpus)
    engine.check_numbers()
    return engine


def quantize(subject: Subject, trust: Trust, pin: str | None, cache: Path, temporary: Path) -> Path:
    """The directory of the subject's own GGUF file, or of its adapter's, made unless the `cache` has it.

    `pin` is the model's revision where it is known already.
    """
    from pytest_quantbudget.engine import merge, quantize
    from pytest_quantbudget.models import checkpoint, engines, hub, methods

    ready = subject.checkpoint is not None
    source, revision = hub.fetch(subject.model, pin or subject.revision, trust, weights=not ready)
    checkpoint.check(source, trust, weights=not ready)
    own = revision
    made = None
    if not ready:
        found = checkpoint.format_of(source)
        if found is not None:
            quantized = f"the model in {source.name} is already quantized ({found})"
            raise ValueError(f"{quantized}: a GGUF file is made of weights")
        whole = source
        if engines.merged_first(subject):
            whole, revision = merge.merged(subject, source, revision, cache, trust)
        made = quantize.quantized(subject, methods.spec(subject.kind), whole, revision, cache, trust)
    return _with_adapter(subject, source, own, made, cache, trust) if loading.beside(subject) else made or source


def _with_adapter(subject: Subject, source: Path, revision: str, made: Path | None, cache: Path, trust: Trust) -> Path:
    """The directory of the adapter's GGUF file, with a link to that of the model's own where one was `made`."""
    from pytest_quantbudget.engine import quantize
    from pytest_quantbudget.models import lora
    from pytest_quantbudget.models.methods import _gguf_adapter

    found = lora.find(subject, trust)
    assert found is not None
    identity = {
        "adapter": found.revision,
        "revision": revision,
        "base": made.name if made is not None else None,
        "libraries": quantize.versions_of("gguf", "transformers"),
    }

    def make(target: Path) -> None:
        _gguf_adapter.write(found, source, target / _gguf_adapter.FILE, trust)
        if made is not None:
            (target / loading.BASE).symlink_to(Path("..") / made.name)

    return quantize.kept(cache, "adapter", identity, make)


class LlamaCpp(Engine):
    """A model of llama.cpp in this process."""

    name = LLAMA_CPP

    def __init__(self, loaded: loading.Loaded, gpus: Gpus) -> None:
        self.session, self.tokenizer, self._description = loaded.session, loaded.tokenizer, loaded.description
        self.gpus = gpus

    def describe(self) -> Description:
        """As it was when the model had been loaded, with a context for one sequence."""
        return self._description

    def check_numbers(self) -> None:
        """Raise NotFinite where the logits of a few random tokens are not finite, or are all the same."""
        import torch

        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, self.session.vocabulary, (CHECKED_TOKENS,), generator=generator).tolist()
        self.session.shape(1, CHECKED_TOKENS, "a first pass")
        logits = torch.from_numpy(self.session.feed([(0, 0, ids, True)]))
        bad = int((~torch.isfinite(logits)).sum())
        if bad:
            told = f"{bad:,} of {logits.numel():,} logits are NaN or infinite on {CHECKED_TOKENS} random tokens"
            raise NotFinite(told)
        if bool((logits == logits[0, 0]).all()):
            raise NotFinite(f"all {logits.numel():,} logits are {float(logits[0, 0]):g}: the weights do nothing")

    def time(self, workload: Workload) -> Speed:
        """As `speed.measure`."""
        from pytest_quantbudget.engine.llama_cpp import speed

        if workload.compile:
            raise NotOffered("llama.cpp has no steps to compile: leave `compile` out of the workload")
        needed = workload.prompt_tokens + workload.new_tokens
        check_positions(self._description.positions, needed, "the workload")
        return speed.measure(self.session, workload, self.gpus, on_gpu=self._description.device.name != "cpu")

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        ends: Ends,
        hear: Hear,
        batching: Batching,
        drafts: Sequence[Sequence[int]] | None = None,
        what: str = "prompts",
    ) -> None:
        """By `decoding.Decoder`, in as many sequences at once as the option n_seq_max says."""
        from pytest_quantbudget.engine.hf.decoding import shared_prefix
        from pytest_quantbudget.engine.llama_cpp.decoding import Decoder

        # One sequence more holds what all prompts begin with.
        batching.size = max(1, min(batching.size or self.session.options["n_seq_max"], self.session.most - 1))
        decoder = Decoder(self.session, ends, shared_prefix(prompts), what)
        left = list(range(len(prompts)))

        def decode() -> None:
            places = left.copy()

            def heard(new: Mapping[int, Decoded]) -> None:
                done = {places[i]: answer for i, answer in new.items()}
                left[:] = [i for i in left if i not in done]
                hear(done)

            guesses = [drafts[i] for i in places] if drafts is not None else None
            decoder.run([prompts[i] for i in places], guesses, heard, batching.size)

        while left:
            batching.attempt(decode, lambda: len(left))

    def score(self, sequences: Sequences) -> Iterator[list[Scored]]:
        """Log-softmax in float32."""
        import torch

        from pytest_quantbudget.engine.scoring import scored

        for index, (ids, first) in enumerate(sequences):
            values: list[Scored] = []
            for at, block in self._blocks(sequences, index):
                values += scored(block, torch.tensor(ids[at : at + len(block)]))
            assert len(values) == len(ids) - first
            yield values

    def logits(self, sequences: Sequences) -> Iterator[tuple[int, torch.Tensor]]:
        """In float32, on the CPU, as the library gives them."""
        for index in range(len(sequences)):
            for _, block in self._blocks(sequences, index):
                yield index, block

    def _blocks(self, sequences: Sequences, index: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Where each block of a sequence's scored tokens begins, and its logits."""
        import torch

        from pytest_quantbudget.engine.llama_cpp.decoding import BLOCK_LOGITS

        ids, first = sequences[index]
        self.session.shape(1, max(len(each) for each, _ in sequences), "a sequence")
        if first > 1:
            self.session.feed([(0, 0, ids[: first - 1], False)])
        width = max(1, BLOCK_LOGITS // self.session.vocabulary)
        for at in range(first, len(ids), width):
            fed = ids[at - 1 : min(at + width, len(ids)) - 1]
            block = torch.from_numpy(self.session.feed([(0, at - 1, fed, True)]).copy())
            if bool((block.isnan() | block.isposinf()).any()):
                raise NotFinite("logits became NaN or infinite while reading")
            yield at, block

    def close(self) -> None:
        """Give back the memory of model and context."""
        self.session.close()
