"""People's judgements as a file: what `accord export` writes and the manager's page hands out."""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from accord import formats
from accord.errors import DataError
from accord.people.quality import quality_weights
from accord.people.views import training_view
from accord.store import Store


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
) -> formats.Manifest:
    """Write what a store holds as training wants it; the manifest says what was left out, and every weight.

    Args:
        simulated, ai: Also take what simulated annotators said, and AI feedback.
        as_said: Every judgement that stands, unweighted.
        kinds, messages: As `accord.formats.write` has them.

    Raises:
        DataError: There is nothing to write; why says what was left out.
        UsageError: There is no such format, or it can only be read.
    """
    left_out: dict[str, int] = {}
    view, said = (formats.as_said, {}) if as_said else _weighed(store, simulated, ai, left_out)
    filters = {"judgements": said or "as said"}
    try:
        items = formats.from_facts(store, view)
        return formats.write_items(path, items, format, kinds=kinds, messages=messages, filters=filters)
    except DataError as error:
        listed = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        why = f"left out: {listed}" if listed else error.why
        raise DataError(error.what, where=error.where, why=why, hint=error.hint) from error


def _weighed(store: Store, simulated: bool, ai: bool, left_out: dict[str, int]) -> tuple[formats.View, dict[str, Any]]:
    """Return judgements as training weighs them, and the manifest's words; ``left_out`` is filled while items pass."""
    weights = quality_weights(store)
    names = {annotator.id: annotator.name for annotator in store.annotators()}
    said = {"weights": {names[id_]: round(weight, 4) for id_, weight in weights.items()}, "left_out": left_out}
    return training_view(store, weights=weights, simulated=simulated, ai=ai, left_out=left_out), said


def zipped(store: Store, folder: Path, format: str) -> Path:
    """Write a zip in ``folder`` with the file of `write_judgements` in a built-in format, and its manifest."""
    path = folder / f"{format}{formats.suffix_of(format)}"
    try:
        write_judgements(store, path, format)
    except DataError as error:  # where the server keeps the file for a moment is nobody's business
        raise DataError(error.what, why=error.why, hint=error.hint) from error
    made = folder / f"{format}.zip"
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in (path, formats.manifest_path(path)):
            archive.write(file, file.name)
    return made
