"""Items as facts for the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from accord.formats.item import CannotSay, Item, TextOrTurns, as_meta, cannot, plain_turns, reply_of
from accord.records import (
    Annotator,
    AnnotatorKind,
    Completion,
    Demonstration,
    Label,
    Prompt,
    Ranking,
    Rating,
    Record,
    Source,
)

#: When a judgement was made that does not say so. A constant: importing twice must not make two judgements.
UNKNOWN_TIME = "1970-01-01T00:00:00.000000+00:00"

#: The ``origin`` of rows by whose judgements they are. Read again it names the kind: nobody becomes human on the way.
ORIGINS: Mapping[AnnotatorKind, str] = {"human": "people", "simulated": "simulated annotators", "model": "AI feedback"}
# Files that were written before call it "models": read as a word unknown, it would become people's.
_KIND_OF: Mapping[str, AnnotatorKind] = {
    **{origin: kind for kind, origin in ORIGINS.items()},
    "models": "model",
    "simulated users": "simulated",
}


def to_records(
    items: Iterable[Item],
    *,
    source: str,
    annotator: Annotator | None = None,
    scale: tuple[float, float] | None = None,
    left_out: Counter[str] | None = None,
) -> Iterator[Record]:
    """Return the facts in items, each after those that it refers to. The same items give the same facts.

    Args:
        items: What a file says.
        source: The name of who wrote completions and judged them where an item does not say it: the file's.
        annotator: Who judged; by default a human annotator of the source's name. What an item's ``origin`` calls
            simulated annotators' or models' is theirs.
        scale: (lowest, highest) of ratings that do not say it.
        left_out: Counts by reason what makes no fact: steps, tool calls, completions of several messages, ratings
            without a scale.
    """
    default = annotator or Annotator(name=source, annotator_kind="human")
    reasons = Counter[str]() if left_out is None else left_out
    known: set[str] = set()
    for item in items:
        try:
            found = _facts(item, _annotator(item, default), source, scale)
        except CannotSay as reason:
            reasons[str(reason)] += 1
            continue
        for record in found:
            if isinstance(record, Annotator):
                if record.id in known:
                    continue
                known.add(record.id)
            yield record


def _annotator(item: Item, default: Annotator) -> Annotator:
    kind = _KIND_OF.get(item.origin)
    if not item.annotator and kind in (None, "human"):
        return default
    return Annotator(name=item.annotator or default.name, annotator_kind=kind or "human")


def _facts(item: Item, annotator: Annotator, source: str, scale: tuple[float, float] | None) -> list[Record]:
    if item.steps:
        cannot("steps of a solution are no facts")
    if item.prompt is None:
        return _lesson(item, annotator)
    prompt = _prompt(item.prompt, item)
    common: dict[str, Any] = {"annotator_id": annotator.id, "created_at": item.created_at or UNKNOWN_TIME}
    texts = [reply_of(completion) for completion in item.completions]
    if item.kind == "demonstration":
        return [annotator, prompt, Demonstration(prompt_id=prompt.id, text=_written(texts[0]), **common)]
    written = Source(origin="policy", name=source)
    sources = item.sources or (None,) * len(texts)
    completions = [
        Completion(prompt_id=prompt.id, text=text, source=known or written)
        for text, known in zip(texts, sources, strict=True)
    ]
    judged = [*_ranking(item, prompt, completions, common), *_singly(item, completions, common, scale)]
    return [prompt, *completions, *([annotator, *judged] if judged else [])]


def _lesson(item: Item, annotator: Annotator) -> list[Record]:
    """Return a text as a demonstration of an empty prompt's, a conversation as one of what the assistant says last."""
    said = item.completions[0]
    if isinstance(said, str):
        prompt, text = Prompt(text="", topic=item.topic, meta=_meta(item)), said
    else:
        turns = plain_turns(said)
        if turns[-1]["role"] != "assistant" or len(turns) < 2:
            cannot("a conversation does not end with what the assistant answers")
        prompt, text = _prompt(tuple(turns[:-1]), item), turns[-1]["content"]
    at = item.created_at or UNKNOWN_TIME
    demonstration = Demonstration(prompt_id=prompt.id, text=_written(text), annotator_id=annotator.id, created_at=at)
    return [annotator, prompt, demonstration]


def _written(text: str) -> str:
    return text if text.strip() else cannot("a demonstration is empty")


def _prompt(prompt: TextOrTurns, item: Item) -> Prompt:
    if isinstance(prompt, str):
        return Prompt(text=prompt, topic=item.topic, meta=_meta(item))
    return Prompt.of_messages(plain_turns(prompt), topic=item.topic, meta=_meta(item))


def _meta(item: Item) -> dict[str, str]:
    return as_meta(item.extra) | ({"origin": item.origin} if item.origin and item.origin not in _KIND_OF else {})


def _ranking(item: Item, prompt: Prompt, completions: list[Completion], common: dict[str, Any]) -> Iterable[Record]:
    if item.kind != "ranking":
        return
    # 1, 2, 2, 4 and 1, 2, 2, 3 are one order, and one fact.
    order = sorted({rank for rank in item.ranks if rank is not None})
    ranked = [
        (completion.id, order.index(rank) + 1)
        for completion, rank in zip(completions, item.ranks, strict=True)
        if rank is not None
    ]
    if len({id_ for id_, _ in ranked}) < len(ranked):
        cannot("a completion stands twice in a ranking")
    ids = tuple(id_ for id_, _ in ranked)
    labels = item.labels or (None,) * len(completions)
    bad = tuple(c.id for c, good in zip(completions, labels, strict=True) if good is False and c.id in ids)
    clear = len(ranked) == 2 and len(order) == 2
    yield Ranking(
        prompt_id=prompt.id,
        completion_ids=ids,
        ranks=tuple(rank for _, rank in ranked),
        unacceptable=bad,
        # How clear a choice was is said of two, and not of a tie.
        strength=item.strength if clear else None,
        axis=item.axis,
        **common,
    )


def _singly(
    item: Item, completions: list[Completion], common: dict[str, Any], scale: tuple[float, float] | None
) -> Iterable[Record]:
    if item.kind != "ranking":
        for completion, good in zip(completions, item.labels, strict=False):
            if good is not None:
                yield Label(completion_id=completion.id, good=good, axis=item.axis, **common)
    for completion, value in zip(completions, item.ratings, strict=False):
        if value is not None:
            # A number without its scale cannot be compared with any other.
            low, high = item.scale or scale or cannot("a rating stands on no known scale")
            if not low <= value <= high:
                cannot("a rating is outside its scale")
            yield Rating(completion_id=completion.id, value=value, low=low, high=high, axis=item.axis, **common)
