"""`accord eval reward`: accuracy by many facets, people's own agreement, what fools a reward model, and the gate."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import WriteRows
from typer.testing import CliRunner

import accord
from accord.cli.evaluating import judge_of, scorer_of
from accord.cli.main import app
from accord.config import EvalConfig, Recipe
from accord.errors import DataError, UsageError
from accord.evals.attacks import ATTACKS, Attacked, attacked_prompts, order_matters, run_attacks
from accord.evals.drift import DriftSide, area_under_curve, told_apart
from accord.evals.facets import facets, first_preferred, human_ceiling, length_habit, member_agreement
from accord.evals.gate import RULES, gate_of
from accord.evals.pair_baseline import length_scores
from accord.evals.pairs import ranked_pairs
from accord.evals.results import plain
from accord.evals.reward_card import card_json, measure_reward_model, reward_card
from accord.evals.reward_eval import RewardSources
from accord.evals.subsets import subset_table, top_share
from accord.formats.stage_rows import RankedRow, read_ranked_rows
from accord.loop.round import pass_gate
from accord.records import RankedGroup
from accord.report.parts import gate_rows
from accord.stats import Interval, Unknown, margin_calibration, mending_temperature
from accord.stats.intervals import sigmoid

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def row(prompt: str, better: str, worse: str, who: str = "", **more: object) -> RankedRow:
    group = RankedGroup(prompt=prompt, completions=(better, worse), ranks=(1, 2), **more)  # type: ignore[arg-type]
    return RankedRow(group, prompt, who)


def scored(rows: Sequence[RankedRow]):  # type: ignore[no-untyped-def]
    return ranked_pairs([one.group for one in rows])


# ---- temperature ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_mending_temperature_is_scikit_learns_logistic_regression_through_zero() -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    margins = rng.normal(0.4, 2.0, 300)
    fit = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000)
    fit.fit(np.concatenate([margins, -margins])[:, None], [1] * 300 + [0] * 300)
    found = mending_temperature(margins).temperature
    assert isinstance(found, Interval)
    assert found.value == pytest.approx(1 / float(fit.coef_[0, 0]), rel=1e-4)


@pytest.mark.slow
def test_a_planted_temperature_is_found_and_mends_the_error() -> None:
    """True odds sigmoid(m); the model says 3 m, so it is three times too sure."""
    rng, inside = np.random.default_rng(1), []
    for seed in range(40):
        sure = np.abs(rng.normal(0, 1.5, 160))
        margins = np.where(rng.random(160) < sigmoid(sure), 3 * sure, -3 * sure)
        found = mending_temperature(margins, seed=seed)
        assert isinstance(found.temperature, Interval)
        inside.append(found.temperature.low <= 3.0 <= found.temperature.high)
        assert found.error is not None and found.error < margin_calibration(margins).error
    assert np.mean(inside) >= 0.85  # 95 % nominal: fewer than 34 of 40 has a chance below 1 in 100


def test_no_temperature_mends_what_is_always_right_or_worse_than_chance() -> None:
    for margins, why in (([1.0, 2.0], "right every time"), ([-1.0, -2.0], "wrong"), ([-3.0, 1.0, -2.0], "the surer")):
        found = mending_temperature(margins).temperature
        assert isinstance(found, Unknown) and why in found.why


# ---- facets --------------------------------------------------------------------------------------------------------

ROWS = [
    row("p1", "a b c d", "a", "Ann", origin="one.jsonl", topic="t1", strength="significantly"),
    row("p2", "a", "a b c d", "Ann", origin="one.jsonl", topic="t1", strength="slightly"),
    row("p3", "a b", "a c d", "Bob", origin="two.jsonl", topic="t2", strength="slightly"),
]


def test_facets_by_hand() -> None:
    """The longer text is the scorer's choice: right on p1 alone."""
    held_out = scored(ROWS)
    found = facets(length_scores(held_out.completions), held_out, ROWS)
    values = {name: {one.label: one.accuracy.value for one in rows} for name, rows in found.items()}
    assert values["source"] == {"one.jsonl": 0.5, "two.jsonl": 0.0}
    assert values["margin"] == {"significantly": 1.0, "slightly": 0.0}
    assert values["annotator"] == {"Ann": 0.5, "Bob": 0.0}
    assert values["topic"] == {"t1": 0.5, "t2": 0.0}
    assert values["length_gap"] == {"more than twice as long": 1.0, "less than half as long": 0.0, "shorter": 0.0}
    assert "place" not in values  # the better text always stands first
    t1 = next(one.accuracy for one in found["topic"] if one.label == "t1")
    assert t1.clusters == 2 and not math.isnan(t1.low)  # within a topic its prompts are resampled


