"""Judges: scorers that evaluate and never train anything. A judge is any `Scorer` of prompts and completions.

`open_judges` makes those that a recipe names. `TextJudge` is one that is fitted: what people would say of a text,
learnt from their mean ratings. It is a ridge regression on TF-IDF (words and pairs of words, runs of 2-5 characters),
fitted to ratings of topics that nothing in the loop has seen, and it does not read the prompt. A
plain one has no sense of length: every text's row has length 1, so in a slogan of two words one carries what twenty
share in a full text, and short exclamations get the highest scores of all.
Three things cure it, each fitted to the judge's own texts:

1. Shrinkage by evidence. A row is divided by sqrt(q + prior * mean q), q = the sum of the squared idf of its terms, so
   a text with little in it stays near the mean rating. ``prior`` is the least value at which the spread of held-out
   predictions no longer falls with length: neither brevity nor length makes a score extreme.
2. A floor for thin texts. Below ``thin_words`` distinct known words (a low percentile of what people write) the score
   sinks linearly to ``low`` (what people give their worst texts): nothing said is not an average text.
3. The ends of the scale. No score lies beyond the mean ratings people really gave.

What it still cannot see: grammar, facts, and whether a list of adjectives answers the prompt. Read it beside the
samples, the length ratio and the text's likelihood under the reference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from accord.config import ChatConfig, EvalConfig, ScorerConfig
from accord.errors import DataError, UsageError
from accord.evals.metrics import log_words
from accord.evals.tfidf import (
    char_terms,
    fit_vocabulary,
    scale_rows,
    squared_norms,
    tfidf_rows,
    word_terms,
    words,
)
from accord.evals.trust import KIND_OF_SCORER, check_judge_name
from accord.files import read_json, write_folder, write_json
from accord.models.placement import AUTO, Placement
from accord.scoring.scorer import Scorer
from accord.scoring.weighted import SCORER_KINDS
from accord.stats import FloatArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array
else:
    csr_array = Any

ALPHAS = (0.2, 0.5, 1.0, 2.0, 4.0)
PRIORS = (0.0, 0.125, 0.25, 0.5, 1.0)
THIN_PERCENTILE = 10.0
JUDGE_FORMAT = 1


@dataclass(frozen=True, eq=False)
class TermBlock:
    """One kind of terms: vocabulary (V terms), idf (V,), and the mean evidence of the texts it was fitted to."""

    vocabulary: tuple[str, ...]
    idf: FloatArray
    mean_evidence: float


@dataclass(frozen=True, eq=False)
class TextJudge:
    """A fitted judge of bare texts. ``coefficients`` (V_words + V_chars,); ``mean`` scores a text without known terms.

    ``prior`` 0 and ``thin_words`` 0 make it the plain ridge. ``worst`` and ``best`` are the ends of its scale.
    """

    words: TermBlock
    chars: TermBlock
    coefficients: FloatArray
    mean: float
    alpha: float
    prior: float
    thin_words: float
    low: float
    worst: float
    best: float
    fitted_texts: int

    def score(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """(S,) fp64 predicted mean rating of each completion without the white space around it."""
        return torch.from_numpy(self.score_texts([completion.strip() for _, completion in pairs]))

    def score_texts(self, texts: Sequence[str]) -> FloatArray:
        """(N,) predicted mean rating of each text, higher = better."""
        if not len(texts):
            return np.zeros(0)
        plain_N = self.mean + _rows(texts, self.words, self.chars, self.prior) @ self.coefficients
        weight_N = _evidence_weight(known_words(texts, self.words), self.thin_words)
        return np.asarray(weight_N * np.clip(plain_N, self.worst, self.best) + (1 - weight_N) * self.low)

    @property
    def hash(self) -> str:
        """Content hash over everything that decides a score."""
        digest = hashlib.blake2b(json.dumps(self._numbers(), sort_keys=True).encode(), digest_size=16)
        for block in (self.words, self.chars):
            digest.update(json.dumps(block.vocabulary).encode("utf-8", "surrogatepass"))
            digest.update(np.ascontiguousarray(block.idf, dtype="<f8").tobytes())
        digest.update(np.ascontiguousarray(self.coefficients, dtype="<f8").tobytes())
        return "b2:" + digest.hexdigest()

    def _numbers(self) -> dict[str, float]:
        names = ("mean", "alpha", "prior", "thin_words", "low", "worst", "best", "fitted_texts")
        evidence = {"evidence_words": self.words.mean_evidence, "evidence_chars": self.chars.mean_evidence}
        return {name: getattr(self, name) for name in names} | evidence

    def save(self, folder: Path | str) -> None:
        """Write ``judge.json`` (vocabulary, numbers, hash) and ``judge.safetensors`` (arrays), whole or not at all."""
        from safetensors.numpy import save_file

        vocabulary = {"words": self.words.vocabulary, "chars": self.chars.vocabulary}
        arrays = {"idf_words": self.words.idf, "idf_chars": self.chars.idf, "coefficients": self.coefficients}

        def fill(aside: Path) -> None:
            save_file(arrays, aside / "judge.safetensors")
            header = {"format": JUDGE_FORMAT, "hash": self.hash, "numbers": self._numbers()}
            write_json(aside / "judge.json", header | {"vocabulary": vocabulary})

        write_folder(Path(folder), fill)


@dataclass(frozen=True)
class Judge:
    """A scorer that trained nothing; ``kind`` says how far it is to be trusted: `accord.evals.trust.JUDGE_KINDS`.

    ``note``: what a reader must know of it besides.
    """

    scorer: Scorer
    kind: str = "function"
    note: str = ""


def recipe_judges(config: EvalConfig) -> list[ScorerConfig]:
    """Return the judges of a recipe that score, each called by its key."""
    scoring = {name: judge for name, judge in config.judges.items() if judge.chat is None}
    return [judge.model_copy(update={"name": name}) for name, judge in scoring.items()]


def comparing_judges(config: EvalConfig) -> dict[str, ChatConfig]:
    """Return the judges that compare two completions and score none, by name. Raises UsageError for a wrong name."""
    found = {name: judge.chat for name, judge in config.judges.items() if judge.chat is not None}
    for name in found:
        check_judge_name(name, "chat")
    return found


def open_judges(configs: Sequence[ScorerConfig], placement: Placement = AUTO) -> dict[str, Judge]:
    """Return the judges that a recipe names, by name, in their order: the first one leads.

    Raises:
        UsageError: there is none, two share a name, or a program is called people.
    """
    if not configs:
        raise UsageError(
            "no judge is named",
            why="a policy cannot be judged by the score that it was optimised for",
            hint="name one that trained nothing: {model: FOLDER}, {function: module:name}, {regex: ...}, {http: URL}; "
            "a chat model stands beside it: it scores no text, it compares two",
        )
    names = [config.label for config in configs]
    if len(set(names)) < len(names):
        raise UsageError(f"two judges share a name: {', '.join(sorted(names))}", hint="give each its own `name`")
    for config in configs:
        check_judge_name(config.label, KIND_OF_SCORER[config.kind])
    return {
        config.label: Judge(SCORER_KINDS[config.kind](config, placement), KIND_OF_SCORER[config.kind])
        for config in configs
    }


def load_text_judge(folder: Path | str) -> TextJudge:
    """Return a judge as it was saved; raises DataError where a file is missing, damaged or of another format."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = Path(folder)
    header = read_json(path / "judge.json")
    try:
        arrays = load_file(path / "judge.safetensors")
        judge = _from_files(header, arrays)
    except FileNotFoundError as error:
        raise DataError("no such file", where=str(path / "judge.safetensors")) from error
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"not a judge of format {JUDGE_FORMAT} ({error!r})", where=str(path), hint="fit it anew"
        ) from error
    if judge.hash != header["hash"]:
        raise DataError("its content does not have the hash it was saved with", where=str(path), hint="fit it anew")
    return judge


