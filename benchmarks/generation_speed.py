"""Generation speed on this machine: this project's engine against transformers' `generate`, in one run.

    python benchmarks/generation_speed.py --weights=FOLDER --peer_python=peers/bin/python

FOLDER holds a model as Hugging Face saves it (`configs/convert.py:huggingface` writes one from a GGUF file); the peer's
environment has torch and transformers. Both continue the same prompts by so many tokens in float32, greedily, with a
key/value cache, and do not stop at the end of text. They take turns, so that a machine whose speed drifts slows both
alike; the ratio is the median over the rounds of (peer's time / ours) in the same round. Compiling is not counted.
"""

import argparse
import json
import statistics
import sys
import time

from training_speed import HERE, Contestant

PROMPT = "The history of the city begins in the early Middle Ages, when"


def main() -> None:
    """Runs the rounds and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--peer_python", help="Python of an environment with torch and transformers; none: ours alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--worker", choices=["jax", "torch"], help="used by this script itself")
    args = parser.parse_args()
    if args.worker:
        work({"jax": ours, "torch": theirs}[args.worker](args.weights, args.tokens, int(args.batches)))
        return
    print("| batch | generator | tokens a second (median) | first token after (s) | speed of gpt_jax relative to it |")
    print("|---|---|---|---|---|")
    for batch in args.batches.split(","):
        options = [f"--weights={args.weights}", f"--tokens={args.tokens}", f"--batches={batch}"]
        pythons = {"jax": sys.executable} | ({"torch": args.peer_python} if args.peer_python else {})
        contestants = {
            name: Contestant(name, [python, str(HERE / "generation_speed.py"), *options, f"--worker={name}"])
            for name, python in pythons.items()
        }
        for contestant in contestants.values():
            contestant.turn(1)  # warm-up
        turns = {name: [] for name in contestants}
        for _ in range(args.rounds):
            for name, contestant in contestants.items():
                turns[name].append(contestant.turn(1))
        for name, own in turns.items():
            ratios = [turn["seconds"] / mine["seconds"] for turn, mine in zip(own, turns["jax"], strict=True)]
            speed = int(batch) * args.tokens / statistics.median(turn["seconds"] for turn in own)
            first = statistics.median(turn["first"] for turn in own)
            ratio = "" if name == "jax" else f"{statistics.median(ratios):.2f}"
            title = {"jax": "gpt_jax", "torch": "transformers"}[name]
            print(f"| {batch} | {title} | {speed:.1f} | {first:.2f} | {ratio} |", flush=True)
        for contestant in contestants.values():
            contestant.close()


def work(generate) -> None:
    """Generates whenever a line comes in; answers with the seconds."""
    print(json.dumps({}), flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        first = generate() - began
        print(json.dumps({"seconds": time.perf_counter() - began, "first": first}), flush=True)


def ours(weights: str, tokens: int, batch: int):
    """A function that generates, and returns when the first token was there."""
    sys.path.insert(0, str(HERE.parent))
    import gpt_jax
    from gpt_jax.inference.engine import Engine
    from gpt_jax.inference.sampling import Sampling
    from gpt_jax.parallel.mesh import single_device_mesh

    lm = gpt_jax.load(weights)
    engine = Engine(lm.params, lm.config, single_device_mesh(), slots=batch)
    prompt = lm.tokenizer.encode(PROMPT)

    def generate() -> float:
        engine._last_prompt = ([], None)  # a prompt that was seen before would be taken in at once
        for number in range(batch):
            engine.submit(prompt, Sampling(tokens, temperature=0), number)
        engine.step(1)
        first = time.perf_counter()
        while engine.busy:
            engine.step(64)
        return first

    return generate


def theirs(weights: str, tokens: int, batch: int):
    """The same by transformers."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(weights)
    model = transformers.AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).eval()
    ids = tokenizer([PROMPT] * batch, return_tensors="pt").input_ids
    options = dict(
        attention_mask=torch.ones_like(ids), do_sample=False, eos_token_id=None, pad_token_id=0
    )  # fmt: skip

    class First(transformers.generation.streamers.BaseStreamer):
        """Notes when the first new token comes."""

        def __init__(self):
            self.times = []

        def put(self, value) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            """Nothing is left to show."""

    def generate() -> float:
        streamer = First()
        with torch.no_grad():
            model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, streamer=streamer, **options)
        return streamer.times[1]  # the prompt is the first that is put

    return generate


if __name__ == "__main__":
    main()
