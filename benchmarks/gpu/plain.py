"""One method measured without the plugin's metrics: memory as the driver tells it, speed by a plain loop.

    python benchmarks/gpu/plain.py BUDGET METHOD

Only the loading is the plugin's. Prefill and decoding are calls of the model itself, one token after the other; memory
is what `nvidia-smi` says of the whole GPU, less what it said before. Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.request import Workload
from pytest_quantbudget.engine.hf import load

MIB = 2**20


def used() -> int | None:
    """Bytes in use on the first visible GPU, by nvidia-smi; None where there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    which = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    command = ["nvidia-smi", "-i", which, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(told.stdout.split()[0]) * MIB if told.returncode == 0 else None


def once(model: Any, workload: Workload) -> tuple[float, float]:
    """Seconds for the prefill with its first token, and for the tokens after it."""
    import torch

    def clock() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    shape = (workload.batch_size, workload.prompt_tokens)
    ids = torch.randint(0, model.config.vocab_size, shape, generator=torch.Generator().manual_seed(1)).to(model.device)
    with torch.inference_mode():
        start = clock()
        out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        first = clock()
        for _ in range(workload.new_tokens - 1):
            out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
            token = out.logits[:, -1:].argmax(-1)
        end = clock()
    return first - start, end - first


def main() -> None:
    path, method = Path(sys.argv[1]), sys.argv[2]
    budget = load_budget(path)
    workload = budget.workload
    before = used()
    model = load.load(budget.method(method).subject, None).model
    loaded = used()
    once(model, workload)
    times = [once(model, workload) for _ in range(workload.repeats)]
    after = used()
    decoded = workload.batch_size * (workload.new_tokens - 1)
    told: dict[str, Any] = {
        "ttft_s": statistics.median(first for first, _ in times),
        "tokens_per_s": decoded / statistics.median(rest for _, rest in times),
        "used_before": before,
        "used_loaded": loaded,
        "used_after": after,
    }
    if before is not None:
        import torch

        told["reserved"] = torch.cuda.max_memory_reserved()
        told["allocated"] = torch.cuda.max_memory_allocated()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
