"""The annotation app: the desk over HTTP, as JSON and as pages."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import accord
from accord.errors import AccordError, ResourceError
from accord.people.desk import Conflict, Desk, Forbidden, Gone, Unconfirmed
from accord.people.web import api, manage, pages
from accord.people.web.lines import usual_lines
from accord.people.web.made_apart import Exports, QueueCounts, Reports
from accord.people.web.security import HEADERS, MAX_BODY, Frame, Guarded, Limits

# Other names are refused: a page of a stranger could point its own name at this machine (DNS rebinding).
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
# The first that fits: the desk's own errors before the `DataError` that they are.
_STATUS: tuple[tuple[type[AccordError], int], ...] = (
    (Gone, 404),
    (Conflict, 409),
    (Unconfirmed, 409),
    (Forbidden, 403),
    (ResourceError, 503),
    (AccordError, 422),
)
_TITLES = {401: "Log in first", 403: "Not for you", 404: "Not here", 409: "Changed meanwhile", 429: "Too fast"}


def create_app(desk: Desk, *, allowed_hosts: Iterable[str] = LOOPBACK, pictures: Path | None = None) -> FastAPI:
    """Create the app of one desk. A request for another host than those allowed is refused (DNS rebinding).

    Every route names who may use it; see `accord.people.web.security`.

    Args:
        pictures: The folder in which images of tasks lie; None: none is shown.
    """
    app = FastAPI(
        title="Accord: people",
        version=accord.__version__,
        # FastAPI's own pages load scripts from elsewhere, which the CSP refuses; the schema itself is behind the login.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        # A redirect would answer before the route has said who may use it.
        redirect_slashes=False,
        max_body_size=MAX_BODY,
    )
    app.router.route_class = Guarded
    app.state.desk, app.state.limits, app.state.lines = desk, Limits(), usual_lines()
    app.state.pictures = pictures
    # One for all managers: the report is the same for all, and dear to make.
    app.state.counts = QueueCounts(desk)
    app.state.reports, app.state.exports = Reports(desk, app.state.counts), Exports(desk, app.state.counts)
    for routes in (api.api_routes, pages.page_routes, manage.manage_routes):
        routes.open(app)
    # Around all routes: its headers stand on refusals too. Only `_bug` answers outside of it.
    app.add_middleware(Frame, allowed_hosts=allowed_hosts)
    app.add_exception_handler(AccordError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _bug)
    return app


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, AccordError)
    status = next(status for kind, status in _STATUS if isinstance(error, kind))
    message = pages.tongue(request).sentences((error.what, error.why, error.hint))
    # What the machine does not give now it may give in a moment: a locked store, a full disk.
    again = {"Retry-After": "5"} if status == 503 else None
    return _failed(request, status, f"{error.where}: {message}" if error.where else message, again)


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return _failed(request, 422, f"{where}: {pages.tongue(request).told(first['msg'])}")


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _failed(request, error.status_code, pages.tongue(request).told(str(error.detail)), error.headers)


def _bug(request: Request, error: Exception) -> Response:
    """Answer an error that nobody foresaw. The log has the traceback, the reader gets none; no `Frame` is passed."""
    return _failed(request, 500, "Something went wrong on the server. Nothing that was acknowledged is lost.", HEADERS)


def _failed(request: Request, status: int, message: str, headers: object = None) -> Response:
    if request.url.path.startswith("/api/"):
        answer: Response = JSONResponse({"error": pages.tongue(request).word(message)}, status)
    else:
        message = message[:1].upper() + message[1:]
        answer = pages.page(
            request, "error.html.j2", status=status, title=_TITLES.get(status, "That did not work"), message=message
        )
    answer.headers.update(dict(headers or {}))  # type: ignore[call-overload]
    return answer
