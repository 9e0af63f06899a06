"""Byte-level BPE in Hugging Face's file layout, by the `tokenizers` library."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from accord.errors import DataError
from accord.files import read_json, write_json

END, PAD = "<|end|>", "<|pad|>"
FILES = ("tokenizer.json", "tokenizer_config.json")


class Tokenizer:
    """Text to ids and back. ``end_id`` closes a text; ``pad_id`` fills a batch and is never the same as ``end_id``
    in tokenizers trained here (with one id for both, the end would be masked and never learnt)."""

    def __init__(self, inner: tokenizers.Tokenizer, end_id: int, pad_id: int) -> None:
        self._inner, self.end_id, self.pad_id = inner, end_id, pad_id
        self.vocab_size: int = inner.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without any special token added."""
        ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        return [e.ids for e in self._inner.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; special tokens are left out."""
        text: str = self._inner.decode(list(ids), skip_special_tokens=True)
        return text

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json`` as `transformers` reads them."""
        self._inner.save(str(folder / FILES[0]))
        token = self._inner.id_to_token
        write_json(
            folder / FILES[1],
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": token(self.end_id),
                "pad_token": token(self.pad_id),
                "clean_up_tokenization_spaces": False,
            },
        )


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE (Sennrich 2016, on bytes as in GPT-2): any text in, the same text out."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    end_id, pad_id = inner.token_to_id(END), inner.token_to_id(PAD)
    assert end_id is not None and pad_id is not None
    return Tokenizer(inner, end_id, pad_id)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read a tokenizer from a Hugging Face folder. Raises DataError where a file or the end token is missing."""
    path = folder / FILES[0]
    if not path.is_file():
        raise DataError(
            "no tokenizer.json in the folder",
            where=str(folder),
            mend="give a Hugging Face model folder with a fast tokenizer",
        )
    try:
        inner = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"the tokenizer cannot be read ({error})", where=str(path)) from error
    inner.no_padding()
    inner.no_truncation()
    settings = read_json(folder / FILES[1]) if (folder / FILES[1]).exists() else {}
    end = _token_id(inner, settings.get("eos_token"))
    if end is None:
        raise DataError(
            "the tokenizer names no end-of-sequence token",
            where=str(folder / FILES[1]),
            why="completions must be able to end",
            mend='add "eos_token": "<the token>" to tokenizer_config.json',
        )
    pad = _token_id(inner, settings.get("pad_token"))
    return Tokenizer(inner, end, end if pad is None else pad)


def _token_id(inner: tokenizers.Tokenizer, token: str | dict[str, str] | None) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    found: int | None = inner.token_to_id(text) if text else None
    return found


def tokenizer_hash(folder: Path) -> str:
    """Canonical text of a tokenizer, to see whether two folders hold the same one."""
    return json.dumps(read_json(folder / FILES[0]), sort_keys=True)
