"""What users said of served completions, on its way out of quarantine: which of it counts, how much, and why not.

Feedback lands in the store as it was said, and nothing reads it for training before it was admitted here. The rules
look at all feedback there is, in the order it came, and the same feedback is decided alike whoever asks and whenever:

1. A source that was recalled, or a user who opted out, is left out whole, with the prompts.
2. What the same user said before of the same texts is no second word.
3. Who sends more in an hour than a person can read is a program for that hour; of a day the first so many count.
4. Accounts that say the same of the same prompts in the same order, a dozen times in a row, are one person or a
   program; so are accounts that send the same long text word for word.
5. What is left of one user weighs together at most so much.

What that cannot see: a patient crowd whose accounts answer slowly, each in words and an order of its own. Against that
stand the gates of a round, which ask people and judges that no user has taught.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Connection, insert, select, update

from accord.config import SOURCE, AdmitConfig
from accord.errors import UsageError
from accord.formats.item import Item, TextOrTurns, prompt_key
from accord.people.scrub import scrubbed_item
from accord.records import AnnotatorKind, Prompt
from accord.store import Store
from accord.store.operations import feedback, recalls, served_texts

HOUR_S, DAY_S = 3600.0, 86_400.0
LONG_TEXT = 30  # characters: shorter ones ("thanks!") are alike by chance
#: Kinds of feedback that make judgements to learn from.
TEACHING = ("thumb", "rating", "ranking", "edit")
#: The ``origin`` of users' judgements, so that what was said in passing is told apart from what was asked.
LIVE_ORIGINS: Mapping[AnnotatorKind, str] = {"human": "users", "simulated": "simulated users"}
#: Of pairs that are made of thumbs: they teach, and neither measure nor judge.
THUMB_PAIRS = "pairs of thumbs"
WITHHELD = "prompts of users' feedback that was refused"
RecallKind = Literal["recall", "opt_out"]


@dataclass(frozen=True)
class SaidOnce:
    """One piece of feedback: who said what of which completion, when, and the judgements it became.

    ``key`` is the key that asked, ``user`` whom its holder named; ``texts`` are the completion and those it is
    compared with. ``liking`` is what a thumb or a rating says, 0 to 1; None of other kinds.
    """

    id: int
    key: str
    user: str
    kind: str
    value: Any
    words: str
    axis: str
    model: str
    version: str
    prompt: str
    form: str
    texts: tuple[str, ...]
    at: float
    judgements: tuple[str, ...]
    liking: float | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """The names by which it can be recalled."""
        return f"user:{self.user}", f"key:{self.key}", f"model:{self.version}"


@dataclass(frozen=True)
class Recalled:
    """A source whose feedback counts no more, and why."""

    source: str
    kind: RecallKind = "recall"
    reason: str = ""

    @property
    def told(self) -> str:
        words = "the user has opted out" if self.kind == "opt_out" else f"{self.source.split(':')[0]} recalled"
        return f"{words}: {self.reason}" if self.reason else words


@dataclass(frozen=True)
class Admission:
    """What may be learnt from users' feedback.

    Attributes:
        refused: Judgement id -> why it is left out.
        weight: Judgement id -> what it counts beside one that stands already; 1 where it says nothing.
        live: Judgement ids of all feedback.
        prompts: Prompts that are known through feedback, as `prompt_key` names them.
        withheld: Those of them that nothing admitted is about.
        users: User -> (admitted, refused), counted in pieces of feedback that teach.
        reasons: Why, and how often.
        remarks: Pieces of feedback that teach nothing: comments, flags, retries and copies.
        gone: Sources that are recalled or opted out.
    """

    refused: Mapping[str, str] = field(default_factory=dict)
    weight: Mapping[str, float] = field(default_factory=dict)
    live: frozenset[str] = frozenset()
    prompts: frozenset[str] = frozenset()
    withheld: frozenset[str] = frozenset()
    users: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)
    remarks: int = 0
    gone: frozenset[str] = frozenset()

    def is_gone(self, user: str) -> bool:
        """Return whether a user, or the key that speaks for them, was recalled or has opted out."""
        return not self.gone.isdisjoint((f"user:{user}", f"key:{user.split('/')[0]}"))

    def to_json(self) -> dict[str, Any]:
        """Return the counts, the users by how much of theirs was refused."""
        admitted = sum(one for one, _ in self.users.values())
        users = sorted(self.users.items(), key=lambda row: (-row[1][1], row[0]))
        return {
            "admitted": admitted,
            "refused": sum(self.reasons.values()),
            "reasons": dict(sorted(self.reasons.items(), key=lambda row: (-row[1], row[0]))),
            "teaches_nothing": self.remarks,
            "users": {name: {"admitted": yes, "refused": no} for name, (yes, no) in users},
        }


# ---- rules -----------------------------------------------------------------------------------------------------------

Refusals = Mapping[int, str]  # by number of the feedback
_Said = Sequence[SaidOnce]


def _off(said: _Said, config: AdmitConfig) -> Refusals:
    return {} if config.feedback else {one.id: "users' feedback is not learnt from (admit.feedback)" for one in said}


def _repeated(said: _Said, config: AdmitConfig) -> Refusals:
    """Refuse what somebody said before of the same texts, the same or otherwise: a later word on one completion itself
    supersedes the earlier in the store; this is the same text, served again."""
    seen: set[tuple[Any, ...]] = set()
    found = {}
    for one in reversed(said):  # the newest word counts
        name = (one.user, one.kind, one.axis, one.prompt, tuple(sorted(one.texts)))
        if name in seen:
            found[one.id] = "said again later of the same texts"
        seen.add(name)
    return found


def _by_user(said: _Said) -> Mapping[str, list[SaidOnce]]:
    users: defaultdict[str, list[SaidOnce]] = defaultdict(list)
    for one in said:
        users[one.user].append(one)
    return users


def _hourly(said: _Said, config: AdmitConfig) -> Refusals:
    """Refuse each hour, wherever it begins, in which somebody said more than a person does."""
    found: dict[int, str] = {}
    for own in _by_user(said).values() if config.most_per_hour else ():
        window: deque[SaidOnce] = deque()
        for one in own:
            window.append(one)
            while window[0].at <= one.at - HOUR_S:
                window.popleft()
            if len(window) > config.most_per_hour:
                found.update(dict.fromkeys((each.id for each in window), _flood(config)))
    return found


def _flood(config: AdmitConfig) -> str:
    return f"more than {config.most_per_hour} of one user within an hour: a program (admit.most_per_hour)"


def _daily(said: _Said, config: AdmitConfig) -> Refusals:
    """Refuse what comes after the first so many of a user's day; a day is 24 hours by the clock of the world."""
    counts = Counter[tuple[str, int]]()
    found = {}
    for one in said if config.most_per_day else ():
        day = one.user, int(one.at // DAY_S)
        counts[day] += 1
        if counts[day] > config.most_per_day:
            found[one.id] = f"beyond {config.most_per_day} of one user in a day (admit.most_per_day)"
    return found


def _in_step(said: _Said, config: AdmitConfig) -> Refusals:
    """Refuse accounts that say the same of the same prompts, in the same order and so many times in a row."""
    if not config.same_run:
        return {}
    who_ran: defaultdict[tuple[Any, ...], set[str]] = defaultdict(set)
    own_of = _by_user(said)
    for user, own in own_of.items():
        words = [(one.kind, one.axis, one.prompt, json.dumps(one.value)) for one in own]
        for start in range(len(words) - config.same_run + 1):
            run = tuple(words[start : start + config.same_run])
            if len(set(run)) > 1:
                who_ran[run].add(user)
    together = {user: users for users in who_ran.values() if len(users) > 1 for user in users}
    why = f"says the same as another account, {config.same_run} times in a row (admit.same_run)"
    return {one.id: why for user in together for one in own_of[user]}


def _same_words(said: _Said, config: AdmitConfig) -> Refusals:
    """Refuse long texts that several accounts sent word for word."""
    senders: defaultdict[str, list[SaidOnce]] = defaultdict(list)
    for one in said if config.same_words else ():
        if len(text := " ".join(one.words.split()).casefold()) >= LONG_TEXT:
            senders[text].append(one)
    copied = [own for own in senders.values() if len({one.user for one in own}) >= config.same_words]
    why = f"the very words of {config.same_words} accounts or more (admit.same_words)"
    return {one.id: why for own in copied for one in own}


#: In this order; a rule sees only what those before it let through.
RULES_OF_ADMISSION: tuple[Callable[[_Said, AdmitConfig], Refusals], ...] = (
    _off, _in_step, _same_words, _hourly, _repeated, _daily,
)  # fmt: skip


def admit(said: _Said, recalled: Sequence[Recalled] = (), config: AdmitConfig | None = None) -> Admission:
    """Return what of users' feedback counts. Pure: the same feedback and settings give the same."""
    settings = config or AdmitConfig()
    gone = {one.source: one.told for one in [*(Recalled(source) for source in settings.recall), *recalled]}
    teaching = [one for one in said if one.judgements and one.kind in TEACHING]
    why = {one.id: reason for one in teaching if (reason := _recalled(one, gone))}
    for rule in RULES_OF_ADMISSION:
        why.update(rule([one for one in teaching if one.id not in why], settings))
    kept = [one for one in teaching if one.id not in why]
    return Admission(
        refused={id_: why[one.id] for one in teaching if one.id in why for id_ in one.judgements},
        weight=dict(_weights(kept, settings)),
        live=frozenset(id_ for one in said for id_ in one.judgements),
        prompts=frozenset(map(_prompt_key, said)),
        withheld=frozenset(map(_prompt_key, said)) - frozenset(map(_prompt_key, kept)),
        users=_counted(teaching, why),
        reasons=Counter(why[one.id] for one in teaching if one.id in why),
        remarks=len(said) - len(teaching),
        gone=frozenset(gone),
    )


def _recalled(one: SaidOnce, gone: Mapping[str, str]) -> str:
    return next((gone[source] for source in one.sources if source in gone), "")


def _weights(kept: _Said, config: AdmitConfig) -> Iterator[tuple[str, float]]:
    for own in _by_user(kept).values():
        weight = min(1.0, config.user_weight / len(own)) if config.user_weight else 1.0
        yield from ((id_, weight) for one in own for id_ in one.judgements)


def _counted(teaching: _Said, why: Refusals) -> dict[str, tuple[int, int]]:
    yes = Counter(one.user for one in teaching if one.id not in why)
    no = Counter(one.user for one in teaching if one.id in why)
    return {user: (yes[user], no[user]) for user in sorted({one.user for one in teaching})}


def _prompt_key(one: SaidOnce) -> str:
    return key_of_prompt(one.prompt, one.form)


def asked_in(text: str, form: str) -> TextOrTurns:
    """Return a prompt of the table of served completions as items have it: a text, or messages."""
    return text if form == "text" else tuple(Prompt(text=text, form="messages").turns())


def turns_in(text: str, form: str) -> list[dict[str, str]]:
    """Return such a prompt as messages; a plain text is what the user said."""
    return [{"role": "user", "content": text}] if form == "text" else Prompt(text=text, form="messages").turns()


def key_of_prompt(text: str, form: str) -> str:
    """Return what `prompt_key` calls such a prompt."""
    return prompt_key(asked_in(text, form))


# ---- the store -------------------------------------------------------------------------------------------------------


def read_admission(store: Store, config: AdmitConfig | None = None) -> Admission:
    """Return what of a store's feedback counts."""
    with store.snapshot() as connection:
        said = read_said(connection)
        return admit(said, read_recalled(connection), config)


def read_said(connection: Connection) -> list[SaidOnce]:
    """Return all feedback in the order it came."""
    columns: tuple[Any, ...] = (
        feedback,
        *(served_texts.c[name] for name in ("said_by", "model", "version", "prompt", "form", "text")),
    )
    found = connection.execute(
        select(*columns).join(served_texts, feedback.c.served_id == served_texts.c.id).order_by(feedback.c.id)
    )
    rows = [(dict(row), json.loads(row["body"])) for row in found.mappings()]
    names = {token.split(".")[0] for _, body in rows for token in body.get("others", ())}
    others = _texts_of(connection, names)
    return [_said_once(row, body, others) for row, body in rows]


def _texts_of(connection: Connection, names: set[str]) -> dict[str, str]:
    if not names:
        return {}
    rows = connection.execute(select(served_texts.c.name, served_texts.c.text))
    return {name: text for name, text in rows if name in names}


def _said_once(row: Mapping[str, Any], body: Mapping[str, Any], others: Mapping[str, str]) -> SaidOnce:
    compared = [others.get(token.split(".")[0], "") for token in body.get("others", ())]
    value = body.get("value")
    return SaidOnce(
        id=row["id"],
        key=row["who"],
        user=row["said_by"],
        kind=row["kind"],
        value=value,
        words=value if isinstance(value, str) and body["kind"] in ("edit", "comment") else body.get("reason", ""),
        axis=body.get("axis", ""),
        **{name: row[name] for name in ("model", "version", "prompt", "form")},
        texts=(row["text"], *compared),
        at=row["created_at"],
        judgements=tuple(json.loads(row["judgement_ids"])),
        liking=_liking(body),
    )


def _liking(body: Mapping[str, Any]) -> float | None:
    value = body.get("value")
    if body["kind"] == "thumb":
        return float(value in (True, "up", 1.0))
    if body["kind"] == "rating" and body["high"] > body["low"]:
        return float((value - body["low"]) / (body["high"] - body["low"]))
    return None


def read_recalled(connection: Connection) -> list[Recalled]:
    """Return the recalls that stand."""
    rows = connection.execute(select(recalls).where(recalls.c.ended_at.is_(None)).order_by(recalls.c.id)).mappings()
    return [Recalled(row["source"], row["kind"], row["reason"]) for row in rows]


def recall(store: Store, source: str, kind: RecallKind = "recall", reason: str = "") -> bool:
    """Let a source's feedback count no more, from the next round on; False where it was so already.

    What it said stays in the store. Raises UsageError for what names no source.
    """
    _check_source(source)
    row = {"source": source, "kind": kind, "reason": reason, "created_at": time.time()}

    def write(connection: Connection) -> bool:
        stands = any((one.source, one.kind) == (source, kind) for one in read_recalled(connection))
        if not stands:
            connection.execute(insert(recalls), row)
        return not stands

    return store.write(write)


def readmit(store: Store, source: str) -> bool:
    """Let a recalled source count again; False where it was not recalled."""
    _check_source(source)
    stands = recalls.c.source == source, recalls.c.ended_at.is_(None)
    return store.write(
        lambda connection: connection.execute(update(recalls).where(*stands).values(ended_at=time.time())).rowcount > 0
    )


def _check_source(source: str) -> None:
    if not SOURCE.fullmatch(source):
        raise UsageError(f"{source!r} names no source of feedback", hint="write user:NAME, key:NAME or model:VERSION")


def admitted_items(
    items: Iterable[Item], admission: Admission, *, scrub: bool = True, left_out: dict[str, int] | None = None
) -> Iterator[Item]:
    """Yield items as they may be learnt from: without prompts of refused feedback, and with users' texts scrubbed.

    ``left_out`` counts what was not let through, and what was replaced.
    """
    counts, found, live = {} if left_out is None else left_out, Counter[str](), frozenset(LIVE_ORIGINS.values())
    for item in items:
        name = prompt_key(item.prompt) if admission.prompts else ""
        if item.kind in ("prompt", "sample") and name in admission.withheld:
            counts[WITHHELD] = counts.get(WITHHELD, 0) + 1
        else:
            users = item.origin in live or name in admission.prompts
            yield scrubbed_item(item, found) if scrub and users else item
    counts.update({f"{name}s replaced in users' texts": count for name, count in sorted(found.items())})


# ---- thumbs ----------------------------------------------------------------------------------------------------------


def thumb_pairs(labels: Sequence[Item], weight: float) -> list[Item]:
    """Return pairs of a completion with a thumb up and one with a thumb down, on the same prompt and question.

    All pairs of one prompt weigh together as much as one of ``weight``. A completion that has both is in none.
    """
    of_prompt: defaultdict[tuple[str, str], list[Item]] = defaultdict(list)
    for one in labels:
        of_prompt[prompt_key(one.prompt), one.axis].append(one)
    made = []
    for own in of_prompt.values():
        said = {good: {text_key(one): one for one in own if one.labels[0] is good} for good in (True, False)}
        both = said[True].keys() & said[False].keys()
        up, down = ([one for text, one in said[good].items() if text not in both] for good in (True, False))
        share = round(weight / max(1, len(up) * len(down)), 6)
        made += [_pair(better, worse, share) for better in up for worse in down]
    return made


def text_key(item: Item, place: int = 0) -> str:
    """Return one name for a completion of an item, a text or messages."""
    return prompt_key(item.completions[place])


def _pair(better: Item, worse: Item, weight: float) -> Item:
    return Item(
        prompt=better.prompt,
        completions=(better.completions[0], worse.completions[0]),
        ranks=(1, 2),
        axis=better.axis,
        topic=better.topic,
        origin=THUMB_PAIRS,
        annotator=better.annotator,
        weight=round(weight * min(better.weight, worse.weight), 6),
        sources=(*better.sources, *worse.sources),
    )
