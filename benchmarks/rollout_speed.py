"""Speed of a policy's rollouts on this machine, beside the engine alone: what PPO and GRPO add to drawing answers.

    python benchmarks/rollout_speed.py --weights=PATH [--batch=64] [--tokens=24] [--rounds=15]

PATH: whatever gpt_jax.load takes. Both answer the same random prompts of 16 tokens at temperature 1, all at once, and
do not stop at the end of text; the engine alone has its parameters split into layers already, a rollout begins with the
parameters as they are trained. They take turns; the ratio is the median over the rounds of (rollout's time / engine's)
in the same round. Compiling is not counted.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402

import gpt_jax  # noqa: E402
from gpt_jax.alignment.policy import Policy  # noqa: E402
from gpt_jax.alignment.policy_gradient import PolicyGradient  # noqa: E402
from gpt_jax.alignment.ppo import PPO  # noqa: E402
from gpt_jax.alignment.prompts import Prompt  # noqa: E402
from gpt_jax.inference.engine import Engine  # noqa: E402
from gpt_jax.inference.sampling import Sampling  # noqa: E402
from gpt_jax.parallel.mesh import single_device_mesh  # noqa: E402
from gpt_jax.training.state import TrainState  # noqa: E402

PROMPT = 16  # tokens


def main() -> None:
    """Runs the rounds and prints a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    lm, mesh = gpt_jax.load(args.weights), single_device_mesh()
    vocab_size, sampling = lm.tokenizer.vocab_size, Sampling(args.tokens, temperature=1.0)
    draw = np.random.RandomState(0)
    prompts = [Prompt(draw.randint(0, vocab_size, PROMPT).tolist(), "", {}) for _ in range(args.batch)]
    engine = Engine(lm.params, lm.config, mesh, vocab_size=vocab_size, slots=args.batch)
    iteration = PolicyGradient(
        Policy(lm.config, vocab_size), PPO(), update=None, judge=None, reference=None, tokenizer=lm.tokenizer,
        mesh=mesh, sampling=sampling, ends=(), positions=PROMPT + args.tokens - 1, longest=args.tokens, epochs=1,
        minibatches=1, rows=args.batch, slots=args.batch,
    )  # fmt: skip
    state = TrainState(step=np.int32(0), params={"model": lm.params}, opt_state=())

    def alone() -> None:
        engine._last_prompt = ([], None)  # a prompt that was seen before would be taken in at once
        for number, prompt in enumerate(prompts):
            engine.submit(prompt.ids, sampling, number)
        while engine.busy:
            engine.step(64)

    def rollout() -> None:
        iteration.answers(iteration.decoder(state), prompts, first=0)

    def seconds(generate) -> float:
        began = time.perf_counter()
        generate()
        return time.perf_counter() - began

    for generate in (alone, rollout):
        generate()
    rounds = [(seconds(alone), seconds(rollout)) for _ in range(args.rounds)]
    speeds = [args.batch * args.tokens / statistics.median(times) for times in zip(*rounds, strict=True)]
    ratio = statistics.median(mine / engines for engines, mine in rounds)
    print(
        f"engine {speeds[0]:,.0f} tokens a second, rollout {speeds[1]:,.0f}; the rollout takes {ratio:.2f} of its time"
    )


if __name__ == "__main__":
    main()
