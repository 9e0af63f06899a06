"""What can be asked of people: a kind of feedback is one row, and your own is ``module:NAME``, a `FeedbackKind` too.

The row is all there is to a kind: how many completions it shows, which fields an answer to it has, how they are
checked, which judgements they make; its title, keys, width, template and script on the page.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from accord.config import LabelConfig
from accord.errors import DataError
from accord.extend import blaming, is_outside, outside
from accord.people.desk.answers import Answer, wrong
from accord.records import (
    Completion,
    Demonstration,
    Judgement,
    Label,
    Prompt,
    Ranking,
    Rating,
    Record,
    Remark,
    Source,
)

AnswerCheck = Callable[[LabelConfig, int, Answer], None]
MakeJudgements = Callable[[LabelConfig, Prompt, Sequence[Completion], Answer, Mapping[str, Any]], list[Judgement]]

#: Where templates and scripts of the built-in kinds lie.
_WEB = Path(__file__).parents[1] / "web"
#: Answers that can be compared with a right one: a text, or the values of your own kind, cannot.
_COMPARABLE = ("ranks", "ratings", "good")


def _check_nothing(settings: LabelConfig, num_completions: int, answer: Answer) -> None:
    """Accept any answer: one value of the right type per completion is all there is to it."""


@dataclass(frozen=True, kw_only=True)
class FeedbackKind:
    """One kind of feedback, whole.

    Args:
        title: What the page is called: the question.
        fewest, most: Completions that a task shows.
        fields: Fields of `Answer` that may be given; the first of them must. A kind of your own may use those of
            others, or ``("values",)`` with a ``schema``.
        judgements: Makes the judgements of an answer, one at least, from (settings, prompt, completions as shown,
            answer, fields that every judgement has).
        check: Raises DataError (`wrong`) where (settings, number of completions, answer) make no sense.
        schema: A pydantic model of ``answer.values``.
        template: A Jinja file: the middle of the page. It has ``completions`` (letter, text, html), ``settings`` and
            the macros of ``parts``; everything that is a ``.card`` is a completion.
        bar: A Jinja file for the bar at the foot, if any.
        script: A JavaScript module whose default export is a function of the page; see ``web/static/label.js``.
        keys: The keys and what they do, for who asks by ``?``.
        width: "wide", "middle", or "" for a column of text.
    """

    title: str
    fewest: int
    most: int
    fields: tuple[str, ...]
    judgements: MakeJudgements
    template: Path
    script: Path
    check: AnswerCheck = _check_nothing
    schema: type[BaseModel] | None = None
    bar: Path | None = None
    keys: Sequence[tuple[str, str]] = field(default=())
    width: str = ""

    @property
    def has_right_answer(self) -> bool:
        """Whether a task of this kind can be a gold question."""
        return self.fields[0] in _COMPARABLE


def kind_of(name: str, settings: LabelConfig) -> FeedbackKind:
    """Return the row of a kind: a built-in one, or one's own that the settings name (others load no code).

    Raises:
        DataError: There is no such kind, or it is none.
    """
    if name in FEEDBACK_KINDS:
        return FEEDBACK_KINDS[name]
    # Only names in the settings load code: a task that came over HTTP must not import a module.
    if name not in (settings.kind, *settings.own_kinds) or not is_outside(name):
        hint = "give one of " + ", ".join((*FEEDBACK_KINDS, *settings.own_kinds))
        raise DataError(f"there is no task of the kind {name!r}", hint=hint + "; own_kinds names those of your own")
    found = outside(name)
    if not isinstance(found, FeedbackKind):
        raise DataError(
            f"{name} is no FeedbackKind", hint="make it one: from accord.people.desk.kinds import FeedbackKind"
        )
    return found


def check(kind: str, settings: LabelConfig, num_completions: int, answer: Answer) -> None:
    """Raise DataError, naming the field, where an answer does not fit a task of this kind and size."""
    row = kind_of(kind, settings)
    # Flags and edits belong to completions, whatever is asked about them.
    allowed = {*row.fields, *(("flags", "edit") if num_completions else ())}
    every = {name for name, field in Answer.model_fields.items() if field.default is None}
    for name in sorted(every - allowed):
        if getattr(answer, name) is not None:
            raise wrong(name, f"a {kind} task has no {name}")
    if getattr(answer, row.fields[0]) is None:
        raise wrong(row.fields[0], f"a {kind} task needs {row.fields[0]}")
    for name in ("ranks", "unacceptable", "ratings", "good", "flags"):
        given = getattr(answer, name)
        if given is not None and len(given) != num_completions:
            raise wrong(name, f"{len(given)} values for {num_completions} completions")
    with blaming_own(kind):
        _check_values(row, answer)
        row.check(settings, num_completions, answer)
    _check_flags(settings, answer)
    if answer.edit is not None and answer.edit.of >= num_completions:
        raise wrong("edit", f"there is no completion {answer.edit.of}")
    if answer.edit is not None and not answer.edit.text.strip():
        raise wrong("edit", "the edited text is empty")


def check_can_be_gold(kind: str, settings: LabelConfig) -> None:
    """Raise DataError where tasks of this kind have no right answer."""
    if not kind_of(kind, settings).has_right_answer:
        raise DataError(f"a {kind} task has no right answer", hint="choose a task of another kind")


def blaming_own(kind: str) -> contextlib.AbstractContextManager[None]:
    """Report what goes wrong in the row of a kind of one's own as the fault of that row."""
    return blaming(kind) if is_outside(kind) else contextlib.nullcontext()


