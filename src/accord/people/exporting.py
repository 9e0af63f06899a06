"""What people said as a file for training: the view that `accord export` and the manager's page share."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from accord import formats
from accord.errors import DataError
from accord.people.quality import quality_weights
from accord.people.views import training_view
from accord.store import Store


def weighed(store: Store, *, simulated: bool, left_out: dict[str, int]) -> tuple[formats.View, dict[str, Any]]:
    """What training makes of judgements, and what the manifest says of it; ``left_out`` is filled while items pass."""
    weights = quality_weights(store)
    names = {annotator.id: annotator.name for annotator in store.annotators()}
    said = {"weights": {names[id_]: round(weight, 4) for id_, weight in weights.items()}, "left_out": left_out}
    return training_view(store, weights=weights, simulated=simulated, left_out=left_out), said


def zipped(store: Store, folder: Path, format: str) -> Path:
    """A zip in ``folder`` with the file in a built-in format and its manifest.

    Raises:
        DataError: There is nothing to write; why says what was left out.
        UsageError: There is no such format, or it can only be read.
    """
    left_out: dict[str, int] = {}
    view, said = weighed(store, simulated=False, left_out=left_out)
    path = folder / f"{format}{formats.suffix_of(format)}"
    try:
        formats.write(path, formats.from_facts(store, view), format, filters={"judgements": said})
    except DataError as error:
        raise DataError(error.what, why=told(left_out) or error.why, mend=error.mend) from error
    made = folder / f"{format}.zip"
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in (path, formats.manifest_path(path)):
            archive.write(file, file.name)
    return made


def told(left_out: dict[str, int]) -> str:
    """What was left out, in words; empty where nothing was."""
    return "left out: " + ", ".join(f"{count} {reason}" for reason, count in left_out.items()) if left_out else ""
