"""What the server counts, in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
#: Name to kind and meaning: what is not here cannot be counted.
COUNTED: Mapping[str, tuple[str, str]] = {
    "accord_requests_total": ("counter", "Requests answered, by route and status."),
    "accord_prompt_tokens_total": ("counter", "Tokens of prompts that were taken in."),
    "accord_prompt_tokens_reused_total": ("counter", "Of these, tokens whose computation was remembered."),
    "accord_completion_tokens_total": ("counter", "Tokens drawn."),
    "accord_completions_total": ("counter", "Completions that ended, by reason."),
    "accord_running": ("gauge", "Completions being written now."),
    "accord_waiting": ("gauge", "Requests that wait for a place."),
    "accord_prefix_tokens": ("gauge", "Tokens whose computation is remembered now."),
    "accord_first_token_seconds": ("histogram", "From a request to its first token."),
    "accord_request_seconds": ("histogram", "From a request to its last token."),
}
LabelPairs = tuple[tuple[str, str], ...]
_V = TypeVar("_V")


@dataclass
class _Histogram:
    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    total: float = 0.0


class Measures:
    """Counters, gauges and histograms, used from any thread. ``now`` gives a gauge its value when it is asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: defaultdict[tuple[str, LabelPairs], float] = defaultdict(float)
        self._histograms: defaultdict[tuple[str, LabelPairs], _Histogram] = defaultdict(_Histogram)
        self._now: dict[tuple[str, LabelPairs], Callable[[], float]] = {}

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        """Add to a counter."""
        with self._lock:
            self._counts[name, _labels(labels)] += by

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Add one duration to a histogram."""
        with self._lock:
            histogram = self._histograms[name, _labels(labels)]
            histogram.counts[bisect_left(SECONDS, seconds)] += 1
            histogram.total += seconds

    def now(self, name: str, value: Callable[[], float], **labels: str) -> None:
        """Say where a gauge, or a counter that somebody else keeps, has its value."""
        with self._lock:
            self._now[name, _labels(labels)] = value

    def text(self) -> str:
        """Return all of them as Prometheus reads them."""
        with self._lock:
            return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        for name, (kind, meaning) in COUNTED.items():
            yield from (f"# HELP {name} {meaning}", f"# TYPE {name} {kind}")
            if kind == "histogram":
                for labels, histogram in _of(self._histograms, name):
                    yield from _histogram_lines(name, labels, histogram)
                continue
            yield from (f"{name}{_shown(labels)} {value:g}" for labels, value in _of(self._counts, name))
            yield from (f"{name}{_shown(labels)} {value():g}" for labels, value in _of(self._now, name))


def _of(held: Mapping[tuple[str, LabelPairs], _V], name: str) -> list[tuple[LabelPairs, _V]]:
    return [(labels, value) for (other, labels), value in sorted(held.items(), key=lambda row: row[0]) if other == name]


def _histogram_lines(name: str, labels: LabelPairs, histogram: _Histogram) -> Iterator[str]:
    seen = 0
    for edge, count in zip((*map(str, SECONDS), "+Inf"), histogram.counts, strict=True):
        seen += count
        yield f"{name}_bucket{_shown((*labels, ('le', edge)))} {seen}"
    yield f"{name}_sum{_shown(labels)} {histogram.total:g}"
    yield f"{name}_count{_shown(labels)} {seen}"


def _labels(labels: Mapping[str, str]) -> LabelPairs:
    return tuple(sorted(labels.items()))


def _shown(labels: LabelPairs) -> str:
    def quoted(value: str) -> str:
        return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")

    return "{" + ",".join(f'{name}="{quoted(value)}"' for name, value in labels) + "}" if labels else ""
