"""What the reward stage learns from: judgements read, checked and encoded; and how well scores agree with them.

Shapes: S completions, N pairs or other choices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, pstdev
from typing import TypeVar

import torch
from torch import Tensor

from accord.algo.reductions import correlation
from accord.algo.reward_loss import MARGINS, Judgements, Positions, group_pairs, judgements
from accord.algo.table import RewardLoss
from accord.config import PairsConfig, RewardConfig
from accord.errors import DataError, UsageError
from accord.formats.stage_rows import Chat, read_judged, read_rankings
from accord.models.decoder import ScalarModel
from accord.records import JudgedGroup, RankedGroup
from accord.scoring.reward_model import encode_scored, raw_scores
from accord.seeds import stream_seed
from accord.stats import margin_calibration, share_of_pairs
from accord.text.batches import Example
from accord.text.tokenizer import Tokenizer
from accord.train.held_out import HeldOut, Measured, hold_out, none_held_out, shared, unit_names

GroupView = RankedGroup | JudgedGroup

RATINGS_COMPARED = 1000  # all pairs of so many held-out ratings are looked at


# -- files -------------------------------------------------------------------------------------------------------------

READERS: Mapping[str, Callable[[Path, Chat | None], Sequence[GroupView]]] = {
    "pairs": read_rankings,
    "orders": read_rankings,
    "labels": lambda path, chat: read_judged(path, "label", chat),
    "ratings": lambda path, chat: read_judged(path, "rating", chat),
}


def read_groups(
    config: RewardConfig, loss: RewardLoss, data: Path, valid_data: Path | None, chat: Chat | None
) -> tuple[list[GroupView], list[GroupView], int]:
    """Return groups to learn from, held-out ones, and how many rankings of one single tie were left out of ``data``.

    Without ``valid_data`` every twentieth unit of batch elements that share a topic or a prompt is held out; of fewer
    than twenty units the first serves for both.
    Raises DataError or UsageError where nothing can be learnt from them, or not as the configuration says.
    """
    check_settings(config, loss)
    found = READERS[loss.reads](data, chat)
    groups = _informative(config, found)
    if not groups:
        raise DataError("every ranking is one single tie", where=str(data), hint="give rankings with some order")
    _check_details(config, loss, groups, data)
    elements = batch_elements(groups)
    parts: tuple[Sequence[list[GroupView]], ...] = hold_out(
        elements, [set[tuple[str, str]]().union(*map(shared, element)) for element in elements]
    )
    if valid_data is not None:
        parts = elements, [_informative(config, READERS[loss.reads](valid_data, chat))]
    train, valid = ([group for element in part for group in element] for part in parts)
    if not valid:
        raise DataError("every held-out ranking is one single tie", where=str(valid_data), hint="give others")
    values = {value for group in train if isinstance(group, JudgedGroup) for value in group.values}
    if len(values) == 1:
        same = "good" if values == {1.0} else "bad"
        what = f"every label is {same}" if loss.reads == "labels" else f"every rating is {values.pop():g}"
        raise DataError(what, where=str(data), why="there is nothing to tell apart", hint="give others beside them")
    return train, valid, len(found) - len(groups)


def batch_elements(groups: Sequence[G]) -> list[list[G]]:
    """Return groups of one name together, in the order of their first ones; each without a name by itself."""
    found: dict[str | int, list[G]] = {}
    for i, group in enumerate(groups):
        found.setdefault(group.group or i, []).append(group)
    return list(found.values())


def _informative(config: RewardConfig, groups: Sequence[GroupView]) -> list[GroupView]:
    """Return the groups that say something: all but rankings of one single tie, where ties are no pairs."""
    half = config.pairs.ties == "half"
    # Dropped here and not in the loss, where they would weigh in the step's denominator.
    return [g for g in groups if half or isinstance(g, JudgedGroup) or len(set(g.ranks)) > 1]


def check_settings(config: RewardConfig, loss: RewardLoss) -> None:
    """Refuse settings that this loss does not read. Raises UsageError."""
    if loss.reads != "pairs" and config.pairs != PairsConfig():
        raise UsageError(
            f"reward.pairs has no effect with loss {config.loss}",
            why=f"it reads {loss.reads}, not pairs",
            hint="leave reward.pairs out, or use bradley_terry or per_token",
        )
    if (config.pooled_coef > 0 or config.bag_coef > 0) and (
        loss.all_positions or loss.reads not in ("pairs", "orders")
    ):
        raise UsageError(
            f"pooled_coef and bag_coef have no effect with loss {config.loss}",
            why="they teach further readings of a text that is ranked as a whole",
            hint="leave them at 0, or use another loss",
        )


def _check_details(config: RewardConfig, loss: RewardLoss, groups: Sequence[GroupView], data: Path) -> None:
    """Refuse judgements without the margins that are asked for, and soft labels that the loss does not read."""
    ranked = [group for group in groups if isinstance(group, RankedGroup)]
    require_margins(ranked, config.pairs.margin, "reward.pairs.margin", data)
    if loss.reads != "pairs" and any(group.probability is not None for group in ranked):
        raise DataError(
            f'loss {config.loss} does not read "probability"',
            where=str(data),
            hint="use bradley_terry or per_token for soft labels, or remove them",
        )


def require_margins(groups: Sequence[RankedGroup], rule: str, key: str, data: Path) -> None:
    """Refuse pairs none of which says what the rule of their margins reads. Raises DataError."""
    wanted = {"none": None, "given": "margin"}.get(rule, "strength")
    if wanted and all(getattr(group, wanted) is None for group in groups):
        raise DataError(
            f'no pair has a "{wanted}"',
            where=str(data),
            why=f"{key}={rule} reads it",
            hint=f'add "{wanted}" to the lines of pairs, or set {key}=none',
        )


def unread_margins(groups: Sequence[GroupView], rule: str, key: str) -> str:
    """Return in words what pairs say of their clearness that the rule leaves out; empty where that is nothing."""
    read = {"none": (), "given": ("margin",)}.get(rule, ("strength",))
    ranked = [group for group in groups if isinstance(group, RankedGroup)]
    counts = {name: sum(getattr(group, name) is not None for group in ranked) for name in ("margin", "strength")}
    said = [f"{count} of {len(ranked)} judgements have a {name}" for name, count in counts.items() if count]
    unread = [name for name, count in counts.items() if count and name not in read]
    return f"{', '.join(said)}; {key}={rule} does not read the {' and the '.join(unread)}" if unread else ""


# -- what a loss eats --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncodedGroup:
    """A group as ids: encoded once, used every epoch.

    ``targets`` are labels or ratings, one a completion; ``draws`` says how often each head of an ensemble counts it.
    Groups of one ``group`` share texts and a batch element.
    """

    examples: tuple[Example, ...]
    ranks: tuple[float, ...]
    weight: float
    margin: float = 0.0
    probability: float = 1.0
    targets: tuple[float, ...] = ()
    draws: tuple[float, ...] = ()
    group: str = ""


G = TypeVar("G", GroupView, EncodedGroup)


@dataclass(frozen=True)
class Fitting:
    """Judgements that can be read within a number of tokens, and what of the others and of these was lost.

    ``num_too_long`` have prompts that leave no room for a completion, ``num_equal`` completions that are all the same
    as they are read. Of those that are kept ``num_cut`` completions lose their end.
    """

    groups: list[GroupView]
    num_too_long: int
    num_cut: int
    num_equal: int
    max_tokens: int

    def __str__(self) -> str:
        left_out = f"{self.num_too_long} whose prompts leave no room for a completion, {self.num_equal} whose "
        total = self.num_too_long + self.num_equal + len(self.groups)
        return (
            f"with {self.max_tokens} tokens a text, of {total} judgements left out: {left_out}completions are all the "
            f"same as they are read; {self.num_cut} completions of the others lose their end"
        )

    @property
    def is_whole(self) -> bool:
        return not (self.num_too_long or self.num_equal or self.num_cut)


def fitting(groups: Sequence[GroupView], tokenizer: Tokenizer, max_tokens: int, *, where: Path | None) -> Fitting:
    """Keep the judgements that can be read within ``max_tokens``, and count the rest.

    Raises DataError where there is none, unless ``where`` is None: then there may be none.
    """
    length_G = [len(tokenizer.encode_prompt(group.prompt)) + 1 for group in groups]  # the end token needs its place
    kept = {i for i, length in enumerate(length_G) if length < max_tokens}
    if not kept and where:
        raise DataError(
            f"no prompt leaves room for a completion in {max_tokens} tokens",
            where=str(where),
            why=f"the shortest has {min(length_G) - 1}",
            hint="raise reward.max_tokens, or use a model with a longer context",
        )
    say = [i for i in sorted(kept) if not _all_equal(groups[i], tokenizer, max_tokens)]
    if not say and where:
        raise DataError(
            f"all completions of a judgement are the same in {max_tokens} tokens",
            where=str(where),
            why="what tells them apart is cut off, or they are one text",
            hint="raise reward.max_tokens, or use a model with a longer context",
        )
    said = ((i, tokenizer.encode_pair(groups[i].prompt, text)[1]) for i in say for text in groups[i].completions)
    cut = (length_G[i] + len(ids) > max_tokens for i, ids in said)
    return Fitting([groups[i] for i in say], len(groups) - len(kept), sum(cut), len(kept) - len(say), max_tokens)


def _all_equal(group: GroupView, tokenizer: Tokenizer, max_tokens: int) -> bool:
    """Return whether a ranking's completions are one text as they are read: their order then says nothing of it."""
    texts = {encode_scored(tokenizer, group.prompt, text, max_tokens) for text in group.completions}
    return isinstance(group, RankedGroup) and len(texts) == 1


