"""The dpo stage: what a step's loss is, where judgements come from, and that every row learns something trivial."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WriteRows, WriteSplit, random_policy
from letters import PROMPTS
from safetensors.torch import load_file
from test_train import by_hand, gradients, rows_of
from torch import Tensor

from accord.algo.table import PREFERENCE_LOSSES
from accord.config import DpoConfig, DpoLoraConfig, OptimConfig
from accord.errors import DataError, UsageError
from accord.models.decoder import CausalLM
from accord.models.folder import load_policy
from accord.models.shape import DecoderConfig
from accord.records import RankedGroup
from accord.rollout.engine import Engine, Sampling
from accord.text.batches import Example
from accord.text.tokenizer import Tokenizer
from accord.train.alarms import PREFERENCE_ALARMS, raised_alarms
from accord.train.dpo import DpoResult, DpoSetup, _read_groups, dpo
from accord.train.preferences import (
    ComparedGroup,
    Objective,
    Tally,
    bucketed_logp,
    compared_labels,
    compared_ranking,
    completion_logp,
    held_out,
    mismatched,
    preference_losses,
)
from accord.train.sft import demonstration_example

# peft asks transformers for an attribute that it has renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ROWS = sorted(PREFERENCE_LOSSES)

GROUPS = [
    RankedGroup(prompt="A", completions=(" one fox", " two foxes crossed", " x"), ranks=(1, 2, 3), weight=2.0),
    RankedGroup(prompt="Bread", completions=(" salt", " the corner of the kitchen"), ranks=(2, 1)),
    RankedGroup(prompt="C", completions=(" rain", " slow rain", " grey", " cheerful"), ranks=(1, 1, 2, 3)),
]


def judged(config: DpoConfig, words: Tokenizer) -> list[ComparedGroup]:
    row = PREFERENCE_LOSSES[config.loss]
    return [
        compared_ranking(
            config, row, [demonstration_example(words, g.prompt, c) for c in g.completions], g.ranks, g.weight
        )
        for g in GROUPS
    ]


def objective_of(config: DpoConfig, policy: CausalLM, other: CausalLM, pad_id: int) -> Objective:
    """A policy held to another one, so that no strength is 0."""

    def reference(examples: Sequence[Example]) -> Tensor:
        return bucketed_logp(other, examples, pad_id, 10_000)

    return Objective(config, PREFERENCE_LOSSES[config.loss], policy, pad_id, reference)


@pytest.fixture
def other(tiny_config: DecoderConfig) -> CausalLM:
    return random_policy(tiny_config, 5)


# -- the loss of a step ------------------------------------------------------------------------------------------------

Formula = Callable[[float, float], float]
#: A pair's loss from both strengths, in plain arithmetic, at beta .5 (margin .3, smoothing .2, coefficient .7).
PLAIN: dict[str, Formula] = {
    "dpo": lambda w, lo: math.log1p(math.exp(-0.5 * (w - lo))),
    "cdpo": lambda w, lo: 0.8 * math.log1p(math.exp(-0.5 * (w - lo))) + 0.2 * math.log1p(math.exp(0.5 * (w - lo))),
    "ipo": lambda w, lo: (w - lo - 1) ** 2,
    "ipo_sum": lambda w, lo: (w - lo - 1) ** 2,
    "simpo": lambda w, lo: math.log1p(math.exp(0.3 - 0.5 * (w - lo))),
    "orpo": lambda w, lo: -w + 0.7 * math.log1p(odds(lo) / odds(w)),
}
CHANGES: dict[str, Any] = {
    "dpo_beta": 0.5,
    "simpo_margin": 0.3,
    "label_smoothing": 0.2,
    "orpo_coef": 0.7,
    "desirable_weight": 1.5,
    "undesirable_weight": 0.5,
}


def changes_of(name: str) -> dict[str, Any]:
    """Those that a row reads."""
    return {key: CHANGES[key] for key in ("dpo_beta", *PREFERENCE_LOSSES[name].reads)}


def odds(logp: float) -> float:
    return math.exp(logp) / (1 - math.exp(logp))


def strength_by_hand(name: str, policy: CausalLM, other: CausalLM, example: Example) -> float:
    """From each text alone, unpadded, through the whole softmax."""
    row, logps = PREFERENCE_LOSSES[name], by_hand(policy, example)
    total = sum(logps) - (sum(by_hand(other, example)) if row.needs_reference else 0.0)
    return total / len(logps) if row.length_normalized else total


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_the_loss_of_a_step_by_hand(name: str, policy: CausalLM, other: CausalLM, words: Tokenizer) -> None:
    """Every strict pair of each ranking, a ranking's pairs sharing its weight: 3 pairs at 2/3, 1 at 1, 5 at 1/5."""
    config = DpoConfig(loss=name, **changes_of(name))

    def mean(group: int, pairs: list[tuple[int, int]]) -> float:
        texts = GROUPS[group].completions
        found = [
            strength_by_hand(name, policy, other, demonstration_example(words, GROUPS[group].prompt, t)) for t in texts
        ]
        return sum(PLAIN[name](found[w], found[lo]) for w, lo in pairs) / len(pairs)

    wanted = 2 * mean(0, [(0, 1), (0, 2), (1, 2)]) + mean(1, [(1, 0)])
    wanted += mean(2, [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])
    objective = objective_of(config, policy, other, words.pad_id)
    got = sum(float(x.detach()) for x in preference_losses(objective, judged(config, words), Tally()))
    assert got == pytest.approx(wanted / 4, rel=1e-4)


