"""Exports of annotation tools: Label Studio, Argilla 1 and 2, Prodigy, doccano.

* Label Studio, tasks: ``{"data": {..}, "annotations": [{"result": [..], "completed_by", "was_cancelled"}]}``; and its
  JSON_MIN and CSV, a row for each annotation, the control's name a column
* Argilla 2 nested: ``{"fields": {..}, "responses": {question: [{"value", "user_id", "status"}]}}``; flat: columns
  ``question.responses``, ``.responses.users``, ``.responses.status``; Argilla 1: a column of responses a question
* Prodigy: ``{"options": [{"id", "text"}], "accept": [id], "answer"}``; of its recipe ``compare`` answer is the id
* doccano, written texts: ``{"text", "label": [text]}``

What was skipped, cancelled, discarded or left a draft is no judgement. A tool's own suggestions are kept beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from accord.formats.columns import CHOICE_RANKS, meaning_of, usual_roles
from accord.formats.format import Fields, Format, has, row_by_row
from accord.formats.item import Item, TextOrTurns, beside
from accord.formats.judging_columns import looks_like_judgement
from accord.formats.rows import InputRow, truth_of

# -- what all of them have: texts under names, and what people said of them --------------------------------------------


class _Texts(NamedTuple):
    """The prompt of a task and its completions by the names of their fields, in order."""

    prompt: TextOrTurns
    completions: Mapping[str, TextOrTurns]


def _texts(row: InputRow, fields: Mapping[str, Any], where: str) -> _Texts:
    """Return the texts of a task by the usual names of its fields: a prompt, and one or several answers."""
    inner = InputRow(fields, row.where)
    roles = usual_roles(fields)
    if "prompt" not in roles:
        row.fail(where, "has no prompt", "name one of its fields prompt, question or instruction")
    prompt = inner.text_or_messages(roles["prompt"][0])
    names = [roles[role] for role in ("first", "second", "chosen", "rejected", "completion") if role in roles]
    names += [name for name in fields if name not in names and _NUMBERED.fullmatch(name)] if len(names) > 1 else []
    found: dict[str, TextOrTurns] = {name: inner.text_or_messages(name) for name in names}
    if not found:
        found = _listed(row, fields)
    if not found:
        row.fail(where, "has no answers", "name them response_1, response_2, .. or response")
    return _Texts(beside(prompt, *found.values()), found)


_NUMBERED = re.compile(r"(response|answer|output|completion|reply|generation|candidate)s?[ _-]?(\d+|[a-z])", re.I)


def _listed(row: InputRow, fields: Mapping[str, Any]) -> dict[str, TextOrTurns]:
    """Return the answers that stand in a list of objects with an id and a text, as Label Studio's Ranker has them."""
    for name, value in fields.items():
        if isinstance(value, list) and value and all(isinstance(one, dict) and "id" in one for one in value):
            texts = {str(one["id"]): one.get("body") or one.get("html") or one.get("text") for one in value}
            return {id_: row.string(name, text) for id_, text in texts.items()}
    return {}


def _ranked(texts: _Texts, ranks: Sequence[float | None], **said: Any) -> Item:
    return Item(prompt=texts.prompt, completions=tuple(texts.completions.values()), ranks=tuple(ranks), **said)


def _by_order(row: InputRow, texts: _Texts, groups: Iterable[Iterable[str]], field: str) -> list[float | None]:
    """Return the rank of each answer, the first group 1; one that stands in none was not ranked."""
    places: dict[str, float] = {}
    for rank, group in enumerate(groups, 1):
        for name in group:
            if name not in texts.completions or name in places:
                row.fail(field, f"ranks {name[:40]!r}, which is no answer or stands twice")
            places[name] = rank
    if len(places) < 2:
        row.fail(field, f"ranks {len(places)} answers", "a ranking needs two")
    return [places.get(name) for name in texts.completions]


def _chosen(row: InputRow, texts: _Texts, value: str, field: str) -> tuple[tuple[int, int], tuple[bool, ...]]:
    """Return ranks, and labels where both are bad, of a choice between two by its word or the answer's name."""
    if len(texts.completions) != 2:
        row.fail(field, f"chooses among {len(texts.completions)} answers", "give two")
    means = meaning_of(value, *texts.completions) or row.fail(field, f"is {value[:40]!r}", _WORDS)
    return CHOICE_RANKS[means], (False, False) if means == "both_bad" else ()


