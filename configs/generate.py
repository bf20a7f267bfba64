"""Generation: how a model continues prompts.

    python -m gpt_jax.main --config=configs/generate.py:model=PATH --config.prompt="Once upon a time"
    python -m gpt_jax.main --config=configs/generate.py:model=PATH,prompts=FILE[,samples=INT][,tokens=INT]

PATH: a workdir, one of its checkpoints/STEP, a Hugging Face folder, a GGUF file, OpenAI's release; by default the
default pretraining run's. FILE: a text file, a prompt on each line; a .jsonl file, a prompt in each object's field
`prompt`; or `-`, standard input, which is read like a text file.

A single continuation is shown as it is made. The workdir takes generations.jsonl, one object for each continuation:

    {"index": 0, "sample": 0, "prompt": "...", "text": "...", "finished": "stop", "tokens": 17}

`finished` is `stop` (end of text, or a stop string) or `length`. With `logprobs` there is a list of the same name:
{"token", "logprob", "likeliest": [[token, logprob], ...]} for each token; with `beams`, a `score`, of the whole beam,
and the beams of a prompt, the best first, are its samples. Started again on the same workdir, a run with a file of
prompts makes only what is missing; a single prompt is asked anew.

How fast it is on two CPU cores: README.md, "Talk to it".
"""

from ml_collections import ConfigDict, config_dict

from gpt_jax.configuration import optional_fields, parse_argument
from gpt_jax.models.config import ModelConfig

placeholder = config_dict.placeholder

FIELDS = {"model": str, "prompts": str, "samples": int, "tokens": int}


def get_config(argument: str | None = None) -> ConfigDict:
    """The generation that `argument` names; see the module's docstring."""
    _, values = parse_argument(argument, presets=["generate"], fields=FIELDS)
    config = ConfigDict(
        dict(
            run="generate",
            seed=0,  # of the draws; each continuation's depend on it and on its place among the prompts
            source="runs/pretrain-books",  # what `model=` behind the colon names
            # Fields of ModelConfig that do not change what the weights mean: context_length, dtypes, ...
            model=optional_fields(ModelConfig),
            tokenizer=dict(path=placeholder(str)),  # by default the one beside the weights
            prompt=placeholder(str),  # a single one
            prompts=placeholder(str),  # or a file of them, or -
            samples=1,  # continuations of each prompt
            max_new_tokens=128,
            temperature=0.8,  # 0: the likeliest token each time; then leave the next three out
            top_k=placeholder(int),  # only the k likeliest tokens
            top_p=placeholder(float),  # only the likeliest tokens that reach this probability
            min_p=placeholder(float),  # only tokens at least this fraction as likely as the likeliest
            repetition_penalty=1.0,
            stop=(),  # strings that end a continuation; they are no part of it
            beams=0,  # above 0: beam search, which draws nothing; set temperature=0
            length_penalty=1.0,  # of beam search; above 0 it favours longer texts
            logprobs=placeholder(int),  # log-probabilities of each token, and of so many likeliest ones
            slots=8,  # continuations that are worked on at once
            mesh=dict(data=-1, fsdp=1, tensor=1, sequence=1, slices=1),
        )
    )
    config.source = values.get("model", config.source)
    config.prompts = values.get("prompts")
    config.samples = values.get("samples", config.samples)
    config.max_new_tokens = values.get("tokens", config.max_new_tokens)
    return config.lock()