@pytest.mark.parametrize("name", ["dpo", "ipo_sum", "simpo"])
def test_a_soft_label_and_a_margin_of_a_pair_reach_its_loss(
    name: str, policy: CausalLM, other: CausalLM, words: Tokenizer
) -> None:
    """Four pairs: as they are, right with 3 of 4, with a margin of .6 (1.2 in strength at beta .5), and with both."""
    config, row = DpoConfig(loss=name, **changes_of(name)), PREFERENCE_LOSSES[name]
    better, worse = (demonstration_example(words, "A", text) for text in (" one fox", " two foxes and a kite"))
    plain = compared_ranking(config, row, [better, worse], [1, 2], 1.0)
    objective = objective_of(config, policy, other, words.pad_id)
    w, lo = (strength_by_hand(name, policy, other, e) for e in (better, worse))
    for sure, lead in ((1.0, 0.0), (0.75, 0.0), (1.0, 1.2), (0.75, 1.2)):
        group, tally = replace(plain, probability=sure, lead=lead), Tally()
        wanted = sure * PLAIN[name](w - lead, lo) + (1 - sure) * PLAIN[name](lo, w - lead)
        got = sum(float(x.detach()) for x in preference_losses(objective, [group, plain], tally))
        assert got == pytest.approx((wanted + PLAIN[name](w, lo)) / 2, rel=1e-4, abs=1e-4)
        assert tally.means()["accuracy"] == float(w > lo)  # which side is better is not asked twice


def test_a_soft_label_turns_both_thumbs_of_kto(policy: CausalLM, other: CausalLM, words: Tokenizer) -> None:
    config = DpoConfig(loss="kto", **changes_of("kto"))
    pairs = [[demonstration_example(words, p, f" {t}") for t in ("one fox", "salt")] for p in ("A", "Bread")]
    groups = [compared_ranking(config, PREFERENCE_LOSSES["kto"], pair, [1, 2], 1.0) for pair in pairs]
    objective = objective_of(config, policy, other, words.pad_id)
    sure, turned, soft = (
        held_out(objective, [replace(g, probability=p) for g in groups])["loss"] for p in (1.0, 0.0, 0.75)
    )
    assert sure != pytest.approx(turned, rel=1e-3) and soft == pytest.approx(0.75 * sure + 0.25 * turned, rel=1e-5)


@pytest.mark.parametrize(
    ("margin", "wanted"), [("none", [0.0] * 3), ("given", [5.0, 0.0, 0.0]), ("large", [30.0, 10.0, 0.0])]
)
def test_what_pairs_say_of_their_clearness_is_read_or_told(
    margin: str, wanted: list[float], letters_folder: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    """Margins are of rewards: at beta .1 ten times as much in strength. Llama 2's large table: 3, 2, 1, 0."""
    pairs: list[dict[str, Any]] = [{"prompt": c, "chosen": " a", "rejected": " b"} for c in "abc"]
    pairs[0] |= {"margin": 0.5, "strength": "significantly", "probability": 0.9}
    pairs[1] |= {"strength": "slightly"}
    said: list[str] = []
    policy, tokenizer = load_policy(letters_folder)
    setup = DpoSetup(DpoConfig(margin=margin), PREFERENCE_LOSSES["dpo"], policy, tokenizer, 0)
    groups, _ = _read_groups(setup, write_rows("p.jsonl", pairs), lambda _, text: said.append(str(text)))
    assert [g.lead for g in groups] == pytest.approx(wanted) and [g.probability for g in groups] == [0.9, 1.0, 1.0]
    (told,) = said
    unread = {"none": "the margin and the strength", "given": "the strength", "large": "the margin"}[margin]
    assert told.startswith("1 of 3 judgements have a margin, 2 of 3 judgements have a strength")
    assert told.endswith(f"does not read {unread}")


def test_a_margin_that_no_pair_has_is_refused(letters_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    data = write_rows("p.jsonl", few_pairs(4))
    with pytest.raises(DataError, match='no pair has a "strength"') as caught:
        run_pairs(letters_folder, data, tmp_path / "out", margin="small")
    assert "dpo.margin=small" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"label_smoothing": 0.2}, "label_smoothing has no effect: not read by loss dpo"),
        ({"loss": "ipo", "simpo_margin": 1.0, "orpo_coef": 1.0}, "simpo_margin and orpo_coef have no effect"),
        ({"desirable_weight": 2.0}, "desirable_weight has no effect"),
        ({"temperature": 0.5}, "only dpo.online draws completions"),
        ({"samples_per_prompt": 4}, "only dpo.online draws completions"),
        ({"loss": "orpo", "margin": "given"}, "loss orpo has no lead to ask for"),
        ({"loss": "kto", "margin": "small"}, "loss kto has no lead to ask for"),
        ({"online": True, "margin": "small"}, "scores rank what is drawn"),
    ],
)
def test_settings_that_nothing_reads_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        DpoConfig(**settings)