_WORDS = "write left or right, or the name of the answer, or tie"

# -- Label Studio ------------------------------------------------------------------------------------------------------


def _read_label_studio(row: InputRow) -> Iterator[Item]:
    texts = _texts(row, row.object("data", row.get("data")), "data")
    for i, value in enumerate(row.items("annotations")):
        annotation = InputRow(row.object(f"annotations[{i}]", value), row.where)
        if annotation.fields.get("was_cancelled"):
            continue
        by = _completed_by(annotation)
        said = {"annotator": by, "created_at": annotation.moment("created_at"), "origin": "people"}
        for result in annotation.items("result"):
            yield from _result(row, texts, row.object(f"annotations[{i}].result", result), said)


def _completed_by(annotation: InputRow) -> str:
    by = annotation.fields.get("completed_by")
    inner = InputRow(by, annotation.where) if isinstance(by, dict) else None
    return annotation.name("completed_by") if inner is None else inner.name("email") or inner.name("id")


def _result(row: InputRow, texts: _Texts, result: Fields, said: Mapping[str, Any]) -> Iterable[Item]:
    kind = str(result.get("type"))
    read = _RESULTS.get(kind)
    if read is None:
        row.fail("annotations.result.type", f"is {kind[:40]!r}", f"known are {', '.join(_RESULTS)}")
    return read(row, texts, result, said)


def _pairwise(row: InputRow, texts: _Texts, result: Fields, said: Mapping[str, Any]) -> Iterable[Item]:
    value = row.object("value", result.get("value")).get("selected")
    ranks, labels = _chosen(row, texts, row.string("value.selected", value), "value.selected")
    return [_ranked(texts, ranks, labels=labels, **said)]


def _ranker(row: InputRow, texts: _Texts, result: Fields, said: Mapping[str, Any]) -> Iterable[Item]:
    buckets = row.object("value.ranker", row.object("value", result.get("value")).get("ranker"))
    # "_" holds what stands in no bucket: where there are buckets, it was not ranked.
    filled = {name: ids for name, ids in buckets.items() if ids and (name != "_" or len(buckets) == 1)}
    if len(filled) != 1:
        row.fail("value.ranker", f"fills {len(filled)} buckets, of which none is better", "rank within one")
    [(name, ids)] = filled.items()
    order = [[str(id_)] for id_ in row.listed(f"value.ranker.{name}", ids)]
    return [_ranked(texts, _by_order(row, texts, order, "value.ranker"), **said)]


def _rating(row: InputRow, texts: _Texts, result: Fields, said: Mapping[str, Any]) -> Iterable[Item]:
    value = row.figure("value.rating", row.object("value", result.get("value")).get("rating"))
    return [_of_one(row, texts, str(result.get("to_name")), "value.rating", ratings=value, **said)]


def _choices(row: InputRow, texts: _Texts, result: Fields, said: Mapping[str, Any]) -> Iterable[Item]:
    found = row.listed("value.choices", row.object("value", result.get("value")).get("choices"))
    good = truth_of(found[0]) if len(found) == 1 else None
    if good is None:
        row.fail("value.choices", f"are {found}", "known are good and bad, true and false")
    return [_of_one(row, texts, str(result.get("to_name")), "value.choices", labels=good, **said)]


def _of_one(row: InputRow, texts: _Texts, name: str, field: str, **said: Any) -> Item:
    """Return what was said of one answer: the one that is named, or the only one there is."""
    names = [name] if name in texts.completions else list(texts.completions)
    if len(names) != 1:
        row.fail(field, f"is about {name[:40]!r}, which of {len(texts.completions)} answers is not said")
    values: dict[str, Any] = {key: (said.pop(key),) for key in ("labels", "ratings") if key in said}
    return Item(prompt=texts.prompt, completions=(texts.completions[names[0]],), **values, **said)


_RESULTS: Mapping[str, Callable[[InputRow, _Texts, Fields, Mapping[str, Any]], Iterable[Item]]] = {
    "pairwise": _pairwise,
    "ranker": _ranker,
    "rating": _rating,
    "choices": _choices,
}


