"""The web application: OpenAI's routes and the chat page, in front of an engine that answers in a thread."""

import asyncio
import contextlib
import dataclasses
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gpt_jax.errors import UserError
from gpt_jax.serving.engine_thread import EngineThread, Job, Overloaded, Piece, Stopping, Token
from gpt_jax.serving.errors import HANDLERS, ApiError, error_object, respond
from gpt_jax.serving.requests import ChatRequest, CompletionRequest, parse, room
from gpt_jax.serving.responses import Answer, ChatCompletion, Completion, speller
from gpt_jax.text.chat_template import ChatTemplate
from gpt_jax.text.tokenizer import Tokenizer

PAGE = Path(__file__).with_name("page.html")
# The page is one file that loads nothing from anywhere; what a model writes cannot change that.
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
)
COMPLETION_TOKENS = 16  # where a completion does not say how many; OpenAI's own number
BODY_SECONDS = 30.0
STOPPING = ApiError("the server is stopping.", status=503, code="stopping")

T = TypeVar("T")
Asked = CompletionRequest | ChatRequest
ScorePrompt = Callable[[Sequence[int], int], list[Token]]


@dataclasses.dataclass(frozen=True)
class Served:
    """What is served, and within which bounds.

    Attributes:
      name: what clients call the model; template: None: it cannot chat.
      prompt_ids: a text to continue -> its ids; score: (ids, how many alternatives) -> their log-probabilities, called
        in the engine's thread.
      length: tokens of a prompt and its answer; most_tokens: of an answer; most_bytes: of a request.
      hosts: the names under which the server may be asked for, "*": any.
    """

    name: str
    tokenizer: Tokenizer
    template: ChatTemplate | None
    prompt_ids: Callable[[str], list[int]]
    score: ScorePrompt
    length: int
    most_tokens: int
    most_bytes: int
    hosts: Sequence[str] = ("*",)


def make_app(served: Served, engine: EngineThread) -> ASGIApp:
    """The ASGI application."""
    handlers = _Handlers(served, engine)
    routes = [
        Route("/", handlers.page),
        Route("/health", handlers.health),
        Route("/v1/models", handlers.models),
        Route("/v1/models/{name:path}", handlers.model),
        Route("/v1/completions", handlers.completions, methods=["POST"]),
        Route("/v1/chat/completions", handlers.chat, methods=["POST"]),
    ]
    app = Starlette(routes=routes, exception_handlers=HANDLERS)
    return app if "*" in served.hosts else _only_for(app, frozenset(served.hosts))


def _only_for(app: ASGIApp, hosts: Set[str]) -> ASGIApp:
    """`app`, if it is asked for by one of these names.

    Otherwise a page of the Web, whose own name can be made to lead to this machine, could read what is answered here.
    """

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        name = re.sub(r":\d*$", "", request.headers.get("host", "")).strip("[]")
        if name in hosts:
            await app(scope, receive, send)
        else:
            error = ApiError(f"asked as {name[:80]!r}: here are {', '.join(sorted(hosts))} only.", status=403)
            await respond(request, error)(scope, receive, send)

    return checked