def test_thumbs_by_hand(policy: CausalLM, other: CausalLM, words: Tokenizer) -> None:
    """Three thumbs under three prompts; the zero point from each prompt with the completion of the next one."""
    policy, other = other, policy  # this way round it is above 0
    config = DpoConfig(loss="kto", **changes_of("kto"))
    rows = [("A", " one fox", True), ("Bread", " salt and time", False), ("C", " rain", True)]
    examples = [demonstration_example(words, prompt, text) for prompt, text, _ in rows]
    crossed = [Example(examples[i].prompt, examples[(i + 1) % 3].completion) for i in range(3)]
    gain = [strength_by_hand("kto", policy, other, e) for e in examples]
    zero = max(0.0, sum(strength_by_hand("kto", policy, other, e) for e in crossed) / 3)
    assert zero > 0.1

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    terms = [
        1.5 * 2.0 * (1 - sigmoid(0.5 * (gain[0] - zero))),
        0.5 * (1 - sigmoid(0.5 * (zero - gain[1]))),
        1.5 * (1 - sigmoid(0.5 * (gain[2] - zero))),
    ]
    groups = [
        compared_labels(config, [e], [good], weight)
        for e, (_, _, good), weight in zip(examples, rows, (2.0, 1.0, 1.0), strict=True)
    ]
    assert mismatched(groups, 64) == crossed
    tally = Tally()
    objective = objective_of(config, policy, other, words.pad_id)
    got = sum(float(x.detach()) for x in preference_losses(objective, groups, tally))
    assert got == pytest.approx(sum(terms) / 4, rel=1e-4)
    told = tally.means()
    assert told["zero_point"] == pytest.approx(zero, rel=1e-4)
    assert told["chosen_reward"] == pytest.approx(0.5 * (2 * gain[0] + gain[2]) / 3, rel=1e-4)
    assert told["rejected_reward"] == pytest.approx(0.5 * gain[1], rel=1e-4)


def test_a_ranking_gives_kto_both_sides_of_every_pair(words: Tokenizer) -> None:
    config = DpoConfig(loss="kto", desirable_weight=3.0)
    group = judged(config, words)[0]
    assert (group.better, group.worse) == ((0, 0, 1, -1, -1, -1), (-1, -1, -1, 1, 2, 2))
    assert group.shares == pytest.approx([3 * 2 / 3 / 2] * 3 + [2 / 3 / 2] * 3)


def test_mismatched_pairs_never_share_a_prompt_and_fit() -> None:
    config = DpoConfig(loss="kto")
    groups = [
        compared_labels(config, [Example(prompt, completion)], [True], 1.0)
        for prompt, completion in (((5,), (6, 7, 0)), ((5,), (8, 0)), ((9, 9, 9), (4, 4, 4, 4, 0)))
    ]
    assert mismatched(groups, 64) == [Example((5,), (4, 4, 4, 4, 0)), Example((9, 9, 9), (6, 7, 0))]
    assert mismatched(groups, 4) == [Example((5,), (4, 4, 4)), Example((9, 9, 9), (6,))]
    assert mismatched(groups[:1], 64) == [] == mismatched(groups[:2], 64)


@pytest.mark.parametrize("name", ROWS)
def test_the_loss_and_its_metrics_do_not_depend_on_micro_batches_or_order(
    name: str, policy: CausalLM, other: CausalLM, words: Tokenizer
) -> None:
    found = []
    for micro, turned in ((10_000, False), (1, False), (60, True)):
        config = DpoConfig(loss=name, micro_batch_tokens=micro, **changes_of(name))
        groups, tally = judged(config, words), Tally()
        if turned and PREFERENCE_LOSSES[name].paired:  # of thumbs the order says who meets whose prompt
            groups = groups[::-1]
        objective = objective_of(config, policy, other, words.pad_id)
        found.append((*gradients(policy, preference_losses(objective, groups, tally)), tally.means()))
    (whole, whole_grad, whole_stats), *others = found
    assert math.isfinite(whole) and float(whole_grad.abs().max()) > 1e-4
    for split, split_grad, split_stats in others:
        assert split == pytest.approx(whole, rel=1e-5)
        assert split_stats == pytest.approx(whole_stats, rel=1e-4, abs=1e-5)
        torch.testing.assert_close(split_grad, whole_grad, rtol=1e-4, atol=1e-5 * float(whole_grad.abs().max()))


