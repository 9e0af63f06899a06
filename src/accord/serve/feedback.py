"""What users say of what was served: signed tokens, each answer once, and the facts that it becomes.

A completion that nobody speaks of stands in a table of its own and is no fact: prompts of strangers are no data by
themselves. What is acknowledged is safe on disk.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, RowMapping, desc, insert, select

from accord.errors import DataError
from accord.files import write_text
from accord.records import (
    Annotator,
    AnnotatorKind,
    Completion,
    Demonstration,
    Judgement,
    Label,
    Prompt,
    PromptForm,
    Ranking,
    Rating,
    Record,
    Remark,
    Source,
)
from accord.serve.bodies import SoundText
from accord.serve.refusals import Refusal
from accord.store import Store
from accord.store.operations import feedback, served_texts
from accord.store.writing import add_facts

TOKEN_DAYS = 30  # a token is worth something for so long: who comes back to a conversation may still rate it
Signal = Literal["thumb", "rating", "ranking", "edit", "comment", "flag", "retry", "copy"]
FeedbackToken = Annotated[str, Field(min_length=1, max_length=500)]


class FeedbackBody(BaseModel):
    """The body of ``/v1/feedback``.

    ``value`` is of thumb true or false, "up" or "down"; of rating a number from ``low`` to ``high``; of ranking the
    ranks of this completion and those of ``others``, 1 = best, equal = tie; of edit and comment a text; of flag its
    name. retry and copy need none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    feedback_token: FeedbackToken
    kind: Signal
    value: bool | float | Annotated[SoundText, Field(max_length=200_000)] | list[int] | None = None
    others: Annotated[list[FeedbackToken], Field(max_length=8)] = []
    low: Annotated[float, Field(allow_inf_nan=False)] = 1
    high: Annotated[float, Field(allow_inf_nan=False)] = 5
    reason: Annotated[SoundText, Field(max_length=4000)] = ""
    axis: Annotated[SoundText, Field(max_length=100)] = ""
    seconds: Annotated[float, Field(ge=0, le=1e6)] | None = None


@dataclass(frozen=True)
class ServedText:
    """A completion as it was served, for `FeedbackBook.keep`.

    ``detail`` holds token ids, behaviour log-probabilities and how it was drawn; ``said_by`` is who asked, under the
    key ``who``.
    """

    who: str
    said_by: str
    said_by_kind: AnnotatorKind
    model: str
    version: str
    prompt: str
    form: PromptForm
    text: str
    detail: Mapping[str, Any]


@dataclass(frozen=True)
class FeedbackReceipt:
    """What became of some feedback. ``repeated``: it had come before, and nothing was done again."""

    id: str
    kind: str
    judgements: tuple[str, ...]
    repeated: bool


