"""Our scores against those of other people's code: lm_eval on its own Hugging Face backend, a plain transformers loop.

In an environment of its own with `lm_eval[hf]` and PyTorch, on the folder that configs/convert.py:huggingface wrote:

    python benchmarks/evaluation_peers.py score --model=HF-FOLDER --sets=FOLDER --output=peer [--tasks=...] [--limit=N]
    python benchmarks/evaluation_peers.py perplexity --model=HF-FOLDER --text=FILE --length=1024 --stride=768

and then, in ours, on predictions.jsonl of `configs/evaluate.py:piqa+copa+...,shots=0` with the same sets:

    python benchmarks/evaluation_peers.py compare --peer=peer --predictions=WORKDIR/predictions.jsonl

SETS holds piqa/val.jsonl and so on, as {"query", "choices", "gold"} and {"context_options", "continuation", "gold"}.
The harness' tasks are written here so that its prompts are those of gpt_jax/tasks/templates.toml.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

QUESTION = r"{{query.strip()}}\nAnswer:"
FILES = {
    "copa": ("copa/val.jsonl", "{{query.strip()}}"),
    "piqa": ("piqa/val.jsonl", QUESTION),
    "openbookqa": ("openbookqa/test.jsonl", "{{query.strip()}}"),
    "arc-easy": ("arc_easy/test.jsonl", QUESTION),
    "winograd": ("winograd/test.jsonl", None),
}
CHOICES = """task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{text}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
# Partial evaluation: the number of the right context, the contexts, and what follows each of them.
SCHEMAS = """task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: gold
doc_to_choice: context_options
target_delimiter: ""
doc_to_target: "{{{{('' if continuation == '.' else ' ') + continuation}}}}"
metric_list: [{{metric: acc}}]
"""


def write_tasks(sets: Path, folder: Path) -> None:
    """The harness' YAML files."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, (file, text) in FILES.items():
        content = (CHOICES if text else SCHEMAS).format(task=task, file=(sets / file).resolve(), text=text)
        (folder / f"{task}.yaml").write_text(content)


def score(options: argparse.Namespace) -> None:
    """Runs the harness on its Hugging Face backend; writes a line an example, and the seconds without loading."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    options.output.mkdir(parents=True, exist_ok=True)
    write_tasks(options.sets, options.output / "tasks")
    manager = TaskManager(include_path=str(options.output / "tasks"), include_defaults=False)
    model = HFLM(
        pretrained=str(options.model),
        device="cpu",
        dtype="float32",
        softmax_dtype=options.softmax_dtype,
        batch_size=options.batch_size,
    )
    for task in options.tasks.split(","):
        began = time.perf_counter()
        results = simple_evaluate(
            model=model, tasks=[task], task_manager=manager, limit=options.limit, bootstrap_iters=0, log_samples=True
        )
        seconds = time.perf_counter() - began
        rows = sorted(results["samples"][task], key=lambda row: row["doc_id"])
        with open(options.output / f"{task}.jsonl", "w") as file:
            for row in rows:
                values = [float(pair[0][0]) for pair in row["resps"]]
                file.write(json.dumps({"id": str(row["doc_id"]), "log_probabilities": values}) + "\n")
        scores = {key: value for key, value in results["results"][task].items() if key.startswith("acc")}
        (options.output / f"{task}.json").write_text(json.dumps(scores | {"seconds": seconds}))
        print(task, len(rows), scores, f"{seconds:.1f} s", flush=True)


def perplexity(options: argparse.Namespace) -> None:
    """The perplexity per token of a whole text, window by window; its first token follows the end of text."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    ids = tokenizer(options.text.read_text(encoding="utf-8"), add_special_tokens=False).input_ids
    ids = torch.tensor([[tokenizer.eos_token_id, *ids]])
    nats, before, began = 0.0, 1, time.perf_counter()
    for first in range(0, ids.shape[1], options.stride):
        end = min(first + options.length, ids.shape[1])
        with torch.no_grad():
            logits = model(ids[:, first:end]).logits[0, before - first - 1 : -1].double()
        nats += torch.nn.functional.cross_entropy(logits, ids[0, before:end], reduction="sum").item()
        before = end
        if end == ids.shape[1]:
            break
    tokens = ids.shape[1] - 1
    value = math.exp(nats / tokens)
    print(f"perplexity {value:.5f}, {tokens:,} tokens, {time.perf_counter() - began:.0f} s")


def compare(options: argparse.Namespace) -> None:
    """The largest difference of any example's log-probability, and both accuracies."""
    ours: dict[str, list[dict]] = {}
    for line in options.predictions.read_text().splitlines():
        row = json.loads(line)
        if row.get("shots", 0) == 0:
            ours.setdefault(row["task"], []).append(row)
    print("| task | examples | largest difference of a log-probability | accuracy here | in lm_eval |")
    print("|---|---|---|---|---|")
    for task, rows in ours.items():
        peer = [json.loads(line) for line in (options.peer / f"{task}.jsonl").read_text().splitlines()]
        pairs = list(zip(rows, peer, strict=True))
        assert all(row["id"] == other["id"] for row, other in pairs)
        largest = max(
            abs(a - b)
            for row, other in pairs
            for a, b in zip(row["log_probabilities"], other["log_probabilities"], strict=True)
        )
        right = sum(best(row["log_probabilities"]) == row["gold"][0] for row in rows) / len(rows)
        theirs = json.loads((options.peer / f"{task}.json").read_text())["acc,none"]
        print(f"| {task} | {len(rows):,} | {largest:.1e} | {100 * right:.2f} | {100 * theirs:.2f} |")


def best(values: list[float]) -> int:
    """The first of the largest."""
    return values.index(max(values))


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("score")
    one.add_argument("--model", type=Path, required=True)
    one.add_argument("--sets", type=Path, required=True)
    one.add_argument("--output", type=Path, required=True)
    one.add_argument("--tasks", default=",".join(FILES))
    one.add_argument("--limit", type=int)
    one.add_argument("--batch_size", type=int, default=32)
    # PyTorch's float32 log_softmax over 49,152 tokens is 9e-6 too high a token, which long texts add up.
    one.add_argument("--softmax_dtype", default="float32", choices=("float32", "float64"))
    one.set_defaults(run=score)
    three = commands.add_parser("perplexity")
    three.add_argument("--model", type=Path, required=True)
    three.add_argument("--text", type=Path, required=True)
    three.add_argument("--length", type=int, default=1024)
    three.add_argument("--stride", type=int, default=768)
    three.set_defaults(run=perplexity)
    two = commands.add_parser("compare")
    two.add_argument("--peer", type=Path, required=True)
    two.add_argument("--predictions", type=Path, required=True)
    two.set_defaults(run=compare)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
