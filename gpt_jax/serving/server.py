"""The socket and the web server around the application: from the first connection to a clean end."""

import asyncio
import contextlib
import errno
import signal
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from gpt_jax.errors import UserError
from gpt_jax.serving.engine_thread import EngineThread

LAST_WORDS_SECONDS = 10
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens there; who connects before the server runs, waits.

    Raises:
      UserError: the port is in use, or may not be used, or `host` is no address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        where = f"serve.host={host}, serve.port={port}"
        if error.errno == errno.EADDRINUSE:
            message = "another program is listening there. Stop it, or choose another --config.serve.port (0: any)."
        elif error.errno == errno.EACCES:
            message = "only root may listen there. Choose a port from 1024 on."
        else:
            message = f"cannot be listened at ({error.strerror or error}). Expected an address of this machine."
        raise UserError(f"{where}: {message}") from None
    with listener:
        yield listener


def run(app: ASGIApp, listener: socket.socket, engine: EngineThread, *, grace_seconds: int) -> None:
    """Serves until SIGTERM or Ctrl-C, and ends the engine's thread.

    Answers may go on for `grace_seconds` then. Raises what ended the engine, if it failed.
    """

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            asyncio.get_running_loop().call_later(grace_seconds, engine.dismiss)
            await super().shutdown(sockets)

    # Clients that do not take what they are told at the end are left behind.
    patience = grace_seconds + LAST_WORDS_SECONDS
    server = Server(
        uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=patience)
    )
    engine.on_failure = lambda: setattr(server, "should_exit", True)
    # uvicorn hands its signals on when it is done; an end that was asked for is no failure.
    handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        engine.stop()
    if engine.failure is not None:
        raise engine.failure
