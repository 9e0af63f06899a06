"""What is in a file, before anything is done with it."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from accord.formats.item import Item, TextOrTurns
from accord.formats.reading import ReadAs, read_items
from accord.formats.rows import Reject
from accord.formats.table import Detected
from accord.formats.tally import Distinct, ItemTally

EXAMPLES = 3
QUANTILES = (0.05, 0.5, 0.95, 1.0)
_SHOWN = 280  # characters of a text: two lines of a wide terminal


@dataclass(frozen=True)
class Inspection:
    """What `inspect_files` found in one file.

    ``fields`` counts the rows that have each field, by what it holds; ``lengths`` are the `QUANTILES` of the lengths of
    prompts and completions in characters; ``repeated_items`` say word for word what an earlier one said;
    ``repeated_prompts`` are items whose prompt an earlier one had; ``shared_prompts`` are how many different prompts
    each other file has too.
    """

    file: str
    detected: Detected
    rows: int
    rejected: int
    counts: Mapping[str, int]
    kinds: Mapping[str, int]
    judged_by: Mapping[str, int]
    fields: Mapping[str, Mapping[str, int]]
    lengths: Mapping[str, Sequence[int]]
    repeated_items: int
    repeated_prompts: int
    shared_prompts: Mapping[str, int]
    first_rejects: Sequence[str]
    examples: Sequence[str]


class _Looked:
    """One file while it is looked at."""

    def __init__(self, path: Path, format: str | ReadAs | None, limit: int | None) -> None:
        self.rejects: list[Reject] = []
        self.reading = read_items(path, format, on_reject=self._reject, limit=limit)
        self.tally, self.items = ItemTally(), Distinct()
        # 8 bytes a text: a file of ten million has its quantiles in 160 MB.
        self.lengths = {"prompts": array("Q"), "completions": array("Q")}
        self.num_prompts = 0
        self.examples: list[str] = []
        for item in self.reading:
            self._add(item)

    def _reject(self, reject: Reject) -> None:
        if len(self.rejects) < EXAMPLES:
            self.rejects.append(reject)

    def _add(self, item: Item) -> None:
        self.tally.add(item)
        self.items.add(item.prompt, item.completions, item.ranks, item.labels, item.ratings)
        if item.prompt is not None:
            self.num_prompts += 1
            self.lengths["prompts"].append(_length(item.prompt))
        self.lengths["completions"].extend(map(_length, item.completions))
        if len(self.examples) < EXAMPLES:
            self.examples.append(rendered(item))

    def inspection(self, others: Mapping[str, int]) -> Inspection:
        reading, tally = self.reading, self.tally
        return Inspection(
            file=str(reading.path),
            detected=reading.detected,
            rows=reading.num_rows,
            rejected=reading.num_rejected,
            counts=tally.counts(),
            kinds=dict(tally.kinds.most_common()),
            judged_by=dict(tally.judges.most_common()),
            fields={name: dict(held) for name, held in reading.fields.items()},
            lengths={name: _quantiles(values) for name, values in self.lengths.items() if values},
            repeated_items=tally.items - len(self.items),
            repeated_prompts=self.num_prompts - len(tally.prompts),
            shared_prompts=others,
            first_rejects=[str(reject) for reject in self.rejects],
            examples=self.examples,
        )


def inspect_files(
    paths: Iterable[Path], format: str | ReadAs | None = None, *, limit: int | None = None
) -> list[Inspection]:
    """Describe files: their format, what they hold, and which prompts they share.

    Raises:
        DataError: A file cannot be read, or no format fits it.
        UsageError: There is no format of that name.
    """
    looked = [_Looked(path, format, limit) for path in paths]
    return [
        one.inspection({str(o.reading.path): one.tally.prompts.common(o.tally.prompts) for o in looked if o is not one})
        for one in looked
    ]


def _length(text: TextOrTurns) -> int:
    return len(text) if isinstance(text, str) else sum(len(message.get("content") or "") for message in text)


def _quantiles(values: array[int]) -> list[int]:
    """Return quantiles that are values themselves (the next one up), so whole numbers that occur."""
    return [int(value) for value in np.quantile(np.array(values), QUANTILES, method="higher")]


def rendered(item: Item) -> str:
    """Return an item as a person would read it, cut short, without characters that would steer a terminal."""
    lines = [f"[{item.kind}]", *(_turns("prompt", item.prompt) if item.prompt is not None else [])]
    for i, completion in enumerate(item.completions):
        marks = [f"rank {item.ranks[i]:g}" if item.ranks and item.ranks[i] is not None else ""]
        marks.append({True: "good", False: "bad", None: ""}[item.labels[i] if item.labels else None])
        marks.append(f"rated {item.ratings[i]:g}" if item.ratings and item.ratings[i] is not None else "")
        lines += _turns(", ".join(filter(None, marks)) or "completion", completion)
    return "\n".join(map(printable, lines))


def _turns(name: str, text: TextOrTurns) -> list[str]:
    if isinstance(text, str):
        return [f"  {name}: {_shown(text)}"]
    return [f"  {name} ({message['role']}): {_shown(message.get('content') or '')}" for message in text]


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 30]} ... {len(text):,} characters"


def printable(line: str) -> str:
    """Return a line without characters that would steer a terminal."""
    # A text from a stranger's file may hold codes that move the cursor or rename the window.
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
