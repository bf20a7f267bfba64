"""The application without sockets: every request gets an answer of OpenAI's shape, a good one or an error."""

import asyncio
import json
from concurrent.futures import Future
from threading import Event, Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

for module in ("starlette", "pydantic", "jinja2", "tokenizers"):
    pytest.importorskip(module, reason="the extra 'serve' is not installed")

from chatting import LENGTH, NAME, TEMPLATE, CountingEngine, until  # noqa: E402
from small_models import byte_tokenizer  # noqa: E402

from gpt_jax.runs.pretrained import prompt_ids  # noqa: E402
from gpt_jax.serving.app import Served, make_app  # noqa: E402
from gpt_jax.serving.engine_thread import EngineThread, Token  # noqa: E402
from gpt_jax.text.chat_template import ChatTemplate  # noqa: E402

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]


class Client:
    """Speaks ASGI with an app whose engine counts letters."""

    def __init__(self, template=TEMPLATE, most=8, **served):
        self.engine = CountingEngine()
        tokenizer = byte_tokenizer()
        self.thread = EngineThread(self.engine, tokenizer, most=most)
        fields = dict(
            name=NAME, tokenizer=tokenizer, template=template and ChatTemplate(template, tokenizer),
            prompt_ids=lambda text: prompt_ids(tokenizer, text), length=LENGTH, most_tokens=100, most_bytes=4000,
            score=lambda ids, n: [Token(ids[0], None), *(Token(id, -0.5, [(id, -0.5)][:n]) for id in ids[1:])],
        )  # fmt: skip
        self.app = make_app(Served(**fields | served), self.thread)
        self.thread.start()

    def ask(self, path, body=None, *, method=None, headers=(), hang_up: Future | None = None):
        """(status, body as JSON, or the events of a stream) of one request; `hang_up`: when the client is gone."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        given_headers = {"content-type": "application/json", "content-length": str(len(content)), "host": "here"}
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
            "method": method or ("GET" if body is None else "POST"), "scheme": "http", "path": path,
            "raw_path": path.encode(), "query_string": b"", "root_path": "", "server": ("here", 80),
            "headers": [(k.encode(), v.encode()) for k, v in (given_headers | dict(headers)).items()],
        }  # fmt: skip
        sent = []

        async def run():
            parts = iter([{"type": "http.request", "body": content, "more_body": False}])

            async def receive():
                if part := next(parts, None):
                    return part
                await (asyncio.Event().wait() if hang_up is None else asyncio.wrap_future(hang_up))
                return {"type": "http.disconnect"}

            async def send(message):
                sent.append(message)

            await self.app(scope, receive, send)

        asyncio.run(run())
        status = sent[0]["status"]
        text = b"".join(message.get("body", b"") for message in sent[1:]).decode()
        if dict(sent[0]["headers"]).get(b"content-type", b"").startswith(b"text/event-stream"):
            return status, [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        return status, json.loads(text) if text else None


@pytest.fixture(scope="module")
def client():
    client = Client()
    yield client
    client.thread.stop()


def complete(**fields):
    return {"model": NAME, "prompt": "a", "max_tokens": 3} | fields


def chat(**fields):
    return {"model": NAME, "messages": HELLO, "max_tokens": 3} | fields


def refused(client, path, body, **options):
    """The error of a request that is refused."""
    status, answer = client.ask(path, body, **options)
    assert 400 <= status < 500, answer
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"
    return status, answer["error"]


def test_texts_ids_and_several_of_each_are_continued(client):
    for prompt, texts in (
        ("a", ["bcd"]),
        ([97], ["bcd"]),
        (["a", "x"], ["bcd", "yza"]),
        ([[97], [120]], ["bcd", "yza"]),
    ):
        status, answer = client.ask(COMPLETIONS, complete(prompt=prompt))
        assert status == 200 and [choice["text"] for choice in answer["choices"]] == texts
        assert answer["usage"]["completion_tokens"] == 3 * len(texts)
    _, answer = client.ask(COMPLETIONS, complete(prompt=["a", "x"], n=2))
    assert [choice["text"] for choice in answer["choices"]] == ["bcd", "bcd", "yza", "yza"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 12, "total_tokens": 14}


def test_an_echo_tells_the_prompts_own_log_probabilities(client):
    _, answer = client.ask(COMPLETIONS, complete(prompt="abé", echo=True, logprobs=1, max_tokens=0))
    [choice] = answer["choices"]
    assert choice["text"] == "abé" and choice["finish_reason"] == "length"
    assert choice["logprobs"]["tokens"][:2] == ["a", "b"]
    assert choice["logprobs"]["token_logprobs"] == [None, -0.5, -0.5, -0.5]
    assert choice["logprobs"]["top_logprobs"][:2] == [None, {"b": -0.5}]
    _, answer = client.ask(COMPLETIONS, complete(prompt="ab", echo=True, logprobs=2))
    [choice] = answer["choices"]
    assert choice["text"] == "abcde"
    assert choice["logprobs"]["tokens"] == [*"abcde"] and choice["logprobs"]["text_offset"] == [0, 1, 2, 3, 4]
    assert choice["logprobs"]["top_logprobs"][2] == {"c": -1.0, "A": -2.0}


def test_a_stream_says_the_same_as_an_answer_at_once(client):
    for path, body in ((COMPLETIONS, complete(logprobs=1, echo=True, n=2)), (CHAT, chat(logprobs=True, n=2))):
        _, whole = client.ask(path, body)
        _, events = client.ask(path, body | {"stream": True, "stream_options": {"include_usage": True}})
        assert events.pop() == "[DONE]"
        *chunks, last = map(json.loads, events)
        assert last["choices"] == [] and last["usage"] == whole["usage"]
        for choice in whole["choices"]:
            own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
            said = "".join(c["text"] if "text" in c else c["delta"].get("content", "") for c in own)
            assert said == (choice["text"] if "text" in choice else choice["message"]["content"])
            assert [c["finish_reason"] for c in own if c["finish_reason"]] == [choice["finish_reason"]]
            for name, tokens in choice["logprobs"].items():
                if tokens:
                    assert [t for c in own if c["logprobs"] for t in c["logprobs"][name]] == tokens


def test_a_stop_text_is_not_shown(client):
    for path, body in (
        (COMPLETIONS, complete(max_tokens=20, stop="fg")),
        (CHAT, chat(max_tokens=20, stop=["xx", "de"])),
    ):
        _, answer = client.ask(path, body)
        assert answer["choices"][0]["finish_reason"] == "stop"
    _, answer = client.ask(COMPLETIONS, complete(max_tokens=20, stop="fg"))
    assert answer["choices"][0]["text"] == "bcde"


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": ""}, "prompt", "expected a text"),
        ({"prompt": []}, "prompt", "none of them empty"),
        ({"prompt": [[]]}, "prompt", "empty"),
        ({"prompt": [257]}, "prompt", "ids are 0 to 256"),
        ({"prompt": [-1]}, "prompt", "ids are 0 to 256"),
        ({"prompt": "a" * 300}, "max_tokens", "the context holds 256 tokens, and 300 of the prompt"),
        ({"prompt": "\ud800"}, "prompt", "expected a text"),
        ({"stop": ""}, "stop", "none of them empty"),
        ({"stop": ["a", ""]}, "stop", "none of them empty"),
        ({"temperature": 0, "top_p": 0.5}, None, "temperature=0 takes the likeliest token"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "without echo"),
        ({"max_tokens": 101}, "max_tokens", "100 at most"),
        ({"max_tokens": True}, "max_tokens", "valid integer"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 9}, "n", "takes 8"),
        ({"logprobs": 21}, "logprobs", "less than or equal to 20"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "without stream"),
        ({"best_of": 2}, "best_of", "not supported"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "not supported"),
        ({"temprature": 1}, "temprature", "Did you mean 'temperature'"),
        ({"\ud800": 1}, "\ud800", "no such field"),
        ({"model": "gpt-4"}, "model", "This server has 'tiny'"),
        ({"model": None}, "model", "missing"),
        ({"seed": 2**70}, "seed", "less than"),
        ({"top_k": 3_000_000_000}, "top_k", "less than"),
    ],
)
def test_what_does_not_fit_is_named(client, fields, param, words):
    status, error = refused(client, COMPLETIONS, complete(**fields))
    assert status == (404 if fields.get("model") else 400)
    assert error["param"] == param and words in error["message"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": []}, "at least 1 item"),
        ({"messages": "hello"}, "valid list"),
        ({"messages": [{"role": "user"}]}, "messages.0.content: missing"),
        ({"messages": [{"role": "user", "content": "x", "\ud800": 1}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": "x", "y": 1}]}, "messages.0.y"),
        (
            {"messages": [{"role": "", "content": "x"}]},
            "should be 'system', 'developer', 'user', 'assistant' or 'tool'",
        ),
        ({"messages": [{"role": "usr", "content": "x"}]}, 'messages.0.role="usr"'),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "a" * 300}]}, "Shorten the prompt"),
        ({"top_logprobs": 2}, "without logprobs"),
        ({"max_tokens": 0}, "expected 1 at least"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "give one of them"),
        ({"tools": [{"type": "function"}]}, "not supported"),
        ({"response_format": {"type": "json_object"}}, "not supported"),
    ],
)
def test_what_does_not_fit_in_a_chat_is_named(client, fields, words):
    assert words in refused(client, CHAT, chat(**fields))[1]["message"]


def test_a_prompt_longer_than_the_context_has_openais_code(client):
    for path, body in (
        (COMPLETIONS, complete(prompt=[97] * 254)),
        (CHAT, chat(messages=[HELLO[0] | {"content": "a" * 300}])),
    ):
        assert refused(client, path, body)[1]["code"] == "context_length_exceeded"


def test_messages_in_parts_and_neutral_fields_are_taken(client):
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    fields = {
        "tools": [],
        "presence_penalty": 0.0,
        "user": "me",
        "metadata": {"a": "b"},
        "stop": None,
        "logit_bias": {},
    }
    status, answer = client.ask(CHAT, chat(messages=[{"role": "user", "content": parts}], **fields))
    assert status == 200 and answer["usage"]["prompt_tokens"] == len("u:hello") + 1 + len("a:")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b"\xff\xfe{}", b"[" * 3000, b'{"a":' * 600, b"nul", b"1e999"]
)
def test_a_body_that_is_no_object_is_refused(client, body):
    assert "the body is" in refused(client, COMPLETIONS, body)[1]["message"]


def test_too_large_a_request_is_refused_with_and_without_a_length(client):
    body = json.dumps(complete(prompt="a" * 5000)).encode()
    for headers in ((), {"content-length": "0"}):
        status, error = refused(client, COMPLETIONS, body, headers=headers)
        assert status == 413 and error["code"] == "request_too_large"


def test_what_is_not_json_by_its_header_is_refused(client):
    assert refused(client, CHAT, chat(), headers={"content-type": "text/plain"})[0] == 415


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/v2", "GET", 404), (CHAT, "GET", 405), ("/health", "POST", 405)]
)
def test_other_paths_and_methods_are_refused(client, path, method, status):
    assert refused(client, path, None, method=method)[0] == status


def test_models_and_health(client):
    assert client.ask("/v1/models")[1]["data"][0]["id"] == NAME
    assert client.ask(f"/v1/models/{NAME}")[1]["object"] == "model"
    assert refused(client, "/v1/models/gpt-4", None)[0] == 404
    assert client.ask("/health") == (200, {"status": "ok", "unfinished": 0})


def test_a_model_without_a_chat_template_completes_but_does_not_chat():
    client = Client(template=None)
    assert client.ask(COMPLETIONS, complete())[0] == 200
    status, error = refused(client, CHAT, chat())
    assert error["code"] == "no_chat_template" and "--config.template=FILE" in error["message"]
    client.thread.stop()


def test_a_server_for_this_machine_answers_to_no_other_name():
    client = Client(hosts=("127.0.0.1", "localhost"))
    assert client.ask("/health", headers={"host": "localhost:8000"})[0] == 200
    for host in ("elsewhere.example", "else_where.example:80", "localhost.example", ""):
        status, error = refused(client, "/health", None, headers={"host": host})
        assert status == 403 and host.split(":")[0] in error["message"]
    client.thread.stop()


def test_when_no_more_may_wait_clients_are_told_to_come_again():
    client = Client(most=2)
    client.engine.held = True
    gone = Future()
    waiting = [asyncio_thread(client, CHAT, chat(stream=stream), gone) for stream in (False, True)]
    until(lambda: client.thread.unfinished == 2)
    status, answer = client.ask(CHAT, chat())
    assert status == 503 and answer["error"]["code"] == "overloaded" and answer["error"]["type"] == "server_error"
    gone.set_result(None)  # both hang up, one of them in the middle of a stream
    for thread in waiting:
        thread.join(30)
    until(lambda: client.thread.unfinished == 0)
    client.engine.held = False
    assert client.ask(CHAT, chat())[0] == 200
    client.thread.stop()


def test_echoes_with_log_probabilities_wait_in_the_same_queue():
    go_on = Event()
    client = Client(most=2, score=lambda ids, n: go_on.wait(300) and [Token(ids[0], None)])
    echo = complete(echo=True, logprobs=0, max_tokens=0)
    waiting = [asyncio_thread(client, COMPLETIONS, echo, None) for _ in range(2)]
    until(lambda: client.thread.unfinished == 2)
    status, answer = client.ask(COMPLETIONS, echo)
    assert status == 503 and answer["error"]["code"] == "overloaded"
    go_on.set()
    for thread in waiting:
        thread.join(30)
    assert client.ask(COMPLETIONS, echo)[0] == 200
    client.thread.stop()


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_over_one_request_is_an_error_of_that_one_alone(stream, monkeypatch):
    client = Client()
    with monkeypatch.context() as patch, pytest.raises(OverflowError):  # told to the client, and raised for the log
        patch.setattr(client.engine, "submit", lambda *_: int(float("inf")))
        client.ask(CHAT, chat(stream=stream))
    assert client.ask(CHAT, chat())[0] == 200 and client.ask("/health")[0] == 200
    client.thread.stop()


def asyncio_thread(client, path, body, gone):
    def ask():
        try:
            client.ask(path, body, hang_up=gone)
        except json.JSONDecodeError:
            pass

    thread = Thread(target=ask)
    thread.start()
    return thread


def test_a_failed_engine_is_an_error_of_the_server():
    client = Client()
    client.engine.broken = True
    with pytest.raises(RuntimeError, match="a bug"):  # Starlette answers, and raises for the log
        client.ask(CHAT, chat())
    assert client.ask("/health")[0] == 500


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    "model", "prompt", "messages", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "n",
    "seed", "stop", "stream", "stream_options", "echo", "logprobs", "top_logprobs", "tools", "best_of", "user", "x",
]  # fmt: skip


@given(
    path=st.sampled_from([COMPLETIONS, CHAT]), fields=st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=3)
)
@settings(max_examples=300, deadline=None)
def test_no_request_is_more_than_the_server_can_answer(client, path, fields):
    status, answer = client.ask(path, (complete() if path == COMPLETIONS else chat()) | fields)
    assert status == 200 or 400 <= status < 500 and answer["error"]["message"]


@given(body=st.binary(max_size=60))
@settings(max_examples=100, deadline=None)
def test_no_bytes_are_more_than_the_server_can_answer(client, body):
    refused(client, CHAT, body)