def encode_groups(
    config: RewardConfig,
    loss: RewardLoss,
    tokenizer: Tokenizer,
    groups: Sequence[GroupView],
    max_tokens: int,
    seed: int,
) -> list[EncodedGroup]:
    """Encode groups as the loss reads them.

    Ratings are standardised over all groups, so that the head starts within their range. Of several heads each counts
    a group as often as a Poisson distribution with mean 1 says: its own bootstrap of the data (Oza & Russell 2001).
    """
    values = [v for group in groups if isinstance(group, JudgedGroup) for v in group.values]
    # Raw ratings around 50 would spend the first hundreds of steps on the level.
    centre, spread = (fmean(values), pstdev(values)) if loss.reads == "ratings" else (0.0, 1.0)
    generator = torch.Generator().manual_seed(stream_seed(seed, "bootstrap"))
    # With replacement each group comes Binomial(n, 1/n) times, which for many is Poisson(1); drawn group by group it
    # needs no n.
    draws_GH = torch.poisson(torch.ones(len(groups), config.heads), generator).tolist()
    encode = partial(encode_group, tokenizer, max_tokens=max_tokens, pairs=config.pairs, centre=centre, spread=spread)
    return [
        encode(group, draws=tuple(draws) if config.heads > 1 else ())
        for group, draws in zip(groups, draws_GH, strict=True)
    ]


