"""Errors as OpenAI's API words them: a status, and a JSON object that says what was wrong, where, and what to do."""

import json
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gpt_jax.errors import UserError

RETRY_SECONDS = "1"


class ApiError(Exception):
    """What a client did wrong, or cannot have now.

    Attributes:
      status: of HTTP; param: the field of the request; code: a word for programs.
    """

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def error_object(error: Exception) -> dict:
    """{"error": {...}} of any exception."""
    kind = "invalid_request_error" if status_of(error) < 500 else "server_error"
    message = str(error) if isinstance(error, ApiError | UserError) else "the server failed; its log says how"
    return {
        "error": {
            "message": message,
            "type": kind,
            "param": getattr(error, "param", None),
            "code": getattr(error, "code", None),
        }
    }


def status_of(error: Exception) -> int:
    """The status of the answer to a request that met `error`."""
    if isinstance(error, ApiError):
        return error.status
    return 400 if isinstance(error, UserError) else 500


def respond(request: Request, error: Exception) -> Response:
    """The answer to a request that met `error`."""
    headers: Mapping[str, str] = {}
    if isinstance(error, HTTPException):  # the router's: no such page, no such method
        headers = error.headers or {}
        error = ApiError(f"{request.method} {request.url.path}: {error.detail}.", status=error.status_code)
    if status_of(error) == 503:
        headers = {"Retry-After": RETRY_SECONDS}
    # Escapes keep what a client sent printable, half characters too.
    content = json.dumps(error_object(error), ensure_ascii=True)
    return Response(content, status_of(error), headers, media_type="application/json")


def hang_up(request: Request, error: Exception) -> Response:
    """For nobody: the client has gone."""
    return Response(status_code=499)


HANDLERS = dict.fromkeys((ApiError, UserError, HTTPException, Exception), respond) | {ClientDisconnect: hang_up}
