"""A server in a process of its own, asked by OpenAI's client, by many at a time, and by clients that misbehave."""

import json
import signal
import socket
import subprocess
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from chatting import NAME, ROOT, arguments, environment, serving, until

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed: extra 'test'")

CLIENTS = 32


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300)


def chat(client, seed, **options):
    """The text of an answer to the same question, which depends on the seed alone."""
    messages = [{"role": "user", "content": f"question {seed}"}]
    options = {"max_tokens": 24, "temperature": 1.0, "top_p": 0.9} | options
    return client.chat.completions.create(model=NAME, messages=messages, seed=seed, **options)


def streamed(client, seed):
    """The same as a stream: its text, and why it ended."""
    text, reason = "", None
    for chunk in chat(client, seed, stream=True):
        text += chunk.choices[0].delta.content or ""
        reason = chunk.choices[0].finish_reason or reason
    return text, reason


def health(server):
    with urllib.request.urlopen(f"{server.url}/health", timeout=300) as answer:
        return json.load(answer)


def test_openais_client_chats_and_completes(client):
    assert [model.id for model in client.models.list()] == [NAME]
    answer = chat(client, 1, logprobs=True, top_logprobs=2, n=2)
    assert [choice.message.role for choice in answer.choices] == ["assistant"] * 2
    assert answer.choices[0].message.content != answer.choices[1].message.content
    assert answer.choices[0].message.content == chat(client, 1).choices[0].message.content
    entries = answer.choices[0].logprobs.content
    assert len(entries) == 24 and all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in entries)
    assert answer.usage.completion_tokens == 48

    completion = client.completions.create(model=NAME, prompt=["ab", "cd"], max_tokens=4, seed=1, echo=True, logprobs=1)
    assert [choice.text[:2] for choice in completion.choices] == ["ab", "cd"]
    assert [len(choice.logprobs.token_logprobs) for choice in completion.choices] == [6, 6]


def test_many_streams_at_a_time_are_the_texts_of_each_alone(client):
    alone = [chat(client, seed).choices[0] for seed in range(CLIENTS)]
    assert len({choice.message.content for choice in alone}) > CLIENTS // 2
    with ThreadPoolExecutor(CLIENTS) as pool:
        together = list(pool.map(lambda seed: streamed(client, seed), range(CLIENTS)))
    assert together == [(choice.message.content, choice.finish_reason) for choice in alone]


def test_refusals_are_openais_exceptions(client):
    with pytest.raises(openai.NotFoundError, match="This server has 'tiny'"):
        client.models.retrieve("gpt-4")
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, 0, max_tokens=250)
    assert refused.value.code == "context_length_exceeded" and refused.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError, match="takes the likeliest token"):
        chat(client, 0, temperature=0)
    with pytest.raises(openai.BadRequestError, match="none of them empty"):
        chat(client, 0, stop="")
    with pytest.raises(openai.APIStatusError) as refused:
        client.completions.create(model=NAME, prompt="a" * 1_100_000)
    assert refused.value.status_code == 413


def test_clients_that_hang_up_free_their_slots(client, server):
    body = {"model": NAME, "prompt": "a", "max_tokens": 200, "n": 4}
    for stream in (True, False) * 4:
        with socket.create_connection(("127.0.0.1", server.port), timeout=300) as raw:
            content = json.dumps(body | {"stream": stream}).encode()
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            raw.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            if stream:
                assert raw.recv(100).startswith(b"HTTP/1.1 200")
    until(lambda: health(server)["unfinished"] == 0)
    assert chat(client, 3).choices[0].finish_reason


@pytest.mark.parametrize(
    "sent", [b"\0\xff" * 500, b"GET /health HTTP/9.9\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nContent-Le"]
)
def test_what_is_no_http_harms_nobody(server, sent):
    with socket.create_connection(("127.0.0.1", server.port), timeout=300) as raw:
        raw.sendall(sent)
    assert health(server)["status"] == "ok"


def test_a_port_in_use_is_one_message(server, model, programs):
    command = arguments(f"serve,model={model},port={server.port}")
    ended = subprocess.run(command, cwd=ROOT, env=environment(programs), capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2 and "another program is listening there" in ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_and_the_answers_that_take_too_long(model, programs, number):
    fields = {"slots": 1, "serve.grace_seconds": 0}
    with serving(model, programs, **fields) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300)
        stream = client.completions.create(model=NAME, prompt="a", max_tokens=200, n=60, stream=True)
        next(stream)
        code, output = server.stop(number)
        with pytest.raises(openai.APIError, match="the server is stopping"):
            list(stream)
    assert code == 0 and output.endswith("stopped\n") and "Traceback" not in output, output
