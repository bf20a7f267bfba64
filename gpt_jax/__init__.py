"""gpt_jax: the GPT family in JAX/Flax, from pretraining to conversation.

The functions that notebooks and other programs use stand here; everything else is reached through
`python -m gpt_jax.main --config=configs/NAME.py`.
"""

__version__ = "0.1.0"


def run(config, workdir):
    """Does what `python -m gpt_jax.main` does: runs the experiment that `config` describes, in `workdir`.

    Args:
      config: an `ml_collections.ConfigDict` as the files in configs/ return it.
      workdir: the folder that takes metrics, checkpoints and the report; started again on it, a run goes on.

    Raises:
      gpt_jax.errors.UserError: for everything that the caller can mend.
    """
    from gpt_jax.main import run as run_experiment  # imported here: `import gpt_jax` alone stays quick

    return run_experiment(config, workdir)


def load(path, mesh=None, tokenizer=None):
    """A trained model: its config, parameters and tokenizer, and functions to use it.

    Args:
      path: a workdir of ours (or one of its checkpoints/STEP), a Hugging Face folder, a GGUF file, or OpenAI's GPT-1
        release.
      mesh: a `jax.sharding.Mesh` with the axes of `gpt_jax.parallel.mesh`; one device by default.
      tokenizer: the path of one to use instead of the one beside the weights.

    Returns:
      A `gpt_jax.language_model.LanguageModel`: `.config`, `.params`, `.tokenizer`, `.logits(tokens_BT)`,
      `.score(texts)`, `.generate(prompts)`.

    Raises:
      gpt_jax.errors.UserError: when no weights that this project reads stand there, or they are damaged.
    """
    from gpt_jax.language_model import LanguageModel

    return LanguageModel(path, mesh, tokenizer)
