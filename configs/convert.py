"""Conversion of weights between formats.

    python -m gpt_jax.main --config=configs/convert.py:FORMAT,source=PATH --workdir=NEW-FOLDER

FORMAT is what is written: `huggingface` (default; transformers loads the folder as its own), `openai` (GPT-1's
release: params_shapes.json, params_0.npy ...) or `workdir` (ours). PATH is what is read: a Hugging Face folder
(OpenAI-GPT, GPT-2, Llama, Qwen2), a GGUF file (Llama, Qwen2; quantised tensors become float32), OpenAI's GPT-1
release, a workdir of ours or one of its checkpoints/STEP. Runs need no conversion to begin with foreign weights:
`init_from=PATH` reads them all.

Measured: a 135M-parameter GGUF becomes a Hugging Face folder in 9 s on 2 CPU cores (2026-11-22), half of it imports.
"""

from ml_collections import ConfigDict, config_dict

from gpt_jax.configuration import parse_argument

placeholder = config_dict.placeholder


def get_config(argument: str | None = None) -> ConfigDict:
    """The conversion that `argument` names; see the module's docstring."""
    target, values = parse_argument(
        argument, presets=("huggingface", "openai", "workdir"), fields={"source": str, "dtype": str}
    )
    config = ConfigDict(
        dict(
            run="convert",
            seed=0,  # of the rows that add_symbols draws
            source=placeholder(str),
            to=target,
            dtype="float32",  # of a huggingface folder's tensors: float32 | bfloat16 | float16
            add_symbols=False,  # appends the start, delimiter and extract symbols that fine-tuning needs
            tokenizer=dict(
                path=placeholder(str),  # by default the one beside the weights
                include=True,  # False: weights only
            ),
            mesh=dict(data=-1, fsdp=1, tensor=1, sequence=1, slices=1),
        )
    )
    config.update(values)
    return config.lock()
