"""Images of a task that are files of the project's folder: which they are, where a page finds them, what they hold.

Nothing is fetched from elsewhere, and nothing else of the folder is given away: hidden files, what a link leads to
outside of it, and files that only call themselves images are not there.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote

#: Where pages find them.
PICTURES = "/pictures/"
# How a file of each type begins. SVG is none of them: it is a program as much as a picture.
_BEGINNINGS = {
    ".png": ("image/png", b"\x89PNG\r\n\x1a\n"),
    ".jpg": ("image/jpeg", b"\xff\xd8\xff"),
    ".jpeg": ("image/jpeg", b"\xff\xd8\xff"),
    ".gif": ("image/gif", b"GIF8"),
    ".webp": ("image/webp", b"RIFF"),
}
_LARGEST = 20_000_000  # bytes


def picture_url(folder: Path | None, address: str) -> str | None:
    """Return where a page finds the image at a relative address; None where there is none to show."""
    name = unquote(address)
    return PICTURES + quote(name.removeprefix("./")) if folder is not None and picture_file(folder, name) else None


def picture_file(folder: Path, name: str) -> tuple[Path, str] | None:
    """Return the file of this name in the folder, and its media type; None for all that is not an image of its own."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or "\\" in name or "\0" in name or ":" in parts[0]:
        return None
    if any(part.startswith(".") for part in parts) or Path(name).suffix.lower() not in _BEGINNINGS:
        return None
    media_type, beginning = _BEGINNINGS[Path(name).suffix.lower()]
    try:
        path, root = (folder / name).resolve(strict=True), folder.resolve(strict=True)
        is_ours = path.is_relative_to(root) and path.is_file() and path.stat().st_size <= _LARGEST
        with path.open("rb") as file:
            return (path, media_type) if is_ours and file.read(len(beginning)) == beginning else None
    except (OSError, ValueError):
        return None
