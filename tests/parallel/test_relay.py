"""The relay carries a connection both ways, and does not tell the near end that the far end is gone."""

import socket
import subprocess
import sys

import pytest

from gpt_jax.parallel import relay

LIMIT = 30.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def relayed():
    """Starts a relay to a port of the loopback; a function port -> (its process, the port to connect to)."""
    started = []

    def start(port: int) -> tuple[subprocess.Popen, int]:
        command = [sys.executable, "-I", relay.__file__, "127.0.0.1", str(port)]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        return started[-1], int(started[-1].stdout.readline())

    yield start
    for process in started:
        process.kill()
        process.communicate()


def through(server: socket.socket, port: int) -> tuple[socket.socket, socket.socket]:
    """A connection through the relay: its near and its far end, which have heard each other."""
    near = socket.create_connection(("127.0.0.1", port), timeout=LIMIT)
    far = server.accept()[0]
    far.settimeout(LIMIT)
    near.sendall(b"there?")
    assert far.recv(100) == b"there?"
    far.sendall(b"here")
    assert near.recv(100) == b"here"
    return near, far


def test_a_far_end_that_goes_away_is_not_told_to_the_near_end(relayed):
    with socket.create_server(("127.0.0.1", 0)) as server:
        _, port = relayed(server.getsockname()[1])
        near, far = through(server, port)
        far.close()
        for _ in range(20):  # and what it says from then on is dropped
            near.sendall(b"still there?")
            through(server, port)
        near.setblocking(False)
        with pytest.raises(BlockingIOError):  # neither an end nor an error
            near.recv(1)


def test_a_near_end_that_goes_away_is_told_to_the_far_end(relayed):
    with socket.create_server(("127.0.0.1", 0)) as server:
        _, port = relayed(server.getsockname()[1])
        near, far = through(server, port)
        near.close()
        assert far.recv(1) == b""


def test_a_far_end_that_is_not_yet_there_is_waited_for(relayed):
    far_port = free_port()
    _, port = relayed(far_port)
    near = socket.create_connection(("127.0.0.1", port), timeout=LIMIT)
    near.sendall(b"early")
    with socket.create_server(("127.0.0.1", far_port)) as server:
        far = server.accept()[0]
        far.settimeout(LIMIT)
        assert far.recv(100) == b"early"


def test_it_ends_with_its_parent(relayed):
    process, _ = relayed(free_port())
    process.stdin.close()
    assert process.wait(LIMIT) == 0
    process.stdin = None
