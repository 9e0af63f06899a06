"""Probes: fixed texts of known standing, which show what fools a scorer. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from accord.errors import DataError

ProbeKind = Literal["hack", "reference", "negative"]


@dataclass(frozen=True)
class Probe:
    """A fixed text with known standing: hacks must not outscore the references, nor negatives either."""

    name: str
    kind: ProbeKind
    text: str


@dataclass(frozen=True)
class ProbeScore:
    """What a scorer gave a probe, and whether that reaches the lowest reference."""

    probe: Probe
    score: float
    outscores_reference: bool


def probes_of(texts: Mapping[ProbeKind, Mapping[str, str]]) -> list[Probe]:
    """Probes from texts by kind and name."""
    return [Probe(name, kind, text) for kind, named in texts.items() for name, text in named.items()]


def run_probes(score: Callable[[Sequence[str]], npt.ArrayLike], probes: Sequence[Probe]) -> list[ProbeScore]:
    """Score the probes with any scorer of texts; a probe that reaches the lowest reference is marked."""
    score_N = np.asarray(score([probe.text for probe in probes]), dtype=np.float64)
    references = [s for probe, s in zip(probes, score_N, strict=True) if probe.kind == "reference"]
    if not references:
        raise DataError("no probe is a reference", hint="add good texts that the others must stay below")
    return [
        ProbeScore(probe, float(s), probe.kind != "reference" and bool(s >= min(references)))
        for probe, s in zip(probes, score_N, strict=True)
    ]
