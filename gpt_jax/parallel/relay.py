"""Carries JAX's connection to its coordinator, and hides from JAX when the coordinator goes away.

Run as a program of its own, `python relay.py HOST PORT`: prints the loopback port that JAX is to connect to, and lives
until its standard input closes, which it does however its parent ends. JAX's C++ client ends the process, with a stack
trace and exit code 134, the moment its connection to the coordinator breaks (jax 0.10, client.h); watch.py, which sees
the same, could not say a word before. A program of its own, because no thread of ours runs while a call into C++ holds
Python's lock and waits for an answer from the coordinator.
"""

import asyncio
import contextlib
import os
import signal
import sys

RETRY_SECONDS = 0.2


async def main(host: str, port: int) -> None:
    """Carries every connection until the parent has ended."""
    server = await asyncio.start_server(lambda *local: carry(host, port, *local), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
    os._exit(0)


async def carry(host: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carries one connection both ways. When the far end is gone the near end is left waiting, not told."""
    while True:
        try:
            far_reader, far_writer = await asyncio.open_connection(host, port)
            break
        except OSError:  # not yet there; how long to wait is JAX's decision
            if reader.at_eof():
                return
            await asyncio.sleep(RETRY_SECONDS)
    answers = asyncio.create_task(copy(far_reader, writer))
    await copy(reader, far_writer)
    answers.cancel()
    for stream in (writer, far_writer):
        stream.close()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copies until the reader's end is reached, or its connection breaks; what cannot be written is dropped."""
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            with contextlib.suppress(OSError):
                writer.write(data)
                await writer.drain()


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the parent, with which this ends
        signal.signal(number, signal.SIG_IGN)
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