class FeedbackBook:
    """Completions that were served and what is said of them, in the store. ``secret`` signs the tokens."""

    def __init__(self, store: Store, secret: bytes, *, clock: Callable[[], float] = time.time) -> None:
        self._store, self._secret, self._clock = store, secret, clock

    @property
    def store(self) -> Store:
        """Where it is kept."""
        return self._store

    def keep(self, answered: ServedText) -> str:
        """Write down a completion, and return the token by which somebody may speak of it."""
        name, now = secrets.token_hex(12), self._clock()
        row = {**vars(answered), "name": name, "detail": json.dumps(answered.detail), "created_at": now}
        self._store.write(lambda connection: connection.execute(insert(served_texts), row))
        return self._signed(f"{name}.{int(now + TOKEN_DAYS * 86_400):x}")

    def take(self, body: FeedbackBody, key: str) -> FeedbackReceipt:
        """Take feedback in. Raises Refusal: 401 for a token that is none, 422 for one that makes no sense."""
        names = [self._name_in(token) for token in (body.feedback_token, *body.others)]
        return self._store.write(lambda connection: self._taken(connection, body, key, names))

    def _taken(self, connection: Connection, body: FeedbackBody, key: str, names: Sequence[str]) -> FeedbackReceipt:
        shown = [_row(connection, name) for name in names]
        who, said = shown[0]["who"], body.model_dump_json()
        if (before := _said_before(connection, who, key)) is not None:
            if before["body"] != said:
                raise Refusal(422, "this Idempotency-Key came with other feedback", code="idempotency_key_reused")
            ids = tuple(json.loads(before["judgement_ids"]))
            return FeedbackReceipt(f"fb-{before['id']}", before["kind"], ids, True)
        told = Said(body, [_completion(row) for row in shown], _annotator(shown[0]))
        made = self._facts(connection, told, shown[0]["id"])
        values = {"who": who, "key": key, "served_id": shown[0]["id"], "kind": body.kind, "body": said}
        values |= {"judgement_ids": json.dumps(made), "created_at": self._clock()}
        done = connection.execute(insert(feedback), values)
        assert done.inserted_primary_key is not None
        return FeedbackReceipt(f"fb-{done.inserted_primary_key[0]}", body.kind, tuple(made), False)

    def _facts(self, connection: Connection, told: Said, served_id: int) -> list[str]:
        """Add the facts of some feedback; the same person's earlier word of the same kind is superseded."""
        try:
            facts = FACTS_OF[told.body.kind](told, _earlier(connection, served_id, told.body))
            if facts:
                prompts = [row.prompt for row in told.completions]
                stored = [row.completion for row in told.completions]
                add_facts(connection, [told.annotator, *prompts, *stored, *facts])
        except DataError as error:
            raise Refusal(422, ". ".join(part for part in (error.what, error.hint) if part), "value") from error
        return [fact.id for fact in facts if isinstance(fact, Judgement)]

    def _signed(self, payload: str) -> str:
        return f"{payload}.{self._mac(payload)}"

    def _mac(self, payload: str) -> str:
        digest = hmac.new(self._secret, payload.encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")

    def _name_in(self, token: str) -> str:
        payload, _, mac = token.rpartition(".")
        name, _, ends = payload.partition(".")
        # In constant time; compared as bytes, for a forged one may hold anything.
        if not hmac.compare_digest(mac.encode("utf-8", "replace"), self._mac(payload).encode()):
            raise Refusal(401, "this feedback token is not one of ours", "feedback_token", "invalid_token")
        if int(ends, 16) < self._clock():
            raise Refusal(401, "this feedback token is over", "feedback_token", "expired_token")
        return name


@dataclass(frozen=True)
class _Kept:
    prompt: Prompt
    completion: Completion


@dataclass(frozen=True)
class Said:
    """Feedback with what it is about: the completion itself first, then those it is compared with."""

    body: FeedbackBody
    completions: Sequence[_Kept]
    annotator: Annotator
    common: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        shared = {"annotator_id": self.annotator.id, "seconds": self.body.seconds, "note": self.body.reason}
        object.__setattr__(self, "common", shared)

    def text(self) -> str:
        if not isinstance(self.body.value, str) or not self.body.value.strip():
            raise DataError(f"a {self.body.kind} needs a text as its value")
        return self.body.value

    @property
    def own(self) -> Completion:
        return self.completions[0].completion


def _thumb(said: Said, earlier: Sequence[str]) -> list[Record]:
    value = {"up": True, "down": False, 1.0: True, -1.0: False}.get(cast(Any, said.body.value), said.body.value)
    if not isinstance(value, bool):
        raise DataError(f"a thumb is {value!r}", hint="true or false, up or down")
    return [
        Label(completion_id=said.own.id, good=value, axis=said.body.axis, **said.common, supersedes=_over(earlier, 0))
    ]


def _rating(said: Said, earlier: Sequence[str]) -> list[Record]:
    value = said.body.value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"a rating is {value!r}", hint="give a number")
    scale: dict[str, Any] = {"value": value, "low": said.body.low, "high": said.body.high, "axis": said.body.axis}
    return [Rating(completion_id=said.own.id, **scale, **said.common, supersedes=_over(earlier, 0))]