def facts(
    kind: str,
    prompt: Prompt,
    shown: Sequence[Completion],
    answer: Answer,
    settings: LabelConfig,
    *,
    annotator_id: str,
    guideline: str,
    created_at: str,
    flags: tuple[str, ...] = (),
) -> list[Record]:
    """Return the facts of an answer that `check` has passed, the main judgements first.

    What is said of the answer as a whole, its time and its note, stands on the first of them. An edit is a completion
    of its own, a demonstration of the same text, and a ranking of the edit above what it improves.

    Args:
        shown: The completions in the order in which the annotator saw them.
        flags: "gold", "adjudication": on every judgement but remarks, whose flags are those ticked.

    Raises:
        DataError: The edit changes nothing.
    """
    by: dict[str, Any] = {"annotator_id": annotator_id, "guideline": guideline, "created_at": created_at}
    with blaming_own(kind):
        judgements = kind_of(kind, settings).judgements(settings, prompt, shown, answer, by | {"flags": flags})
    if not judgements:
        raise DataError(f"{kind} makes no judgement of this answer", hint="return one at least, or refuse it in check")
    # On one of them only: summed over judgements, the time of a ranking with an edit would count twice.
    judgements[0] = replace(judgements[0], seconds=answer.seconds or None, note=answer.note)
    remarks = [
        Remark(completion_id=completion.id, flags=ticked, **by)
        for completion, ticked in zip(shown, answer.flags or (), strict=False)
        if ticked
    ]
    edited = [] if answer.edit is None else _edited(shown[answer.edit.of], answer.edit.text, by | {"flags": flags})
    return [*judgements, *remarks, *edited]


def _edited(original: Completion, text: str, by: Mapping[str, Any]) -> list[Record]:
    if text == original.text:
        raise wrong("edit", "the edited text is the original", "leave the edit out, or change the text")
    # The version names the original, so that an edit can be traced to the policy that wrote it.
    source = Source(origin="human", name="edit", version=original.id)
    edit = Completion(prompt_id=original.prompt_id, text=text, source=source)
    ids = (edit.id, original.id)
    return [
        edit,
        Demonstration(prompt_id=original.prompt_id, text=text, **by),
        Ranking(prompt_id=original.prompt_id, completion_ids=ids, ranks=(1, 2), **by),
    ]


