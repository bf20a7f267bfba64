"""A person ranks answers on the terminal, blind: in an order drawn anew for every prompt, and without their authors."""

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from gpt_jax import terminal
from gpt_jax.alignment.questions import Question
from gpt_jax.alignment.rankings import parse_order
from gpt_jax.errors import UserError

HELP = """\
2 1 3    the second is the best, the third the worst; `=` between equal ones: 2 1=3
s        skip this prompt
u        undo the last one, and see it again; so once more when all are ranked
q        quit (Ctrl-D does, too); all that was ranked is saved, and the same command goes on from there"""
RANKED = "\nall are ranked: u takes the last one back, q ends"
PROMPT = "best first (? helps): "
RULE = "─" * 80


def judge(
    waiting: Sequence[int],
    show: Callable[[int], tuple[Question, Sequence[str]]],
    *,
    done: int,
    seed: int,
    record: Callable[[int, list[int] | None], None],
    undo: Callable[[], int | None],
    typed: Iterator[str],
) -> None:
    """Asks for an order of each prompt's answers until the input ends or says q; even the last can be undone.

    Args:
      waiting: numbers of prompts, each with at least two answers; show: a prompt and its answers by number.
      done: how many prompts were ranked or skipped before.
      seed: of the order in which answers are shown.
      record: takes a prompt's number and its answers' ranks, None where it was skipped.
      undo: takes back what was recorded last, and returns its number; None: there is nothing.
      typed: what is typed, a line each.
    """
    left = deque(waiting)
    while waiting:
        if left:
            question, answers = show(left[0])
            shown = np.random.default_rng([seed, left[0]]).permutation(len(answers))
            terminal.write(picture(question, [answers[place] for place in shown], done, len(left)), sys.stdout)
        else:
            print(RANKED, flush=True)
        while True:
            line = next(typed, "q").strip()
            match line.lower():
                case "q":
                    return
                case "":
                    continue
                case "?" | "h" | "help":
                    print(HELP, flush=True)
                    continue
                case "u":
                    if (before := undo()) is None:
                        print("there is nothing to undo.", flush=True)
                        continue
                    left.appendleft(before)
                    done -= 1
                case _ if not left:
                    print(RANKED, flush=True)
                    continue
                case "s":
                    record(left.popleft(), None)
                    done += 1
                case _:
                    try:
                        ranks = parse_order(line, len(answers))
                    except UserError as error:
                        print(error, flush=True)
                        continue
                    record(left.popleft(), [ranks[place] for place in np.argsort(shown)])
                    done += 1
            break


def picture(question: Question, answers: Sequence[str], done: int, left: int) -> str:
    """A prompt with its answers, numbered, for the eye."""
    if isinstance(question.prompt, str):
        asked = question.prompt
    else:
        asked = "\n\n".join(f"{message['role']}: {message['content']}" for message in question.prompt)
    told = [f"\n{RULE}\n{done} done, {left} left\n\n{asked}\n"]
    told += [f"\n──[{number}]{RULE[:-5]}\n{answer.strip()}\n" for number, answer in enumerate(answers, 1)]
    return "".join([*told, "\n"])
