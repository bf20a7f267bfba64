"""A model over HTTP, until the server is asked to stop."""

from pathlib import Path

from ml_collections import ConfigDict

from gpt_jax.errors import UserError
from gpt_jax.extras import require
from gpt_jax.inference.engine import Engine
from gpt_jax.inference.prompt_logprobs import prompt_logprobs
from gpt_jax.inference.sampling import Sampling
from gpt_jax.progress import say
from gpt_jax.runs.chat_model import ChatModel, open_chat_model
from gpt_jax.runs.pretrained import prompt_ids

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def run(config: ConfigDict, workdir: Path) -> None:
    """Serves `config.source` at `config.serve.host`; `workdir` is not used: nothing is written.

    Raises:
      UserError: for what the caller can mend, a port in use among it.
    """
    check(config)
    for module in ("starlette", "uvicorn", "pydantic"):
        require(module, "serve")
    from gpt_jax.serving import server
    from gpt_jax.serving.app import Served, make_app
    from gpt_jax.serving.engine_thread import EngineThread

    serve = config.serve
    model = open_chat_model(config)
    with server.listening(serve.host, serve.port) as socket:
        engine = model.engine(slots=config.slots)
        warm_up(engine, model)
        thread = EngineThread(engine, model.tokenizer, most=config.slots + serve.queue)
        served = served_model(config, model, engine, Served)
        thread.start()
        say(f"{served.name}: http://{address(*socket.getsockname()[:2])} (Ctrl-C stops)")
        if model.template is None:
            say("it has no chat template: /v1/completions answers, the page and /v1/chat/completions do not")
        server.run(make_app(served, thread), socket, thread, grace_seconds=serve.grace_seconds)
    say("stopped")


def check(config: ConfigDict) -> None:
    """Raises UserError for what can be refused before any work."""
    serve = config.serve
    for name, value, least, most in (
        ("serve.port", serve.port, 0, 65535),
        ("serve.queue", serve.queue, 0, 10_000),
        ("serve.max_tokens", serve.max_tokens, 1, 10**9),
        ("serve.max_request_bytes", serve.max_request_bytes, 1, 10**9),
        ("serve.grace_seconds", serve.grace_seconds, 0, 3600),
        ("slots", config.slots, 1, 1024),
    ):
        if not least <= value <= most:
            raise UserError(f"{name}={value}: expected {least} to {most:,}.")


def served_model(config: ConfigDict, model: ChatModel, engine: Engine, served: type):
    """What the application needs to know."""
    from gpt_jax.serving.engine_thread import Token

    def score(ids: list[int], alternatives: int) -> list[Token]:
        told = prompt_logprobs(engine, ids, alternatives=alternatives)
        return [Token(ids[0], None), *(Token(id, *found) for id, found in zip(ids[1:], told, strict=True))]

    return served(
        name=config.serve.name or Path(config.source).expanduser().absolute().name.removesuffix(".gguf"),
        tokenizer=model.tokenizer,
        template=model.template,
        prompt_ids=lambda text: prompt_ids(model.tokenizer, text),
        score=score,
        length=engine.length,
        most_tokens=config.serve.max_tokens,
        most_bytes=config.serve.max_request_bytes,
        hosts=LOOPBACK if config.serve.host in LOOPBACK else ("*",),
    )


def warm_up(engine: Engine, model: ChatModel) -> None:
    """One token for a short prompt: what cannot run at all fails before a client comes.

    Longer texts and more at a time are other shapes; each is compiled when it first comes, and its client waits for it.
    """
    engine.submit([model.tokenizer.specials.end_of_text], Sampling(max_new_tokens=1))
    while engine.busy:
        engine.step()


def address(host: str, port: int) -> str:
    """host:port as a URL has it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