def _label_studio_why(fields: Fields) -> str:
    found = has(fields, data=dict, annotations=list)
    return '"data" and its "annotations"' if found else ""


_TASK = frozenset(("data", "annotations"))
LABEL_STUDIO = Format(
    "label-studio",
    "Label Studio: tasks",
    _TASK,
    _label_studio_why,
    row_by_row(_read_label_studio, _TASK),
    None,
    understood=frozenset(("predictions", "total_annotations", "cancelled_annotations")),
)

# One row an annotation; these columns are the tool's own.
_MIN = frozenset(("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time"))


def _control(fields: Fields) -> tuple[str, str]:
    """Return the column of a control and the role that it plays: a choice between two, a rating, a label."""
    roles = usual_roles(fields)
    texts = {name for role in ("first", "second", "completion", "prompt") for name in _names(roles.get(role))}
    others = {name: value for name, value in fields.items() if name not in _MIN | texts and value not in (None, "")}
    found = [(name, role) for name, value in others.items() if (role := _played(value, roles))]
    # A number may as well count something: of several the one whose name says that it judges.
    found = found if len(found) < 2 else [one for one in found if looks_like_judgement(one[0])]
    return found[0] if len(found) == 1 else ("", "")


def _played(value: Any, roles: Mapping[str, Any]) -> str:
    """Return what a control of this value is, "" for none."""
    if "first" in roles:
        return "choice" if value in ("left", "right") else ""
    if isinstance(value, str):
        return "rating" if value.strip("-").isdigit() else "" if truth_of(value) is None else "label"
    return "rating" if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _names(column: Any) -> Collection[str]:
    return (column,) if isinstance(column, str) else column or ()


def _read_min(row: InputRow) -> Iterable[Item]:
    texts = _texts(row, {name: value for name, value in row.fields.items() if name not in _MIN}, "")
    name, role = _control(row.fields)
    said: dict[str, Any] = {"annotator": row.name("annotator"), "created_at": row.moment("created_at")}
    said["origin"] = "people"
    if role == "choice":
        ranks, labels = _chosen(row, texts, str(row.get(name)), name)
        return [_ranked(texts, ranks, labels=labels, **said)]
    if role == "rating":
        return [_of_one(row, texts, "", name, ratings=row.figure(name, row.get(name)), **said)]
    if role == "label":
        return [_of_one(row, texts, "", name, labels=row.truth(name, row.get(name)), **said)]
    return row.fail("", "no column is the one that judges, or several may be", "--ignore those that do not")


def _min_used(fields: Fields) -> frozenset[str]:
    roles = usual_roles(fields)
    texts = {name for column in roles.values() for name in _names(column)}
    numbered = {name for name in fields if _NUMBERED.fullmatch(name)}
    return frozenset(texts | numbered | {"annotator", "created_at", _control(fields)[0]})


def _min_why(fields: Fields) -> str:
    if "annotation_id" not in fields or "lead_time" not in fields:
        return ""
    name, role = _control(fields)
    return f'"annotation_id", and "{name}" is a {role}' if name else ""


LABEL_STUDIO_MIN = Format(
    "label-studio-min",
    "Label Studio: JSON_MIN and CSV",
    frozenset(),
    _min_why,
    row_by_row(_read_min, _min_used),
    None,
    used=_min_used,
)

# -- Argilla -----------------------------------------------------------------------------------------------------------


class _Response(NamedTuple):
    question: str
    value: Any
    user: str
    status: str


def _read_argilla(row: InputRow) -> Iterable[Item]:
    fields = row.object("fields", row.get("fields"))
    responses = row.object("responses", row.get("responses"))
    said = [
        _response(row, question, one)
        for question, several in responses.items()
        for one in row.listed(f"responses.{question}", several or [])
    ]
    return _answered(row, _texts(row, fields, "fields"), said)


def _response(row: InputRow, question: str, value: Any) -> _Response:
    one = InputRow(row.object(f"responses.{question}", value), row.where)
    status = one.name("status") or "submitted"
    return _Response(question, one.fields.get("value"), one.name("user_id"), status)


