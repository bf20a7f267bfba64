"""Golden values of TRL's trainers: losses and gradients of SFT, DPO, IPO and the reward model, in `trl_losses.npz`.

    python tests/golden/trl_losses.py           # writes the file
    python tests/golden/trl_losses.py --check   # makes the values anew and says how far they are from those stored

In an environment with torch, transformers and trl (made with torch 2.13, transformers 5.23, trl 1.16); nothing of
gpt_jax is used. The model is that of gpt2.npz, in float64; the policy's weights are those times 1.1, the reference's
as they are. Every trainer gets the same pairs of answers, and is asked for the loss of the batch that its own collator
makes.

Keys: `prompt/i`, `chosen/i`, `rejected/i` (ids of pair i), `score` (the reward model's last matrix [1, D]), `beta`; of
LOSS in sft (of the chosen answers), sigmoid, ipo, reward: `LOSS/loss` and `LOSS/gradient/NAME`, float32, in NAME the
number of the layer left to gpt2.npz's names. For reward, `reward/rewards` too, of chosen and rejected answers [2, P].
"""

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
import trl
from datasets import Dataset

FOLDER = Path(__file__).resolve().parent
BETA = 0.3
END, PAD = 0, 1  # ids of the vocabulary of 61 that no answer below holds
KEPT = ("wte.weight", "h.0.attn.c_attn.weight", "h.1.mlp.c_fc.bias", "h.2.mlp.c_proj.weight", "ln_f.weight")


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Words `2` to `60` for the ids of the same number."""
    vocabulary = {"</s>": END, "<pad>": PAD} | {str(id): id for id in range(2, 61)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="<pad>")


def pairs() -> list[dict[str, list[int]]]:
    """Prompts with two answers each, of unlike lengths, all within the context of 16."""
    draw = np.random.default_rng(0)

    def ids(length: int) -> list[int]:
        return draw.integers(2, 61, length).tolist()

    lengths = [(4, 6, 3), (7, 2, 8), (2, 5, 5), (9, 1, 4)]
    return [{"prompt": ids(p), "chosen": ids(c), "rejected": ids(r)} for p, c, r in lengths]


def model(kind: type, scale: float, score: np.ndarray | None = None) -> transformers.PreTrainedModel:
    """The model of gpt2.npz, its weights times `scale`."""
    with np.load(FOLDER / "gpt2.npz") as stored:
        fields = json.loads(str(stored["config"])) | {"eos_token_id": END, "pad_token_id": PAD, "num_labels": 1}
        config = transformers.GPT2Config(
            **{name: fields[name] for name in fields if not name.endswith(("label", "2id"))}
        )
        weights = {name.removeprefix("param/"): stored[name] for name in stored.files if name.startswith("param/")}
    made = kind(config).double().eval()
    tensors = {
        name if name.startswith("transformer.") else f"transformer.{name}": torch.from_numpy(array).double() * scale
        for name, array in weights.items()
    }
    if score is not None:
        tensors["score.weight"] = torch.from_numpy(score).double()
    missing, unexpected = made.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    return made


def loss_and_gradients(trainer: transformers.Trainer) -> dict[str, np.ndarray]:
    """Of the one batch that the trainer has."""
    [batch] = trainer.get_train_dataloader()
    trained = trainer.model.eval()  # no dropout
    trained.zero_grad()
    loss = trainer.compute_loss(trained, dict(batch))
    loss.backward()
    values = {"loss": np.float64(loss.item())}
    for name, parameter in trained.named_parameters():
        short = name.removeprefix("transformer.")
        if short in KEPT or short == "score.weight":
            values[f"gradient/{short}"] = parameter.grad.numpy().astype(np.float32)
    return values


def golden_values() -> dict[str, np.ndarray]:
    """Everything that is stored."""
    own, words = pairs(), tokenizer()
    score = np.random.default_rng(1).normal(size=(1, 24)).astype(np.float32)
    values = {f"{name}/{i}": np.array(ids, np.int32) for i, pair in enumerate(own) for name, ids in pair.items()}
    values |= {"score": score, "beta": np.float64(BETA)}

    def text(ids: list[int]) -> str:
        return " ".join(map(str, ids))

    texts = [{name: text(ids) for name, ids in pair.items()} for pair in own]
    # Each text with a space between prompt and answer, which the words' tokenizer drops.
    preferences = Dataset.from_list(
        [{"prompt": t["prompt"] + " ", "chosen": t["chosen"], "rejected": t["rejected"]} for t in texts]
    )
    demonstrations = Dataset.from_list([{"prompt": t["prompt"] + " ", "completion": t["chosen"]} for t in texts])
    whole = Dataset.from_list([{side: f"{t['prompt']} {t[side]}" for side in ("chosen", "rejected")} for t in texts])
    causal = transformers.GPT2LMHeadModel
    with tempfile.TemporaryDirectory() as folder:
        plain = dict(
            output_dir=folder, per_device_train_batch_size=len(own), report_to=[], use_cpu=True, bf16=False,
            gradient_checkpointing=False, max_length=None, dataloader_pin_memory=False,
        )  # fmt: skip
        trainers = {
            "sft": trl.SFTTrainer(
                model(causal, 1.1), args=trl.SFTConfig(completion_only_loss=True, **plain),
                train_dataset=demonstrations, processing_class=words,
            ),
            "reward": trl.RewardTrainer(
                model(transformers.GPT2ForSequenceClassification, 1.1, score),
                args=trl.RewardConfig(disable_dropout=True, **plain), train_dataset=whole, processing_class=words,
            ),
        }  # fmt: skip
        for kind in ("sigmoid", "ipo"):
            trainers[kind] = trl.DPOTrainer(
                model(causal, 1.1), ref_model=model(causal, 1.0),
                args=trl.DPOConfig(loss_type=[kind], beta=BETA, **plain),
                train_dataset=preferences, processing_class=words,
            )  # fmt: skip
        for kind, trainer in trainers.items():
            check_batch(kind, trainer, own)
            values |= {f"{kind}/{name}": value for name, value in loss_and_gradients(trainer).items()}
        [batch] = trainers["reward"].get_train_dataloader()
        with torch.no_grad():
            rewards = trainers["reward"].model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        values["reward/rewards"] = rewards.logits.reshape(2, -1).numpy().astype(np.float32)
    return values


def check_batch(kind: str, trainer: transformers.Trainer, own: list[dict[str, list[int]]]) -> None:
    """Asserts that the batch holds the ids that are stored, each answer with an end behind it; in any order."""
    [batch] = trainer.get_train_dataloader()
    sides = ("chosen",) if kind == "sft" else ("chosen", "rejected")
    expected = sorted([*pair["prompt"], *pair[side], END] for side in sides for pair in own)
    found = sorted([id for id in row if id != PAD] for row in batch["input_ids"].tolist())
    assert found == expected, (kind, found, expected)


def main() -> None:
    """Writes the file, or compares it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    path = FOLDER / "trl_losses.npz"
    with contextlib.redirect_stdout(sys.stderr):
        values = golden_values()
    if not check:
        np.savez_compressed(path, **values)
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB; { ({k: float(values[f'{k}/loss']) for k in KINDS}) }")
        return
    with np.load(path) as stored:
        if set(stored.files) != set(values):
            sys.exit(f"{path.name}: other keys: {sorted(set(stored.files) ^ set(values))}")
        worst = max(float(np.max(np.abs(stored[key] - values[key]))) for key in values)
    print(f"{path.name}: largest difference {worst:.2e}")
    if worst > 1e-6:
        sys.exit(f"The stored values are not those of trl {trl.__version__}.")


KINDS = ("sft", "sigmoid", "ipo", "reward")

if __name__ == "__main__":
    main()
