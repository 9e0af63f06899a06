"""Plain tables, under the usual names of their columns or under those that the user says.

A question and an answer, an answer with a label or a rating, a better and a worse one, or two and which is better.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from accord.errors import DataError, UsageError
from accord.formats.format import Fields, Format, row_by_row
from accord.formats.item import Item, TextOrTurns, beside, turns_of
from accord.formats.rows import InputRow
from accord.formats.scored import MODEL_COLUMNS, SCORE_COLUMNS, scored_ranks, written_by

# What is asked comes first, then what it is asked about.
_ASKED = ("instruction", "question", "prompt", "query", "post")
_ABOUT = ("input", "context")
_SYSTEM = ("system", "system_prompt")
_COMPLETION = ("completion", "response", "answer", "output", "reply", "generation")
_PAIRS = (
    *(("chosen", "rejected"), ("chosen_response", "rejected_response"), ("preferred", "dispreferred")),
    *(("better", "worse"), ("accepted", "rejected"), ("winner_response", "loser_response")),
)
_FIRST = re.compile(r"(response|answer|output|completion|reply|generation|candidate)s?([ _-]?)(1|a|A)")
_SECOND = {"1": "2", "a": "b", "A": "B"}
_CHOICE = ("label", "preference", "choice", "winner", "preferred", "better")
_LABEL = ("label", "kto_tag", "good", "is_good", "acceptable", "thumbs", "thumb")
_RATING = ("rating", "score", "stars", "quality")
_ANNOTATOR = ("annotator", "annotator_id", "worker", "labeler", "user_id")
_TIME = ("created_at", "timestamp", "tstamp")

#: What a choice between two can be, and the ranks that it means.
CHOICE_RANKS: Mapping[str, tuple[int, int]] = {"first": (1, 2), "second": (2, 1), "tie": (1, 1), "both_bad": (1, 1)}
# Words that people and tools write; numbers count from 1, and then 0 (here and there 1.5, the mean of the ranks) is a
# tie.
_MEANS = {
    **dict.fromkeys(("1", "a", "first", "left", "model_a"), "first"),
    **dict.fromkeys(("2", "b", "second", "right", "model_b"), "second"),
    **dict.fromkeys(("0", "1.5", "tie", "draw", "equal", "same", "both"), "tie"),
    **dict.fromkeys(("both_bad", "bothbad", "tie (bothbad)", "neither"), "both_bad"),
}


@dataclass(frozen=True)
class Columns:
    """Which column of a table says what, where the user says so.

    ``answers`` are two columns, and ``choice`` says which is better; ``means`` maps what stands in it to one of
    `CHOICE_RANKS`. ``system_text`` stands before every prompt.

    Raises UsageError where parts do not fit together.
    """

    prompt: str = ""
    topic: str = ""
    system: str = ""
    system_text: str = ""
    completion: str = ""
    chosen: str = ""
    rejected: str = ""
    answers: tuple[str, ...] = ()
    choice: str = ""
    means: Mapping[str, str] = field(default_factory=dict)
    label: str = ""
    rating: str = ""
    annotator: str = ""

    def __post_init__(self) -> None:
        if not self.prompt and self.named:
            raise UsageError("the prompts' column is not named", hint="add --prompt-field")
        if bool(self.chosen) != bool(self.rejected):
            raise UsageError("of the better and the worse answer's columns one is named", hint="name both")
        if (self.label or self.rating) and not self.completion:
            raise UsageError("what was judged is not named", hint="add --completion-field")
        if self.answers and len(self.answers) != 2:
            raise UsageError(f"{len(self.answers)} columns of answers", hint="name two, like --answer-fields a,b")
        if unknown := set(self.means.values()) - CHOICE_RANKS.keys():
            raise UsageError(f"--choice has {', '.join(sorted(unknown))}", hint=f"give {', '.join(CHOICE_RANKS)}")

    @property
    def named(self) -> dict[str, str]:
        """The roles that the user gave a column, without the prompt's."""
        single = ("topic", "system", "completion", "chosen", "rejected", "choice", "label", "rating", "annotator")
        found = {name: getattr(self, name) for name in single if getattr(self, name)}
        return found | dict(zip(("first", "second"), self.answers, strict=False))


Roles = Mapping[str, Any]


def meaning_of(value: str, first: str, second: str) -> str:
    """Return which of `CHOICE_RANKS` a word means, "" where none; the columns' own names are words too."""
    return {**_MEANS, first.lower(): "first", second.lower(): "second"}.get(value.strip().lower(), "")


