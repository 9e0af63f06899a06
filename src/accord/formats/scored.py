"""A better and a worse answer that carry scores, and who wrote them."""

from __future__ import annotations

from accord.formats.rows import InputRow
from accord.records import Source

#: Under these names published sets keep the scores of a chosen and a rejected answer.
SCORES = (
    *(("score_chosen", "score_rejected"), ("chosen_score", "rejected_score")),
    *(("rating_chosen", "rating_rejected"), ("chosen_rating", "rejected_rating")),
)
#: All columns of scores, which say no more than which is better and by how much.
SCORE_COLUMNS = frozenset(name for two in SCORES for name in two)
#: Who wrote the answers.
MODEL_COLUMNS = ("chosen_model", "rejected_model")


def scored_ranks(row: InputRow) -> tuple[int, int]:
    """Return the ranks of a chosen and a rejected answer: a tie where their scores are equal.

    Raises RowError where the rejected one has the better score: the row contradicts itself.
    """
    for better, worse in SCORES:
        if better in row and worse in row:
            high, low = row.figure(better, row.get(better)), row.figure(worse, row.get(worse))
            if high < low:
                row.fail(worse, f"is {low:g}, more than {better}'s {high:g}", "see which answer is the better one")
            if high == low:
                return (1, 1)
    return (1, 2)


def written_by(row: InputRow, *names: str) -> tuple[Source | None, ...]:
    """Return who wrote each answer, by the columns that name their models; () where a row has none of them."""
    if not any(name in row for name in names):
        return ()
    return tuple(model(row.name(name)) for name in names)


def model(name: str) -> Source | None:
    """Return a model as the source of what it wrote; None where it has no name."""
    return Source(origin="policy", name=name) if name else None
