"""Many clients at a time on a server of ours: is every answer the one that was given alone, and how fast are they?

    python -m gpt_jax.main --config=configs/chat.py:serve,model=PATH --config.slots=32
    python benchmarks/server_load.py [--url=http://127.0.0.1:8000] [--clients=32] [--seconds=60] [--max_tokens=48]

First each client's questions are asked alone, one after the other, with a seed each; then all clients stream at a
time, over and over, and every text and end is held against the one that was given alone. Needs the package openai.
"""

import argparse
import itertools
import statistics
import sys
import threading
import time

import openai

QUESTIONS = (
    "What is the capital of France?",
    "Write two sentences about the sea.",
    "How do I boil an egg?",
    "Name three colours and an animal for each of them.",
    "Explain to a child why the sky is blue.",
    "What is 12 plus 30?",
    "Give me a title for a story about a lighthouse keeper who is afraid of the dark, and its first sentence.",
    "Translate 'good morning' into Spanish.",
)


def main() -> int:
    """Prints one line a phase; 1 if any answer was not the one given alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--max_tokens", type=int, default=48)
    options = parser.parse_args()
    client = openai.OpenAI(base_url=f"{options.url}/v1", api_key="none", max_retries=0, timeout=600)
    model = client.models.list().data[0].id

    def ask(number: int) -> tuple[str, str, float]:
        """The answer to question `number`, why it ended, and the seconds to its first piece."""
        began, first, text, reason = time.monotonic(), None, "", None
        stream = client.chat.completions.create(
            model=model, seed=number, max_tokens=options.max_tokens, temperature=0.8, top_p=0.95, stream=True,
            messages=[{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]}],
        )  # fmt: skip
        for chunk in stream:
            choice = chunk.choices[0]
            if choice.delta.content:
                first = first or time.monotonic() - began
                text += choice.delta.content
            reason = choice.finish_reason or reason
        return text, reason, first or 0.0

    began = time.monotonic()
    alone = [ask(number)[:2] for number in range(options.clients)]
    print(f"alone: {options.clients} answers in {time.monotonic() - began:.1f} s", flush=True)

    answers, wrong, waits, failures = [], [], [], []
    end = time.monotonic() + options.seconds

    def stream(own: int) -> None:
        try:
            for turn in itertools.count():
                if time.monotonic() > end:
                    return
                number = (own + turn) % options.clients
                text, reason, wait = ask(number)
                answers.append(text)
                waits.append(wait)
                if (text, reason) != alone[number]:
                    wrong.append((number, text, alone[number][0]))
        except Exception as error:  # of any kind: it is told at the end
            failures.append(repr(error))

    began = time.monotonic()
    threads = [threading.Thread(target=stream, args=(own,)) for own in range(options.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - began
    print(
        f"together: {options.clients} clients, {len(answers)} answers in {seconds:.1f} s; {len(wrong)} other than alone"
    )
    print(f"{len(failures)} failures; {sum(map(len, answers)) / seconds:.0f} characters/s")
    print(
        f"first piece after {statistics.median(waits or [0]):.2f} s (median), {max(waits, default=0):.2f} s (longest)"
    )
    for line in [*failures[:3], *wrong[:3]]:
        print(line)
    return int(bool(wrong or failures))


if __name__ == "__main__":
    sys.exit(main())
