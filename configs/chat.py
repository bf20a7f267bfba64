"""A conversation with a model: on the terminal, or over HTTP for the browser and for programs.

    python -m gpt_jax.main --config=configs/chat.py:model=PATH
    python -m gpt_jax.main --config=configs/chat.py:serve,model=PATH[,port=PORT]

PATH: a Hugging Face folder, a GGUF file, or a workdir that began with one of them. The model must have been taught to
chat: its chat template comes with the tokenizer; another one is named by --config.template=FILE (a Jinja template).

`terminal` (default) reads a line, answers it, and knows /help, /reset, /save FILE and /quit; Ctrl-C stops an answer. It
reads a pipe too, a line a message. When the context is full, the oldest turns leave it first.

`serve` answers at http://127.0.0.1:8000: a page to chat on, and OpenAI's API (/v1/chat/completions, /v1/completions,
/v1/models; /health). It answers other machines only if told, --config.serve.host=0.0.0.0, and then asks nobody who they
are: put a proxy that does in front of it. /v1/completions needs no chat template.

Both need the extra [serve].
"""

from ml_collections import ConfigDict, config_dict

from gpt_jax.configuration import optional_fields, parse_argument
from gpt_jax.models.config import ModelConfig

placeholder = config_dict.placeholder


def get_config(argument: str | None = None) -> ConfigDict:
    """The conversation that `argument` names; see the module's docstring."""
    kind, values = parse_argument(
        argument, presets=("terminal", "serve"), fields={"model": str, "template": str, "port": int}
    )
    config = ConfigDict(
        dict(
            run="serve" if kind == "serve" else "chat",
            seed=0,  # of the terminal's answers; over HTTP each request brings its own
            source=placeholder(str),  # what `model=` behind the colon names
            # Fields of ModelConfig that do not change what the weights mean: context_length, dtypes, ...
            model=optional_fields(ModelConfig),
            tokenizer=dict(path=placeholder(str)),  # by default the one beside the weights
            template=placeholder(str),  # a file with a chat template, in place of the model's own
            length=placeholder(int),  # tokens of a conversation and its answer; by default 2,048, or the context
            mesh=dict(data=-1, fsdp=1, tensor=1, sequence=1, slices=1),
        )
    )
    if kind == "serve":
        config.slots = 8  # answers that are worked on at once
        config.serve = ConfigDict(
            dict(
                host="127.0.0.1",
                port=8000,  # 0: any that is free
                name=placeholder(str),  # what clients call the model; by default what its file or folder is called
                queue=64,  # answers that wait for a slot; more requests are told to come again
                max_tokens=1024,  # of one answer
                max_request_bytes=1_000_000,
                grace_seconds=5,  # how long answers may still go on when the server is asked to stop
            )
        )
        config.serve.port = values.get("port", config.serve.port)
    else:
        config.system = placeholder(str)  # the system prompt; by default the template's own, if it has one
        config.update(
            dict(
                max_new_tokens=512,  # of one answer
                temperature=0.7,  # 0: the likeliest token each time; then leave the next three out
                top_k=placeholder(int),  # only the k likeliest tokens
                top_p=placeholder(float),  # only the likeliest tokens that reach this probability
                min_p=placeholder(float),  # only tokens at least this fraction as likely as the likeliest
                repetition_penalty=1.0,
            )
        )
        config.stop = ()  # texts that end an answer, beside the model's own end
    config.source = values.get("model", config.source)
    config.template = values.get("template", config.template)
    return config.lock()
