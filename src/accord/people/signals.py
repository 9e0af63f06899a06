"""What users do without saying anything: the next message, another try, a copy, leaving.

The next message of a conversation is found among what was served later: a request that begins with the same turns and
the very answer. Simple rules in English and Chinese read it; they look at its first words alone and know no irony. So
signals weigh little, teach only where a recipe asks for it, and never promote. What a judge makes of them is AI
feedback.
"""

from __future__ import annotations

import difflib
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select

from accord.formats.item import Item, prompt_key
from accord.people.admission import Admission, asked_in, key_of_prompt, turns_in
from accord.store import Store
from accord.store.operations import feedback, served_texts, signals

#: Who does not come back for so long has left; that may be praise or blame, so it says nothing by itself.
LEFT_AFTER_S = 1800.0
SO_ALIKE = 0.75  # a message so like the one before asks again
#: Of pairs that are made of signals, and of those that a judge scored.
SIGNAL_PAIRS, JUDGED_SIGNALS = "pairs of signals", "AI feedback"
#: What each signal says of the completion it is about, -1 to 1.
VALUES: Mapping[str, float] = {
    "thanks": 1.0,
    "copy": 0.5,
    "goes_on": 0.0,
    "left": 0.0,
    "asks_again": -0.5,
    "retry": -0.5,
    "corrects": -1.0,
}
_THANKS = re.compile(
    r"^\W*(thanks|thank you|thx|cheers|perfect|great|awesome|excellent|well done|that (helps|works|worked)|got it"
    r"|谢谢|多谢|感谢|太好了|太棒了|很好|完美|明白了|懂了|有帮助)",
    re.IGNORECASE,
)
_CORRECTS = re.compile(
    r"^\W*(no[,.! ]|nope\b|wrong\b|that('s| is) (not|wrong|incorrect|false)|that isn('|’)t|this is (wrong|not)|not what"
    r"|you('re| are) wrong|incorrect\b|i (said|meant|asked)\b|actually,"
    r"|不对|不是|错了|错误|你错|我(说|问)的(是|不是)|我的意思|不行|没有用|没用)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ServedTurn:
    """A served completion, with who asked and the conversation before it."""

    id: int
    user: str
    version: str
    prompt: str
    form: str
    text: str
    at: float

    @property
    def turns(self) -> list[dict[str, str]]:
        """The conversation as messages; a plain text is what the user said."""
        return turns_in(self.prompt, self.form)


@dataclass(frozen=True)
class UserSignal:
    """What was done about a served completion. ``judge`` is "" for rules; ``detail`` is what they read."""

    served_id: int
    kind: str
    value: float
    detail: str = ""
    judge: str = ""


# ---- rules -----------------------------------------------------------------------------------------------------------


def what_it_says(before: str, message: str) -> str:
    """Return what a message says of the answer before it: corrects, thanks, asks_again or goes_on.

    ``before`` is what the user had asked. A correction wins over thanks ("no, thanks" is none).
    """
    if _CORRECTS.search(message[:200]):
        return "corrects"
    if _THANKS.search(message[:200]):
        return "thanks"
    a, b = (" ".join(text.casefold().split())[:2000] for text in (before, message))
    return "asks_again" if a and difflib.SequenceMatcher(None, a, b, autojunk=False).ratio() >= SO_ALIKE else "goes_on"


def signals_of(served: Sequence[ServedTurn], pressed: Sequence[tuple[int, str]], now: float) -> list[UserSignal]:
    """Return what users did, one of a kind for each completion at most.

    Args:
        served: in the order they were served.
        pressed: (number of the completion, retry or copy), as clients told it.
        now: seconds since 1970; who has been away for half an hour has left.
    """
    found: dict[tuple[int, str], UserSignal] = {}

    def add(turn: int, kind: str, detail: str = "") -> None:
        found.setdefault((turn, kind), UserSignal(turn, kind, VALUES[kind], detail))

    followed: set[int] = set()
    for turn, kind in pressed:
        add(turn, kind)
    for earlier, later in _followed(served):
        before, message = later.turns[-3]["content"], later.turns[-1]["content"]
        add(earlier.id, what_it_says(before, message), message[:500])
        followed.add(earlier.id)
    for earlier in _tried_again(served):
        add(earlier.id, "retry")
    gone = [one for one in served if one.id not in followed and one.at < now - LEFT_AFTER_S]
    for one in gone:
        add(one.id, "left")
    return list(found.values())


def _place(user: str, turns: Sequence[Mapping[str, str]]) -> tuple[str, str]:
    return user, prompt_key([{"role": one["role"], "content": one["content"].strip()} for one in turns])


def _followed(served: Sequence[ServedTurn]) -> Iterator[tuple[ServedTurn, ServedTurn]]:
    """Yield each completion that a later request continues, with the first request that does."""
    waiting: dict[tuple[str, str], list[ServedTurn]] = defaultdict(list)
    for one in served:
        turns = one.turns
        if len(turns) >= 3 and turns[-2]["role"] == "assistant" and turns[-1]["role"] == "user":
            for earlier in waiting.pop(_place(one.user, turns[:-1]), ()):
                yield earlier, one
        waiting[_place(one.user, [*turns, {"role": "assistant", "content": one.text}])].append(one)


def _tried_again(served: Sequence[ServedTurn]) -> Iterator[ServedTurn]:
    """Yield each completion after which its user asked the very same again; two served at once are alternatives."""
    last: dict[tuple[str, str], ServedTurn] = {}
    for one in served:
        place = _place(one.user, one.turns)
        if place in last and one.at - last[place].at > 2.0:
            yield last[place]
        last[place] = one


# ---- the store -------------------------------------------------------------------------------------------------------


def note_signals(store: Store, *, now: float | None = None) -> int:
    """Write down what users did and is not written down yet; return how many signals were new."""
    moment = time.time() if now is None else now
    with store.snapshot() as connection:
        known = {(one.served_id, one.kind) for one in read_signals(connection) if not one.judge}
        found = signals_of(read_served(connection), _pressed(connection), moment)
    new = [one for one in found if (one.served_id, one.kind) not in known]
    write_signals(store, new, moment)
    return len(new)


def judge_signals(store: Store, judge: str, score: Callable[[Sequence[tuple[str, str]]], Sequence[float]]) -> int:
    """Let a judge score what users said next; return how many. It is AI feedback, whoever the user was.

    ``score`` is given (conversation with the answer, next message) and says above 0 where the answer served the user.
    """
    with store.snapshot() as connection:
        served = {one.id: one for one in read_served(connection)}
        every = read_signals(connection)
    done = {one.served_id for one in every if one.judge == judge}
    asked = [one for one in every if not one.judge and one.detail and one.served_id not in done]
    said = [_told(served[one.served_id]) for one in asked]
    values = score([(before, one.detail) for before, one in zip(said, asked, strict=True)]) if asked else []
    made = [
        UserSignal(one.served_id, "next_message", max(-1.0, min(1.0, float(value))), one.detail, judge)
        for one, value in zip(asked, values, strict=True)
    ]
    write_signals(store, made, time.time())
    return len(made)


def _told(turn: ServedTurn) -> str:
    lines = [f"{one['role']}: {one['content']}" for one in turn.turns]
    return "\n".join([*lines, f"assistant: {turn.text}"])


def write_signals(store: Store, made: Sequence[UserSignal], now: float) -> None:
    """Write signals down; those that another process has written meanwhile stay as they are."""
    rows = [{**vars(one), "created_at": now} for one in made]

    def write(connection: Connection) -> None:
        there = {(one.served_id, one.kind, one.judge) for one in read_signals(connection)}
        new = [row for row in rows if (row["served_id"], row["kind"], row["judge"]) not in there]
        if new:
            connection.execute(insert(signals), new)

    if rows:
        store.write(write)


def read_signals(connection: Connection) -> list[UserSignal]:
    """Return all signals that are written down."""
    columns = [signals.c[name] for name in ("served_id", "kind", "value", "detail", "judge")]
    return [UserSignal(*row) for row in connection.execute(select(*columns).order_by(signals.c.id))]


def read_served(connection: Connection) -> list[ServedTurn]:
    """Return all completions that were served and kept, in their order."""
    names = ("id", "said_by", "version", "prompt", "form", "text", "created_at")
    rows = connection.execute(select(*(served_texts.c[name] for name in names)).order_by(served_texts.c.id))
    return [ServedTurn(*row) for row in rows]


def _pressed(connection: Connection) -> list[tuple[int, str]]:
    wanted = feedback.c.kind.in_(("retry", "copy"))
    rows = connection.execute(select(feedback.c.served_id, feedback.c.kind).where(wanted).order_by(feedback.c.id))
    return [(served_id, kind) for served_id, kind in rows]


# ---- to learn from ---------------------------------------------------------------------------------------------------


def signal_pairs(store: Store, admission: Admission, weight: float, *, ai: bool = False) -> list[Item]:
    """Return pairs of two answers to one prompt of which users' doings like one better, all of a prompt's together of
    ``weight``; with ``ai`` what judges made of it counts too, under its own name.

    Users of whom more was refused than admitted are left out, and prompts of refused feedback.
    """
    with store.snapshot() as connection:
        served, every = read_served(connection), read_signals(connection)
    worth: defaultdict[int, dict[bool, float]] = defaultdict(dict)
    for one in every:
        if ai or not one.judge:
            judged = bool(one.judge)
            worth[one.served_id][judged] = worth[one.served_id].get(judged, 0.0) + one.value
    of_prompt: defaultdict[str, list[ServedTurn]] = defaultdict(list)
    for turn in served:
        name = key_of_prompt(turn.prompt, turn.form)
        yes, no = admission.users.get(turn.user, (0, 0))
        if turn.id in worth and no <= yes and name not in admission.withheld and not admission.is_gone(turn.user):
            of_prompt[name].append(turn)
    return [
        pair for own in of_prompt.values() for judged in (False, True) for pair in _pairs(own, worth, judged, weight)
    ]


def _pairs(
    own: Sequence[ServedTurn], worth: Mapping[int, Mapping[bool, float]], judged: bool, weight: float
) -> list[Item]:
    values: defaultdict[str, list[float]] = defaultdict(list)
    for turn in own:
        if judged in worth[turn.id]:
            values[turn.text].append(worth[turn.id][judged])
    mean = {text: sum(found) / len(found) for text, found in values.items() if text.strip()}
    better = [(a, b) for a in mean for b in mean if mean[a] > mean[b]]
    prompt = asked_in(own[0].prompt, own[0].form)
    origin, share = JUDGED_SIGNALS if judged else SIGNAL_PAIRS, round(weight / max(1, len(better)), 6)
    return [
        Item(prompt=prompt, completions=pair, ranks=(1, 2), origin=origin, weight=share, sources=(None, None))
        for pair in better
    ]