def encode_group(
    tokenizer: Tokenizer,
    group: GroupView,
    max_tokens: int,
    *,
    pairs: PairsConfig | None = None,
    centre: float = 0.0,
    spread: float = 1.0,
    draws: tuple[float, ...] = (),
) -> EncodedGroup:
    """Return the texts of a group as ids, each closed by the end token, and what was said of them."""
    examples = tuple(encode_scored(tokenizer, group.prompt, c, max_tokens) for c in group.completions)
    if isinstance(group, JudgedGroup):
        targets = tuple((value - centre) / spread for value in group.values)
        ranks = (1.0,) * len(examples)
        return EncodedGroup(examples, ranks, group.weight, targets=targets, draws=draws, group=group.group)
    pairs = pairs or PairsConfig()
    sure = 1.0 if group.probability is None else group.probability
    return EncodedGroup(
        examples,
        group.ranks,
        group.weight,
        margin=margin_of(group, pairs.margin),
        probability=sure + pairs.label_smoothing * (1 - 2 * sure),  # (1 - e) p + e (1 - p)
        draws=draws,
        group=group.group,
    )


def shared_texts(groups: Sequence[EncodedGroup]) -> tuple[list[Example], list[int]]:
    """Return the texts of groups laid end to end, those that groups of one name share only once.

    And where each stands.
    """
    places: dict[tuple[object, ...], int] = {}
    texts: list[Example] = []
    index: list[int] = []
    for i, group in enumerate(groups):
        for k, example in enumerate(group.examples):
            key = (group.group, example) if group.group else (i, k)
            if key not in places:
                places[key] = len(texts)
                texts.append(example)
            index.append(places[key])
    return texts, index


