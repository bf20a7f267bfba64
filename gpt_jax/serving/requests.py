"""What a client may ask: the fields of OpenAI's completions and chat completions, and how they become jobs.

Fields beyond OpenAI's, as other servers of open models call them: top_k, min_p, repetition_penalty.
"""

import json
import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gpt_jax.errors import did_you_mean
from gpt_jax.inference.sampling import Sampling
from gpt_jax.serving.errors import ApiError

# Fields that do not change an answer.
_BOOKKEEPING = {"user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"}
# Fields of OpenAI's that are taken only with the value that changes nothing.
_NEUTRAL: dict[str, Sequence[Any]] = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "best_of": (1,), "suffix": ("",),
    "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False), "response_format": ({"type": "text"},), "modalities": (["text"],),
}  # fmt: skip
_STOPS = 16
# What fields of several forms take; pydantic would tell of each form why it is not that one.
_FORMS = {
    "prompt": "a text, a list of texts, a list of ids, or a list of such lists, none of them empty",
    "stop": f"a text or a list of at most {_STOPS} texts, none of them empty",
    "content": 'a text, or a list of {"type": "text", "text": ...}',
}

Text = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"]
    text: str


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """What a chat template reads."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": content} | ({"name": self.name} if self.name is not None else {})


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False
    include_obfuscation: bool = False  # random padding against eavesdroppers: not done


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    model: Text
    max_tokens: int | None = Field(None, ge=0)
    temperature: float = Field(1.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, lt=2**31)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0)
    n: int = Field(1, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Text | Annotated[list[Text], Field(max_length=_STOPS)] = Field(default_factory=list)
    stream: bool = False
    stream_options: _StreamOptions | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts before which an answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def sampling(self, max_new_tokens: int, logprobs: int | None) -> Sampling:
        """How the texts are drawn. UserError: the fields contradict each other."""
        return Sampling(
            max_new_tokens=max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=secrets.randbits(32) if self.seed is None else self.seed % 2**32,
            logprobs=logprobs,
        )


class CompletionRequest(_Request):
    """Of POST /v1/completions."""

    prompt: Text | Annotated[list[Text] | list[int] | list[list[int]], Field(min_length=1)]
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One or several, as text or as ids."""
        several = isinstance(self.prompt, list) and not isinstance(self.prompt[0], int)
        return self.prompt if several else [self.prompt]

    @property
    def likeliest(self) -> int | None:
        """How many of the likeliest tokens are told beside the drawn one; None: no log-probabilities at all."""
        return self.logprobs


class ChatRequest(_Request):
    """Of POST /v1/chat/completions."""

    messages: Annotated[list[_Message], Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def likeliest(self) -> int | None:
        """How many of the likeliest tokens are told beside the drawn one; None: no log-probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


Kind = TypeVar("Kind", bound=_Request)


def parse(body: bytes, kind: type[Kind]) -> Kind:
    """The request in the body of a POST.

    Raises:
      ApiError: naming the field that is not as expected.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise ApiError(f"the body is a JSON {type(content).__name__}, not an object.")
    content = {name: value for name, value in content.items() if value is not None and name not in _BOOKKEEPING}
    for name in _NEUTRAL.keys() & content.keys() - kind.model_fields.keys():
        if (value := content.pop(name)) not in _NEUTRAL[name]:
            allowed = " or ".join(json.dumps(one) for one in _NEUTRAL[name])
            raise ApiError(f"{name}={_shown(value)}: not supported; leave it out, or {allowed}.", param=name)
    if unknown := content.keys() - kind.model_fields.keys():
        name = min(unknown)
        known = did_you_mean(name, kind.model_fields)
        raise ApiError(f"{name[:80]}: no such field.{known}", param=name[:80], code="unknown_field")
    try:
        request = kind.model_validate(content)
    except ValidationError as error:
        raise _first_of(error) from None
    if request.stream_options and not request.stream:
        raise ApiError("stream_options without stream=true: they contradict.", param="stream_options")
    if isinstance(request, ChatRequest):
        if request.top_logprobs is not None and not request.logprobs:
            raise ApiError("top_logprobs without logprobs=true: they contradict.", param="top_logprobs")
        if request.max_tokens is not None and request.max_completion_tokens not in (None, request.max_tokens):
            raise ApiError("max_tokens and max_completion_tokens: give one of them.", param="max_tokens")
        if request.max_tokens == 0:
            raise ApiError("max_tokens=0: an answer of no tokens; expected 1 at least.", param="max_tokens")
    elif request.max_tokens == 0 and not request.echo:
        raise ApiError("max_tokens=0 without echo=true: nothing would be returned.", param="max_tokens")
    return request


def _first_of(error: ValidationError) -> ApiError:
    """The first thing that pydantic found, in a sentence."""
    details = error.errors(include_url=False, include_context=False)[0]
    top = str(details["loc"][0])
    if details["type"] == "missing":
        return ApiError(f"{'.'.join(map(str, details['loc']))}: missing.", param=top)
    form = next((step for step in details["loc"] if step in _FORMS), None)
    if form is None:
        where = ".".join(map(str, details["loc"]))
        return ApiError(f"{where}={_shown(details['input'])}: {details['msg']}.", param=top)
    where = ".".join(map(str, details["loc"][: details["loc"].index(form) + 1]))
    return ApiError(f"{where}: expected {_FORMS[form]}.", param=top)


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:60]}..."


def room(prompt: int, asked: int | None, *, default: int, most: int, length: int) -> int:
    """How many tokens may follow a prompt of `prompt` tokens.

    Args:
      asked: by the client; default: where it does not say; most: for any request; length: of prompt and answer.

    Raises:
      ApiError: there is not as much room as was asked for.
    """
    wanted = min(default, max(length - prompt, 1)) if asked is None else asked
    if asked is not None and asked > most:
        raise ApiError(f"max_tokens={asked}: this server draws {most} at most for one text.", param="max_tokens")
    if prompt + wanted > length:
        raise ApiError(
            f"the context holds {length} tokens, and {prompt} of the prompt with {wanted} of the answer are "
            f"{prompt + wanted}. Shorten the prompt or max_tokens.",
            param="messages" if asked is None else "max_tokens",
            code="context_length_exceeded",
        )
    return wanted
