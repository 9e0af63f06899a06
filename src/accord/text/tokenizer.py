"""Tokenizers in Hugging Face's file layout, by the `tokenizers` library: read, written again, or trained here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from accord.errors import DataError
from accord.files import read_json, write_bytes
from accord.text.template import ChatTemplate, Span
from accord.text.tokenizer_trial import require_bounded

# Two tokens: with one for both, loss masks hide the end and the model never learns to stop.
END, PAD = "<|end|>", "<|pad|>"
FILES = ("tokenizer.json", "tokenizer_config.json")
TEMPLATE = "chat_template.jinja"
#: What else belongs to a tokenizer in a folder: kept as it is.
OTHER_FILES = ("special_tokens_map.json", "added_tokens.json", TEMPLATE, "chat_templates/*.jinja")
GENERATION, MODEL = "generation_config.json", "config.json"
# Texts to read a completion behind, none of which ends in a word that it could be a part of.
_BEFORE = ("\n", ".", "x", "(")
SPECIAL_TOKEN_KEYS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Sayings:
    """What a model's files say beyond its tokenizer's own: written again as it was read.

    ``bos_id`` is what `config.json` names as the first token of a text. ``generation`` is `generation_config.json`,
    without the ids: top_p, repetition_penalty and the like, which other engines sample by.
    """

    bos_id: int | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)


def _bytes_by_letter() -> dict[str, int]:
    """Return the byte that each letter of a byte-level vocabulary stands for.

    Of bytes that are printable Latin-1 their own character, of the others one from 256 on (GPT-2's table).
    """
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTES = _bytes_by_letter()


class Tokenizer:
    """Text to ids and back.

    ``end_id`` closes a completion: the token with which the chat template ends an assistant's turn, else the
    tokenizer's own end token. ``stop_ids`` are all that end a completion when sampling, ``end_id`` first. ``pad_id``
    fills a batch and is never the same as ``end_id`` in tokenizers trained here (with one id for both, the end would be
    masked and never learnt). ``chat`` is the chat template, None where the folder has none. ``vocab_size`` is how many
    rows a model needs for its ids: the highest and one, whatever holes lie below. ``first_ids`` begin a text that the
    template did not make: the BOS that many models never saw a text without.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        stop_ids: tuple[int, ...],
        pad_id: int,
        files: Mapping[str, bytes],
        chat: ChatTemplate | None = None,
        sayings: Sayings = Sayings(),
        first_ids: tuple[int, ...] = (),
    ) -> None:
        self._inner, self._files, self.first_ids = inner, files, first_ids
        self.end_id, self.stop_ids, self.pad_id, self.chat = stop_ids[0], stop_ids, pad_id, chat
        self.sayings = sayings
        self.vocab_size: int = 1 + max(inner.get_vocab(with_added_tokens=True).values(), default=-1)

    def encode(self, text: str) -> list[int]:
        """Return ids of the text, without any special token added. Those written in the text are single ids."""
        return self.encode_batch([text])[0]

    def encode_prompt(self, prompt: str) -> list[int]:
        """Return ids of a prompt that is to be continued, behind the tokens that the tokenizer begins a text with.

        What the chat template rendered begins as the template says, and what begins with these tokens keeps them once.
        """
        return self.encode_prompts([prompt])[0]

    def encode_prompts(self, prompts: Iterable[str]) -> list[list[int]]:
        """Return `encode_prompt` of each, or of whole texts that nothing precedes."""
        texts = list(prompts)
        return [self._begun(text, ids) for text, ids in zip(texts, self.encode_batch(texts), strict=True)]

    def _begun(self, text: str, ids: list[int]) -> list[int]:
        first = list(self.first_ids)
        if ids[: len(first)] == first or (self.chat is not None and self.chat.wrote(text)):
            return ids
        return first + ids

    def encode_pair(self, prompt: str, completion: str) -> tuple[list[int], list[int]]:
        """Return ids of a prompt as `encode_prompt` gives them, and of what follows it, as a model writes it there.

        Many tokenizers (those with SentencePiece's "▁") begin every text with a space: by itself a completion would get
        one that is not in it.
        """
        said = self.encode(prompt)
        head = self._begun(prompt, said)
        if self._joins:
            return head, self.encode(completion)
        whole = head[: len(head) - len(said)] + self.encode(prompt + completion)
        if whole[: len(head)] == head:
            return head, whole[len(head) :]
        # A word that begins in the prompt: the model goes on from the prompt's own tokens, so their cut stands, and the
        # completion is read behind some other text, as a part of which it begins no new word.
        wanted = self.spelled(whole)
        for before in _BEFORE:
            start = self.encode(before)
            tail = self.encode(before + completion)
            if tail[: len(start)] == start and self.spelled(head + tail[len(start) :]) == wanted:
                return head, tail[len(start) :]
        return head, self.encode(completion)

    @cached_property
    def _joins(self) -> bool:
        """Whether pieces encoded apart are the text they are pieces of: so for byte-level tokenizers."""
        return self.spelled(2 * self.encode("x")) == "xx" and self.spelled(self.encode(" x")) == " x"

    def encode_spans(self, text: str) -> tuple[list[int], list[Span]]:
        """Return ids of the text, and the characters that each of them stands for."""
        (found,) = self._encoded([text])
        return found.ids, found.offsets

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        return [found.ids for found in self._encoded(list(texts))]

    def _encoded(self, texts: list[str]) -> list[Any]:
        try:
            with _no_panic():
                if len(texts) == 1:  # the same ids without the threads
                    return [self._inner.encode(texts[0], add_special_tokens=False)]
                return list(self._inner.encode_batch(texts, add_special_tokens=False))
        except DataError:
            raise
        except Exception as error:  # the library raises nothing narrower
            raise DataError(
                f"the tokenizer cannot encode a text ({str(error)[:300]})",
                where=f"text {texts[0][:40]!r}" if texts else "",
                hint="copy the tokenizer again, whole",
            ) from error

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the ids; special tokens are left out."""
        return self._decoded(ids, skip=True)

    def decode_after(self, prompt: Sequence[int], completion: Sequence[int]) -> str:
        """Return the text that a completion adds to its prompt; special tokens are left out."""
        if self._joins:
            return self.decode(completion)
        # By itself a text loses the space that it begins with, and the word would be glued to the prompt's last.
        head, whole = self.decode(prompt), self.decode([*prompt, *completion])
        return whole[len(head) :] if whole.startswith(head) else self.decode(completion)

    def spelled(self, ids: Iterable[int]) -> str:
        """Return the text of the ids with its special tokens, as a model reads it."""
        return self._decoded(ids, skip=False)

    def _decoded(self, ids: Iterable[int], *, skip: bool) -> str:
        with _no_panic():
            text: str = self._inner.decode(list(ids), skip_special_tokens=skip)
        return text

    def token_bytes(self, token: int) -> list[int] | None:
        """Return the bytes that one token stands for, which may be part of a character; None where that is unknown."""
        name = self._inner.id_to_token(token) or ""
        if isinstance(self._inner.decoder, decoders.ByteLevel) and all(letter in BYTES for letter in name):
            return [BYTES[letter] for letter in name]
        if found := re.fullmatch("<0x([0-9A-F]{2})>", name):  # of tokenizers that fall back to bytes
            return [int(found[1], 16)]
        text = self.spelled([token])
        return None if "\ufffd" in text else [*text.encode()]

    def padding_apart(self) -> tuple[int, str] | None:
        """Return a special token other than the end token to pad with: the padding token itself where it is one.

        None where the end token is the only special token.
        """
        special = {i: token.content for i, token in self._inner.get_added_tokens_decoder().items() if token.special}
        apart = [i for i in (self.pad_id, *sorted(special)) if i != self.end_id and i in special]
        return (apart[0], special[apart[0]]) if apart else None

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files as `transformers` reads them: those it was read from, byte for byte.

        The stop ids stand in the model's ``generation_config.json``, which is not the tokenizer's to write.
        """
        # As they were read: what the library writes for the same tokenizer may differ in form, and policy and reward
        # model would seem to have different ones.
        for name, data in self._files.items():
            write_bytes(folder / name, data)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE (Sennrich 2016, on bytes as in GPT-2): any text in, the same text out."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        # All 256 bytes, seen or not: any text can be encoded.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    end_id, pad_id = inner.token_to_id(END), inner.token_to_id(PAD)
    assert end_id is not None and pad_id is not None
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
    }
    contents = (inner.to_str(pretty=True), json.dumps(settings, indent=2) + "\n")
    return Tokenizer(inner, (end_id,), pad_id, dict(zip(FILES, map(str.encode, contents), strict=True)))