def _first(fields: Fields, names: Iterable[str], kinds: Any = str) -> str:
    return next((name for name in names if isinstance(fields.get(name), kinds) and fields[name] != ""), "")


def usual_roles(fields: Fields) -> Roles:
    """Return which column of a row says what, by their usual names: {role: column}, the prompt's a tuple of them."""
    asked = tuple(name for name in _ASKED if isinstance(fields.get(name), str | list) and fields[name])
    about = tuple(name for name in _ABOUT if isinstance(fields.get(name), str | list))
    roles: dict[str, Any] = {"prompt": asked + tuple(name for name in about if fields[name] or not asked)}
    if not roles["prompt"]:
        return {}
    roles["system"] = _first(fields, _SYSTEM)
    roles["annotator"], roles["time"] = _first(fields, _ANNOTATOR, str | int), _first(fields, _TIME, str | int | float)
    return {role: column for role, column in (roles | _judged(fields, roles["prompt"])).items() if column}


def _judged(fields: Fields, prompt: Collection[str]) -> dict[str, Any]:
    """Return the columns of answers, and of what is said of them."""
    pair = next((two for two in _PAIRS if all(isinstance(fields.get(name), str | list) for name in two)), None)
    if pair:
        return dict(zip(("chosen", "rejected"), pair, strict=True))
    if two := _two(fields):
        return {"first": two[0], "second": two[1], "choice": _first(fields, _CHOICE, str | int | float)}
    completion = next((name for name in _COMPLETION if isinstance(fields.get(name), str | list)), "")
    if not completion or completion in prompt:
        return {}
    label, rating = _first(fields, _LABEL, str | int | float), _first(fields, _RATING, str | int | float)
    return {"completion": completion, "label": label, "rating": rating}


def _two(fields: Fields) -> tuple[str, str] | None:
    """Return the columns of two answers, like response_a and response_b."""
    for name in fields:
        if found := _FIRST.fullmatch(name):
            other = name[: found.start(3)] + _SECOND[found[3]]
            if all(isinstance(fields.get(one), str | list) for one in (name, other)):
                return name, other
    return None


