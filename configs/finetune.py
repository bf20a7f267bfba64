"""Fine-tuning on a labelled task, as the GPT-1 paper does it (§3.2, §3.3, §4.1).

    python -m gpt_jax.main --config=configs/finetune.py:TASK[,init_from=PATH][,seeds=INT][,folder=PATH][,epochs=FLOAT]

TASK: `books-author` (default), `books-next`, `books-same`, `books-choice` need no download; `sst2`, `cola`, `mrpc`,
`qqp`, `stsb`, `snli`, `mnli`, `qnli`, `rte`, `scitail`, `race`, `story_cloze` are the paper's, `folder` that of the
official release; `classification`, `entailment`, `similarity`, `multiple_choice` are tasks of your own:

    --config=configs/finetune.py:classification --config.data.train=file:mine.csv --config.data.columns.text=review

The recipe is the paper's: OpenAI's Adam at 6.25e-5, batches of 32, 3 epochs, warm-up over 0.2% of them, linear decay,
dropout 0.1 wherever there is one, L3 = L2 + 0.5 · L1; the epoch with the best validation score is kept. Small decoders
learn faster: the books' tasks take 1e-3.

`study` does many such runs one after another, tasks by ablations by seeds, and puts their scores into one table:

    --config=configs/finetune.py:study,init_from=PATH,seeds=3 '--config.data.train=file:glue/{task}/train.jsonl'

Measured (2 CPU cores, AMD EPYC, 2026-11-22): a study of six tasks by three ablations by three seeds with the `laptop`
decoder; its table stands in the README. A run of it with 4,000 examples takes from 20 seconds (CoLA) to four minutes
(MRPC, two orders of 110 tokens each).
"""

from ml_collections import ConfigDict, config_dict

from gpt_jax.configuration import optional_fields, parse_argument
from gpt_jax.models.config import ModelConfig
from gpt_jax.tasks.registry import TASKS
from gpt_jax.tasks.task import TEXT_ROLES

placeholder = config_dict.placeholder

NAMES = ("books-author", *(name for name in TASKS if name != "books-author"), *TEXT_ROLES, "study")
FIELDS = {"init_from": str, "seeds": int, "folder": str, "batch": int, "epochs": float}
ROLES = sorted({role for roles in TEXT_ROLES.values() for role in roles} | {"label", "id"})


def get_config(argument: str | None = None) -> ConfigDict:
    """The experiment that `argument` names; see the module's docstring."""
    task, values = parse_argument(argument, presets=NAMES, fields=FIELDS)
    config = defaults()
    if task == "study":
        config.run = "study"
        config.study = study()
    else:
        config.data.task = task
        if task.startswith("books-"):  # for runs/pretrain-books, a hundredth of GPT-1: found on books-author (LOG.md)
            config.schedule.peak = 1e-3
    config.init_from = values.get("init_from", config.init_from)
    config.seeds = values.get("seeds", config.seeds)
    config.data.folder = values.get("folder")
    config.train.batch_size = values.get("batch", config.train.batch_size)
    config.train.epochs = values.get("epochs", config.train.epochs)
    return config.lock()


def study() -> ConfigDict:
    """The runs of a study: every task by every variant by every seed."""
    return ConfigDict(
        dict(
            tasks=("sst2", "cola", "mrpc", "rte", "stsb", "snli"),  # `{task}` in data.train etc. stands for the name
            # Also lstm (pretrained in study.lstm), layers-K (transferred), freeze-K, adapters-K (their rank).
            variants=("full", "without-auxiliary", "without-pretraining"),
            lstm=placeholder(str),
            keep_checkpoints=False,  # once a run's scores are written
        )
    )


def defaults() -> ConfigDict:
    """Every field of a fine-tuning run."""
    return ConfigDict(
        dict(
            run="finetune",
            seed=0,
            seeds=1,  # runs with the seeds seed, seed + 1, ..., each in a folder of its own
            init_from="runs/pretrain-books",  # a workdir, a Hugging Face folder, a GGUF file, OpenAI's release
            # Fields of ModelConfig that do not change what the weights mean: dropout, context_length, dtypes, ...
            model=optional_fields(ModelConfig) | dict(dropout=0.1),
            tokenizer=dict(path=placeholder(str)),  # by default the one beside the weights
            data=dict(
                task="books-author",
                folder=placeholder(str),  # of the official release
                train=placeholder(str),  # or addresses of your own tables: file:PATH (csv, tsv, jsonl, json), tfds:...
                valid=placeholder(str),  # by default a part of train is held out
                test=placeholder(str),
                validation_fraction=0.1,
                columns={
                    role: placeholder(str) for role in ROLES
                },  # what your columns are called; ONE+TWO joins several
                labels=(),  # by default the task's, or those that the training rows show
                score_range=(),  # (lowest, highest), where the label is a score
                metrics=(),  # by default the task's; the first decides which epoch is best
                encoding="utf-8",
                skip_bad_rows=False,
                max_answers=16,
                max_train=0,  # examples; 0: all
                max_valid=0,
                prefetch=4,
            ),
            objective=dict(
                language_model_weight=0.5,  # the paper's lambda; 0: without the auxiliary language model
                classifier_dropout=0.1,
                score="score_distribution",  # score_distribution (Tai et al. 2015) | score (squared error)
            ),
            transfer=dict(
                layers=placeholder(int),  # by default everything; -1: no pretraining; 0: embeddings; k: k layers too
                freeze=0,  # the embeddings and so many first layers do not learn
                # Low-rank adapters (LoRA): the decoder does not learn but through them; 0: none, 8 is usual, with a
                # schedule.peak of 2e-4 or more. alpha / rank scales them; targets: query, key, value, output, up, down.
                adapters=dict(rank=0, alpha=16.0, targets=("query", "value")),
            ),
            optimizer=dict(
                name="openai_adam",
                beta1=0.9,
                beta2=0.999,
                epsilon=1e-8,
                weight_decay=0.01,
                clip_norm=1.0,
                mu_dtype=placeholder(str),
            ),
            schedule=dict(
                name="warmup_linear",
                peak=6.25e-5,
                warmup_fraction=0.002,
                decay_steps=placeholder(int),
                final_fraction=0.0,
            ),
            mesh=dict(data=-1, fsdp=1, tensor=1, sequence=1, slices=1),
            train=dict(batch_size=32, accumulation=1, epochs=3.0, log_every=10),
            checkpoint=dict(every=0, keep=2),  # 0: after every epoch; the best is kept beside the last
            report=dict(
                tensorboard=True,
                profile_steps=placeholder(str),  # FIRST:LAST, as 10:13: a trace of these steps, under WORKDIR/profile
            ),
        )
    )
