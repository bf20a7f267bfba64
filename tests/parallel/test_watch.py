"""Who is lost is told to all, and nobody is ended who need not be: threads of one process stand for the hosts."""

import os
import socket
import sys
import threading

import pytest

from gpt_jax.errors import Interrupted, UserError
from gpt_jax.parallel import watch
from gpt_jax.parallel.roll_call import Connection
from gpt_jax.parallel.watch import Watch

LIMIT = 30.0


def connected_pair() -> list[Connection]:
    """The two ends of a connection over the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        return [Connection(server.accept()[0]), Connection(far)]


class Processes:
    """Watches of several processes in this one; an exit is noted instead of done, and breaks its connections."""

    def __init__(self, count: int):
        pairs = {other: connected_pair() for other in range(1, count)}
        self.ends = {0: {other: near for other, (near, _) in pairs.items()}}
        self.ends |= {other: {0: far} for other, (_, far) in pairs.items()}
        self.codes, self.exited = {}, {process: threading.Event() for process in range(count)}
        hosts = [f"host{process}" for process in range(count)]
        self.watches = {process: self.watched(process, hosts) for process in range(count)}

    def watched(self, process: int, hosts: list[str]) -> Watch:
        processes = self

        class Noted(Watch):
            def _exit(self, code, text=""):
                print(text, file=sys.stderr)
                processes.codes.setdefault(process, code)
                processes.exited[process].set()
                processes.kill(process)
                raise OSError("this thread ends here")

        return Noted(process, hosts, self.ends[process])

    def kill(self, process: int) -> None:
        for connection in self.ends[process].values():
            connection._socket.shutdown(socket.SHUT_RDWR)

    def leave(self, process: int) -> threading.Thread:
        thread = threading.Thread(target=self.watches[process].leave, daemon=True)
        thread.start()
        return thread


@pytest.fixture
def three(monkeypatch):
    monkeypatch.setattr(watch, "HOLD_SECONDS", 0.0)
    monkeypatch.setattr(threading, "excepthook", lambda *arguments: None)
    return Processes(3)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_the_loss_of_any_process_ends_all_others_and_names_it(three, lost, capfd):
    three.kill(lost)
    others = {0, 1, 2} - {lost}
    assert all(three.exited[process].wait(LIMIT) for process in others)
    assert {process: three.codes[process] for process in others} == dict.fromkeys(others, os.EX_TEMPFAIL)
    # Both say who it was; on a busy machine the second may hear of the first one's end before.
    assert 1 <= capfd.readouterr().err.count(f"process {lost} (host host{lost}) is gone") <= 2


def test_processes_that_end_at_different_times_wait_for_each_other_and_end_well(three):
    leaving = [three.leave(process) for process in (2, 0, 1)]
    for thread in leaving:
        thread.join(LIMIT)
    assert not any(thread.is_alive() for thread in leaving) and not three.codes


def test_one_that_has_ended_still_hears_of_a_loss(three):
    three.leave(1)
    three.kill(2)
    assert three.exited[1].wait(LIMIT) and three.codes[1] == os.EX_TEMPFAIL


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_process_ends_the_others_with_its_words(three, failing, monkeypatch, capfd):
    monkeypatch.setattr(watch, "GRACE_SECONDS", 0.0)
    three.watches[failing].stopped_by(UserError("the disk is full"))
    three.leave(failing)
    assert all(event.wait(LIMIT) for event in three.exited.values())
    assert three.codes == {process: 2 if process == failing else os.EX_TEMPFAIL for process in range(3)}
    assert f"process {failing} (host host{failing}) has stopped: the disk is full" in capfd.readouterr().err


def test_an_error_that_all_agree_on_ends_each_by_itself(three):
    for process in range(3):
        three.watches[process].stopped_by(Interrupted(15, 7))
    leaving = [three.leave(process) for process in range(3)]
    for thread in leaving:
        thread.join(LIMIT)
    assert not any(thread.is_alive() for thread in leaving) and not three.codes


def test_an_error_that_was_not_the_end_is_forgotten(three):
    three.watches[1].stopped_by(ValueError("tried and caught"))
    three.watches[1].goes_on()
    leaving = [three.leave(process) for process in range(3)]
    for thread in leaving:
        thread.join(LIMIT)
    assert not three.codes and three.watches[0]._failure is None
