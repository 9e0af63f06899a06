"""People's judgements as a file: what `accord export` writes and the manager's page hands out."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import select

from accord import formats
from accord.config import LabelConfig
from accord.errors import DataError
from accord.formats.from_store import prompt_columns
from accord.formats.item import prompt_key
from accord.people.admission import Admission, admitted_items, read_admission
from accord.people.desk import Desk
from accord.people.quality import quality_weights
from accord.people.views import training_view
from accord.records import Prompt
from accord.store import Store, schema


def write_judgements(
    store: Store,
    path: Path,
    format: str,
    *,
    simulated: bool = False,
    ai: bool = False,
    as_said: bool = False,
    kinds: Collection[str] = (),
    messages: bool = False,
    spreadsheet_safe: bool = False,
) -> formats.Manifest:
    """Write what a store holds as training wants it; the manifest says what was left out, and every weight.

    Args:
        simulated, ai: Also take what simulated annotators said, and AI feedback.
        as_said: Every judgement that stands, unweighted.
        kinds, messages, spreadsheet_safe: As `accord.formats.write_items` has them.

    Raises:
        DataError: There is nothing to write; why says what was left out.
        UsageError: There is no such format, or it can only be read.
    """
    left_out: dict[str, int] = {}
    users = Admission() if as_said else read_admission(store)
    wanted = {"simulated": simulated, "ai": ai}
    view, said = (formats.as_said, {}) if as_said else _weighed(store, wanted, users, left_out)
    filters = {"judgements": said or "as said"}
    try:
        items = admitted_items(formats.from_facts(store, view), users, left_out=left_out)
        how: dict[str, Any] = {"kinds": kinds, "messages": messages, "spreadsheet_safe": spreadsheet_safe}
        return formats.write_items(path, items, format, **how, filters=filters)
    except DataError as error:
        listed = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        why = f"left out: {listed}" if listed else error.why
        raise DataError(error.what, where=error.where, why=why, hint=error.hint) from error


def _weighed(
    store: Store, wanted: Mapping[str, bool], users: Admission, left_out: dict[str, int]
) -> tuple[formats.View, dict[str, Any]]:
    """Return judgements as training weighs them, and the manifest's words; ``left_out`` is filled while items pass."""
    weights = quality_weights(store)
    names = {annotator.id: annotator.name for annotator in store.annotators()}
    said = {"weights": {names[id_]: round(weight, 4) for id_, weight in weights.items()}, "left_out": left_out}
    return training_view(store, weights=weights, admission=users, left_out=left_out, **wanted), said


class WrittenPrompts(NamedTuple):
    """How many prompts were written, of how many, and about how many of those written nobody was asked yet."""

    taken: int
    there: int
    new: int


def write_prompts(store: Store, path: Path, *, messages: bool, most: int | None = None) -> WrittenPrompts:
    """Write a store's prompts, each conversation once, as rows for the stages; those of which nobody was asked first.

    Args:
        messages: A prompt of text is what a user says: write it as messages.
        most: Write no more than so many.

    Raises:
        DataError: There is none.
    """
    known = _asked_about(store)
    found = {_key(prompt, messages): prompt for prompt in store.prompts() if prompt.text.strip()}
    new = {key: prompt for key, prompt in found.items() if key not in known}
    chosen = [*new.values(), *(prompt for key, prompt in found.items() if key in known)][:most]
    if not chosen:
        raise DataError("the store holds no prompts", where=store.place, hint="`accord import FILE`")
    formats.write_items(path, map(_as_item, chosen), "accord", messages=messages)
    return WrittenPrompts(len(chosen), len(found), min(len(new), len(chosen)))


def _asked_about(store: Store) -> set[str]:
    """The conversations that somebody has ranked, or that wait in the queue."""
    ranked = {ranking.prompt_id for ranking in store.rankings()}
    prompts = [prompt for prompt in store.prompts() if prompt.id in ranked]
    prompts += [task.prompt for task in Desk(store, LabelConfig()).queue.tasks()]
    return {_key(prompt, chat) for prompt in prompts for chat in (True, False)}


def _key(prompt: Prompt, chat: bool) -> str:
    """A prompt's name among others: to a chat model the same question is one, as a text or as a message."""
    return prompt_key(prompt.turns()) if chat else f"{prompt.form} {prompt.text}"


def _as_item(prompt: Prompt) -> formats.Item:
    asked = prompt.text if prompt.form == "text" else tuple(prompt.turns())
    return formats.Item(prompt=asked, topic=prompt.topic, extra=prompt_columns(prompt))


def _is_mixed(store: Store) -> bool:
    """Whether some prompts are texts and some conversations: rows of one shape would lose one kind."""
    with store.snapshot() as connection:
        return len(connection.execute(select(schema.prompts.c.form).distinct()).all()) > 1


def zipped(store: Store, folder: Path, format: str) -> Path:
    """Write a zip in ``folder`` with the file of `write_judgements` in a built-in format, and its manifest."""
    path = folder / f"{format}{formats.suffix_of(format)}"
    try:
        chat = format.startswith("trl-") and _is_mixed(store)
        # Whoever takes a table from a page opens it in a spreadsheet: a stranger's text must not run there.
        write_judgements(store, path, format, messages=chat, spreadsheet_safe=format == "csv")
    except DataError as error:  # where the server keeps the file for a moment is nobody's business
        raise DataError(error.what, why=error.why, hint=error.hint) from error
    made = folder / f"{format}.zip"
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in (path, formats.manifest_path(path)):
            archive.write(file, file.name)
    return made