def test_padding_does_not_change_a_log_probability(policy: CausalLM, words: Tokenizer) -> None:
    examples = [demonstration_example(words, g.prompt, c) for g in GROUPS for c in g.completions]
    together = completion_logp(policy, examples, words.pad_id).detach()
    for e, logp in zip(examples, together.tolist(), strict=True):
        assert logp == pytest.approx(float(completion_logp(policy, [e], words.pad_id).detach()), abs=1e-4)
        assert logp == pytest.approx(sum(by_hand(policy, e)), abs=1e-4)
        assert e.completion[-1] == words.end_id


def test_each_completion_runs_through_the_policy_once(policy: CausalLM, words: Tokenizer) -> None:
    """A ranking of 9 has 36 pairs, and 9 passes."""
    texts = [f" {'fox ' * i}kite" for i in range(9)]
    examples = [demonstration_example(words, "A", text) for text in texts]
    config = DpoConfig()
    group = compared_ranking(config, PREFERENCE_LOSSES["dpo"], examples, tuple(range(1, 10)), 1.0)
    rows: list[int] = []
    policy.model.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    objective = Objective(
        config, PREFERENCE_LOSSES["dpo"], policy, words.pad_id, lambda wanted: torch.zeros(len(wanted))
    )
    assert sum(1 for _ in preference_losses(objective, [group], Tally())) == 1
    assert len(group.shares) == 36 and rows == [9]


def test_metrics_by_hand(policy: CausalLM, other: CausalLM, words: Tokenizer) -> None:
    config = DpoConfig()
    (group,) = judged(config, words)[1:2]
    worse, better = group.examples
    objective = objective_of(config, policy, other, words.pad_id)
    told = held_out(objective, [group])
    logp, ref = ([sum(by_hand(m, e)) for e in (better, worse)] for m in (policy, other))
    drift = [a - b for a, b in zip(logp, ref, strict=True)]
    wanted = {
        "chosen_logp": logp[0],
        "rejected_logp": logp[1],
        "chosen_drift": drift[0],
        "rejected_drift": drift[1],
        "chosen_reward": 0.1 * drift[0],
        "rejected_reward": 0.1 * drift[1],
        "margin": 0.1 * (drift[0] - drift[1]),
        "accuracy": float(drift[0] > drift[1]),
        "chosen_length": len(better.completion),
        "rejected_length": len(worse.completion),
        "loss": math.log1p(math.exp(-0.1 * (drift[0] - drift[1]))),
    }
    # A drift is the difference of two sums of about 20 nats, and floats there are 2e-6 apart.
    assert told == pytest.approx(wanted, rel=1e-4, abs=5e-5)


def test_equal_strengths_count_half_and_a_side_without_completions_is_left_out() -> None:
    """Right, a tie, wrong, at weights 1, 2, 1: (1 + 2 / 2) / 4; the last side of the last is the zero point, 0.5."""
    tally = Tally()
    strengths, better, worse = torch.tensor([2.0, 1.0, 1.0, 0.5]), torch.tensor([0, 1, -1]), torch.tensor([1, 2, 0])
    tally.add(strengths, better, worse, torch.tensor([1.0, 2.0, 1.0]), {"length": torch.tensor([3.0, 6.0, 9.0])})
    assert tally.means() == pytest.approx(
        {"accuracy": 0.5, "chosen_length": (3 + 12) / 3, "rejected_length": (6 + 18 + 3) / 4}
    )
    only_bad = Tally()
    only_bad.add(strengths, torch.tensor([-1]), torch.tensor([0]), torch.ones(1), {"reward": torch.ones(3)})
    assert only_bad.means() == {"accuracy": 0.0, "rejected_reward": 1.0}
    assert Tally().means() == {}


# -- stages: a file ----------------------------------------------------------------------------------------------------


Rows = list[dict[str, Any]]


@pytest.fixture(scope="session")
def letter_rows(letters_folder: Path) -> tuple[Rows, Rows]:
    """Texts that the policy of letters writes itself, as pairs and as thumbs: those that end with a are good."""
    policy, words = load_policy(letters_folder)
    ids = [words.encode(prompt) for prompt in PROMPTS]
    samples = Engine(policy.eval(), words.stop_ids).generate(ids, Sampling(12, 400), seed=1)
    texts = [(PROMPTS[s.prompt_index], words.decode(s.completion)) for s in samples if s.finish == "stop"]
    thumbs = [{"prompt": p, "completion": t, "label": t.endswith("a")} for p, t in texts if t.strip()]
    pairs: Rows = []
    for prompt in PROMPTS:
        good, bad = (
            [row["completion"] for row in thumbs if row["prompt"] == prompt and row["label"] is kind]
            for kind in (True, False)
        )
        pairs += [{"prompt": prompt, "chosen": w, "rejected": lo} for w, lo in zip(3 * good, bad, strict=False)]
    for rows in (pairs, thumbs):
        random.Random(0).shuffle(rows)
    return pairs, thumbs


