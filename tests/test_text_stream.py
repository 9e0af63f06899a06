"""Text as tokens come: whatever the tokens, the text is that of the whole, cut where a stop string ends first."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders

from accord.serve.text_stream import TextStream, first_stop, may_begin
from accord.text.tokenizer import Tokenizer


def bytes_decoder(ids: Sequence[int]) -> str:
    """Tokens are bytes: the hardest case, every character of several of them is split."""
    return bytes(ids).decode("utf-8", "replace")


def streamed(
    ids: Sequence[int], stops: Sequence[str] = (), sizes: Sequence[int] = (1,)
) -> tuple[list[str], TextStream]:
    stream, pieces, at, turn = TextStream(bytes_decoder, stops), [], 0, 0
    while at < len(ids):
        size = sizes[turn % len(sizes)]
        pieces.append(stream.feed(ids[at : at + size]))
        at, turn = at + size, turn + 1
    return [*pieces, stream.end()], stream


def cut_by_hand(text: str, stops: Sequence[str]) -> str:
    """What is left of a text that is read letter by letter until it ends with a stop string, the longest of them."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


LETTERS = st.text(alphabet="abé漢😀\u2028\ufffd", max_size=12)


@given(
    LETTERS,
    st.lists(st.text(alphabet="abé漢😀", min_size=1, max_size=3), max_size=3),
    st.lists(st.integers(1, 4), min_size=1),
)
def test_the_text_is_that_of_the_whole_cut_where_a_stop_string_is_whole_first(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    pieces, stream = streamed([*text.encode()], stops, sizes)
    assert "".join(pieces) == cut_by_hand(text, stops)
    assert stream.stopped == any(stop in text for stop in stops)
    assert all(may_begin(piece, []) == 0 for piece in pieces)


@given(st.lists(st.integers(0, 255), max_size=12))
def test_bytes_that_are_no_text_come_as_decoding_the_whole_gives_them(ids: list[int]) -> None:
    assert "".join(streamed(ids)[0]) == bytes_decoder(ids)


@given(LETTERS)
def test_no_piece_ends_within_a_character(text: str) -> None:
    pieces, _ = streamed([*text.encode()])
    assert all(piece.replace("\ufffd", "") in text for piece in pieces)
    assert "".join(pieces).count("\ufffd") == text.count("\ufffd")


def test_what_may_begin_a_stop_string_waits_and_comes_if_it_was_none() -> None:
    assert streamed(b"one EN two", ["END"])[0] == ["o", "n", "e", " ", "", "", "EN ", "t", "w", "o", ""]
    assert streamed(b"one END two", ["END"])[0] == ["o", "n", "e", " ", "", "", "", "", "", "", "", ""]
    assert streamed(b"one E", ["END"])[0] == ["o", "n", "e", " ", "", "E"]


def test_the_stop_string_that_is_whole_first_counts() -> None:
    assert first_stop("abcd", ["abcd", "bc"]) == 1  # "bc" ends first, though "abcd" begins first
    assert first_stop("abc", ["c", "abc"]) == 0  # both end here: the longer one is left out whole
    assert first_stop("abc", ["x"]) is None
    assert may_begin("xxab", ["abc", "bd"]) == 2
    assert may_begin("xxa", ["b"]) == 0


def test_tokens_are_released_with_the_text_they_end() -> None:
    stream = TextStream(bytes_decoder, ["END"])
    counts = [(stream.feed([byte]), stream.released) for byte in "é EN.".encode()]
    # half of é; é; space; E; N wait; the point lets them out
    assert counts == [("", 0), ("é", 2), (" ", 3), ("", 3), ("", 3), ("EN.", 6)]
    _, cut = streamed(b"ab END", ["END"])
    assert cut.released == 3
    _, at_once = streamed(b"END", ["END"])
    assert at_once.released == 0


@pytest.mark.parametrize("text", ["The old fog", " spaces  kept ", "é漢😀 mixed", ""])
def test_with_tokenizers_that_treat_the_first_word_apart(text: str) -> None:
    """Sentencepiece style: a word's space stands in its token, and the first one's is taken off when decoding."""
    from tokenizers import models, pre_tokenizers

    letters = {letter: i for i, letter in enumerate(dict.fromkeys("▁" + "".join(sorted(set(text + "abc ")))))}
    inner = tokenizers.Tokenizer(models.BPE(vocab={**letters, "<unk>": len(letters)}, merges=[], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    ids = inner.encode(text).ids
    stream = TextStream(lambda some: inner.decode(list(some)))
    assert "".join([*(stream.feed([one]) for one in ids), stream.end()]) == inner.decode(ids)


def test_bytes_of_tokens(words: Tokenizer) -> None:
    text = "fog é 漢 😀"
    ids = words.encode(text)
    each = [words.token_bytes(one) for one in ids]
    assert bytes(byte for one in each for byte in one or ()) == text.encode()
    assert words.token_bytes(words.end_id) == [*b"<|end|>"]
