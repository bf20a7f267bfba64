"""Collecting comparisons: a model answers prompts several times, and a person or a reward ranks the answers.

    python -m gpt_jax.main --config=configs/collect.py:person,model=PATH[+PATH],prompts=ADDRESS[,answers=INT][,most=INT]
    python -m gpt_jax.main --config=configs/collect.py:reward,reward=REWARD,model=PATH[+PATH],prompts=ADDRESS[,...]

model: a workdir, a Hugging Face folder, a GGUF file; several are compared blind, and a table says who is preferred.
prompts: file:PATH of a table (.jsonl, .json, .csv, .tsv) with a column `prompt` or `messages` (a list of {"role": ...,
"content": ...}; an answer behind it may take part, data.demonstrations); or a text (books, file:PATH.txt), of whose
stretches the beginnings are continued. A model with a chat template takes a prompt as a user's message.

`person` shows the answers of a prompt on the terminal, in an order drawn for each and without their authors, and asks
for an order: `2 1 3`, the best first; `2 1=3` with equal ones; `s` skips, `u` undoes, `q` quits. Each ranking is on the
disk before the next prompt is shown; the same command goes on from there. It reads a pipe, too.

`reward` ranks by a reward: FILE.py:FUNCTION, a function (prompts, answers, **columns) -> a list of numbers; a
fine-tuned classifier's workdir (with --config.reward.label=LABEL), or a reward model's.

The workdir takes comparisons.jsonl, which configs/reward.py and configs/dpo.py read:

    {"index": 0, "prompt": "...", "answers": ["...", "..."], "models": [["runs/sft"], ["runs/sft"]], "ranks": [2, 1],
     "scores": [0.1, 0.7], "ranked_by": "rewards.py:brevity"}

Equal answers stand there once (`models` has who gave them), empty ones not at all. rankings.jsonl has every prompt that
was ranked or skipped: beside these those whose answers rank all equal, those that were skipped (`ranks` null), and of a
reward also prompts with one answer and answers that are empty, since they have scores. answers-N.jsonl has what the
N-th model answered, one line an answer, weights-N.json with which weights. report.md and scores.json have the numbers:
where two models gave the same answer and no other, they tie; a person sees no empty answers, so these win and lose
nothing there.

A function that fails costs no answers: mended, it ranks them, as long as rankings.jsonl is empty.
"""

from ml_collections import ConfigDict, config_dict

from gpt_jax.configuration import optional_fields, parse_argument
from gpt_jax.models.config import ModelConfig

placeholder = config_dict.placeholder

FIELDS = {"model": str, "prompts": str, "reward": str, "answers": int, "tokens": int, "most": int}


def get_config(argument: str | None = None) -> ConfigDict:
    """The collection that `argument` names; see the module's docstring."""
    rank, values = parse_argument(argument, presets=("person", "reward"), fields=FIELDS)
    config = ConfigDict(
        dict(
            run="collect",
            seed=0,  # of the draws, and of the order in which a person sees answers
            source=values.get("model", placeholder(str)),
            # Fields of ModelConfig that do not change what the weights mean: context_length, dtypes, ...
            model=optional_fields(ModelConfig),
            tokenizer=dict(path=placeholder(str)),  # by default the one beside the weights
            template=placeholder(str),  # a file with a chat template, in place of the model's own
            chat=True,  # False: a prompt that is a text is continued, even by a model with a chat template
            length=placeholder(int),  # tokens of a prompt and its answer; by default 2,048, or the context
            data=dict(
                prompts=values.get("prompts", placeholder(str)),
                columns=dict(messages="messages", prompt="prompt", response="response"),
                demonstrations=False,  # True: the answer that stands in a row is ranked too
                most=values.get("most", 0),  # prompts, chosen by the seed; 0: all
                prompt_tokens=32,  # of a text: what is continued ...
                every=256,  # ... of each stretch of so many tokens
                encoding="utf-8",
                skip_bad_rows=False,  # True: leave out and count what is no prompt
            ),
            answers=values.get("answers", 4),  # of each model to each prompt
            max_new_tokens=values.get("tokens", 128),
            temperature=1.0,
            top_k=placeholder(int),
            top_p=placeholder(float),
            min_p=placeholder(float),
            stop=(),  # strings that end an answer; they are no part of it
            slots=16,  # answers that are worked on at once
            rank=rank,
            judge="person",  # who ranks, where it is a person: a name, for the record
            reward=dict(
                source=values.get("reward", placeholder(str)),
                label=placeholder(str),  # of a classifier: whose probability is the reward
                text="answer",  # what a classifier reads: answer, or both, the prompt before it
            ),
            mesh=dict(data=-1, fsdp=1, tensor=1, sequence=1, slices=1),
        )
    )
    return config.lock()