def _read_argilla_flat(row: InputRow) -> Iterable[Item]:
    said = []
    for name in row.fields:
        if name.endswith(_RESPONSES) and name in row:
            question = name.removesuffix(_RESPONSES)
            values = row.listed(name, row.parsed(name))
            users = _column(row, f"{name}.users", [""] * len(values))
            statuses = _column(row, f"{name}.status", ["submitted"] * len(values))
            if not len(values) == len(users) == len(statuses):
                row.fail(name, f"are {len(values)} by {len(users)} users", "write one user and status for each")
            said += [_Response(question, *map(_plain, one)) for one in zip(values, users, statuses, strict=True)]
    texts = {name: value for name, value in row.fields.items() if not _of_question(name)}
    return _answered(row, _texts(row, texts, ""), said)


def _column(row: InputRow, name: str, otherwise: list[Any]) -> list[Any]:
    return row.listed(name, row.parsed(name)) if name in row else otherwise


_RESPONSES = ".responses"


def _of_question(name: str) -> bool:
    return _RESPONSES in name or ".suggestion" in name


def _plain(value: Any) -> Any:
    return "" if value is None else value


def _read_argilla_1(row: InputRow) -> Iterable[Item]:
    said = [
        _response(row, name, one)
        for name, value in row.fields.items()
        if _are_responses(value)
        for one in row.listed(name, value)
    ]
    texts = {name: value for name, value in row.fields.items() if isinstance(value, str)}
    return _answered(row, _texts(row, texts, ""), said)


def _are_responses(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) and "user_id" in v for v in value)


def _answered(row: InputRow, texts: _Texts, responses: Iterable[_Response]) -> Iterator[Item]:
    for one in responses:
        if one.status == "submitted" and one.value not in (None, ""):
            said = {"annotator": one.user, "origin": "people"}
            yield _argilla_item(row, texts, one, said)


def _argilla_item(row: InputRow, texts: _Texts, one: _Response, said: Mapping[str, Any]) -> Item:
    value, field = one.value, f"responses.{one.question}"
    if isinstance(value, list):
        return _ranked(texts, _argilla_ranks(row, texts, value, field), **said)
    if isinstance(value, int | float) and not isinstance(value, bool):
        rated = {"ratings": float(value), "axis": one.question}
        return _of_one(row, texts, _answer_of(one.question, texts), field, **rated, **said)
    if len(texts.completions) == 2:
        ranks, labels = _chosen(row, texts, row.string(field, value), field)
        return _ranked(texts, ranks, labels=labels, **said)
    good = truth_of(value)
    if good is None:
        row.fail(field, f"is {str(value)[:40]!r}", "known are orders, numbers, and good or bad")
    return _of_one(row, texts, _answer_of(one.question, texts), field, labels=good, **said)


def _answer_of(question: str, texts: _Texts) -> str:
    """Return the answer that a question asks about, by a name like response_1-rating; "" where it names none."""
    return next((name for name in texts.completions if name in question), "")


def _argilla_ranks(row: InputRow, texts: _Texts, value: list[Any], field: str) -> list[float | None]:
    if all(isinstance(one, dict) and "value" in one for one in value):
        ranked: dict[float, list[str]] = {}
        for one in value:
            if one.get("rank") is not None:
                ranked.setdefault(row.figure(f"{field}.rank", one["rank"]), []).append(str(one["value"]))
        return _by_order(row, texts, [ranked[rank] for rank in sorted(ranked)], field)
    # The SDK gives names in order, and loses ties.
    return _by_order(row, texts, [[str(name)] for name in value], field)


def _argilla_why(fields: Fields) -> str:
    return '"fields" and their "responses"' if has(fields, fields=dict, responses=dict) else ""


def _flat_why(fields: Fields) -> str:
    name = next((name for name in fields if name.endswith(_RESPONSES)), "")
    return f'"{name}"' if name else ""


def _argilla_1_why(fields: Fields) -> str:
    name = next((name for name, value in fields.items() if _are_responses(value)), "")
    return f'"{name}" with a user and a value each' if name and "prompt_id" not in fields else ""


def _flat_used(fields: Fields) -> frozenset[str]:
    return frozenset(name for name in fields if _of_question(name) or _NUMBERED.fullmatch(name) or name in _PROMPTS)