def few_pairs(count: int) -> Rows:
    draw = random.Random(1)

    def text(last: str) -> str:
        return " " + "".join(draw.choices("abcd", k=draw.randint(1, 4))) + last

    return [
        {"prompt": draw.choice(PROMPTS), "chosen": text("a"), "rejected": text(draw.choice("bcd"))}
        for _ in range(count)
    ]


def dpo_config(**changes: Any) -> DpoConfig:
    optim = OptimConfig(lr=2e-3, schedule="linear", warmup_ratio=0.1)
    return DpoConfig(**{"precision": "fp32", "groups_per_step": 32, "optim": optim} | changes)


def ends(folder: Path) -> tuple[float, float]:
    """The share of completions that end, and of these the share that end with a."""
    policy, words = load_policy(folder)
    ids = [words.encode(prompt) for prompt in PROMPTS]
    samples = Engine(policy.eval(), words.stop_ids).generate(ids, Sampling(12, 64), seed=9)
    ended = [words.decode(s.completion) for s in samples if s.finish == "stop"]
    return len(ended) / len(samples), sum(text.endswith("a") for text in ended) / len(ended)


#: What a row needs here besides the common settings: thumbs are three quarters down; rows without a reference run
#: away from the language where they are pulled hard.
LETTERS: dict[str, dict[str, Any]] = {
    "ipo_sum": {"dpo_beta": 0.05},
    "kto": {"desirable_weight": 4.0},
    "orpo": {"orpo_coef": 1.0},
    "simpo": {"dpo_beta": 0.3, "simpo_margin": 0.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_every_row_learns_to_end_with_a_letter(
    name: str, letters_folder: Path, letter_rows: tuple[Rows, Rows], write_split: WriteSplit, tmp_path: Path
) -> None:
    paired = PREFERENCE_LOSSES[name].paired
    data = write_split(letter_rows[0] if paired else letter_rows[1])
    config = dpo_config(loss=name, epochs=3, **LETTERS.get(name, {}))
    result = dpo(config, model=letters_folder, **data, output_dir=tmp_path / "out")
    assert ends(letters_folder)[1] < 0.4
    ended, with_a = ends(result.model)
    assert ended > 0.6 and with_a > 0.8
    assert result.valid_accuracy is not None and result.valid_accuracy > (0.7 if paired else 0.4)
    metrics = rows_of(tmp_path / "out" / "metrics.jsonl")
    assert all(value is not None and math.isfinite(value) for row in metrics for value in row.values())
    assert metrics[-1]["loss"] < metrics[0]["loss"]


def run_pairs(folder: Path, data: Path, output_dir: Path, **changes: Any) -> DpoResult:
    settings: dict[str, Any] = {"groups_per_step": 8, **changes}
    return dpo(dpo_config(**settings), model=folder, data=data, output_dir=output_dir)


def test_the_first_step_is_where_the_reference_is(
    letters_folder: Path,
    write_rows: WriteRows,
    tmp_path: Path,
) -> None:
    # A prompt each: of prompts that pairs share nothing could be held out.
    prompts = map("".join, itertools.product("abcd", repeat=3))
    rows = [{**pair, "prompt": prompt} for pair, prompt in zip(few_pairs(40), prompts, strict=False)]
    result = run_pairs(letters_folder, write_rows("pairs.jsonl", rows), tmp_path, eval_every=2)
    first, *_, last = rows_of(tmp_path / "metrics.jsonl")
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    for name in ("margin", "chosen_reward", "rejected_reward", "chosen_drift"):
        assert first[name] == pytest.approx(0.0, abs=1e-4), name
    assert {"valid_accuracy", "valid_margin"} <= last.keys() and "valid_accuracy" not in first
    assert "train_accuracy" not in last  # two held-out pairs tell no gap
    assert result.num_groups == 38  # every twentieth of 40 is held out
    assert (result.num_steps, result.num_completions) == (5, 76)
    assert sorted(result.snapshots) == [2, 4, 5]
    last_weights = load_file(result.model / "model.safetensors")
    snapshot = load_file(result.snapshots[5] / "model.safetensors")
    assert all(torch.equal(t, last_weights[name]) for name, t in snapshot.items())


def test_a_gap_between_held_out_and_trained_judgements_rings(
    letters_folder: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    """Held-out pairs are the other way round."""
    pairs = few_pairs(114)
    turned = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in pairs[64:]]
    data, valid_data = write_rows("pairs.jsonl", pairs[:64]), write_rows("valid.jsonl", turned)
    config = dpo_config(epochs=3, optim=OptimConfig(lr=5e-3))
    result = dpo(config, model=letters_folder, data=data, valid_data=valid_data, output_dir=tmp_path / "out")
    last = rows_of(tmp_path / "out" / "metrics.jsonl")[-1]
    assert last["train_accuracy"] > 0.8 and last["valid_accuracy"] < 0.4
    assert result.valid_accuracy == pytest.approx(last["valid_accuracy"])
    assert "overfit" in {row["alarm"] for row in rows_of(tmp_path / "out" / "events.jsonl")}


@pytest.mark.slow
def test_the_reference_is_computed_once_and_only_for_what_it_was_computed_for(
    letters_folder: Path,
    write_rows: WriteRows,
    tmp_path: Path,
) -> None:
    data, out = write_rows("pairs.jsonl", few_pairs(24)), tmp_path / "out"
    heard: list[str] = []

    def again(data: Path, **changes: Any) -> int:
        heard.clear()
        config = dpo_config(**changes)
        dpo(config, model=letters_folder, data=data, output_dir=out, log=lambda _, text: heard.append(text))
        return sum("under the reference" in text for text in heard)

    stored = out / "reference.safetensors"
    assert again(data) == 1
    content, policy = stored.read_bytes(), load_policy(letters_folder)[0]
    assert again(data, dpo_beta=0.3, epochs=2, groups_per_step=5) == 0
    assert again(data, loss="simpo") == 0 and stored.read_bytes() == content  # which needs none
    first, *rest = few_pairs(24)
    assert again(write_rows("other.jsonl", [first | {"chosen": first["chosen"] + "ba"}, *rest])) == 1
    assert again(data) == 1 and stored.read_bytes() == content
    stored.write_bytes(content[:-5])
    assert again(data) == 1 and stored.read_bytes() == content
    words = load_policy(letters_folder)[1]
    wanted = {
        round(sum(by_hand(policy.eval(), demonstration_example(words, r["prompt"], r[side]))), 2)
        for r in few_pairs(24)
        for side in ("chosen", "rejected")
    }
    got = {round(x, 2) for x in load_file(stored)["logp_S"].tolist()}
    assert len(got ^ wanted) <= 4  # rounding may fall on either side


@pytest.mark.slow
def test_an_adapter_is_trained_against_the_model_under_it(
    letters_folder: Path,
    write_rows: WriteRows,
    tmp_path: Path,
) -> None:
    data = write_rows("pairs.jsonl", few_pairs(64))
    changes: dict[str, Any] = {"lora": DpoLoraConfig(rank=4), "optim": OptimConfig(lr=1e-2), "epochs": 2}
    result = run_pairs(letters_folder, data, tmp_path / "out", **changes)
    rows = rows_of(tmp_path / "out" / "metrics.jsonl")
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[-1]["loss"] < 0.68
    before, after = (load_file(folder / "model.safetensors") for folder in (letters_folder, result.model))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("_proj" in name for name in moved)
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").exists()
    run_pairs(letters_folder, data, tmp_path / "out", epochs=1)
    assert not (tmp_path / "out" / "adapter").exists()  # of a run with other settings


def test_recomputed_activations_change_nothing(
    letters_folder: Path,
    write_rows: WriteRows,
    tmp_path: Path,
) -> None:
    data = write_rows("pairs.jsonl", few_pairs(24))
    plain, recomputed = (
        run_pairs(letters_folder, data, tmp_path / str(flag), activation_checkpointing=flag) for flag in (False, True)
    )
    one, two = (load_file(result.model / "model.safetensors") for result in (plain, recomputed))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0.0, atol=1e-6)


def test_too_long_and_tied_judgements_are_left_out_and_counted(
    policy_folder: Path, write_rows: WriteRows, words: Tokenizer, tmp_path: Path
) -> None:
    long = " fog" * 30
    rows = [
        {"prompt": "A", "chosen": " b", "rejected": " c"},
        {"prompt": "A", "completions": [" b", " c"], "ranks": [1, 1]},
        {"prompt": "A", "chosen": " b", "rejected": long},
        {"prompt": "A", "completions": [" b", " c", long], "ranks": [1, 2, 3]},  # one pair is left of it
    ]
    heard: list[str] = []
    result = dpo(
        dpo_config(max_tokens=20),
        model=policy_folder,
        data=write_rows("pairs.jsonl", rows),
        output_dir=tmp_path / "out",
        log=lambda _, text: heard.append(text),
    )
    assert "2 of 4 judgements left out: 1 longer than 20 tokens, 1 one single tie" in heard
    assert (result.num_groups, result.num_completions) == (2, 4)


@pytest.mark.parametrize(
    ("loss", "rows", "says"),
    [
        ("dpo", [{"prompt": "A", "completions": [" b", " c"], "ranks": [1, 1]}], "1 one single tie"),
        ("kto", [{"prompt": "A", "completions": [" b", " c"], "ranks": [2, 2]}], "1 one single tie"),
        ("dpo", [{"prompt": "A", "completions": [" b"], "ranks": [1]}], "has 1 texts"),
        ("dpo", [{"prompt": "A", "completion": " b", "label": True}], "dpo.loss=kto"),
        ("kto", [{"prompt": p, "completion": " b", "label": True} for p in "AB"], "no completion is bad"),
        ("kto", [{"prompt": p, "completion": " b", "label": False} for p in "AB"], "no completion is good"),
        ("kto", [{"prompt": "A", "completion": " b", "label": 7}], '"label" is a number'),
        ("dpo", [{"prompt": "A", "chosen": " fog" * 99, "rejected": " b"}], "longer than 64 tokens"),
        ("dpo", [], "the file is empty"),
    ],
)
def test_a_file_without_a_preference_is_refused(
    loss: str, rows: list[dict[str, Any]], says: str, policy_folder: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    data = write_rows("rows.jsonl", rows)
    with pytest.raises(DataError, match=says) as caught:
        dpo(dpo_config(loss=loss), model=policy_folder, data=data, output_dir=tmp_path / "out")
    assert "rows.jsonl" in str(caught.value)
    assert not (tmp_path / "out" / "model").exists()


def test_settings_that_cannot_work_are_refused(policy_folder: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    data = write_rows("rows.jsonl", few_pairs(8))

    def refused(config: DpoConfig) -> str:
        with pytest.raises(UsageError) as caught:
            dpo(config, model=policy_folder, data=data, output_dir=tmp_path / "out")
        return str(caught.value)

    assert "groups_per_step" in refused(dpo_config(loss="kto", groups_per_step=1))
    assert "--reward-model" in refused(dpo_config(online=True))
    assert "no effect" in refused(dpo_config(rewards=INDIFFERENT))
    assert "is no row" in refused(dpo_config(loss="math:pi"))
    assert "there is no module 'nowhere'" in refused(dpo_config(loss="nowhere:row"))
    with pytest.raises(ValueError, match="did you mean 'simpo'"):
        DpoConfig(loss="sinpo")
    with pytest.raises(ValueError, match="dropout"):
        DpoLoraConfig(rank=2, dropout=0.1)


def test_a_row_of_ones_own_is_named_by_module(
    letters_folder: Path,
    write_rows: WriteRows,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SLiC's hinge, from a file outside the package."""
    (tmp_path / "slic_row.py").write_text(
        "import torch\n"
        "from accord.algo.table import PreferenceAlgorithm\n"
        "def hinge(better_N, worse_N, settings):\n"
        "    return torch.relu(1 - settings.dpo_beta * (better_N - worse_N))\n"
        "slic = PreferenceAlgorithm(hinge)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run_pairs(letters_folder, write_rows("pairs.jsonl", few_pairs(48)), tmp_path / "out", loss="slic_row:slic")
    losses = [row["loss"] for row in rows_of(tmp_path / "out" / "metrics.jsonl")]
    assert losses[0] == pytest.approx(1.0, abs=1e-5) and losses[-1] < losses[0]


# -- stages: online ----------------------------------------------------------------------------------------------------


def online(folder: Path, data: Path, output_dir: Path, sign: float = 1.0, **changes: Any) -> list[dict[str, Any]]:
    """Scored 1 where the text ends with a, else 0; ``sign`` turns the taste around."""
    settings: dict[str, Any] = {"online": True, "max_new_tokens": 12, "samples_per_prompt": 4, "epochs": 20} | changes
    rewards = ({"regex": "a$", "weight": sign},)
    dpo(dpo_config(**{"rewards": rewards, **settings}), model=folder, data=data, output_dir=output_dir)
    return rows_of(output_dir / "metrics.jsonl")


INDIFFERENT = ({"regex": "no text has this"},)


@pytest.fixture
def prompts(write_rows: WriteRows) -> Path:
    return write_rows("prompts.jsonl", [{"prompt": p} for p in PROMPTS])


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "sign"), [("dpo", 1.0), ("dpo", -1.0), ("kto", 1.0), ("ipo_sum", 1.0)])
def test_online_a_scorer_is_followed_or_avoided(
    loss: str,
    sign: float,
    letters_folder: Path,
    prompts: Path,
    tmp_path: Path,
) -> None:
    rows = online(letters_folder, prompts, tmp_path, sign, loss=loss, optim=OptimConfig(lr=5e-3))
    first, last = rows[0]["score"] * sign, sum(row["score"] * sign for row in rows[-3:]) / 3
    assert 0.05 < first < 0.6
    assert last > 0.8 if sign > 0 else last < 0.1
    assert rows[0]["chosen_drift"] == pytest.approx(0.0, abs=1e-4)
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-4) and rows[-1]["kl"] > 0.1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("rank", [0, 2])
def test_online_kl_is_zero_before_the_first_step_at_any_temperature(
    letters_folder: Path, prompts: Path, tmp_path: Path, temperature: float, rank: int
) -> None:
    """Of samples at .5 the log-ratio to the reference at 1 was 2.7 nats, of nothing but the temperature."""
    lora = DpoLoraConfig(rank=rank)
    rows = online(letters_folder, prompts, tmp_path, temperature=temperature, epochs=1, lora=lora)
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert rows[0]["margin"] == pytest.approx(0.0, abs=1e-4)  # the loss is about the policy as it is, not as it samples


@pytest.mark.slow
def test_online_with_an_adapter_the_reference_is_the_policy_without_it(
    letters_folder: Path,
    prompts: Path,
    tmp_path: Path,
) -> None:
    changes: dict[str, Any] = {"lora": DpoLoraConfig(rank=4), "optim": OptimConfig(lr=1e-2), "epochs": 6}
    rows = online(letters_folder, prompts, tmp_path, **changes)
    assert rows[0]["margin"] == pytest.approx(0.0, abs=1e-5)
    assert rows[-1]["margin"] > 0.002 and abs(rows[-1]["rejected_drift"]) > 0.01


def test_online_scores_that_all_tie_teach_nothing_and_ring(
    letters_folder: Path,
    prompts: Path,
    tmp_path: Path,
) -> None:
    rows = online(letters_folder, prompts, tmp_path, rewards=INDIFFERENT, epochs=2, missing_eos_penalty=0.0)
    assert [(row["ties"], row["loss"], row["policy_grad_norm"]) for row in rows] == [(1.0, 0.0, 0.0)] * 2
    assert all(value is not None for row in rows for value in row.values())
    assert {row["alarm"] for row in rows_of(tmp_path / "events.jsonl")} >= {"ties"}
    start, end = (load_file(f / "model.safetensors") for f in (letters_folder, tmp_path / "model"))
    assert all(torch.equal(start[name], end[name]) for name in start)


@pytest.mark.slow
def test_online_a_completion_that_does_not_end_pays_for_it(
    letters_folder: Path,
    prompts: Path,
    tmp_path: Path,
) -> None:
    rows = online(letters_folder, prompts, tmp_path, rewards=INDIFFERENT, epochs=12, max_new_tokens=5)
    assert 0.1 < rows[0]["eos_rate"] < 0.9
    assert rows[-1]["eos_rate"] > rows[0]["eos_rate"] + 0.1


def test_online_looks_at_held_out_judgements_where_there_are_any(
    letters_folder: Path,
    reward_folder: Path,
    prompts: Path,
    write_rows: WriteRows,
    tmp_path: Path,
) -> None:
    config = dpo_config(online=True, max_new_tokens=8, groups_per_step=4)
    inputs = {"model": letters_folder, "reward_model": reward_folder, "data": prompts}
    result = dpo(config, **inputs, output_dir=tmp_path / "a", valid_data=write_rows("v.jsonl", few_pairs(24)))
    assert (result.num_steps, result.num_groups, result.num_completions) == (1, 4, 8)
    assert result.valid_accuracy is not None and 0 <= result.valid_accuracy <= 1
    assert dpo(config, **inputs, output_dir=tmp_path / "b").valid_accuracy is None


# -- what is said ------------------------------------------------------------------------------------------------------


def test_alarms_of_direct_preference() -> None:
    fine = {"loss": 0.5, "accuracy": 1.0, "margin": 1.0, "chosen_drift": -3.0, "train_accuracy": 0.8}
    fine |= {"valid_accuracy": 0.75, "ties": 0.2, "eos_rate": 1.0, "distinct": 0.9}
    assert raised_alarms(fine, PREFERENCE_ALARMS) == [] == raised_alarms({"loss": 0.5}, PREFERENCE_ALARMS)
    spoilt = {"chosen_drift": -21, "margin": 6, "valid_accuracy": 0.65, "ties": 0.6, "eos_rate": 0.5, "distinct": 0.2}
    for name, value in spoilt.items():
        (event,) = raised_alarms(fine | {name: value}, PREFERENCE_ALARMS)
        assert event["alarm"] and event["cause"]


def test_every_metric_is_explained_in_the_docs(
    letters_folder: Path,
    letter_rows: tuple[Rows, Rows],
    prompts: Path,
    write_rows: WriteRows,
    tmp_path: Path,
) -> None:
    thumbs = write_rows("thumbs.jsonl", letter_rows[1][:40])
    run_pairs(letters_folder, thumbs, tmp_path / "kto", loss="kto")
    rows = [*rows_of(tmp_path / "kto" / "metrics.jsonl")]
    rows += online(letters_folder, prompts, tmp_path / "online", epochs=1)
    page = (Path(__file__).resolve().parents[1] / "docs" / "algorithms.md").read_text()
    section = page.split("### Direct preference\n")[1].split("\n### ")[0]
    common = {"step", "seconds", "loss", "policy_grad_norm", "policy_lr"}
    assert [name for row in rows for name in row if name not in common and f"`{name}`" not in section] == []
