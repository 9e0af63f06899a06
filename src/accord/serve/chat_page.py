"""The page on which people talk to a served model. All that it says goes through the interface that programs use."""

from __future__ import annotations

from typing import Annotated

from fastapi import Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from accord.people.web import markdown, pages
from accord.serve.guard import Doors

chat_routes = Doors()


class DrawnBody(BaseModel):
    """Texts that a page shows, as a model wrote them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    texts: Annotated[list[Annotated[str, Field(max_length=200_000)]], Field(max_length=400)]


@chat_routes("GET", "/", "public")
async def first(request: Request) -> Response:
    """Lead a browser to the page."""
    return RedirectResponse("/chat", 303)


@chat_routes("GET", "/chat", "public")
async def chat(request: Request) -> Response:
    """Show the page. It holds nothing: what it does needs a key where the server asks for one."""
    return pages.page(request, "chat.html.j2", keeps=request.app.state.book is not None)


@chat_routes("GET", "/static/{version}/{name}", "public")
async def asset(version: str, name: str) -> Response:
    """Return a style, script or icon."""
    return pages.static(version, name)


@chat_routes("POST", "/chat/drawn", "user")
async def drawn(body: DrawnBody) -> dict[str, list[str]]:
    """Return texts as HTML that can do nothing, drawn as the pages draw what people judge."""
    return {"html": await run_in_threadpool(lambda: [str(markdown.render(text)) for text in body.texts])}
