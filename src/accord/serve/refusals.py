"""Refusals in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from accord.errors import AccordError

_log = logging.getLogger(__name__)

#: What clients call each status. Of what no later try lifts 400, 401, 403, 404, 413 and 422: they try others again.
ERROR_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "server_error",
    502: "upstream_error",
    503: "service_unavailable",
}


@dataclass
class Refusal(Exception):
    """A request that is not answered, and why. ``param`` is the field of the body at fault, where one is."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def content(self) -> dict[str, Any]:
        """Return the body of the answer."""
        return error_content(self.status, self.message, self.param, self.code)


def error_content(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, dict[str, str | None]]:
    """Return the body of an answer that says what went wrong."""
    kind = ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def come_again(message: str, seconds: float) -> Refusal:
    """Return a refusal that a later try may lift, and when."""
    return Refusal(429, message, code="rate_limit_exceeded", headers={"Retry-After": str(max(1, math.ceil(seconds)))})


def refusal_of(error: Exception) -> Refusal:
    """Return what a client is told of an error."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error.errors()[0])
    if isinstance(error, HTTPException):
        return Refusal(error.status_code, str(error.detail), headers=dict(error.headers or {}))
    if isinstance(error, AccordError):
        return Refusal(400, ". ".join(part for part in (error.what, error.why, error.hint) if part))
    # The log has the traceback, the client gets none.
    _log.error("a request failed", exc_info=error)
    return Refusal(500, "something went wrong on the server; its log says what")


def _invalid(first: Mapping[str, Any]) -> Refusal:
    """Return what is told of a body that is not understood: 400, as OpenAI says it, and the field."""
    where = [str(part) for part in first["loc"] if part != "body"]
    said = str(first["msg"]).removeprefix("Value error, ")
    return Refusal(
        400, f"{'.'.join(where)}: {said}" if where else said, where[0] if where else None, str(first["type"])
    )