def test_rare_labels_are_one_row() -> None:
    rows = [row(f"p{i}", "yes", "no", f"person {min(i, 40)}") for i in range(60)]
    found = facets([1.0, 0.0] * 60, scored(rows), rows)["annotator"]
    assert len(found) == 16 and found[-1].label == "all others" and sum(one.accuracy.n for one in found) == 60


def test_the_ceiling_by_hand() -> None:
    """Three people on one pair, two for "x" and one for "y"; two on another, who agree.

    Against the majority of the others: Ann has Ben (x) and Cal (y), even, a half; Ben the same; Cal has two against
    him, 0. On the second pair both agree, 1 each. The mean is 3 of 5.
    """
    rows = [
        row("p", "x", "y", "Ann"), row("p", "x", "y", "Ben"), row("p", "y", "x", "Cal"),
        row("q", "u", "v", "Ann"), row("q", "u", "v", "Ben"),
        row("q", "v", "u", "", origin="AI feedback"),  # a program is nobody
        row("r", "m", "n", "Ann"),  # judged once: says nothing
    ]  # fmt: skip
    held_out = scored(rows)
    scores = [float(text in ("x", "u")) for text in held_out.completions]
    found = human_ceiling(scores, held_out, rows)
    assert isinstance(found.human, Interval) and isinstance(found.model, Interval)
    assert found.human.value == pytest.approx(3 / 5)
    # the model says x and u: against Ann's and Ben's others a half each, against Cal's 1, on q 1 and 1
    assert found.model.value == pytest.approx(4 / 5)
    assert (found.judgements, found.unnamed, found.programs) == (5, 0, 1)
    nobody = human_ceiling(scores, held_out, rows[-1:])
    assert isinstance(nobody.human, Unknown)


def test_a_person_who_judges_a_pair_twice_is_one_person() -> None:
    rows = [row("p", "x", "y", "Ann"), row("p", "x", "y", "Ann")]
    assert isinstance(human_ceiling([1.0, 0.0], scored(rows), rows).human, Unknown)
    copies = [row("p", "x", "y"), row("p", "x", "y")]  # without names a row twice is a copy, no agreement
    assert isinstance(human_ceiling([1.0, 0.0], scored(copies), copies).human, Unknown)
    unnamed = [row("p", "x", "y", group="task 1"), row("p", "x", "y", group="task 1")]
    assert human_ceiling([1.0, 0.0], scored(unnamed), unnamed).unnamed == 2


def test_people_who_flip_a_coin_in_four_agree_as_much_as_that() -> None:
    """Each of two says the truth with .75: they agree in .75^2 + .25^2 = .625."""
    rng, rows = np.random.default_rng(0), []
    for i in range(1500):
        for who in ("Ann", "Ben"):
            rows.append(row(f"p{i}", *(("x", "y") if rng.random() < 0.75 else ("y", "x")), who))
    held_out = scored(rows)
    found = human_ceiling([float(text == "x") for text in held_out.completions], held_out, rows)
    assert isinstance(found.human, Interval) and isinstance(found.model, Interval)
    assert found.human.low < 0.625 < found.human.high and found.model.low < 0.75 < found.model.high


def test_length_habit_and_place_by_hand() -> None:
    held_out = scored(ROWS)
    habit = length_habit(length_scores(held_out.completions), held_out)
    assert not isinstance(habit, Unknown)
    assert habit.people.value == pytest.approx(1 / 3) and habit.model.value == 1  # of uneven pairs
    assert isinstance(first_preferred(held_out, ROWS), Unknown)
    turned = [*ROWS, RankedRow(RankedGroup(prompt="z", completions=("n", "y"), ranks=(2, 1)))]
    first = first_preferred(scored(turned), turned)
    assert isinstance(first, Interval) and first.value == pytest.approx(3 / 4)


