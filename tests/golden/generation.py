"""Golden values of transformers' `generate`: `generation.npz` beside this script.

    python tests/golden/generation.py           # writes it
    python tests/golden/generation.py --check   # makes the values anew and says which are others

In the environment of smollm2.py (made with torch 2.13, transformers 5.23); nothing of gpt_jax is used. Beam search runs
on the tiny models of gpt2.npz and llama.npz, greedy search on SmolLM2-135M-Instruct, with the prompts of smollm2.py.

Keys: `beams` (JSON, a list of cases: model, prompt, the options, `sequences` without the prompt and its end, `scores`);
`greedy/i`, what follows prompt i of smollm2.py, up to 64 tokens, the end of text left out.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from smollm2 import PROMPTS, gguf_file

HERE = Path(__file__).parent
GREEDY_TOKENS = 64
CASES = [
    dict(model=model, prompt=prompt, end=end, beams=beams, length_penalty=penalty, max_new_tokens=tokens)
    for model, ends in (("gpt2", (57, 37, 48)), ("llama", (46, 33, 48)))  # likely ones, so that some beams end
    for prompt, end in zip(([3, 1, 4], [59], [26, 5, 35, 8]), ends, strict=True)
    for beams, penalty, tokens in ((1, 1.0, 6), (3, 1.0, 10), (4, 0.6, 11), (5, 2.0, 9), (3, 0.0, 12))
]


def tiny_model(name: str) -> transformers.PreTrainedModel:
    """The model whose numbers stand in NAME.npz, in float64."""
    with np.load(HERE / f"{name}.npz") as stored:
        config = transformers.AutoConfig.for_model(**json.loads(str(stored["config"])))
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                parameter.copy_(torch.from_numpy(stored[f"param/{key}"]))
    return model


def beams(model: transformers.PreTrainedModel, case: dict) -> dict:
    """The case with what `generate` finds."""
    found = model.generate(
        torch.tensor([case["prompt"]]), num_beams=case["beams"], num_return_sequences=case["beams"],
        length_penalty=case["length_penalty"], max_new_tokens=case["max_new_tokens"], do_sample=False,
        early_stopping=False, eos_token_id=case["end"], pad_token_id=0, return_dict_in_generate=True,
        output_scores=True,
    )  # fmt: skip
    sequences = []
    for row in found.sequences[:, len(case["prompt"]) :].tolist():
        sequences.append(row[: row.index(case["end"])] if case["end"] in row else row)
    scores = found.sequences_scores if case["beams"] > 1 else []
    return case | {"sequences": sequences, "scores": [float(score) for score in scores]}


def golden_values() -> dict[str, np.ndarray]:
    """Everything that is stored."""
    models = {name: tiny_model(name) for name in ("gpt2", "llama")}
    values = {"beams": np.array(json.dumps([beams(models[case["model"]], case) for case in CASES]))}
    path = gguf_file()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    end = tokenizer.eos_token_id
    for index, prompt in enumerate(PROMPTS):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        mask = torch.ones_like(ids)
        new = model.generate(
            ids, attention_mask=mask, max_new_tokens=GREEDY_TOKENS, do_sample=False, eos_token_id=end, pad_token_id=end
        )
        new = new[0, ids.shape[1] :].numpy().astype(np.int32)
        values[f"greedy/{index}"] = new[:-1] if len(new) and new[-1] == end else new
    return values


def main() -> None:
    """Writes the file, or compares it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    path, values = HERE / "generation.npz", golden_values()
    if not check:
        np.savez_compressed(path, **values)
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")
        return
    with np.load(path) as stored:
        other = [key for key in values if key != "beams" and not np.array_equal(stored[key], values[key])]
        for old, new in zip(json.loads(str(stored["beams"])), json.loads(str(values["beams"])), strict=True):
            if old["sequences"] != new["sequences"] or not np.allclose(old["scores"], new["scores"], atol=1e-5):
                other.append(f"beams of {new}")
    print(f"{path.name}: other values: {other or 'none'}")
    if other:
        sys.exit(f"The stored values are not those of transformers {transformers.__version__}.")


if __name__ == "__main__":
    main()
