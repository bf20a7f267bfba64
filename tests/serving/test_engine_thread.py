"""Jobs from any thread in, pieces out; room for so many; freed when nobody wants them."""

import queue
import threading

import pytest
from chatting import CountingEngine, until
from small_models import byte_tokenizer

from gpt_jax.inference.engine import Event
from gpt_jax.inference.sampling import Sampling
from gpt_jax.serving.engine_thread import EngineThread, Job, Overloaded, Stopping, Transcript


@pytest.fixture
def engine():
    return CountingEngine()


@pytest.fixture
def thread(engine):
    thread = EngineThread(engine, byte_tokenizer(), most=4)
    thread.start()
    yield thread
    engine.held = False
    thread.stop()


class Heard:
    """Pieces of jobs as they are delivered."""

    def __init__(self):
        self.queue = queue.Queue()

    def __call__(self, index, piece):
        self.queue.put((index, piece))

    def all_of(self, count):
        """Of `count` jobs: the pieces of each."""
        pieces = [[] for _ in range(count)]
        while not all(own and own[-1].finished for own in pieces):
            index, piece = self.queue.get(timeout=300)
            if isinstance(piece, Exception):
                raise piece
            pieces[index].append(piece)
        return pieces


def job(text="a", tokens=5, stop=(), **options):
    return Job(list(text.encode()), Sampling(max_new_tokens=tokens, **options), stop=stop)


def test_pieces_join_to_the_text(thread):
    heard = Heard()
    thread.submit([job("a", 5), job("c", 3)], heard)
    first, second = heard.all_of(2)
    assert "".join(piece.text for piece in first) == "bcdef" and "".join(piece.text for piece in second) == "def"
    assert [piece.finished for piece in first] == [None] * 4 + ["length"]
    assert first[-1].generated == 5


def test_a_stop_text_ends_a_job_and_frees_its_slot(thread, engine):
    heard = Heard()
    thread.submit([job("a", 20, ("efg",), logprobs=1)], heard)
    [pieces] = heard.all_of(1)
    assert "".join(piece.text for piece in pieces) == "bcd" and pieces[-1].finished == "stop"
    assert [token.id for piece in pieces for token in piece.tokens] == [*b"bcd"]
    assert engine.cancelled == [1] and not engine.busy and thread.unfinished == 0


def test_what_is_held_back_comes_when_it_is_no_stop_text(thread):
    heard = Heard()
    thread.submit([job("a", 5, ("bcdX", "fg"), logprobs=0)], heard)
    [pieces] = heard.all_of(1)
    assert [piece.text for piece in pieces] == ["bcde", "f"]
    assert [token.id for piece in pieces for token in piece.tokens] == [*b"bcdef"]


def test_tokens_that_spell_nothing_are_told_of_too():
    transcript = Transcript(byte_tokenizer(), job())
    pieces = [transcript.take(Event(1, [id], [-1.0], [], None)) for id in (*"é".encode(), 256)]
    pieces.append(transcript.take(Event(1, [0xC3], [-1.0], [], "length")))
    assert [piece.text for piece in pieces] == ["", "é", "", "\ufffd"]
    assert [[token.id for token in piece.tokens] for piece in pieces] == [[], [0xC3, 0xA9], [], [256, 0xC3]]
    last = Transcript(byte_tokenizer(), job()).take(Event(1, [97, 256], [-1.0] * 2, [], "stop"))
    assert [token.id for token in last.tokens] == [97, 256]


def test_there_is_room_for_so_many_and_all_or_none_are_taken(thread, engine):
    engine.held = True
    heard = Heard()
    running = thread.submit([job()] * 3, heard)
    with pytest.raises(Overloaded):
        thread.submit([job()] * 2, heard)
    thread.submit([job()], heard)
    thread.cancel(running)
    until(lambda: thread.unfinished == 1)
    engine.held = False
    thread.submit([job("x", 1)] * 3, Heard())
    until(lambda: thread.unfinished == 0)