def test_members_by_hand() -> None:
    """Two members on three pairs: alike on the first and the last, and right there once."""
    held_out = scored(ROWS)
    members = np.array([[1, 1], [0, 0], [1, 0], [0, 1], [0, 0], [1, 1]], dtype=float)
    found = member_agreement(members, held_out)
    assert found.alike.value == pytest.approx(2 / 3) == found.unanimous.value
    assert [round(one.value, 3) for one in found.accuracies] == [0.667, 0.333]
    assert isinstance(found.accuracy_unanimous, Interval) and found.accuracy_unanimous.value == 0.5
    assert isinstance(found.accuracy_split, Interval) and found.accuracy_split.value == 0.5
    assert found.spread == pytest.approx(2 * math.sqrt(0.5) / 6)


# ---- what fools it -------------------------------------------------------------------------------------------------


def test_attacks_say_what_they_are_and_a_counter_of_words_falls_for_the_long_ones() -> None:
    of = attacked_prompts([row("What is rain?", "Rain is water. It falls.", "no"), row("Why?", "Because.", "no")])
    texts = {name: make(of[0]) for name, make in ATTACKS.items()}
    assert texts["empty"] == "" and texts["copy of the prompt"] == "What is rain?"
    assert texts["repeated sentence"] == " ".join(["Rain is water."] * 12)
    assert texts["answer to another prompt"] == "Because."
    assert sorted(texts["shuffled words"].split()) == sorted(["Rain", "is", "water.", "It", "falls."])
    assert len(texts["very long"].split()) == 400
    found = {one.name: one for one in run_attacks(lambda pairs: [len(c.split()) for _, c in pairs], of)}
    assert found["very long"].reaches.value == 1 and found["empty"].reaches.value == 0
    assert found["empty"].lead.value == pytest.approx(-(5 + 1) / 2)
    assert attacked_prompts([row("alone", "yes", "no")]) == [Attacked("alone", "alone", "yes", "", "")]


def test_a_score_that_depends_on_its_neighbours_is_seen() -> None:
    pairs = [("p", "a" * i) for i in range(1, 6)]
    assert order_matters(lambda some: [len(c) for _, c in some], pairs) == 0
    assert order_matters(lambda some: list(range(len(some))), pairs) == 4


def test_area_under_curve_is_scikit_learns() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    scores, positive, weights = rng.integers(0, 6, 80), rng.random(80) < 0.4, rng.integers(0, 4, 80)
    assert area_under_curve(scores, positive, weights) == pytest.approx(
        roc_auc_score(positive, scores, sample_weight=weights)
    )
    assert math.isnan(area_under_curve([1.0, 2.0], [True, True], [1, 1]))


def test_texts_of_one_kind_are_not_told_apart_and_of_two_kinds_are() -> None:
    rng = np.random.default_rng(0)

    def side(words: Sequence[str]) -> DriftSide:
        texts = [" ".join(rng.choice(words, 8)) for _ in range(60)]
        prompts = [f"p{i % 20}" for i in range(60)]
        return DriftSide(texts, prompts, np.zeros(60), prompts)

    plain_words, others = [f"w{i}" for i in range(30)], [f"w{i}" for i in range(20, 50)]
    same = told_apart(side(plain_words), side(plain_words))
    assert same.low < 0.5 and same.value < 0.65
    assert told_apart(side(plain_words), side(others)).low > 0.9


# ---- subsets -------------------------------------------------------------------------------------------------------


def test_best_of_four_ties_and_pairs_by_hand() -> None:
    def bench(prompt: str, right: int, texts: str, subset: str) -> RankedRow:
        ranks = (1,) * right + (2,) * (len(texts) - right)
        return RankedRow(
            RankedGroup(prompt=prompt, completions=tuple(texts), ranks=ranks), prompt, "", {"subset": subset}
        )

    rows = [bench("1", 1, "abcd", "four"), bench("2", 1, "ebcd", "four"), bench("3", 2, "abx", "ties"),
            bench("4", 2, "acb", "ties"), bench("5", 1, "bb2"[0:1] + "a", "two")]  # fmt: skip
    held_out = scored(rows)
    value = {"a": 3.0, "b": 2.0, "c": 1.0, "d": 0.0, "e": 2.0, "x": 1.5}
    scores = [value[text] for text in held_out.completions]
    found = {one.name: one for one in subset_table({"model": scores}, held_out, rows)}
    assert found["four"].kind == "best of 4" and found["four"].chance == 0.25
    assert found["four"].accuracy["model"].value == pytest.approx((1 + 0.5) / 2)  # e and b share the highest score
    assert found["ties"].kind == "ties" and found["ties"].chance == pytest.approx(1 / 3)
    # a 3, b 2 above x 1.5: right, but .5 above it and 1 apart; a 3, c 1 not above b 2: wrong
    assert found["ties"].accuracy["model"].value == 0.5 and found["ties"].separated["model"].value == 0.0
    assert found["two"].kind == "pairs" and found["two"].accuracy["model"].value == 0.0
    assert top_share(np.array([3.0, 2.0, 0.5]), np.array([True, True, False])) == 1


