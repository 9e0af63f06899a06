"""Tokenizers of somebody else's that may end or fill the process they are read in: tried in one of their own first.

What is made of few, known parts needs no trial: it makes of a text about as much as there is, in about as much time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from accord.errors import DataError
from accord.files import read_json, sha256_file
from accord.isolated import OutOfBounds, work_apart

TRIED_MEGABYTES = 2048  # to read 256 MB of JSON; the largest known take 400
TRIED_SECONDS = 20  # of the processor, for reading it and for all texts of the trial together (large ones: 3)
MOST_GROWTH = 32  # characters that normalizers or decoders make of one
MOST_PIECE = 1000  # characters of a piece that a Unigram model looks for at each place
MOST_WORD = 1000  # characters of a word that WordPiece looks through again and again
LENGTH = 3000  # characters of a text of the trial: what takes the square of its length shows there, and all worse

# How published families cut texts; of any other pattern it is tried how long it takes.
_TAILS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_HEADS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_PATTERNS = frozenset(
    (
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        _HEADS + r"\p{N}{1,3}" + _TAILS,
        _HEADS + r"\p{N}" + _TAILS,
        *("[0-9][0-9][0-9]", "[0-9]", r"\d{1,3}", r"\p{N}{1,3}", r"\p{N}", r"\s+", " {2,}", r"[\r\n]"),
    )
)
_PLAIN = {
    "normalizer": {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents", "BertNormalizer", "Nmt"},
    "pre_tokenizer": {
        *("ByteLevel", "Whitespace", "WhitespaceSplit", "BertPreTokenizer", "Metaspace", "Digits", "Punctuation"),
        *("UnicodeScripts", "CharDelimiterSplit"),
    },
    "decoder": {"ByteLevel", "WordPiece", "BPEDecoder", "Metaspace", "ByteFallback", "Fuse"},
}


def require_bounded(path: Path) -> None:
    """Refuse a `tokenizer.json` that fills the memory, takes for ever or ends the process, on texts of a few thousand
    characters.

    Raises DataError.
    """
    raw = read_json(path)
    if not isinstance(raw, dict):
        return  # the library has words for it
    _require_short_pieces(raw.get("model"), path)
    if not needs_no_trial(raw):
        _try(path, sha256_file(path))


def _require_short_pieces(model: Any, path: Path) -> None:
    vocab = model.get("vocab") if isinstance(model, dict) and model.get("type") == "Unigram" else None
    pieces = [piece[0] for piece in vocab if isinstance(piece, list) and piece] if isinstance(vocab, list) else []
    if (longest := max((len(piece) for piece in pieces if isinstance(piece, str)), default=0)) > MOST_PIECE:
        what = f"a piece of the vocabulary has {longest:,} characters, more than {MOST_PIECE:,}"
        raise DataError(what, where=str(path), why="the library looks for one so long at each place of a text")


def needs_no_trial(raw: Mapping[str, Any]) -> bool:
    """Return whether a tokenizer is made of parts alone that need no trial."""
    model = raw.get("model")
    if not isinstance(model, dict):
        return False
    for place, names in _PLAIN.items():
        parts = list(_parts(raw.get(place)))
        if len(parts) > 64 or _growth(parts) > MOST_GROWTH:
            return False
        if not all(part.get("type") in names or _is_harmless(part) for part in parts):
            return False
    word = model.get("max_input_chars_per_word", 0)
    return isinstance(word, int) and word <= MOST_WORD


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """Yield the parts of a normalizer, a pre-tokenizer or a decoder that are no sequence of others."""
    if isinstance(part, dict) and part.get("type") == "Sequence":
        for name in ("normalizers", "pretokenizers", "decoders"):
            for inner in part.get(name) or ():
                yield from _parts(inner)
    elif part is not None:
        yield part if isinstance(part, dict) else {}


def _is_harmless(part: Mapping[str, Any]) -> bool:
    match part.get("type"), part.get("pattern"):
        case "Prepend", _:
            return True  # as its growth is looked at
        case "Strip", _:
            return all(isinstance(part.get(name), int) and part[name] <= 16 for name in ("start", "stop"))
        case (("Split" | "Replace"), {"String": str(text)}):
            return bool(text)
        case (("Split" | "Replace"), {"Regex": str(pattern)}):
            return pattern in _PATTERNS
    return False


def _growth(parts: list[dict[str, Any]]) -> float:
    """Return how many characters come of one at most."""
    growth = 1.0
    for part in parts:
        pattern = part.get("pattern")
        taken = len(str(pattern.get("String", "x"))) if isinstance(pattern, dict) else 1
        put = len(str(part.get("content", ""))) if part.get("type") == "Replace" else len(str(part.get("prepend", "")))
        growth *= max(1.0, put / max(1, taken))
    return growth


@lru_cache(maxsize=256)
def _try(path: Path, content: str) -> None:
    try:
        work_apart(
            f"{__name__}:try_out", str(path), library="tokenizers", megabytes=TRIED_MEGABYTES, seconds=TRIED_SECONDS
        )
    except OutOfBounds as error:
        raise DataError(
            f"the tokenizer cannot be used within bounds: {error}",
            where=str(path),
            why=f"tried on texts of {LENGTH:,} characters, in a process of its own; it is damaged, or made to be",
            hint="copy the folder again, whole",
        ) from error


def try_out(path: str) -> None:
    """Encode and decode texts made of the characters that a tokenizer's patterns name; in a process of its own.

    What the library tells by an error ends the trial: who reads or uses the tokenizer is told of it there.
    """
    import tokenizers

    with _told():
        inner = tokenizers.Tokenizer.from_file(path)
        inner.no_padding()
        inner.no_truncation()
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
        for text in _texts({name: raw.get(name) for name in _PLAIN}):
            with _told():
                inner.decode(inner.encode(text, add_special_tokens=False).ids)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except BaseException as error:
        # What a library in Rust panics at is no `Exception`; each use of a tokenizer turns it into an error of ours.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise


def _texts(parts: Any) -> Iterator[str]:
    letters = [*dict.fromkeys([*"aA1 \t\n'._", "\u00e9", "\u4e2d", *json.dumps(parts, ensure_ascii=False)])][:80]
    yield "".join(letters) * (LENGTH // len(letters))
    for end in ("", "\0", "!\u00e9"):
        yield from (letter * LENGTH + end for letter in letters)
    # Two in turn are what alternatives within a repeat are slow at.
    yield from ((one + two) * (LENGTH // 2) + "\0" for one, two in pairwise(letters))
