"""Anthropic's HH dialogues (Bai et al. 2022) and its red-team transcripts.

``{"chosen": "\\n\\nHuman: ..\\n\\nAssistant: ..", "rejected": ".."}``: both begin alike. The prompt ends at the last
``\\n\\nAssistant:`` of what they share; the completion is all behind it, marks in it included, without the one space
that follows a mark. A prompt is cut into messages at its marks. The format cannot quote its marks: a dialogue that
would be read otherwise than it was meant is not written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from accord.formats.format import Fields, Format, has, item_by_item, row_by_row
from accord.formats.item import Item, Turns, cannot, chosen_rejected, common_length, plain_turns, reply_of, turns_of
from accord.formats.rows import InputRow

_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_MARK = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_MARKS = {"user": _HUMAN, "assistant": _ASSISTANT}


def _cut(dialogue: str) -> Turns:
    """Return the messages of a dialogue.

    A text before its first mark is lost, so callers look for a mark at its start.
    """
    _, *pieces = _MARK.split(dialogue)
    said = zip(pieces[::2], pieces[1::2], strict=True)
    return tuple({"role": _ROLES[who], "content": text.removeprefix(" ")} for who, text in said)


def _split(chosen: str, rejected: str) -> tuple[Turns, str, str] | None:
    """Return prompt and both completions; None where the dialogues share no turn of the assistant's."""
    # The longest common beginning, cut back to the assistant's last mark: two completions may begin with the same
    # words.
    at = chosen.rfind(_ASSISTANT, 0, common_length(chosen, rejected))
    if at < 0:
        return None
    behind = at + len(_ASSISTANT)
    return _cut(chosen[:at]), chosen[behind:].removeprefix(" "), rejected[behind:].removeprefix(" ")


def _read(row: InputRow) -> Iterable[Item]:
    chosen, rejected = row.text("chosen"), row.text("rejected")
    for name, dialogue in (("chosen", chosen), ("rejected", rejected)):
        if not dialogue.startswith(_HUMAN):
            row.fail(name, 'does not begin with "\\n\\nHuman:"', "begin the dialogue with what the human said")
    found = _split(chosen, rejected)
    if found is None:
        row.fail("rejected", "shares no Assistant: turn with chosen", "begin both with the same words of the human's")
    prompt, better, worse = found
    # Such pairs stand in the published files.
    if better == worse:
        row.fail("rejected", "is the same as chosen", "remove the row: it says nothing")
    return [Item(prompt=prompt, completions=(better, worse), ranks=(1, 2))]


def _write(item: Item) -> Iterable[Fields]:
    for pair in chosen_rejected(item):
        prompt = tuple(plain_turns(turns_of(item.prompt)))
        better, worse = map(reply_of, pair)
        if not all(turn["role"] in _MARKS for turn in prompt):
            cannot("HH knows user and assistant only")
        asked = "".join(f"{_MARKS[turn['role']]} {turn['content']}" for turn in prompt) + _ASSISTANT
        row = {"chosen": f"{asked} {better}", "rejected": f"{asked} {worse}"}
        # Read back before it is written: the format cannot quote its marks.
        if not asked.startswith(_HUMAN) or _split(row["chosen"], row["rejected"]) != (prompt, better, worse):
            cannot("the dialogue would be read otherwise: it holds HH's marks, or does not begin with the user")
        yield row


def dialogue_turns(row: InputRow, field: str) -> Turns:
    """Return a column that holds a dialogue with HH's marks as messages, without an answer that is still to be given.

    Raises RowError where it does not begin with one of them.
    """
    text = row.text(field)
    if not text.startswith((_HUMAN, _ASSISTANT)):
        row.fail(field, 'does not begin with "\\n\\nHuman:"', "begin the dialogue with what the human said")
    turns = _cut(text)
    return turns[:-1] if turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip() else turns


def is_dialogue(text: object) -> bool:
    """Return whether a text begins as HH's dialogues do."""
    return isinstance(text, str) and text.startswith(_HUMAN)


def _why(fields: Fields) -> str:
    found = "prompt" not in fields and is_dialogue(fields.get("chosen")) and is_dialogue(fields.get("rejected"))
    return '"chosen" and "rejected" are dialogues that begin with "\\n\\nHuman:"' if found else ""


def _read_red_team(row: InputRow) -> Iterable[Item]:
    """Return a transcript as an unjudged sample.

    Its ``rating`` says how well the attack went, not how good the answer is.
    """
    transcript = row.text("transcript")
    if not transcript.startswith(_HUMAN):
        row.fail("transcript", 'does not begin with "\\n\\nHuman:"', "begin with what the human said")
    turns = _cut(transcript)
    answered = turns[-1]["role"] == "assistant"
    return [Item(prompt=turns[:-1], completions=(turns[-1]["content"],)) if answered else Item(prompt=turns)]


def _red_team_why(fields: Fields) -> str:
    found = has(fields, transcript=str) and "red_team_member_id" in fields
    return '"transcript" and "red_team_member_id"' if found else ""


_FIELDS, _TRANSCRIPT = frozenset(("chosen", "rejected")), frozenset(("transcript",))
HH = Format("hh", "Anthropic HH", _FIELDS, _why, row_by_row(_read, _FIELDS), item_by_item(_write))
HH_RED_TEAM = Format(
    "hh-redteam",
    "Anthropic HH, red team",
    _TRANSCRIPT,
    _red_team_why,
    row_by_row(_read_red_team, _TRANSCRIPT),
    None,
    main=("sample",),
    understood=frozenset(
        ("rating", "min_harmlessness_score_transcript", "task_description_harmlessness_score", "task_description")
    ),
)