@contextmanager
def _no_panic() -> Iterator[None]:
    """Inside, what a library written in Rust panics at is a DataError: its own class is no `Exception`."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise DataError(
            f"the tokenizer's library gave up ({str(error)[:200]})",
            why="the tokenizer.json is damaged, or made to be",
            hint="copy the folder again, whole",
        ) from None


# -- reading -----------------------------------------------------------------------------------------------------------


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read a tokenizer from a Hugging Face folder, with its chat template.

    And with the further end tokens of ``generation_config.json``. Raises DataError where a file or the end token is
    missing.
    """
    path = folder / FILES[0]
    if not path.is_file():
        raise DataError(
            "no tokenizer.json in the folder",
            where=str(folder),
            hint="give a Hugging Face model folder with a fast tokenizer",
        )
    require_bounded(path)
    try:
        with _no_panic():
            inner = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"the tokenizer cannot be read ({str(error)[:300]})", where=str(path)) from error
    # Folders keep the padding and truncation of their last use; here batches pad, and texts are cut by whoever knows
    # why.
    inner.no_padding()
    inner.no_truncation()
    settings = _settings(folder)
    _make_special(inner, settings)
    end = _token_id(inner, settings.get("eos_token"))
    if end is None:
        raise DataError(
            "the tokenizer names no end-of-sequence token",
            where=str(folder / FILES[1]),
            why="completions must be able to end",
            hint='add "eos_token": "<the token>" to tokenizer_config.json',
        )
    chat = _chat_template(folder, inner, settings)
    turn_end = inner.token_to_id(chat.turn_end) if chat and chat.turn_end else None
    # The turn's end before the tokenizer's own: every stage closes completions with the first of these, and a policy
    # taught one and stopped by the other would never stop.
    generation, model = (_object(folder / name) for name in (GENERATION, MODEL))
    stops = [*([] if turn_end is None else [turn_end]), end, *_end_ids(folder, generation, model)]
    pad = _token_id(inner, settings.get("pad_token"))
    files = {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for pattern in (*FILES, *OTHER_FILES)
        for file in sorted(folder.glob(pattern))
    }
    sayings = Sayings(_first_id(folder, generation, model), {k: v for k, v in generation.items() if k not in _OURS})
    return Tokenizer(
        inner,
        tuple(dict.fromkeys(stops)),
        stops[0] if pad is None else pad,
        files,
        chat,
        sayings,
        _first_ids(inner),
    )


