"""Where each of our parameters lies in other people's checkpoints: one table per naming, read in both directions."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax

from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.parallel.rules import path_string


class Place(NamedTuple):
    """Where one leaf of our tree lies in theirs; of a stacked leaf, where each of its layers does."""

    name: str  # their tensor; {layer} stands for the number of the layer
    transposed: bool = False  # theirs is [out, in], as torch.nn.Linear stores it
    part: int = 0  # which of `parts` equal pieces along their last axis
    parts: int = 1

    def tensor(self, layer: int | None) -> str:
        """The name of their tensor for one layer."""
        return self.name.format(layer=layer)


Layout = Mapping[str, Place]  # path of our leaf -> place; a config may lack some of the leaves


class Slot(NamedTuple):
    """One layer of one leaf (or a leaf without layers) and the piece of their tensor that fills it."""

    path: str
    layer: int | None  # None: the leaf has no layer axis
    shape: tuple[int, ...]  # ours, without the layer axis
    place: Place

    @property
    def name(self) -> str:
        """Their tensor."""
        return self.place.tensor(self.layer)

    @property
    def their_shape(self) -> tuple[int, ...]:
        """The shape of their whole tensor."""
        shape = self.shape[::-1] if self.place.transposed else self.shape
        return (*shape[:-1], shape[-1] * self.place.parts)

    def ours(self, theirs):
        """Their tensor -> this slot's value; a view."""
        width = theirs.shape[-1] // self.place.parts
        piece = theirs[..., self.place.part * width : (self.place.part + 1) * width]
        return piece.T if self.place.transposed else piece


def slots(config: ModelConfig, layout: Layout) -> Iterator[Slot]:
    """Every place that a checkpoint of `config` fills, leaf by leaf and, within a leaf, layer by layer."""
    specs = jax.tree_util.tree_leaves_with_path(
        decoder.parameter_specs(config), is_leaf=lambda leaf: isinstance(leaf, decoder.ParameterSpec)
    )
    for key_path, spec in specs:
        path = path_string(key_path)
        if path.startswith("layers/"):
            for layer in range(config.num_layers):
                yield Slot(path, layer, spec.shape[1:], layout[path])
        else:
            yield Slot(path, None, spec.shape, layout[path])


def _linear(path: str, name: str, *, transposed: bool, part: int = 0, parts: int = 1) -> Layout:
    return {
        f"{path}/kernel": Place(f"{name}.weight", transposed, part, parts),
        f"{path}/bias": Place(f"{name}.bias", False, part, parts),
    }


def _norm(path: str, name: str) -> Layout:
    return {f"{path}/scale": Place(f"{name}.weight"), f"{path}/bias": Place(f"{name}.bias")}


def _gpt(tokens: str, positions: str) -> Layout:
    """GPT-1 and GPT-2 on Hugging Face: `Conv1D` kernels [in, out], queries, keys and values in one matrix."""
    layout = {
        "embedding/tokens": Place(f"{tokens}.weight"),
        "embedding/positions": Place(f"{positions}.weight"),
        "unembedding/tokens": Place("lm_head.weight"),
        **_norm("layers/attention_norm", "h.{layer}.ln_1"),
        **_norm("layers/mlp_norm", "h.{layer}.ln_2"),
        **_norm("final_norm", "ln_f"),
        **_linear("layers/attention/output", "h.{layer}.attn.c_proj", transposed=False),
        **_linear("layers/mlp/up", "h.{layer}.mlp.c_fc", transposed=False),
        **_linear("layers/mlp/down", "h.{layer}.mlp.c_proj", transposed=False),
    }
    for part, name in enumerate(("query", "key", "value")):
        layout |= _linear(f"layers/attention/{name}", "h.{layer}.attn.c_attn", transposed=False, part=part, parts=3)
    return layout


def _llama(
    tokens: str, output: str, final_norm: str, layer: str, norms: tuple[str, str], linears: Mapping[str, str]
) -> Layout:
    """Llama and its relatives: `Linear` kernels [out, in], one matrix each."""
    layout = {
        "embedding/tokens": Place(f"{tokens}.weight"),
        "unembedding/tokens": Place(f"{output}.weight"),
        **_norm("final_norm", final_norm),
        **_norm("layers/attention_norm", f"{layer}.{norms[0]}"),
        **_norm("layers/mlp_norm", f"{layer}.{norms[1]}"),
    }
    for path, name in linears.items():
        layout |= _linear(f"layers/{path}", f"{layer}.{name}", transposed=True)
    return layout


OPENAI_GPT = _gpt("tokens_embed", "positions_embed")
GPT2 = _gpt("wte", "wpe")
LLAMA = _llama(
    "embed_tokens", "lm_head", "norm", "layers.{layer}", ("input_layernorm", "post_attention_layernorm"),
    {
        "attention/query": "self_attn.q_proj", "attention/key": "self_attn.k_proj",
        "attention/value": "self_attn.v_proj", "attention/output": "self_attn.o_proj",
        "mlp/gate": "mlp.gate_proj", "mlp/up": "mlp.up_proj", "mlp/down": "mlp.down_proj",
    },
)  # fmt: skip
GGUF = _llama(
    "token_embd", "output", "output_norm", "blk.{layer}", ("attn_norm", "ffn_norm"),
    {
        "attention/query": "attn_q", "attention/key": "attn_k", "attention/value": "attn_v",
        "attention/output": "attn_output", "mlp/gate": "ffn_gate", "mlp/up": "ffn_up", "mlp/down": "ffn_down",
    },
)  # fmt: skip


def _openai_release() -> Layout:
    """OpenAI's own GPT-1 release, by the variable names of its train.py; the order of the files is in openai.py."""
    endings = {"kernel": "w", "scale": "g", "bias": "b"}
    layout = {}
    for path, place in OPENAI_GPT.items():
        if path.startswith("layers/"):
            module = place.name.rsplit(".", 1)[0].replace(".", "/").replace("h/", "model/h", 1)
            layout[path] = place._replace(name=f"{module}/{endings[path.rsplit('/', 1)[1]]}")
    return layout | {"embedding/positions": Place("model/pe"), "embedding/tokens": Place("model/we")}


OPENAI_RELEASE = _openai_release()
