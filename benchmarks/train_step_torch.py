"""A worker of training_speed.py: the peers' steps in PyTorch; runs in an environment of its own."""

import json
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """A pre-norm block as in nanoGPT: one fused projection, scaled_dot_product_attention, tanh-GELU."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(d, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class NanoShaped(nn.Module):
    """GPT-2's shape with nanoGPT's choices; returns the mean loss of the next tokens."""

    def __init__(self, s: dict):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(s["vocabulary"], s["width"]), nn.Embedding(s["time"], s["width"])
        self.blocks = nn.ModuleList([Block(s["width"], s["heads"]) for _ in range(s["layers"])])
        self.norm = nn.LayerNorm(s["width"])
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, ids, targets):
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


class HuggingFace(nn.Module):
    """transformers' OpenAIGPTLMHeadModel, dropout 0."""

    def __init__(self, s: dict):
        super().__init__()
        from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

        config = OpenAIGPTConfig(
            vocab_size=s["vocabulary"], n_positions=s["time"], n_embd=s["width"], n_layer=s["layers"],
            n_head=s["heads"], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        self.model = OpenAIGPTLMHeadModel(config)

    def forward(self, ids, targets):
        logits = self.model(ids).logits
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def main() -> None:
    """Prints a description, then runs as many steps as each line of standard input says."""
    s = json.loads(sys.argv[1])
    torch.manual_seed(0)
    model = (NanoShaped if s["kind"].startswith("nano") else HuggingFace)(s).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    half = s["dtype"] == "bfloat16"

    def step():
        ids = torch.randint(0, s["vocabulary"], (s["batch"], s["time"] + 1))
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            step()
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
    main()