class _Handlers:
    def __init__(self, served: Served, engine: EngineThread):
        self._served = served
        self._engine = engine
        self._spell = speller(served.tokenizer)
        self._created = int(time.time())

    # --- what does not need the engine

    async def page(self, request: Request) -> Response:
        return Response(PAGE.read_bytes(), media_type="text/html", headers={"Content-Security-Policy": PAGE_POLICY})

    async def health(self, request: Request) -> Response:
        well = self._engine.failure is None
        content = {"status": "ok" if well else "failed", "unfinished": self._engine.unfinished}
        return JSONResponse(content, 200 if well else 500)

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model_object()]})

    async def model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._model_object())

    def _model_object(self) -> dict[str, Any]:
        content = {"id": self._served.name, "object": "model", "created": self._created, "owned_by": "gpt_jax"}
        # Beyond OpenAI's: how long a prompt and its answer may be together, and the answer alone.
        return content | {"max_model_len": self._served.length, "max_tokens": self._served.most_tokens}

    def _check_model(self, name: str) -> None:
        if name != self._served.name:
            message = f"model {name[:80]!r}: not here. This server has {self._served.name!r}."
            raise ApiError(message, status=404, param="model", code="model_not_found")

    # --- completions

    async def completions(self, request: Request) -> Response:
        asked = parse(await self._body(request), CompletionRequest)
        self._check_model(asked.model)
        prompts = asked.prompts
        self._check_count(len(prompts) * asked.n)
        ids = await asyncio.to_thread(lambda: [self._ids(place, prompt) for place, prompt in enumerate(prompts)])
        jobs = [job for own in ids for job in self._jobs(asked, own, asked.max_tokens, COMPLETION_TOKENS)]
        answer = self._answer(Completion, asked, ids)
        echoes = await self._echoes(request, asked, ids) if asked.echo else None
        return await self._respond(request, asked, answer, jobs, echoes)

    async def chat(self, request: Request) -> Response:
        asked = parse(await self._body(request), ChatRequest)
        self._check_model(asked.model)
        if (template := self._served.template) is None:
            raise ApiError(
                "this model has no chat template: it continues texts, POST /v1/completions. The server takes a "
                "template from a file: --config.template=FILE.",
                code="no_chat_template",
            )
        self._check_count(asked.n)
        messages = [message.plain() for message in asked.messages]
        ids = (await asyncio.to_thread(template.encode, messages)).tolist()
        wanted = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
        jobs = self._jobs(asked, ids, wanted, self._served.most_tokens)
        return await self._respond(request, asked, self._answer(ChatCompletion, asked, [ids]), jobs)

    def _check_count(self, texts: int) -> None:
        if texts > self._engine.most:
            raise ApiError(f"{texts} texts (prompts times n): this server takes {self._engine.most}.", param="n")

    def _ids(self, place: int, prompt: str | list[int]) -> list[int]:
        """A prompt as ids, which are held against the vocabulary."""
        ids = self._served.prompt_ids(prompt) if isinstance(prompt, str) else prompt
        if not ids:
            raise ApiError(f"prompt {place}: empty; give a text or ids to continue.", param="prompt")
        size = self._served.tokenizer.vocab_size
        if not 0 <= min(ids) <= max(ids) < size:
            raise ApiError(f"prompt {place}: ids are 0 to {size - 1}.", param="prompt")
        return ids

    def _jobs(self, asked: Asked, ids: list[int], wanted: int | None, default: int) -> list[Job]:
        """One for each of `n` continuations of a prompt; none where no new tokens are asked for."""
        most = self._served.most_tokens
        tokens = room(len(ids), wanted, default=min(default, most), most=most, length=self._served.length)
        if not tokens:
            return []
        sampling = asked.sampling(tokens, asked.likeliest)
        return [Job(ids, sampling, sample, asked.stops) for sample in range(asked.n)]

    def _answer(self, kind: type[Answer], asked: Asked, ids: list[list[int]]) -> Answer:
        return kind(
            self._served.name,
            self._spell,
            choices=len(ids) * asked.n,
            prompt_tokens=sum(map(len, ids)),
            logprobs=asked.likeliest is not None,
        )

    async def _echoes(self, request: Request, asked: CompletionRequest, ids: list[list[int]]) -> list[Piece]:
        """The prompts themselves, one for each choice, with their log-probabilities where they are asked for."""
        finished = "length" if asked.max_tokens == 0 else None
        pieces = []
        for prompt, own in zip(asked.prompts, ids, strict=True):
            text = prompt if isinstance(prompt, str) else self._served.tokenizer.decode(own)
            tokens: list[Token] = []
            if asked.likeliest is not None:
                with _refusals():
                    score = self._engine.call(lambda own=own: self._served.score(own, asked.likeliest))
                    tokens = await _unless_gone(request, asyncio.wrap_future(score))
            pieces += [Piece(text, tokens, 0, finished)] * asked.n
        return pieces

    async def _respond(
        self,
        request: Request,
        asked: Asked,
        answer: Answer,
        jobs: Sequence[Job],
        echoes: Sequence[Piece] | None = None,
    ) -> Response:
        """Has the jobs done and shows their pieces, behind those of `echoes`."""
        pieces = _Pieces(self._engine, jobs, echoes or ())
        if not asked.stream:
            with pieces:
                await _unless_gone(request, _take_all(answer, pieces))
            return JSONResponse(answer.whole())
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        return _Stream(pieces, _events(answer, pieces, usage))

    async def _body(self, request: Request) -> bytes:
        """The body, held to its bounds."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # Which also keeps the pages of other sites from posting here unasked.
            raise ApiError("expected the header Content-Type: application/json.", status=415)
        most = self._served.most_bytes
        too_large = ApiError(f"the request is larger than {most} bytes.", status=413, code="request_too_large")
        if int(request.headers.get("content-length", 0)) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        raise too_large
        except TimeoutError:
            raise ApiError(f"the body did not come within {BODY_SECONDS:.0f} seconds.", status=408) from None
        return bytes(body)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """What the engine's thread cannot take now, as the client is told."""
    try:
        yield
    except Overloaded:
        raise ApiError("too many requests are waiting; try again soon.", status=503, code="overloaded") from None
    except Stopping:
        raise STOPPING from None


class _Pieces:
    """The pieces of some jobs as they come; on leaving the block, those that are not finished are given up."""

    def __init__(self, engine: EngineThread, jobs: Sequence[Job], before: Sequence[Piece]):
        loop = asyncio.get_running_loop()
        self._engine = engine
        self._before = before
        self._queue: asyncio.Queue[tuple[int, Piece | Exception]] = asyncio.Queue()
        self._left = len(jobs)

        def deliver(index: int, piece: Piece | Exception) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._queue.put_nowait, (index, piece))

        with _refusals():
            self._running = engine.submit(jobs, deliver)

    def __enter__(self) -> "_Pieces":
        return self

    def __exit__(self, *_) -> None:
        if self._left:
            self._engine.cancel(self._running)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        for index, piece in enumerate(self._before):
            yield index, piece
        while self._left:
            index, piece = await self._queue.get()
            if isinstance(piece, Exception):
                with _refusals():
                    raise piece
            self._left -= piece.finished is not None
            yield index, piece


class _Stream(StreamingResponse):
    """Server-sent events; however the answer ends, its jobs end with it."""

    def __init__(self, pieces: _Pieces, events: AsyncIterator[str]):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._pieces = pieces

    async def __call__(self, scope, receive, send) -> None:
        with self._pieces:
            await super().__call__(scope, receive, send)


async def _events(answer: Answer, pieces: _Pieces, usage: bool) -> AsyncIterator[str]:
    """The answer as server-sent events."""
    extra = {"usage": None} if usage else {}
    try:
        for choice in answer.opening():
            yield _event(answer.chunk([choice]) | extra)
        async for index, piece in pieces:
            yield _event(answer.chunk([answer.take(index, piece)]) | extra)
        if usage:
            yield _event(answer.chunk([], usage=answer.usage()))
        yield "data: [DONE]\n\n"
    except Exception as error:  # the status has been sent long ago
        yield _event(error_object(error))
        if not isinstance(error, ApiError | UserError):
            raise  # for the log


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


async def _take_all(answer: Answer, pieces: _Pieces) -> None:
    async for index, piece in pieces:
        answer.take(index, piece)


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What `work` returns. ClientDisconnect: the client has hung up before."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
