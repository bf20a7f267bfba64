"""What a user can ask for: `RUNS`, each in the module of its name, which reads top to bottom; the others serve them."""

RUNS = (
    "chat",
    "collect",
    "convert",
    "curate",
    "dpo",
    "evaluate",
    "finetune",
    "gather",
    "generate",
    "grpo",
    "ppo",
    "predict",
    "pretrain",
    "reward",
    "scaling",
    "serve",
    "sft",
    "study",
)