def test_plain_pairs_of_one_file_need_no_table() -> None:
    assert subset_table({"model": [1.0, 0.0] * 3}, scored(ROWS[:2]), ROWS[:2]) == ()


# ---- the gate ------------------------------------------------------------------------------------------------------


def card_of(hits: Sequence[float], baseline: Sequence[float] | None = None) -> dict[str, object]:
    rows = [row(f"p{i}", f"better {i}", f"worse {i}") for i in range(len(hits))]
    held_out = scored(rows)
    scores = np.array([[4.4 * hit, 2.2] for hit in hits]).ravel()  # sigmoid(2.2) = .90
    other = np.array([[hit, 0.5] for hit in baseline or [0.5] * len(hits)]).ravel()
    return card_json(reward_card(scores, held_out, {"longer_wins": other}), {})


def test_the_gate_passes_warns_and_refuses_with_reasons() -> None:
    good = gate_of(card_of([1.0] * 90 + [0.0] * 10))
    assert good.says == "pass" and good.sentence.startswith("Fit to be optimised against: it orders 0.90")
    few = gate_of(card_of([1.0] * 6 + [0.0] * 4))
    assert few.says == "warn" and "not shown to be better than chance: 85 topics" in few.sentence
    coin = gate_of(card_of([1.0, 0.0] * 50))
    assert coin.says == "refuse" and coin.stops and "no better than chance on 100 topics" in coin.sentence
    turned = gate_of(card_of([0.0] * 90 + [1.0] * 10))
    assert turned.says == "refuse" and "is the sign wrong" in turned.sentence
    shorter = gate_of(card_of([1.0] * 70 + [0.0] * 30, [1.0] * 95 + [0.0] * 5))
    assert (
        shorter.says == "refuse" and "'longer wins' orders more pairs right than it does, by 0.25" in shorter.sentence
    )


def test_what_fools_a_reward_model_warns_in_a_run_and_refuses_where_the_recipe_says_so() -> None:
    """A counter of words, on 40 prompts whose better text is the longer: right on all pairs, and fooled."""

    class Words:
        def score(self, pairs):  # type: ignore[no-untyped-def]
            import torch

            return torch.tensor([float(len(text.split())) for _, text in pairs])

    held_out = scored([row(f"p{i}", f"a longer text number {i}", "short") for i in range(40)])
    card = measure_reward_model(Words(), held_out)
    assert card["attacked"] == 32 and card["model"]["all_pairs"]["value"] == 1
    reached = {one["name"]: one["reaches"]["value"] for one in card["attacks"]}
    assert reached["very long"] == reached["repeated word"] == 1 and reached["empty"] == 0
    assert reached["answer to another prompt"] == reached["shuffled words"] == 1  # as many words: a tie reaches
    warned, refused = gate_of(card, attacks="warn"), gate_of(card)
    assert warned.says == "warn" and refused.says == "refuse" and not warned.stops
    assert "'very long' reaches" in warned.sentence and "eval.gate_attacks=refuse would end" in warned.sentence
    assert Recipe(name="x").eval.gate_attacks == "warn"


def test_few_topics_are_never_refused() -> None:
    assert gate_of(card_of([0.0] * 19)).says == "warn" and gate_of(card_of([0.0] * 20)).says == "refuse"


def test_the_recipe_may_overrule_the_gate_and_it_says_so() -> None:
    found = gate_of(card_of([1.0, 0.0] * 50), overrule=True)
    assert found.says == "refuse" and not found.stops and "(overruled: eval.gate_overrule)" in found.sentence