def _ranking(said: Said, earlier: Sequence[str]) -> list[Record]:
    ranks = said.body.value
    if not isinstance(ranks, list):
        raise DataError(f"a ranking is {ranks!r}", hint="give a rank for this completion and for each of `others`")
    if len({row.prompt.id for row in said.completions}) > 1:
        raise DataError("these completions answer different prompts")
    ids = tuple(row.completion.id for row in said.completions)
    order: dict[str, Any] = {
        "prompt_id": said.own.prompt_id,
        "completion_ids": ids,
        "ranks": tuple(ranks),
        "axis": said.body.axis,
    }
    return [Ranking(**order, **said.common, supersedes=_over(earlier, 0))]


def _edit(said: Said, earlier: Sequence[str]) -> list[Record]:
    text, prompt_id = said.text(), said.own.prompt_id
    if text == said.own.text:
        raise DataError("the edit changes nothing", hint="press a thumb instead")
    author = Source(origin="user", name=said.annotator.name)
    edited = Completion(prompt_id=prompt_id, text=text, source=author)
    shown = Demonstration(prompt_id=prompt_id, text=text, **said.common, supersedes=_over(earlier, 0))
    ids = (edited.id, said.own.id)
    better = Ranking(prompt_id=prompt_id, completion_ids=ids, ranks=(1, 2), **said.common, supersedes=_over(earlier, 1))
    return [edited, shown, better]


def _comment(said: Said, earlier: Sequence[str]) -> list[Record]:
    return [Remark(completion_id=said.own.id, **{**said.common, "note": said.text()}, supersedes=_over(earlier, 0))]


def _flag(said: Said, earlier: Sequence[str]) -> list[Record]:
    return [Remark(completion_id=said.own.id, flags=(said.text(),), **said.common)]


def _nothing(said: Said, earlier: Sequence[str]) -> list[Record]:
    return []


def _over(earlier: Sequence[str], place: int) -> str | None:
    return earlier[place] if place < len(earlier) else None


#: Kind to the facts it becomes, given the ids of what the same feedback said before. retry and copy are signals that
#: stand in their own table: they say something, and are nobody's judgement.
FACTS_OF: Mapping[str, Callable[[Said, Sequence[str]], list[Record]]] = {
    "thumb": _thumb,
    "rating": _rating,
    "ranking": _ranking,
    "edit": _edit,
    "comment": _comment,
    "flag": _flag,
    "retry": _nothing,
    "copy": _nothing,
}


def _earlier(connection: Connection, served_id: int, body: FeedbackBody) -> list[str]:
    """Return the judgements that this kind of feedback made last of this completion, on the same question."""
    wanted = (feedback.c.served_id == served_id, feedback.c.kind == body.kind)
    rows = connection.execute(
        select(feedback.c.body, feedback.c.judgement_ids).where(*wanted).order_by(desc(feedback.c.id))
    )
    for said, ids in rows:
        if json.loads(said)["axis"] == body.axis:
            found: list[str] = json.loads(ids)
            return found
    return []


def _said_before(connection: Connection, who: str, key: str) -> RowMapping | None:
    wanted = (feedback.c.who == who, feedback.c.key == key)
    return connection.execute(select(feedback).where(*wanted)).mappings().first()


def _row(connection: Connection, name: str) -> RowMapping:
    row = connection.execute(select(served_texts).where(served_texts.c.name == name)).mappings().first()
    if row is None:
        raise Refusal(404, "what this feedback token is about is no longer kept", "feedback_token")
    return row


def _annotator(row: RowMapping) -> Annotator:
    return Annotator(name=row["said_by"], annotator_kind=row["said_by_kind"], note="a user of the server")


def _completion(row: RowMapping) -> _Kept:
    prompt = Prompt(text=row["prompt"], form=row["form"])
    detail = json.loads(row["detail"])
    source = Source(origin="policy", name=row["model"], version=row["version"], sampling=detail["sampling"])
    meta = {"served": row["name"], **{key: _as_text(value) for key, value in detail.items() if key != "sampling"}}
    return _Kept(prompt, Completion(prompt_id=prompt.id, text=row["text"], source=source, meta=meta))


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def secret_in(file: Path) -> bytes:
    """Return the secret that signs a project's tokens, made where there is none."""
    if not file.exists():
        write_text(file, secrets.token_hex(32) + "\n")
        file.chmod(0o600)
    return bytes.fromhex(file.read_text().strip())
