"""Battles of two models: Chatbot Arena, MT-Bench, votes of FastChat, feedback of Open WebUI.

* Arena 33k, 100k, 140k and MT-Bench: ``{"model_a", "model_b", "winner", "judge", "conversation_a", "conversation_b",
  ..}``; winner is model_a, model_b, tie or tie (bothbad); conversations may be the text of their JSON
* Arena 55k: ``{"id", "model_a", "model_b", "prompt", "response_a", "response_b", "winner_model_a", "winner_model_b",
  "winner_tie"}``; texts are JSON lists, a turn each
* FastChat: ``{"type": "leftvote", "models": [a, b], "states": [{"messages": [[role, text], ..]}, ..]}``
* Open WebUI: ``{"type": "rating", "data": {"rating", ..}, "meta": {"message_id", ..}, "snapshot": {"chat": {..}}}``

A vote of several turns stands between two dialogues; what both begin with is the prompt. MT-Bench's ``turn`` says how
many turns were judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from accord.formats.format import Fields, Format, has, row_by_row
from accord.formats.item import ChatTurn, Item, Turns, common_length
from accord.formats.rows import InputRow
from accord.formats.scored import model

_WINNERS: Mapping[str, tuple[tuple[int, int], tuple[bool, ...]]] = {
    **dict.fromkeys(("model_a", "leftvote"), ((1, 2), ())),
    **dict.fromkeys(("model_b", "rightvote"), ((2, 1), ())),
    **dict.fromkeys(("tie", "tievote"), ((1, 1), ())),
    **dict.fromkeys(("tie (bothbad)", "both_bad", "bothbad", "bothbad_vote"), ((1, 1), (False, False))),
}


def _battle(row: InputRow, first: Turns, second: Turns, winner: str, names: Iterable[str], **said: Any) -> Item:
    """Return two dialogues and which is better; the prompt is what both begin with."""
    length = common_length(first, second)
    if not 0 < length < min(len(first), len(second)):
        row.fail("conversation_b", "does not differ from conversation_a in its answers", "remove the row")
    ranks, labels = _WINNERS[winner]
    return Item(
        prompt=first[:length],
        completions=(first[length:], second[length:]),
        ranks=ranks,
        labels=labels,
        sources=tuple(map(model, names)),
        **said,
    )


# -- Chatbot Arena and MT-Bench ----------------------------------------------------------------------------------------


def _read_arena(row: InputRow) -> Iterable[Item]:
    winner = row.text("winner").strip().lower()
    if winner not in _WINNERS:
        row.fail("winner", f"is {winner[:40]!r}", "write model_a, model_b, tie or tie (bothbad)")
    most = _judged_turns(row)
    first, second = (_dialogue(row, f"conversation_{side}")[:most] for side in "ab")
    names = (row.name("model_a"), row.name("model_b"))
    by = _judge(row, row.fields.get("judge"))
    return [_battle(row, first, second, winner, names, created_at=row.moment("tstamp"), **by)]


def _judged_turns(row: InputRow) -> int | None:
    """Return how many messages were judged, None for all: a turn is a question and its answer."""
    turn = row.fields.get("turn")
    return 2 * turn if isinstance(turn, int) and not isinstance(turn, bool) and turn > 0 else None


def _dialogue(row: InputRow, name: str) -> Turns:
    return tuple(_said(message) for message in row.messages(name, row.parsed(name)))


def _said(message: ChatTurn) -> ChatTurn:
    return {"role": message["role"], "content": message["content"]}


def _judge(row: InputRow, judge: Any) -> dict[str, str]:
    """Return who judged: a person by name, or a model that MT-Bench names as a list or by its name."""
    if isinstance(judge, list):
        return {"annotator": ", ".join(map(str, judge)), "origin": "AI feedback"}
    name = str(judge) if judge is not None else ""
    is_model = name.startswith(("gpt", "claude"))
    return {"annotator": name, "origin": "AI feedback" if is_model else "people"}


def _arena_why(fields: Fields) -> str:
    talks = all(isinstance(fields.get(f"conversation_{side}"), list | str) for side in "ab")
    found = talks and has(fields, winner=str) and {"model_a", "model_b"} <= fields.keys()
    return '"conversation_a", "conversation_b" and a "winner"' if found else ""


_ARENA = frozenset(("conversation_a", "conversation_b", "model_a", "model_b", "winner", "judge", "tstamp"))
ARENA = Format("arena", "Chatbot Arena, MT-Bench", _ARENA, _arena_why, row_by_row(_read_arena, _ARENA), None)

_ONE_HOT = ("winner_model_a", "winner_model_b", "winner_tie")


def _read_one_hot(row: InputRow) -> Iterable[Item]:
    won = [row.truth(name, row.get(name)) for name in _ONE_HOT]
    if sum(won) != 1:
        row.fail("winner_model_a", "and its neighbours do not name one outcome", "write 1 in one of the three columns")
    asked = row.listed("prompt", row.parsed("prompt"))
    first, second = (_interleaved(row, asked, f"response_{side}") for side in "ab")
    names = (row.name("model_a"), row.name("model_b"))
    winner = ("model_a", "model_b", "tie")[won.index(True)]
    return [_battle(row, first, second, winner, names, origin="people")]


def _interleaved(row: InputRow, asked: list[Any], name: str) -> Turns:
    answers = row.listed(name, row.parsed(name))
    if len(answers) != len(asked):
        row.fail(name, f"has {len(answers)} turns for {len(asked)} of the prompt", "write one answer a question")
    texts = [(row.string("prompt", a), row.string(name, b)) for a, b in zip(asked, answers, strict=True)]
    both = (("user", "assistant"), texts)
    return tuple({"role": role, "content": text} for pair in both[1] for role, text in zip(both[0], pair, strict=True))


def _one_hot_why(fields: Fields) -> str:
    found = {"prompt", "response_a", "response_b", *_ONE_HOT} <= fields.keys()
    return f'"response_a", "response_b" and {", ".join(_ONE_HOT)}' if found else ""


_HOT = frozenset(("prompt", "response_a", "response_b", "model_a", "model_b", *_ONE_HOT))
ARENA_ONE_HOT = Format("arena-55k", "Chatbot Arena 55k", _HOT, _one_hot_why, row_by_row(_read_one_hot, _HOT), None)

# -- votes of FastChat -------------------------------------------------------------------------------------------------

_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}


def _read_vote(row: InputRow) -> Iterable[Item]:
    kind = row.text("type")
    if kind not in _WINNERS:
        return []  # what else the log holds: chats, regenerations, shared links
    states, names = row.items("states"), row.items("models")
    if len(states) != 2 or len(names) != 2:
        row.fail("states", f"are {len(states)} for {len(names)} models", "a vote needs two")
    first, second = (_state(row, f"states[{i}]", state) for i, state in enumerate(states))
    return [_battle(row, first, second, kind, map(str, names), created_at=row.moment("tstamp"), origin="people")]


def _state(row: InputRow, field: str, value: Any) -> Turns:
    state = row.object(field, value)
    system = state.get("system_message") or ""
    said: list[ChatTurn] = [{"role": "system", "content": system}] if system else []
    for i, pair in enumerate(row.listed(f"{field}.messages", state.get("messages"))):
        place = f"{field}.messages[{i}]"
        role, text = [*row.listed(place, pair), None, None][:2]
        known = _ROLES.get(str(role).lower()) or row.fail(place, f"is by {str(role)[:40]!r}", "write [role, text]")
        if text is not None:  # an answer that was never given
            said.append({"role": known, "content": row.string(place, text)})
    return tuple(said)


def _vote_why(fields: Fields) -> str:
    return '"type", "models" and "states"' if has(fields, type=str, models=list, states=list) else ""


_VOTE = frozenset(("type", "models", "states", "tstamp"))
FASTCHAT = Format(
    "fastchat", "FastChat's votes", _VOTE, _vote_why, row_by_row(_read_vote, _VOTE), None, main=("ranking",)
)

# -- feedback of Open WebUI --------------------------------------------------------------------------------------------


def _read_open_webui(row: InputRow) -> Iterable[Item]:
    data, meta = (row.object(name, row.get(name)) for name in ("data", "meta"))
    good = row.truth("data.rating", data.get("rating"))
    messages = _messages_by_id(row)
    rated = messages.get(str(meta.get("message_id"))) or row.fail("meta.message_id", "is no message of the snapshot")
    prompt = _path(row, messages, rated.get("parentId"))
    said: dict[str, Any] = {"annotator": row.name("user_id"), "origin": "people", "created_at": _changed(row)}
    own = _content(row, rated)
    items = [Item(prompt=prompt, completions=(own,), labels=(good,), sources=(_by(rated),), **said)]
    for other in messages.values():
        if other.get("parentId") == rated.get("parentId") and other is not rated and other.get("role") == "assistant":
            # Of the others nothing is said among themselves: a pair each.
            pair = (own, _content(row, other))
            sources = (_by(rated), _by(other))
            if pair[0] != pair[1]:
                items.append(
                    Item(prompt=prompt, completions=pair, ranks=(1, 2) if good else (2, 1), sources=sources, **said)
                )
    return items


def _messages_by_id(row: InputRow) -> Mapping[str, Mapping[str, Any]]:
    value: Any = row.get("snapshot")
    for name in ("chat", "chat", "history", "messages"):
        # Here a chat stands in a chat, there it does not.
        value = value.get(name, value if name == "chat" else None) if isinstance(value, dict) else None
    found = row.object("snapshot.chat.history.messages", value)
    return {id_: row.object(f"snapshot.chat.history.messages.{id_}", message) for id_, message in found.items()}


def _path(row: InputRow, messages: Mapping[str, Mapping[str, Any]], last: Any) -> Turns:
    """Return the messages from the first to one, by their parents."""
    said: list[ChatTurn] = []
    while last is not None and len(said) <= len(messages):
        message = messages.get(str(last)) or row.fail("snapshot", "lacks a message that another answers")
        said.append({"role": str(message.get("role")), "content": _content(row, message)})
        last = message.get("parentId")
    return tuple(reversed(said)) or row.fail("snapshot", "holds no question", "rate answers, not questions")


def _content(row: InputRow, message: Mapping[str, Any]) -> str:
    return row.string("snapshot.content", message.get("content"))


def _by(message: Mapping[str, Any]) -> Any:
    return model(str(message.get("model") or ""))


def _changed(row: InputRow) -> str:
    return row.moment("updated_at") or row.moment("created_at")


def _open_webui_why(fields: Fields) -> str:
    found = has(fields, data=dict, meta=dict, snapshot=dict) and "rating" in fields["data"]
    return '"data" with a rating, "meta" and a "snapshot" of the chat' if found else ""


_FEEDBACK = frozenset(("data", "meta", "snapshot", "user_id", "created_at", "updated_at"))
OPEN_WEBUI = Format(
    "open-webui", "Open WebUI's feedback", _FEEDBACK, _open_webui_why, row_by_row(_read_open_webui, _FEEDBACK), None
)