def _from_files(header: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> TextJudge:
    if header["format"] != JUDGE_FORMAT:
        raise ValueError(f"format {header['format']}")
    numbers = dict(header["numbers"])
    blocks = {
        kind: TermBlock(tuple(header["vocabulary"][kind]), arrays[f"idf_{kind}"], numbers.pop(f"evidence_{kind}"))
        for kind in ("words", "chars")
    }
    return TextJudge(words=blocks["words"], chars=blocks["chars"], coefficients=arrays["coefficients"], **numbers)


# ---- fitting -------------------------------------------------------------------------------------------------------


def fit_text_judge(
    texts: Sequence[str],
    mean_ratings: npt.ArrayLike,
    topics: Sequence[Hashable],
    *,
    length_aware: bool = True,
    thin_percentile: float = THIN_PERCENTILE,
) -> TextJudge:
    """Fit a judge to (N,) mean ratings of N texts; ridge penalty and prior are chosen by leave-one-topic-out error.

    Deterministic. Memory and time go with N^2 and N^3: 2,500 texts take about ten seconds on one core.

    Args:
        topics: (N,) the unit that is held out together, so that the penalty is right for topics never seen.
        length_aware: False gives the plain ridge without sense of length, to show what it does.
        thin_percentile: texts with fewer distinct known words than this percentile of the fitted texts sink towards
            the floor.
    """
    rating_N = np.asarray(mean_ratings, dtype=np.float64)
    if not len(texts) == len(rating_N) == len(topics) or not np.isfinite(rating_N).all():
        raise DataError(f"{len(texts)} texts, {len(rating_N)} ratings (finite?), {len(topics)} topics")
    if len(set(topics)) < 2:
        raise DataError("a judge needs ratings of at least 2 topics", why="its penalty is chosen on topics held out")
    word_block, char_block = _fit_block(texts, word_terms), _fit_block(texts, char_terms)
    mean = float(rating_N.mean())
    held_out = _HeldOut(texts, rating_N - mean, topics, word_block, char_block)
    alpha, prior = held_out.choose(PRIORS if length_aware else (0.0,))
    rows = _rows(texts, word_block, char_block, prior)
    coefficients = rows.T @ np.linalg.solve(_gram(rows) + alpha * np.eye(len(rating_N)), rating_N - mean)
    known_N = known_words(texts, word_block)
    return TextJudge(
        words=word_block,
        chars=char_block,
        coefficients=np.asarray(coefficients, dtype=np.float64),
        mean=mean,
        alpha=alpha,
        prior=prior,
        thin_words=float(np.percentile(known_N, thin_percentile)) if length_aware else 0.0,
        low=float(np.percentile(rating_N, 5)),
        worst=float(rating_N.min()),
        best=float(rating_N.max()),
        fitted_texts=len(texts),
    )


class _HeldOut:
    """Leave-one-topic-out predictions of centred ratings for any penalty and prior."""

    def __init__(
        self,
        texts: Sequence[str],
        centred_N: FloatArray,
        topics: Sequence[Hashable],
        word_block: TermBlock,
        char_block: TermBlock,
    ) -> None:
        self.centred_N = centred_N
        self.long_N = np.array([log_words(text) for text in texts])
        self.rows = [
            _raw_rows(texts, kind, block) for kind, block in ((word_terms, word_block), (char_terms, char_block))
        ]
        self.blocks = (word_block, char_block)
        members: dict[Hashable, list[int]] = {}
        for i, topic in enumerate(topics):
            members.setdefault(topic, []).append(i)
        self.members = [np.array(indices) for indices in members.values()]
        self.grams: dict[float, FloatArray] = {}

    def predict(self, alpha: float, prior: float) -> FloatArray:
        """Closed form: with G = (K + alpha I)^-1, the held-out residual of topic B is G_BB^-1 (G y)_B.

        The mean rating is not refitted without the topic: it moves by less than one part in the number of topics.
        """
        if prior not in self.grams:
            self.grams = {prior: _gram(_join(self.rows, self.blocks, prior))}
        inverse = np.linalg.inv(self.grams[prior] + alpha * np.eye(len(self.centred_N)))
        fitted_N = inverse @ self.centred_N
        prediction_N = self.centred_N.copy()
        for topic in self.members:
            prediction_N[topic] -= np.linalg.solve(inverse[np.ix_(topic, topic)], fitted_N[topic])
        return prediction_N

    def choose(self, priors: Sequence[float]) -> tuple[float, float]:
        """Return the penalty of least squared error at the first prior.

        Then the least prior that makes spread neutral.
        """
        first = {alpha: self.predict(alpha, priors[0]) for alpha in ALPHAS}
        alpha = min(ALPHAS, key=lambda a: float(np.mean((first[a] - self.centred_N) ** 2)))
        for prior in priors:
            if self.spread_by_length(first[alpha] if prior == priors[0] else self.predict(alpha, prior)) >= 0:
                return alpha, prior
        return alpha, priors[-1]

    def spread_by_length(self, prediction_N: FloatArray) -> float:
        """Covariance of a held-out score's distance from the mean with the text's log-length."""
        return float(np.mean(np.abs(prediction_N) * (self.long_N - self.long_N.mean())))


def known_words(texts: Sequence[str], block: TermBlock) -> FloatArray:
    """(N,) how many distinct words of each text stand in the vocabulary."""
    known = {term[2:] for term in block.vocabulary}
    return np.array([len(known.intersection(words(text))) for text in texts], dtype=np.float64)


def _evidence_weight(known_N: FloatArray, thin_words: float) -> FloatArray:
    return np.minimum(1.0, known_N / thin_words) if thin_words > 0 else np.ones(len(known_N))


def _fit_block(texts: Sequence[str], terms: Callable[[str], set[str]]) -> TermBlock:
    vocabulary, idf = fit_vocabulary(texts, terms)
    evidence_N = squared_norms(tfidf_rows(texts, terms, vocabulary, idf))
    return TermBlock(tuple(vocabulary), idf, float(evidence_N.mean()))


def _raw_rows(texts: Sequence[str], terms: Callable[[str], set[str]], block: TermBlock) -> csr_array:
    return tfidf_rows(texts, terms, block.vocabulary, block.idf)


def _rows(texts: Sequence[str], word_block: TermBlock, char_block: TermBlock, prior: float) -> csr_array:
    raw = [_raw_rows(texts, word_terms, word_block), _raw_rows(texts, char_terms, char_block)]
    return _join(raw, (word_block, char_block), prior)


def _join(raw: Sequence[csr_array], blocks: tuple[TermBlock, TermBlock], prior: float) -> csr_array:
    """Both kinds side by side, rows of length sqrt((1 + prior) q / (q + prior * mean q)): 1 where q is the mean."""
    from scipy.sparse import hstack

    scaled = []
    for rows, block in zip(raw, blocks, strict=True):
        evidence_N = squared_norms(rows)
        total_N = evidence_N + prior * block.mean_evidence
        factor_N = np.sqrt(np.divide(1 + prior, total_N, out=np.zeros_like(total_N), where=total_N > 0))
        scaled.append(scale_rows(rows, factor_N))
    return hstack(scaled, format="csr")


def _gram(rows: csr_array) -> FloatArray:
    return np.asarray((rows @ rows.T).todense(), dtype=np.float64)
