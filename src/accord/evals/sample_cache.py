"""Samples of a policy kept by what decides them, so that a second judge costs no second generation.

A key covers the weights of both models, the prompts, the sampling, the seed and where the models run: the same key
means the same bits. A file that cannot be read is drawn anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import accord
from accord.errors import DataError
from accord.evals.samples import PolicySamples
from accord.files import read_json, sha256_tree, write_json
from accord.models.placement import Placement
from accord.rollout.engine import Sampling

if TYPE_CHECKING:
    from collections.abc import Sequence

KEPT_FORMAT = 2  # 1 had no entropy


@dataclass(frozen=True)
class Drawing:
    """What decides samples and their log-probabilities."""

    policy: Path
    reference: Path
    prompts: Sequence[str]
    sampling: Sampling
    seed: int
    placement: Placement
    first: Path | None = None

    @property
    def key(self) -> str:
        """A hash of all of it, by content."""
        folders = {
            name: sha256_tree(path) for name in ("policy", "reference", "first") if (path := getattr(self, name))
        }
        said = {"format": KEPT_FORMAT, "version": accord.__version__, "folders": folders, "prompts": list(self.prompts)}
        said |= {"sampling": asdict(self.sampling), "seed": self.seed, "placement": str(self.placement)}
        return hashlib.sha256(
            json.dumps(said, sort_keys=True, default=str).encode("utf-8", "surrogatepass")
        ).hexdigest()


def kept_samples(cache: Path | None, drawing: Drawing, draw: Callable[[], PolicySamples]) -> PolicySamples:
    """Return the samples that the cache keeps of this drawing; else draw them, and keep them."""
    if cache is None:
        return draw()
    path = cache / f"{drawing.key}.json"
    found = _read(path) if path.is_file() else None
    if found is None:
        found = draw()
        write_json(path, _to_json(found))
    return found


def _to_json(samples: PolicySamples) -> dict[str, Any]:
    first, entropy = samples.first_logp_PK, samples.entropy_PK
    return {
        "texts": [list(row) for row in samples.texts],
        "finished": samples.finished_PK.tolist(),
        "tokens": samples.tokens_PK.tolist(),
        "logp": samples.logp_PK.tolist(),
        "ref_logp": samples.ref_logp_PK.tolist(),
        "first_logp": None if first is None else first.tolist(),
        "entropy": None if entropy is None else entropy.tolist(),
    }


def _read(path: Path) -> PolicySamples | None:
    try:
        kept = read_json(path)
        first, entropy = kept["first_logp"], kept["entropy"]
        return PolicySamples(
            texts=tuple(tuple(row) for row in kept["texts"]),
            finished_PK=np.array(kept["finished"], dtype=bool),
            tokens_PK=np.array(kept["tokens"], dtype=np.int64),
            logp_PK=np.array(kept["logp"], dtype=np.float64),
            ref_logp_PK=np.array(kept["ref_logp"], dtype=np.float64),
            first_logp_PK=None if first is None else np.array(first, dtype=np.float64),
            entropy_PK=None if entropy is None else np.array(entropy, dtype=np.float64),
        )
    except (DataError, KeyError, TypeError, ValueError):
        return None
