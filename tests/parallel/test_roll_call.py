"""Processes meet over the loopback: threads stand for them, no JAX is started."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from gpt_jax.errors import UserError
from gpt_jax.parallel import roll_call
from gpt_jax.parallel.cluster import Place
from gpt_jax.parallel.roll_call import Connection, join

LIMIT = 30.0  # seconds that nothing here takes


@pytest.fixture
def address(monkeypatch):
    """A free address on the loopback; what waits between two tries does not wait long."""
    monkeypatch.setattr(roll_call, "RETRY_SECONDS", 0.01)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def meet(address, ids, *, count=None, limits=None, facts=None):
    """What each of the processes `ids` comes to: (hosts, connections), or the refusal's text."""

    def one(number):
        place = Place("test", address, (count or {}).get(number, len(set(ids))), ids[number])
        try:
            return join(place, (facts or {}).get(number, {}), (limits or {}).get(number, LIMIT))
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(len(ids)) as pool:
        return list(pool.map(one, range(len(ids))))


def test_all_come_and_stay_connected(address):
    results = meet(address, [0, 1, 2])
    assert [hosts for hosts, _ in results] == [[socket.gethostname()] * 3] * 3
    connections = results[0][1]
    assert set(connections) == {1, 2} and set(results[1][1]) == {0}
    connections[2].send(word="two")
    assert results[2][1][0].receive(LIMIT) == {"word": "two"}


def test_those_that_do_not_come_are_named_to_all(address):
    first, second = meet(address, [0, 2], count={0: 4, 1: 4}, limits={0: 2.0})
    assert first == second and "2 of 4 processes have not come within 2 s: ids 1, 3." in first


def test_an_address_where_nothing_answers_is_named(address):
    (text,) = meet(address, [1], count={0: 2}, limits={0: 0.0})
    assert f"nothing answers at {address} (Connection refused)" in text and "process 1 of 2" in text


@pytest.mark.parametrize("words", [b"220 mail\r\n", b"{}\n", b'{"roll_call": "gpt_jax 0"}\n'])
def test_an_address_where_something_else_answers_is_named(address, words):
    host, port = address.split(":")
    with socket.create_server((host, int(port))) as server:
        threading.Thread(target=lambda: server.accept()[0].sendall(words), daemon=True).start()
        (text,) = meet(address, [1], count={0: 2}, limits={0: 0.0})
    assert f"what answers at {address} is no process 0" in text


def test_two_processes_with_one_id_end_all(address):
    results = meet(address, [0, 1, 1], count={0: 3, 1: 3, 2: 3})
    assert len(set(results)) == 1 and "two processes have the id 1" in results[0]


def test_another_number_of_processes_ends_all(address):
    results = meet(address, [0, 1], count={0: 2, 1: 3})
    assert len(set(results)) == 1 and "as one of 2 processes, process 1" in results[0] and "one of 3" in results[0]


def test_what_differs_ends_all(address):
    results = meet(address, [0, 1, 2], facts={0: {"jax": "1"}, 1: {"jax": "1"}, 2: {"jax": "2"}})
    assert len(set(results)) == 1 and "jax: 1 on processes 0, 1" in results[0] and "2 on process 2" in results[0]


def test_a_port_that_is_taken_is_named(address):
    with socket.create_server(("", int(address.split(":")[1]))):
        (text,) = meet(address, [0], count={0: 2})
    assert "process 0 cannot listen at port" in text and "Address already in use" in text


def test_a_process_that_was_stopped_may_come_again_and_strangers_do_not_disturb(address):
    host, port = address.split(":")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(join, Place("test", address, 3, 0), {}, LIMIT)
        for words in (b"GET / HTTP/1.1\r\n", b'{"process": "one"}\n', b"[]\n"):
            _connect(host, port).sendall(words)
        stopped = Connection(_connect(host, port))
        assert stopped.receive(LIMIT) == roll_call.GREETING
        stopped.send(process=1, processes=3, host="x", facts={})
        stopped.close()
        results = meet(address, [1, 2], count={0: 3, 1: 3})
        hosts, connections = first.result()
    assert results[0][0] == hosts and connections[1].is_open()


def _connect(host, port):
    """Connects as soon as process 0 listens."""
    while True:
        try:
            return socket.create_connection((host, int(port)), timeout=LIMIT)
        except ConnectionRefusedError:
            threading.Event().wait(0.01)
