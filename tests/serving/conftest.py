"""One small model, and one server of it, for all tests of a session."""

from pathlib import Path

import pytest
from chatting import Server, serving, write_chat_model


@pytest.fixture(scope="session")
def programs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    pytest.importorskip("tokenizers", reason="the extra 'huggingface' is not installed")
    return write_chat_model(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture(scope="session")
def server(model, programs) -> Server:
    for module in ("starlette", "uvicorn", "pydantic", "jinja2"):
        pytest.importorskip(module, reason="the extra 'serve' is not installed")
    with serving(model, programs) as server:
        yield server