def test_what_a_card_holds_besides_is_read() -> None:
    card = card_of([1.0] * 90 + [0.0] * 10)
    wins = {"value": 0.8, "low": 0.7, "high": 0.9, "n": 64, "clusters": 64}

    def says(**more: object) -> list[tuple[str, str]]:
        found = gate_of(card | more)
        return [(one.rule, one.says) for one in found.findings if one.says != "pass"]

    attack = {"lead": wins, "example": "", "reaches": wins}
    assert says(attacks=[attack | {"name": "empty"}]) == [("attacks", "refuse")]
    assert says(attacks=[attack | {"name": "I cannot help"}]) == [("attacks", "warn")]  # it may be right to refuse
    assert says(ceiling={"model_minus_human": wins}) == [("people", "warn")]
    assert says(seen={"prompts": 3, "of": 100}) == [("held out", "warn")]
    assert says(seen={"prompts": 80, "of": 100}) == [("held out", "refuse")]
    assert says(length_habit={"model_minus_people": wins}) == [("length", "warn")]
    assert says(padding_rises=wins) == [("length", "warn")]
    assert says(drift={"told_apart": wins | {"low": 0.95}}) == [("drift", "warn")]
    assert says(calibration={"error": 0.3, "bins": []}) == [("calibration", "warn")]
    probe = {"probe": {"name": "slogan"}, "score": 1.0, "outscores_reference": True}
    assert says(probes={"reward model": [probe]}) == [("attacks", "warn")]
    assert set(RULES) >= {"held out", "accuracy", "baselines", "people", "attacks", "length", "calibration", "drift"}


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def own_scorer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "word_scorer.py").write_text("def words(prompts, texts):\n    return [len(t.split()) for t in texts]\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "word_scorer:words"


def test_a_function_is_measured_on_a_file_of_pairs_without_a_project(
    own_scorer: str, write_rows: WriteRows, tmp_path: Path
) -> None:
    pairs = [
        {"prompt": f"Question {i}?", "chosen": "A long and good answer.", "rejected": "No.", "annotator": who}
        for i in range(24)
        for who in ("Ann", "Ben")
    ]
    out = tmp_path / "out"
    argv = ["eval", "reward", "--model", own_scorer, "--data", str(write_rows("held.jsonl", pairs)), "-o", str(out)]
    result = CliRunner().invoke(app, [*argv, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert made["gate"] == "refuse" and "'very long' reaches" in made["sentence"]
    assert made["accuracy"]["value"] == 1 and set(made["baselines"]) == {"longer_wins", "random"}
    assert set(made["left_out"]) == {"tfidf_bradley_terry", "untrained_trunk", "drift"}
    card = json.loads((out / "reward/card.json").read_text())
    assert card["ceiling"]["human"]["value"] == 1 and card["ceiling"]["judgements"] == 48
    page = (out / "report.html").read_bytes()
    assert b"Refused" in page and b"how good could a model be" in page.lower()
    (out / "report.html").unlink()
    assert accord.redraw(out) == [out / "report.html"] and (out / "report.html").read_bytes() == page
    text = CliRunner().invoke(app, argv, catch_exceptions=False).stdout
    assert text.startswith("Do not optimise against it") and "model: 1.000" in text and "left out: drift" in text


def test_a_reward_model_is_measured_beside_what_taught_it(
    reward_folder: Path, policy_folder: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    def pairs(start: int) -> list[dict[str, str]]:
        return [
            {"prompt": f"The fog {i}", "chosen": "bread wants salt", "rejected": "nobody in the village"}
            for i in range(start, start + 12)
        ]

    learnt, held = write_rows("learnt.jsonl", pairs(0)), write_rows("held.jsonl", pairs(10))
    held.write_text(held.read_text() + json.dumps({"prompt": "fog " * 500, "chosen": "a", "rejected": "b"}) + "\n")
    drawn = [{"prompt": f"The fog {i}", "completion": "two foxes crossed"} for i in range(12)]
    made = accord.evaluate_reward(
        EvalConfig(gate_overrule=True),
        model=scorer_of([str(reward_folder), str(reward_folder)]),
        data=[held],
        output_dir=tmp_path / "out",
        sources=RewardSources(learnt, policy_folder, write_rows("drawn.jsonl", drawn)),
    )
    assert set(made.baselines) == {"longer_wins", "random", "tfidf_bradley_terry", "untrained_trunk"}
    card = json.loads((tmp_path / "out/reward/card.json").read_text())
    assert card["seen"] == {"prompts": 2, "of": 12}
    assert set(made.left_out) == {"long_prompts"} and made.left_out["long_prompts"].startswith("1 of 13 judgements")
    assert card["members"]["members"] == 2 and card["members"]["alike"]["value"] == 1
    assert card["drift"]["told_apart"]["value"] > 0.9 and card["drift"]["spread_samples"]["value"] == 0
    assert card["order_matters"] < 1e-4 and card["gate"]["overruled"]
    assert plain(Unknown("why")) == {"value": None, "why": "why"}


def test_what_cannot_be_measured_is_refused(own_scorer: str, write_rows: WriteRows, tmp_path: Path) -> None:
    held = write_rows("held.jsonl", [{"prompt": "p", "chosen": "yes", "rejected": "no"}])
    (tmp_path / "run").mkdir()
    (tmp_path / "run/resolved.json").write_text("{}")
    with pytest.raises(UsageError, match="holds another report"):
        accord.evaluate_reward(EvalConfig(), model=judge_of(own_scorer), data=[held], output_dir=tmp_path / "run")
    with pytest.raises(UsageError, match="ensemble is of reward models"):
        scorer_of([own_scorer, "folder"])
    old = CliRunner().invoke(app, ["eval", "--policy", "a", "--reference", "b"])
    assert old.exit_code == 2 and "accord eval policy A B" in old.output


def test_llmbar_and_mt_bench_are_read_as_subsets_beside_chance_and_length() -> None:
    files = sorted(DATA.glob("llmbar-*.json"))
    rows = [one for path in files for one in read_ranked_rows(path)]
    held_out = scored(rows)
    rng = np.random.default_rng(0)
    scores = {"random": rng.random(len(held_out.texts)), "longer_wins": length_scores(held_out.completions)}
    found = {one.name: one for one in subset_table(scores, held_out, rows)}
    assert [one.rows for one in found.values()] == [134, 100, 200]  # as the files hold
    for one in found.values():
        assert one.kind == "pairs" and one.accuracy["random"].low < 0.5 < one.accuracy["random"].high
    # LLMBar's adversarial half was made so that what looks better, and is longer, is wrong (Zeng et al. 2023)
    adversarial = found["llmbar-LLMBar_Adversarial_Neighbor.json"].accuracy["longer_wins"]
    assert adversarial.high < 0.5 < found["llmbar-Processed_MT-Bench.json"].accuracy["longer_wins"].low


# ---- the gate of a run ---------------------------------------------------------------------------------------------


class HomeWithCard:
    """As much of a run's home as the gate looks at."""

    def __init__(self, folder: Path, hits: Sequence[float], recipe: Recipe, *, held_out: bool = True) -> None:
        self.folder, self.recipe, self.said = folder, recipe, list[str]()
        self.task = SimpleNamespace(held_out=object() if held_out else None)
        self.runner = SimpleNamespace(say=lambda notice: self.said.append(str(notice)))
        (folder / "reward").mkdir(parents=True)
        (folder / "reward/card.json").write_text(json.dumps(card_of(hits)))

    def path(self, name: str) -> Path:
        return self.folder / name


def test_a_run_ends_before_it_optimises_against_a_coin_unless_it_is_overruled(tmp_path: Path) -> None:
    coin, good = [1.0, 0.0] * 50, [1.0] * 90 + [0.0] * 10
    recipe = Recipe()
    with pytest.raises(DataError, match="not fit to be optimised against") as caught:
        pass_gate(HomeWithCard(tmp_path / "a", coin, recipe))  # type: ignore[arg-type]
    assert "no better than chance" in caught.value.why and "eval.gate_overrule=true" in caught.value.hint
    overruled = recipe.model_copy(update={"eval": recipe.eval.model_copy(update={"gate_overrule": True})})
    home = HomeWithCard(tmp_path / "b", coin, overruled)
    pass_gate(home)  # type: ignore[arg-type]
    assert "overruled" in home.said[0]
    written = json.loads((tmp_path / "b/gate.json").read_text())
    assert gate_rows(written)[0]["says"] == "refuse (overruled by the recipe)"
    pass_gate(HomeWithCard(tmp_path / "c", coin, recipe.model_copy(update={"optimise": "dpo"})))  # type: ignore[arg-type]
    quiet = HomeWithCard(tmp_path / "d", good, recipe)
    pass_gate(quiet)  # type: ignore[arg-type]
    assert quiet.said == [] and json.loads((tmp_path / "d/gate.json").read_text())["says"] == "pass"
    none = HomeWithCard(tmp_path / "e", coin, recipe, held_out=False)
    pass_gate(none)  # type: ignore[arg-type]
    assert not (tmp_path / "e/gate.json").exists()