def _argilla_1_used(fields: Fields) -> frozenset[str]:
    asked = {name for name, value in fields.items() if _are_responses(value)}
    suggested = {name for name in fields if "-suggestion" in name}
    return frozenset(asked | suggested | {name for name in fields if _NUMBERED.fullmatch(name) or name in _PROMPTS})


_PROMPTS = frozenset(("prompt", "question", "instruction", "response", "answer", "completion"))
_NESTED = frozenset(("fields", "responses"))
ARGILLA = Format(
    "argilla",
    "Argilla 2",
    _NESTED,
    _argilla_why,
    row_by_row(_read_argilla, _NESTED),
    None,
    understood=frozenset(("suggestions",)),
)
ARGILLA_FLAT = Format(
    "argilla-flat",
    "Argilla 2: columns",
    frozenset(),
    _flat_why,
    row_by_row(_read_argilla_flat, _flat_used),
    None,
    used=_flat_used,
)
ARGILLA_1 = Format(
    "argilla-1",
    "Argilla 1",
    frozenset(),
    _argilla_1_why,
    row_by_row(_read_argilla_1, _argilla_1_used),
    None,
    used=_argilla_1_used,
)

# -- Prodigy and doccano -----------------------------------------------------------------------------------------------


def _read_prodigy(row: InputRow) -> Iterable[Item]:
    answer = row.text("answer")
    options = {str(one.get("id")): row.string("options.text", one.get("text")) for one in _objects(row, "options")}
    if len(options) < 2 or len(set(options.values())) < len(options):
        row.fail("options", "are one text only", "remove the row: it says nothing")
    # Of `compare` the answer is the id of the better one; of `choice` the ids stand in accept.
    by_accept = list(map(str, row.items("accept"))) if answer == "accept" and "accept" in row else []
    accepted = [answer] if answer in options else by_accept
    if not accepted or len(accepted) == len(options):
        return []  # ignored, rejected, or all alike: nothing is preferred
    unknown = [id_ for id_ in accepted if id_ not in options]
    if unknown:
        row.fail("accept", f"names {unknown[0][:40]!r}, which is no option")
    ranks = tuple(1 if id_ in accepted else 2 for id_ in options)
    said: dict[str, Any] = {"annotator": row.name("_annotator_id") or row.name("_session_id"), "origin": "people"}
    prompt = _prodigy_prompt(row)
    said["created_at"] = row.moment("_timestamp")
    return [Item(prompt=prompt, completions=tuple(options.values()), ranks=ranks, **said)]


def _prodigy_prompt(row: InputRow) -> str:
    if "text" in row:
        return row.text("text")
    return row.string("input.text", row.object("input", row.get("input")).get("text"))


def _objects(row: InputRow, name: str) -> list[Mapping[str, Any]]:
    return [row.object(f"{name}[{i}]", one) for i, one in enumerate(row.items(name))]


def _prodigy_why(fields: Fields) -> str:
    found = has(fields, options=list, answer=str) and ("text" in fields or "input" in fields)
    return '"options" and an "answer"' if found else ""


_PRODIGY = frozenset(("text", "input", "options", "accept", "answer", "_annotator_id", "_session_id", "_timestamp"))
PRODIGY = Format(
    "prodigy",
    "Prodigy: choice and compare",
    _PRODIGY,
    _prodigy_why,
    row_by_row(_read_prodigy, _PRODIGY),
    None,
    main=("ranking",),
)


def _read_doccano(row: InputRow) -> Iterable[Item]:
    texts = [row.string("label", text) for text in row.items("label")]
    return [Item(prompt=row.text("text"), completions=(text,), demonstration=True) for text in texts]


_DOCCANO = frozenset(("text", "label"))
# Its labels of a class look the same: who wants these says so.
DOCCANO = Format(
    "doccano", "doccano: written texts", _DOCCANO, lambda fields: "", row_by_row(_read_doccano, _DOCCANO), None
)
TOOLS = (LABEL_STUDIO, LABEL_STUDIO_MIN, ARGILLA, ARGILLA_FLAT, ARGILLA_1, PRODIGY, DOCCANO)
