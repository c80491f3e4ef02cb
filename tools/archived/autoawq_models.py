"""Make the small checkpoints of autoawq that the tests load, with autoawq itself, and the logits that they stand for.

    python tools/archived/autoawq_models.py tests/data/archived

in an environment of its own (Python 3.11; docs/archived.md has the commands). autoawq's own loader needs a GPU, or a
library that is gone; the logits are those of its layers' own weights as its own `dequantize_gemm` gives them.
"""

import sys
import tempfile
from pathlib import Path

import torch
from awq import AutoAWQForCausalLM
from awq.modules.linear import WQLinear_GEMM
from awq.utils.packing_utils import dequantize_gemm
from small_llama import GROUP, keep, small, tokens


def dense(model: torch.nn.Module) -> torch.nn.Module:
    """The model with each packed layer of the form `gemm` replaced by a dense one."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, WQLinear_GEMM):
            weight = dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, 4, GROUP)
            plain = torch.nn.Linear(weight.shape[0], weight.shape[1], bias=False)
            plain.weight.data = weight.T.float()
            model.set_submodule(name, plain)
    return model.float()


def make(folder: Path) -> torch.Tensor:
    """One checkpoint, and the logits that it stands for, in float32."""
    texts = [tokens(seed, 64)[0].tolist() for seed in range(2, 10)]
    with tempfile.TemporaryDirectory() as source:
        small().save_pretrained(source)
        model = AutoAWQForCausalLM.from_pretrained(source, device_map="cpu", torch_dtype=torch.float16)
        config = {"zero_point": True, "q_group_size": GROUP, "w_bit": 4, "version": "gemm"}
        model.quantize(None, config, calib_data=texts, max_calib_seq_len=64)
        model.save_quantized(str(folder))
    with torch.inference_mode():
        return dense(model.model)(input_ids=tokens()).logits  # type: ignore[no-any-return]


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    keep(target, {"autoawq": make(target / "autoawq")})
