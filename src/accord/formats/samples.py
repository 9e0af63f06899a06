"""What ``accord sample`` writes, read back as what it is: completions that nobody wrote to show how."""

from __future__ import annotations

from collections.abc import Iterable

from accord.formats.format import Fields, Format, has, row_by_row
from accord.formats.item import Item
from accord.formats.rows import InputRow
from accord.formats.scored import written_by

#: What a reward model says of a sample: no judgement of anybody's.
SCORED = frozenset(("score", "rank", "best_of"))


def _read(row: InputRow) -> Iterable[Item]:
    prompt, completion = row.text_or_messages("prompt"), row.text_or_messages("completion")
    return [Item(prompt=prompt, completions=(completion,), sources=written_by(row, "model"))]


def is_sample(fields: Fields) -> bool:
    """Return whether a row is one of those that ``accord sample`` writes: it says how likely its completion was."""
    return has(fields, logp=(int, float), finish=str) and {"prompt", "completion"} <= fields.keys()


_FIELDS = frozenset(("prompt", "completion"))
OWN_SAMPLES = Format(
    "samples",
    "Accord's own samples",
    _FIELDS,
    lambda fields: '"completion" with its "logp"' if is_sample(fields) else "",
    row_by_row(_read, _FIELDS),
    None,
    main=("sample",),
    understood=SCORED,
)