def _check_values(row: FeedbackKind, answer: Answer) -> None:
    """Raise DataError where the values of a kind of one's own do not fit its schema."""
    if row.schema is None or answer.values is None:
        return
    try:
        row.schema.model_validate(answer.values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(("values", *(str(part) for part in first["loc"])))
        raise wrong(name, f"{first['msg'].lower()}, got {first['input']!r:.80}") from error


def _check_flags(settings: LabelConfig, answer: Answer) -> None:
    for ticked in answer.flags or ():
        if len(set(ticked)) < len(ticked):
            raise wrong("flags", f"a flag stands twice: {', '.join(ticked)}")
        for flag in ticked:
            if flag not in settings.flags:
                raise wrong("flags", f"there is no flag {flag!r}", "give one of " + ", ".join(settings.flags))


# ---- the kinds -------------------------------------------------------------------------------------------------------


def _check_ranks(settings: LabelConfig, num_completions: int, answer: Answer) -> None:
    ranks = cast(tuple[int, ...], answer.ranks)
    if min(ranks) != 1 or max(ranks) > num_completions:
        raise wrong("ranks", f"{list(ranks)} are no ranks", f"give 1 (best) to {num_completions}; equal is a tie")


def _check_pair(settings: LabelConfig, num_completions: int, answer: Answer) -> None:
    _check_ranks(settings, num_completions, answer)
    tied = answer.ranks == (1, 1)
    if answer.strength is not None and tied:
        raise wrong("strength", "a tie has no strength")
    if any(answer.unacceptable or ()) and not (tied and all(answer.unacceptable or ())):
        raise wrong("unacceptable", "of a pair both are bad or none", "both bad is a tie of two unacceptable ones")


def _rank(
    settings: LabelConfig, prompt: Prompt, shown: Sequence[Completion], answer: Answer, by: Mapping[str, Any]
) -> list[Judgement]:
    ranks = cast(tuple[int, ...], answer.ranks)
    places = sorted(set(ranks))  # 1, 2, 2, 4 means 1, 2, 2, 3
    bad = answer.unacceptable or (False,) * len(shown)
    return [
        Ranking(
            prompt_id=prompt.id,
            completion_ids=tuple(completion.id for completion in shown),
            ranks=tuple(places.index(rank) + 1 for rank in ranks),
            unacceptable=tuple(completion.id for completion, is_bad in zip(shown, bad, strict=True) if is_bad),
            strength=answer.strength,
            **by,
        )
    ]


def _check_ratings(settings: LabelConfig, num_completions: int, answer: Answer) -> None:
    axes = {axis.name: axis for axis in settings.axes}
    for values in answer.ratings or ():
        if values.keys() != axes.keys():
            raise wrong("ratings", f"axes {', '.join(values) or 'none'}", "rate each on " + ", ".join(axes))
        for name, value in values.items():
            if not axes[name].low <= value <= axes[name].high:
                raise wrong("ratings", f"{name} {value} is outside {axes[name].low}..{axes[name].high}")


def _rate(
    settings: LabelConfig, prompt: Prompt, shown: Sequence[Completion], answer: Answer, by: Mapping[str, Any]
) -> list[Judgement]:
    made: list[Judgement] = []
    for completion, values in zip(shown, answer.ratings or (), strict=True):
        for axis in settings.axes:
            scale: dict[str, Any] = {"axis": axis.name, "value": values[axis.name], "low": axis.low, "high": axis.high}
            question = {"guideline": by["guideline"] or axis.question}
            made.append(Rating(completion_id=completion.id, **scale, **{**by, **question}))
    return made


def _label(
    settings: LabelConfig, prompt: Prompt, shown: Sequence[Completion], answer: Answer, by: Mapping[str, Any]
) -> list[Judgement]:
    labelled = zip(shown, answer.good or (), strict=True)
    return [Label(completion_id=completion.id, good=good, **by) for completion, good in labelled]


def _check_text(settings: LabelConfig, num_completions: int, answer: Answer) -> None:
    if not (answer.text or "").strip():
        raise wrong("text", "the demonstration is empty")


def _demonstrate(
    settings: LabelConfig, prompt: Prompt, shown: Sequence[Completion], answer: Answer, by: Mapping[str, Any]
) -> list[Judgement]:
    return [Demonstration(prompt_id=prompt.id, text=answer.text or "", **by)]


def _built_in(name: str, title: str, sizes: tuple[int, int], **row: Any) -> FeedbackKind:
    """Return a row whose template and script have the kind's own name."""
    bar = _WEB / "templates" / "kinds" / f"{name}.bar.html.j2"
    return FeedbackKind(
        title=title,
        fewest=sizes[0],
        most=sizes[1],
        template=_WEB / "templates" / "kinds" / f"{name}.html.j2",
        bar=bar if bar.exists() else None,
        script=_WEB / "static" / f"{name}.js",
        **row,
    )


FEEDBACK_KINDS: Mapping[str, FeedbackKind] = {
    "pair": _built_in(
        "pair",
        "Which completion is better?",
        (2, 2),
        fields=("ranks", "unacceptable", "strength"),
        check=_check_pair,
        judgements=_rank,
        width="wide",
        keys=(
            ("1 2 3 4", "A is much better … barely better"),
            ("5", "tie"),
            ("6 7 8 9", "B is barely … much better"),
            ("0", "both are bad"),
            ("j k", "walk over A and B"),
        ),
    ),
    "ranking": _built_in(
        "ranking",
        "Put these in order",
        (2, 9),
        fields=("ranks", "unacceptable"),
        check=_check_ranks,
        judgements=_rank,
        width="middle",
        keys=(
            ("j k", "walk down and up"),
            ("⇧j ⇧k", "move down and up"),
            ("=", "tie with the one above, or undo"),
            ("x", "unacceptable, or undo"),
            ("o", "show all text, or less"),
        ),
    ),
    "rating": _built_in(
        "rating",
        "Rate what you read",
        (1, 9),
        fields=("ratings",),
        check=_check_ratings,
        judgements=_rate,
        width="wide",
        keys=(("j k", "walk over the questions"), ("1 … 9", "rate, and go on")),
    ),
    "label": _built_in(
        "label",
        "Good or bad?",
        (1, 9),
        fields=("good",),
        judgements=_label,
        keys=(("g b", "good, bad"), ("j k", "walk over the completions")),
    ),
    "demonstration": _built_in(
        "demonstration",
        "Write a completion",
        (0, 0),
        fields=("text",),
        check=_check_text,
        judgements=_demonstrate,
        keys=(("w", "write"), ("Ctrl ↵", "submit while writing")),
    ),
}