def margin_of(group: RankedGroup, rule: str) -> float:
    """Return the least gap of a group's pairs.

    What the pair itself says, or a table by its strength; 0 where neither does.
    """
    if rule == "given":
        return group.margin or 0.0
    return MARGINS.get(rule, {}).get(group.strength or "", 0.0)


def reward_batch(
    config: RewardConfig,
    groups: Sequence[EncodedGroup],
    score_S: Tensor,
    positions: Positions | None = None,
    *,
    head: int | None = None,
) -> Judgements:
    """Return the batch that a loss eats: whole groups with one head's scores of their completions, laid end to end.

    With ``head`` each group counts as often as that head drew it.
    """
    return judgements(
        score_S,
        [group.ranks for group in groups],
        [group.weight * (1.0 if head is None else group.draws[head]) for group in groups],
        probabilities=[group.probability for group in groups],
        margins=[group.margin for group in groups],
        targets=[target for group in groups for target in group.targets] or None,
        half_ties=config.pairs.ties == "half",
        positions=positions,
    )


def count_pairs(config: RewardConfig, groups: Sequence[EncodedGroup]) -> int:
    """Return how many pairs the groups' ranks make."""
    half = config.pairs.ties == "half"
    return sum(len(group_pairs([group.ranks], half_ties=half)[0]) for group in groups)


# -- agreement on held-out judgements ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeldOutFit:
    """How raw scores fit held-out judgements. None where the judgements cannot tell.

    ``accuracy`` is the share of choices made alike (a score of 0 gap counts half): the better of a pair, a label by the
    sign of the score, the higher of two ratings. ``calibration_error`` is the distance between that share and what
    sigmoid of the gap promises; ``length_correlation`` that of the score with the completion's number of tokens.
    ``told`` is the accuracy as it may be stated: with its interval and a baseline, of twenty judgements or more.
    """

    accuracy: float | None
    calibration_error: float | None
    length_correlation: float
    told: HeldOut


SCORED_ALIKE = "judgements that the score orders as they say"


def held_out_fit(
    scorer: ScalarModel,
    tokenizer: Tokenizer,
    loss: RewardLoss,
    groups: Sequence[GroupView],
    max_tokens: int,
    learnt: Sequence[GroupView] = (),
) -> HeldOutFit:
    """Score the groups' completions, the mean of all heads, and compare. What was ``learnt`` gives the baseline."""
    texts = [(group.prompt, completion) for group in groups for completion in group.completions]
    score_S = raw_scores(scorer, tokenizer, texts, max_tokens).reshape(len(texts), -1).mean(1)
    choices = CHOICES[loss.reads](groups, score_S)
    # Gaps of ratings are no log-odds: sigmoid of them promises nothing.
    log_odds = loss.reads != "ratings" and len(choices.margin_N) > 0
    lengths = torch.tensor([len(tokenizer.encode(completion)) for _, completion in texts])
    guess_S, guess = _guess(loss, learnt, lengths)
    guesses = CHOICES[loss.reads](groups, guess_S)
    return HeldOutFit(
        accuracy=choices.share if len(choices.margin_N) else None,
        calibration_error=margin_calibration(choices.margin_N.numpy()).error if log_odds else None,
        length_correlation=float(correlation(score_S, lengths)),
        told=_told(choices, guesses, guess, groups) if len(choices.margin_N) else none_held_out(SCORED_ALIKE),
    )