def _first_ids(inner: tokenizers.Tokenizer) -> tuple[int, ...]:
    """Return the tokens that the tokenizer's post-processor puts before a text.

    ``add_bos_token`` of the settings says nothing beside a `tokenizer.json`: `transformers` 5 reads this alone too.
    """
    try:
        with _no_panic():
            for text in ("x", "1", "a word"):
                found = inner.encode(text)
                if 0 in found.sequence_ids:
                    return tuple(found.ids[: found.sequence_ids.index(0)])
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"the tokenizer cannot encode a text ({str(error)[:300]})") from error
    return ()


def _settings(folder: Path) -> dict[str, Any]:
    """Return `tokenizer_config.json`, and what older folders say in `special_tokens_map.json`."""
    new, old = (_object(folder / name) for name in (FILES[1], OTHER_FILES[0]))
    return {**new} if "added_tokens_decoder" in new else {**new, **old}


def _make_special(inner: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> None:
    """Make special what only the settings call special tokens: one id wherever a text has them."""
    known = {token.content for token in inner.get_added_tokens_decoder().values()}
    for text in _special_texts(settings):
        # Never an entry that is not there: the model has no row for it.
        if text not in known and inner.token_to_id(text) is not None:
            inner.add_special_tokens([AddedToken(text, special=True, normalized=False)])


def _special_texts(settings: Mapping[str, Any]) -> Iterator[str]:
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or ()
    listed = extra.values() if isinstance(extra, dict) else extra if isinstance(extra, list | tuple) else ()
    for token in [*map(settings.get, SPECIAL_TOKEN_KEYS), *listed]:
        if text := _text(token):
            yield text


def _text(token: object) -> str:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _token_id(inner: tokenizers.Tokenizer, token: object) -> int | None:
    text = _text(token)
    found: int | None = inner.token_to_id(text) if text else None
    return found


# What is written anew, or was true of the file alone that it stood in.
_OURS = frozenset(("bos_token_id", "eos_token_id", "pad_token_id", "_from_model_config", "transformers_version"))


def _object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds, {} where there is none."""
    found = read_json(path) if path.exists() else {}
    if not isinstance(found, dict):
        raise DataError("not a JSON object", where=str(path), hint="copy the folder again, whole")
    return found


def _end_ids(folder: Path, generation: Mapping[str, Any], model: Mapping[str, Any]) -> list[int]:
    """Return the end tokens that sampling stops at by the model's files: one, several or none.

    Those of `config.json` count where `generation_config.json` names none, as for `transformers`' generate.
    """
    name, raw = (GENERATION, generation) if generation.get("eos_token_id") is not None else (MODEL, model)
    found = raw.get("eos_token_id")
    ids = [] if found is None else found if isinstance(found, list) else [found]
    return [_id(one, "eos_token_id", folder / name) for one in ids]


def _first_id(folder: Path, generation: Mapping[str, Any], model: Mapping[str, Any]) -> int | None:
    name, raw = (MODEL, model) if "bos_token_id" in model else (GENERATION, generation)
    found = raw.get("bos_token_id")
    return None if found is None else _id(found, "bos_token_id", folder / name)


def _id(value: object, key: str, path: Path) -> int:
    if type(value) is not int or value < 0:
        raise DataError(f"{key} is {value!r}", where=str(path), hint="write a token's id, or a list of them")
    return value


def _chat_template(folder: Path, inner: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> ChatTemplate | None:
    """Return the folder's default template.

    A file of its own, or in `tokenizer_config.json` (alone, or among named ones).
    """
    path, source = folder / FILES[1], settings.get("chat_template")
    if isinstance(source, list):
        source = {row.get("name"): row.get("template") for row in source if isinstance(row, dict)}.get("default")
    if (folder / TEMPLATE).is_file():
        path = folder / TEMPLATE
        try:
            source = path.read_text(encoding="utf-8")
        except ValueError as error:
            raise DataError(f"the template is not UTF-8 ({error})", where=str(path), hint="save as UTF-8") from error
    if source is None:
        return None
    if not isinstance(source, str):
        raise DataError("the chat template is not a text", where=str(path), hint="copy the folder again, whole")
    special = [token.content for token in inner.get_added_tokens_decoder().values() if token.special]
    named = {name: text for name in SPECIAL_TOKEN_KEYS if (text := _text(settings.get(name)))}
    return ChatTemplate(source, named, tuple(special), str(path))


def tokenizer_hash(folder: Path) -> str:
    """Return the canonical text of a tokenizer, to see whether two folders hold the same one."""
    # In one form, so that white space and order of keys make no difference.
    return json.dumps(read_json(folder / FILES[0]), sort_keys=True)