@dataclass(frozen=True)
class _Table:
    """How the rows of one table are read."""

    columns: Columns

    def roles(self, fields: Fields) -> Roles:
        if self.columns.prompt:
            return {"prompt": (self.columns.prompt,), **self.columns.named}
        return usual_roles(fields)

    def used(self, fields: Fields) -> frozenset[str]:
        roles = self.roles(fields)
        columns = {name for column in roles.values() for name in ((column,) if isinstance(column, str) else column)}
        return frozenset(columns | SCORE_COLUMNS if "chosen" in roles else columns)

    def why(self, fields: Fields) -> str:
        roles = self.roles(fields)
        names = [f'"{name}"' for name in roles.get("prompt", ())]
        kinds = (("chosen", "rejected"), ("first", "second", "choice"), ("completion",))
        said = next((kind for kind in kinds if all(role in roles for role in kind)), None)
        if said is None and self.columns.prompt:
            return ", ".join(names)
        if not names or said is None:
            return ""
        judged = [role for role in ("label", "rating") if role in roles and said == ("completion",)]
        names += [f'"{roles[role]}"' for role in (*said, *judged)]
        return f"{', '.join(names[:-1])} and {names[-1]}"

    def read(self, row: InputRow) -> Iterable[Item]:
        roles = self.roles(row.fields)
        if not roles:
            row.fail("prompt", "is missing", f"name a column one of {', '.join(_ASKED + _ABOUT)}")
        item = self._answered(row, roles)
        topic = row.fields.get(roles.get("topic", ""))
        by = row.name(roles["annotator"]) if "annotator" in roles else ""
        at = row.moment(roles["time"]) if "time" in roles else ""
        # A number is a name too: categories are often counted.
        return [replace(item, topic="" if topic is None else str(topic), annotator=by, created_at=at)]

    def _answered(self, row: InputRow, roles: Roles) -> Item:
        prompt = self._prompt(row, roles)
        if "chosen" in roles:
            return self._pair(row, roles, prompt)
        if "first" in roles:
            return self._choice(row, roles, prompt)
        if "completion" not in roles:
            return Item(prompt=prompt)
        text = row.text_or_messages(roles["completion"])
        judged = _singly(row, roles)
        return Item(prompt=beside(prompt, text), completions=(text,), demonstration=not judged, **judged)

    def _prompt(self, row: InputRow, roles: Roles) -> TextOrTurns:
        parts = [row.text_or_messages(name) for name in roles["prompt"]]
        if any(isinstance(part, str) and not part.strip() for part in parts):
            row.fail(roles["prompt"][0], "is empty", "write what was asked, or leave the row out")
        if len(parts) > 1 and not all(isinstance(part, str) for part in parts):
            row.fail(roles["prompt"][1], "stands beside messages", "name the prompt's column (--prompt-field)")
        # The same words in two columns are one question.
        asked = parts[0] if len(parts) == 1 else "\n".join(dict.fromkeys(map(str, parts)))
        system = self.columns.system_text or (row.optional_text(roles["system"]) if "system" in roles else "")
        return ({"role": "system", "content": system}, *turns_of(asked)) if system else asked

    def _pair(self, row: InputRow, roles: Roles, prompt: TextOrTurns) -> Item:
        texts = [row.text_or_messages(roles[side]) for side in ("chosen", "rejected")]
        _apart(row, texts, roles["rejected"], roles["chosen"])
        return Item(
            prompt=beside(prompt, *texts),
            completions=tuple(texts),
            ranks=scored_ranks(row),
            sources=written_by(row, *MODEL_COLUMNS),
        )

    def _choice(self, row: InputRow, roles: Roles, prompt: TextOrTurns) -> Item:
        texts = [row.text_or_messages(roles[side]) for side in ("first", "second")]
        if "choice" not in roles:
            row.fail("label", "is missing", "write 1 or 2 for the better one, 0 for a tie, or name it (--choice-field)")
        chosen = self._meaning(row, roles)
        _apart(row, texts, roles["second"], roles["first"])
        bad = (False, False) if chosen == "both_bad" else ()
        return Item(prompt=beside(prompt, *texts), completions=tuple(texts), ranks=CHOICE_RANKS[chosen], labels=bad)

    def _meaning(self, row: InputRow, roles: Roles) -> str:
        value = row.get(roles["choice"])
        # True is 1 in Python; in a table of choices it is another column.
        said = "" if isinstance(value, bool) else f"{value:g}" if isinstance(value, int | float) else str(value)
        means = self.columns.means
        found = means.get(said.strip()) if means else meaning_of(said, roles["first"], roles["second"])
        hint = "write 1 or 2 for the better one, 0 for a tie"
        return found or row.fail(roles["choice"], f"is {value!r}", hint + self._in_words())

    def _in_words(self) -> str:
        means = ", ".join(f"{value} = {choice}" for value, choice in self.columns.means.items())
        return f" (--choice says {means})" if means else ""

    def settled(self, sample: Sequence[Fields]) -> None:
        """Refuse choices of which the first rows say 0 and 1 alone, since published sets differ in what those mean."""
        if self.columns.means:
            return
        rows = [(self.roles(fields), fields) for fields in sample]
        values = {str(fields[roles["choice"]]) for roles, fields in rows if {"choice", "first"} <= roles.keys()}
        if values and values <= {"0", "1", "0.0", "1.0", "True", "False"}:
            name = next(roles["choice"] for roles, _ in rows if "choice" in roles)
            raise DataError(
                f'"{name}" holds {" and ".join(sorted(values))} alone, and sets differ in which answer that means',
                hint="look at a row and say it: --choice first=0,second=1 or first=1,second=0, and tie=VALUE",
            )


def _apart(row: InputRow, texts: Sequence[TextOrTurns], name: str, other: str) -> None:
    if texts[0] == texts[1]:
        row.fail(name, f"is the same as {other}", "remove the row: it says nothing")


def _singly(row: InputRow, roles: Roles) -> dict[str, Any]:
    """Return what a row says of its one answer: a label, a rating, both, or nothing."""
    label, rating = (roles.get(role, "") for role in ("label", "rating"))
    found: dict[str, Any] = {"labels": (row.truth(label, row.get(label)),)} if label in row else {}
    return found | ({"ratings": (row.figure(rating, row.get(rating)),)} if rating in row else {})


def named_table(columns: Columns | None = None) -> Format:
    """Return the format of a plain table: by the usual names of its columns, or by those that the user says.

    Named columns alone count: where only the prompts' is named, all others are kept beside the prompts.
    """
    reads = _Table(columns or Columns())
    needed = frozenset(filter(None, (reads.columns.prompt, *reads.columns.named.values())))
    return Format(
        "plain",
        "a plain table",
        needed,
        reads.why,
        row_by_row(reads.read, reads.used),
        None,
        used=reads.used,
        settled=reads.settled,
    )


PLAIN = named_table()