@dataclass(frozen=True)
class Choices:
    """What judgements chose: by how much the score agrees with each choice, what it weighs, and whose it is.

    ``of_N`` numbers the group of a choice; of two ratings ``other_N`` that of the second.
    """

    margin_N: Tensor
    weight_N: Tensor
    of_N: Tensor
    other_N: Tensor | None = None

    @property
    def right_N(self) -> Tensor:
        """1 where the score chooses alike, half for a tie."""
        return (self.margin_N > 0).float() + 0.5 * (self.margin_N == 0).float()

    @property
    def share(self) -> float:
        """The weighted share of choices made alike."""
        return float((self.weight_N * self.right_N).double().sum() / self.weight_N.double().sum())

    def by_group(self, count: int) -> tuple[list[float], list[float]]:
        """Return the share and the weight of each of so many groups."""
        right_G, weight_G = (
            torch.zeros(count, dtype=torch.float64).index_add_(0, self.of_N, x_N.double())
            for x_N in (self.weight_N * self.right_N, self.weight_N)
        )
        return (right_G / weight_G.clamp_min(1e-12)).tolist(), weight_G.tolist()


def _told(choices: Choices, guesses: Choices, guess: str, groups: Sequence[GroupView]) -> HeldOut:
    names = [shared(group) for group in groups]
    shares, weights = choices.by_group(len(groups))
    found = Measured(SCORED_ALIKE, shares, weights, guesses.by_group(len(groups))[0], guess, names).told()
    if choices.other_N is None or found.value is None:
        return found
    right_GG, counted_GG = torch.zeros(2, len(groups), len(groups))
    places = choices.of_N, choices.other_N
    right_GG.index_put_(places, choices.right_N, accumulate=True)
    counted_GG.index_put_(places, choices.weight_N, accumulate=True)
    share_GG = right_GG / counted_GG.clamp_min(1e-12)
    said = share_of_pairs(share_GG.numpy(), counted_GG.numpy(), unit_names(names))
    return replace(found, value=said.value, low=said.low, high=said.high, baseline=guesses.share)


def _guess(loss: RewardLoss, learnt: Sequence[GroupView], lengths: Tensor) -> tuple[Tensor, str]:
    """Return scores of who has read nothing, and what they are: the longer text, or of labels the commoner."""
    if loss.reads != "labels":
        return lengths.float(), "longer wins"
    good = len(learnt) == 0 or float(_values(learnt).mean()) > 0.5
    return torch.full((len(lengths),), 1.0 if good else -1.0), f"every one is {'good' if good else 'bad'}"


def _owners(groups: Sequence[GroupView]) -> Tensor:
    """Return the number of the group that each completion belongs to, ``(S,)``."""
    return torch.tensor([i for i, group in enumerate(groups) for _ in group.completions])


def _pair_choices(groups: Sequence[GroupView], score_S: Tensor) -> Choices:
    """Return the gaps of all strict pairs; each group weighs the same."""
    chosen_N, rejected_N, weight_N = group_pairs([g.ranks for g in groups if isinstance(g, RankedGroup)])
    return Choices(score_S[chosen_N] - score_S[rejected_N], weight_N, _owners(groups)[chosen_N])


def _label_choices(groups: Sequence[GroupView], score_S: Tensor) -> Choices:
    """Return the scores of the good, and those of the bad turned around."""
    return Choices((2 * _values(groups) - 1) * score_S, torch.ones_like(score_S), _owners(groups))


def _rating_choices(groups: Sequence[GroupView], score_S: Tensor) -> Choices:
    """Return the gaps of all pairs with different ratings, of any prompts."""
    value_S, score_S = _values(groups)[:RATINGS_COMPARED], score_S[:RATINGS_COMPARED]
    higher_N, lower_N = (value_S[:, None] > value_S).nonzero().unbind(1)
    owner_S, gap_N = _owners(groups), score_S[higher_N] - score_S[lower_N]
    return Choices(gap_N, torch.ones_like(gap_N), owner_S[higher_N], owner_S[lower_N])


def _values(groups: Sequence[GroupView]) -> Tensor:
    return torch.tensor([v for group in groups if isinstance(group, JudgedGroup) for v in group.values])


CHOICES: Mapping[str, Callable[[Sequence[GroupView], Tensor], Choices]] = {
    "pairs": _pair_choices,
    "orders": _pair_choices,
    "labels": _label_choices,
    "ratings": _rating_choices,
}
