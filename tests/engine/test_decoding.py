"""The fast way to greedy answers against transformers' own `generate`, on models of many kinds."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.engine.base import Decoded, Ends, NotFinite
from pytest_quantbudget.engine.hf import plain_generate, ragged_cache
from pytest_quantbudget.engine.hf.decoding import Decoder, shared_prefix

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.6,  # sharp choices: near-ties would make a comparison of texts a matter of luck
    "eos_token_id": 5,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 128},
    "gemma2": {"head_dim": 8, "sliding_window": 128, "final_logit_softcapping": 30.0},
    "phi3": {},
    "granite": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
}
UNFIT: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 16},
    "gemma2": {"head_dim": 8, "sliding_window": 16},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mamba": {"state_size": 8},
}


class Letters:
    """A tokenizer of 97 tokens, each a letter or two."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "".join(chr(40 + i) if i % 3 else f"{chr(40 + i)}!" for i in ids if i > 5 or not skip_special_tokens)


def made(kind: str, **more: Any) -> Any:
    """A random model of a kind."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SMALL | more))).eval()


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Random prompts of unlike lengths with a common beginning."""
    drawing = random.Random(seed)
    return [[7, 8, 9, *[drawing.randrange(6, 97) for _ in range(drawing.randrange(1, 30))]] for _ in range(count)]


def expected(model: Any, asked: Sequence[Sequence[int]], ends: Ends) -> list[list[int]]:
    """One prompt at a time through `generate`, without a stop text."""
    found = [plain_generate.generate(model, ends.tokenizer, [prompt], ends, "test")[0].ids for prompt in asked]
    return [ids[: next((i + 1 for i in range(len(ids)) if ids[i] in ends.tokens), len(ids))] for ids in found]


def endings(texts: tuple[str, ...] = (), most: int = 28) -> Ends:
    """End token 5."""
    return Ends(Letters(), [5], texts, most)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_of_every_kind_of_model_equal_those_of_generate(kind: str) -> None:
    model, ends, asked = made(kind, **KINDS[kind]), endings(), prompts(7)
    assert ragged_cache.unfit(model, 80) is None
    wanted = expected(model, asked, ends)
    prefix = shared_prefix(asked)
    assert prefix[:3] == [7, 8, 9]
    alone = Decoder(model, ends, 4, prefix).run(asked)
    assert [answer.ids for answer in alone] == wanted
    assert len({answer.cut_off for answer in alone}) <= 2
    other = [[i if random.Random(n).random() > 0.2 else 11 for n, i in enumerate(ids)] for ids in wanted]
    for drafts in (wanted, other, wanted[::-1]):
        assert [answer.ids for answer in Decoder(model, ends, 4, prefix).run(asked, drafts)] == wanted


@pytest.mark.parametrize("prefixed", [False, True])
@pytest.mark.parametrize("size", [1, 5, 9])
def test_drafts_with_a_token_too_many_change_no_answer(size: int, prefixed: bool) -> None:
    model, ends, asked = made("llama"), endings(), prompts(9, seed=1)
    wanted = expected(model, asked, ends)
    drafts = [[*ids[:5], 12, *ids[5:]] for ids in wanted]
    decoder = Decoder(model, ends, size, shared_prefix(asked) if prefixed else ())
    assert [answer.ids for answer in decoder.run(asked, drafts)] == wanted


def test_a_model_that_the_fast_way_would_misread_is_told() -> None:
    for kind, more in UNFIT.items():
        assert ragged_cache.unfit(made(kind, **more), 80), kind


def test_a_draft_is_tried_again_where_the_texts_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ends, asked = made("llama"), endings(), prompts(1)
    (ids,) = expected(model, asked, ends)
    draft = [*ids[:4], 96, 95, *ids[4:]]
    fed: list[int] = []
    feed = ragged_cache.Rows.feed

    def counted(self: ragged_cache.Rows, tokens: Sequence[Sequence[int]], **more: Any) -> Any:
        fed.append(len(tokens[0]))
        return feed(self, tokens, **more)

    monkeypatch.setattr(ragged_cache.Rows, "feed", counted)
    (answer,) = Decoder(model, ends, 4).run(asked, [draft])
    assert answer.ids == ids
    assert len(fed) < 16 < len(ids)


def test_log_probabilities_and_agreement_are_those_of_a_plain_pass() -> None:
    import torch

    model, ends, asked = made("qwen3", **KINDS["qwen3"]), endings(), prompts(6, seed=2)
    own = Decoder(model, ends, 3).run(asked)
    drafts = [[8, 9, *answer.ids[:12], 10] for answer in own]
    found = Decoder(model, ends, 3).run(asked, drafts)
    for prompt, draft, answer, alone in zip(asked, drafts, found, own, strict=True):
        for ids, told in ((draft, answer.draft_logprob), (alone.ids, alone.logprob)):
            with torch.inference_mode():
                scores = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            assert told == pytest.approx(float(scores[range(len(ids)), ids].sum()), rel=1e-4)
        with torch.inference_mode():
            scores = model(torch.tensor([[*prompt, *draft]])).logits[0, len(prompt) - 1 : -1]
        assert answer.agreed == int((scores.argmax(-1) == torch.tensor(draft)).sum())


def test_an_answer_ends_with_an_end_token_a_stop_text_or_its_length() -> None:
    def ended(ids: Sequence[int], *texts: str, most: int = 9) -> tuple[int, bool, bool]:
        ends, answer = endings(texts, most), Decoded()
        for count, token in enumerate(ids, 1):
            ends.add(answer, token)
            if answer.done:
                return count, answer.done, answer.cut_off
        return len(ids), answer.done, answer.cut_off

    assert ended([10, 11, 5, 12]) == (3, True, False)
    assert ended([10, 11, 13, 12], "34") == (4, False, False)  # 11 and 12 are the letters 3 and 4
    assert ended([10, 11, 12, 13], "34") == (3, True, False)
    assert ended([10, 12, 13], "!5") == (3, True, False)  # the stop begins within a token
    assert ended([10] * 9) == (9, True, True)
    assert ended([*[10] * 8, 5]) == (9, True, False)


def test_rows_come_and_go_while_others_are_under_way() -> None:
    model, asked = made("llama"), prompts(23, seed=3)
    ends = Ends(Letters(), range(20, 32), (), 16)
    wanted = expected(model, asked, ends)
    heard: list[int] = []
    told = Decoder(model, ends, 6).run(asked, None, lambda new: heard.extend(new))
    assert [answer.ids for answer in told] == wanted
    assert sorted(heard) == list(range(23))
    assert heard != sorted(heard)
    assert all(answer.seconds > 0 for answer in told)


@pytest.mark.parametrize("drafted", [False, True])
def test_logits_that_are_no_numbers_are_told(drafted: bool) -> None:
    model = made("llama")
    model.get_input_embeddings().weight.data[90] = float("nan")
    with pytest.raises(NotFinite, match="while answering task x"):
        Decoder(model, endings(), 4, what="task x").run([[6, 90, 7], [6, 7]], [[8, 9]] * 2 if drafted else None)


def test_the_built_in_model_is_fit_and_its_cache_is_sized() -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(BUILTIN_DIR, dtype="float32")
    assert ragged_cache.unfit(model, 500) is None
    assert ragged_cache.bytes_a_token(model) == 3 * 2 * 4 * 32 * 4  # layers, keys and values, heads, head size, bytes
