"""Any engine as lm-evaluation-harness knows it: texts become token ids, which the engine continues or scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from pytest_quantbudget.core.request import Task
from pytest_quantbudget.engine.base import Decoded, Ends, Engine, NotOffered
from pytest_quantbudget.engine.out_of_memory import Batching

MAX_NEW_TOKENS = 256  # where a task does not say, as in the library's own classes


class EngineModel(TemplateLM):  # type: ignore[misc]  # the library has no types
    """Greedy answers and log-probabilities of an engine, `batch_size` requests at once; 0 for the engine's own."""

    def __init__(self, engine: Engine, task: Task, batch_size: int) -> None:
        super().__init__()
        self.engine, self.task, self.batch_size = engine, task, batch_size
        self.tokenizer = engine.tokenizer

    @property
    def eot_token_id(self) -> int:
        """The end token, which also stands in front where there is no context."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The start token; the end token where there is none."""
        start = self.tokenizer.bos_token_id
        return int(start) if start is not None else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """A name for the library's cache of prompts."""
        return str(self.tokenizer.name_or_path)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as the tokenizer's template has it."""
        thinking = self.task.enable_thinking
        told = {} if thinking is None else {"enable_thinking": thinking}
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **told,
        )
        return text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; a text that begins with the start token gets no second one."""
        start = getattr(self.tokenizer, "bos_token", None)
        if add_special_tokens is None and start and string.startswith(start):
            add_special_tokens = False
        more = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        ids: list[int] = self.tokenizer(string, **more)["input_ids"]
        return ids

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, Sequence[int], Sequence[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        positions = self.engine.describe().positions
        sequences = []
        for _, context, continuation in requests:
            # As in the library: of what is too long, the beginning goes.
            ids = [*context, *continuation][-positions if positions is not None else 0 :]
            sequences.append((ids, len(ids) - len(continuation)))
        scored = self.engine.score(sequences)
        return [(sum(t.logprob for t in tokens), all(t.greedy for t in tokens)) for tokens in scored]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Tasks of this kind give no outcome that is right or wrong a question."""
        raise NotOffered(f"{self.engine.name} runs no tasks that measure the perplexity of whole texts")

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Greedy answers, cut at the task's stop texts."""
        answers: list[str] = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items(), key=str)), []).append(i)
        for places in groups.values():
            texts = [requests[i].args[0] for i in places]
            for i, answer in zip(places, self._generate(texts, requests[places[0]].args[1]), strict=True):
                answers[i] = answer
        return answers

    def _generate(self, texts: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
        asked = normalize_gen_kwargs(dict(settings), MAX_NEW_TOKENS)
        if asked.get("do_sample") or asked.get("temperature"):
            raise NotOffered(f"{self.engine.name} answers greedily, and the task samples")
        stops = handle_stop_sequences(asked.get("until"), eos=self.tokenizer.decode([self.eot_token_id]))
        most = int(asked["max_gen_toks"])
        ends = Ends(self.tokenizer, self.engine.describe().end_tokens, [stop for stop in stops if stop], most)
        prompts = [self.tok_encode(text) for text in texts]
        self.engine.check_positions(max(map(len, prompts)) + most, self.task.phase)
        heard: dict[int, Decoded] = {}
        self.engine.answer(prompts, ends, heard.update, Batching(self.batch_size), what=self.task.phase)
        return [self._text(heard[i], ends) for i in range(len(prompts))]

    def _text(self, answer: Decoded, ends: Ends) -> str:
        ids = [token for token in answer.ids if token not in ends.tokens]
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        for stop in ends.texts:
            text = text.split(stop)[0]
        return text

    def check_logits(self, what: str) -> None:
        """Engines raise NotFinite themselves, where they see logits."""