def test_a_job_that_is_cancelled_is_heard_of_no_more(thread, engine):
    engine.held = True
    heard = Heard()
    running = thread.submit([job("a", 200)], heard)
    thread.cancel(running)
    thread.cancel(running)
    until(lambda: thread.unfinished == 0)
    engine.held = False
    assert heard.queue.empty() and not engine.busy


def test_what_the_engine_refuses_is_delivered(thread):
    heard = Heard()
    thread.submit([job("a", 1000), job("a", 1)], heard)
    delivered = dict(heard.queue.get(timeout=300) for _ in range(2))
    assert str(delivered[0]) == "too long for the engine" and delivered[1].text == "b"
    assert thread.unfinished == 0


def test_any_failure_of_the_engine_over_one_job_is_that_jobs_alone(thread, engine, monkeypatch):
    submit = engine.submit

    def fails_over_x(prompt, *rest):
        if prompt == [*b"x"]:
            raise OverflowError("a bug")
        return submit(prompt, *rest)

    monkeypatch.setattr(engine, "submit", fails_over_x)
    heard = Heard()
    thread.submit([job("x", 1), job("a", 1)], heard)
    delivered = dict(heard.queue.get(timeout=300) for _ in range(2))
    assert isinstance(delivered[0], OverflowError) and delivered[1].text == "b"
    assert thread.unfinished == 0 and thread.failure is None


def test_calls_take_places_and_a_step_follows_each(thread, engine):
    order, begun, go_on = [], threading.Event(), threading.Event()
    first = thread.call(lambda: begun.set() or go_on.wait(300))
    assert begun.wait(300)
    thread.submit([job("a", 20)], Heard())
    given_up, *calls = [thread.call(lambda: order.append("call")) for _ in range(2)]
    with pytest.raises(Overloaded):
        thread.call(lambda: None)
    given_up.cancel()
    assert thread.unfinished == 3
    calls.append(thread.call(lambda: order.append("call")))
    step = engine.step
    engine.step = lambda: order.append("step") or step()
    go_on.set()
    for call in (first, *calls):
        call.result(300)
    assert [what for what in order if what == "call"] == ["call"] * 2
    first, second = (place for place, what in enumerate(order) if what == "call")
    assert "step" in order[first:second]
    until(lambda: thread.unfinished == 0)


def test_calls_that_wait_when_the_engine_fails_are_told(thread, engine):
    begun, go_on = threading.Event(), threading.Event()
    thread.call(lambda: begun.set() or go_on.wait(300))
    assert begun.wait(300)
    thread.submit([job("a", 1)], Heard())
    waiting = [thread.call(lambda: None) for _ in range(2)]
    engine.broken = True
    go_on.set()
    for call in waiting:
        with pytest.raises(RuntimeError, match="has stopped"):
            call.result(300)


def test_calls_run_between_steps_and_hand_back_what_they_raise(thread):
    assert thread.call(lambda: threading.current_thread().name).result(300) == "engine"
    with pytest.raises(KeyError):
        thread.call(lambda: {}["x"]).result(300)


def test_at_the_end_the_unfinished_are_told_and_no_more_are_taken(thread, engine):
    engine.held = True
    heard = Heard()
    thread.submit([job()] * 3, heard)
    thread.dismiss()
    assert all(isinstance(heard.queue.get(timeout=300)[1], Stopping) for _ in range(3))
    with pytest.raises(Stopping):
        thread.submit([job()], heard)
    assert thread.unfinished == 0 and not engine.busy


def test_a_failing_engine_tells_all_and_takes_no_more(engine):
    thread = EngineThread(engine, byte_tokenizer(), most=4)
    told = threading.Event()
    thread.on_failure = told.set
    engine.held = True
    thread.start()
    heard = Heard()
    thread.submit([job()] * 2, heard)
    engine.broken = True
    for _ in range(2):
        _, error = heard.queue.get(timeout=300)
        assert isinstance(error, RuntimeError) and "a bug" in str(error)
    assert told.wait(300) and isinstance(thread.failure, ZeroDivisionError)
    with pytest.raises(RuntimeError, match="has stopped"):
        thread.submit([job()], heard)
    thread.stop()
