"""Whether vLLM's build for a CPU has the operator that a checkpoint needs: not all instruction sets have them all."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from typing import Any

ASK_S = 300.0
# vLLM chooses among its libraries by the CPU's instruction set, and that of AVX2 has fewer operators (0.32).
ASK = """
import sys, json, torch
import vllm._custom_ops
from vllm.platforms import current_platform
current_platform.import_kernels()
print("\\n" + json.dumps({"device": current_platform.device_type, "there": hasattr(torch.ops._C, sys.argv[1])}))
"""
WEIGHTS_ONLY = "cpu_gemm_wna16"


def needed(packed: Mapping[str, Any]) -> str | None:
    """The operator that a CPU needs for a checkpoint with this `quantization_config`, where it may lack it."""
    groups = packed.get("config_groups")
    formats = {packed.get("format"), *(g.get("format") for g in groups.values())} if isinstance(groups, dict) else set()
    weights_only = packed.get("quant_method") in ("gptq", "awq") or "pack-quantized" in formats
    return WEIGHTS_ONLY if weights_only else None


def missing(python: str, operator: str, environ: Mapping[str, str]) -> bool:
    """Whether vLLM in an interpreter runs on a CPU and lacks an operator; what it does not tell is not missing."""
    command = [python, "-c", ASK, operator]
    try:
        asked = subprocess.run(command, env=dict(environ), capture_output=True, text=True, timeout=ASK_S, check=True)
        told = json.loads(asked.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        # Starting the server will tell what is wrong with that interpreter.
        return False
    return bool(told["device"] == "cpu" and not told["there"])
