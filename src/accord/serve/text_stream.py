"""Tokens become text as they come: never half a character, and nothing of what a stop string may begin with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

HALF = "\ufffd"  # what decoders write for bytes that are no whole character, or not yet one


@dataclass
class TextStream:
    """The text of one completion. ``stopped`` once a stop string was met; it and what follows are left out.

    The first stop string that is whole ends the text, of those that end at the same character the longest: whatever
    tokens the text comes in. ``released`` counts tokens whose text is out, or cut off.

    Args:
        decode: Ids to text.
        stops: Texts that end it.
    """

    decode: Callable[[Sequence[int]], str]
    stops: Sequence[str] = ()
    stopped: bool = False
    released: int = 0
    _ids: list[int] = field(default_factory=list)
    _read: int = 0  # ids whose text is known
    _context: int = 0  # ids before `_read` from where on they are decoded: some tokenizers treat a first token apart
    _held: str = ""  # known text that is not out yet
    _length: int = 0  # characters known
    _ends: list[int] = field(default_factory=list)  # characters behind each token whose text is known

    def feed(self, ids: Sequence[int]) -> str:
        """Take further tokens and return the text that is certain now."""
        if self.stopped:
            return ""
        self._ids += ids
        before, now = self.decode(self._ids[self._context : self._read]), self.decode(self._ids[self._context :])
        # The rest of a character may come with the next token.
        if now.endswith(HALF):
            return ""
        return self._release(now[len(before) :], whole=False)

    def end(self) -> str:
        """Return what is left once all tokens are there."""
        if self.stopped:
            return ""
        before, now = self.decode(self._ids[self._context : self._read]), self.decode(self._ids[self._context :])
        return self._release(now[len(before) :], whole=True)

    def _release(self, new: str, whole: bool) -> str:
        self._context, self._read = self._read, len(self._ids)
        self._length += len(new)
        self._ends += [self._length] * (self._read - len(self._ends))
        text = self._held + new
        cut = first_stop(text, self.stops)
        if cut is not None:
            self.stopped, self._held = True, ""
            out = text[:cut]
            # A token that the cut goes through still wrote some of the text.
            end = self._length - len(text) + cut
            self.released = sum(behind < end for behind in self._ends) + (end > 0)
            return out
        keep = 0 if whole else may_begin(text, self.stops)
        self._held = text[len(text) - keep :]
        end = self._length - keep
        self.released = len(self._ends) if not keep else sum(behind <= end for behind in self._ends)
        return text[: len(text) - keep]


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Return where the stop string begins that is whole first; None where there is none."""
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return min(found)[1] if found else None


def may_begin(text: str, stops: Sequence[str]) -> int:
    """Return how many of the last characters may be the beginning of a stop string."""
    longest = max(map(len, stops), default=1) - 1
    counts = range(min(longest, len(text)), 0, -1)
    return next((n for n in counts if any(stop.startswith(text[len(text) - n :]) for stop in stops)), 0)
