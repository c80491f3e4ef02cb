"""Time to first token, decode throughput and peak memory of a workload, on the path that transformers' users run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pytest_quantbudget.measurement import Speed
from pytest_quantbudget.metrics.throttle import Watch
from pytest_quantbudget.request import Workload

if TYPE_CHECKING:
    import torch


def measure(model: Any, workload: Workload) -> Speed:
    """Run the workload `repeats` times after one warm-up of the same shape, greedy, with fixed lengths.

    Time to first token runs from the call of `generate` to the moment when the first token of every sequence is
    known (prefill); decode time from there to the last token. The clock is read when the device has finished.
    Peaks are those of torch's allocator in each run (`max_memory_allocated`, `max_memory_reserved`), summed over the
    GPUs that the model is spread over; None on a CPU. Those of the warm-up count for the peak over all runs.
    Raises ValueError where the model has fewer positions than the workload needs.
    """
    import torch

    check_positions(model, workload.prompt_tokens + workload.new_tokens, "the workload")
    device = model.device
    on_gpu = device.type == "cuda"
    gpus = range(torch.cuda.device_count())  # those that this process was given
    ids = random_prompts(model, workload)
    if on_gpu:
        torch.cuda.empty_cache()
    times, allocated, reserved = [], [], []
    watch = Watch()
    for _ in range(workload.repeats + 1):
        for gpu in gpus if on_gpu else ():
            torch.cuda.reset_peak_memory_stats(gpu)
        times.append(_timed(model, ids, workload.new_tokens))
        watch.look()
        if on_gpu:
            allocated.append(sum(map(torch.cuda.max_memory_allocated, gpus)))
            reserved.append(sum(map(torch.cuda.max_memory_reserved, gpus)))
    ttft, decode = zip(*times[1:], strict=True)
    return Speed(
        workload,
        ttft,
        decode,
        max(allocated, default=None),
        max(reserved, default=None),
        peaks=tuple(allocated[1:]),
        throttled=watch.words(),
    )


def check_positions(model: Any, tokens: int, what: str) -> None:
    """Raise ValueError where `tokens` do not fit into the positions that the model was trained with."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if isinstance(positions, int) and tokens > positions:
        raise ValueError(f"{what} needs {tokens} tokens and the model has {positions} positions")


def random_prompts(model: Any, workload: Workload) -> torch.Tensor:
    """Token ids of shape (batch_size, prompt_tokens), drawn evenly from the vocabulary by a fixed seed."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (workload.batch_size, workload.prompt_tokens)
    return torch.randint(0, model.config.get_text_config().vocab_size, shape, generator=generator).to(model.device)


def _timed(model: Any, ids: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds to the first token and from there to the last."""
    import torch
    from transformers import StoppingCriteriaList

    marks: list[float] = []

    def mark(tokens: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if not marks or tokens.shape[1] == ids.shape[1] + new_tokens:
            if ids.device.type == "cuda":
                torch.cuda.synchronize(ids.device)
            marks.append(time.perf_counter())
        return torch.zeros(tokens.shape[0], dtype=torch.bool, device=tokens.device)

    if ids.device.type == "cuda":
        torch.cuda.synchronize(ids.device)
    start = time.perf_counter()
    with torch.inference_mode():
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=greedy(model, new_tokens, min_new_tokens=new_tokens),
            stopping_criteria=StoppingCriteriaList([mark]),
        )
    return marks[0] - start, marks[-1] - marks[0]


def end_tokens(model: Any) -> list[int]:
    """The tokens that end what a model generates, of its generation config or its own."""
    own = model.generation_config.eos_token_id
    eos = own if own is not None else model.config.get_text_config().eos_token_id
    return list(eos) if isinstance(eos, list | tuple) else [] if eos is None else [eos]


def greedy(model: Any, max_new_tokens: int, **more: Any) -> Any:
    """Greedy decoding, whatever sampling the model's own generation config prefers."""
    from transformers import GenerationConfig

    eos = end_tokens(model)
    pad = model.generation_config.pad_token_id
    pad = next(iter(eos), 0) if pad is None else pad
    return GenerationConfig(
        do_sample=False, num_beams=1, repetition_penalty=1.0, use_cache=True, max_new_tokens=max_new_tokens,
        eos_token_id=eos or None, pad_token_id=pad, **more,
    )  # fmt: skip
