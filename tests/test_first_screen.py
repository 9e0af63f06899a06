"""The first screen of a report: what it says of runs whose numbers were written by hand, and which text it shows."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from test_report import HOSTILE, Page, fabricate, iv, page_of, samples_rows

from accord.cli.verdicts import run_lines
from accord.evals.results import FirstVerdict, summarise
from accord.evals.trust import JUDGE_KINDS, judge_said, told_in_order
from accord.files import read_json, write_json
from accord.formats.jsonl import write_jsonl
from accord.report.first_screen import example, guards, headline
from accord.report.one_prompt import median_place
from accord.report.run_folder import read_run
from accord.report.run_page import write_model_card, write_report
from accord.report.turns import folded, last_said, shown_turns
from accord.stats import Interval


def prompts(value: float, half: float, n: int) -> Interval:
    """A win rate on so many prompts, each a topic of its own."""
    return Interval(value, value - half, value + half, n, n)


def told(run: Path) -> dict[str, Any]:
    return headline(read_run(run))


def judged_run(folder: Path, kind: str, win: Interval | None, **more: Any) -> Path:
    """A run in which a judge of this kind decides, named as its kind is."""
    run = fabricate(folder / "run", uncured=False, **more)
    found = read_json(run / "eval" / "results.json")
    found["judged"] = {"ppo": told_in_order([judge_said(kind, kind, win, ties=0.0)])}
    return with_results(run, found)


def with_results(run: Path, results: dict[str, Any]) -> Path:
    write_json(run / "eval" / "results.json", results)
    card = read_json(run / "reward" / "card.json")
    write_json(run / "summary.json", summarise(results, card, baseline="tfidf_bradley_terry", seconds=431.0))
    return run


def best_of_4(run: Path, win: Interval, **others: Any) -> Path:
    """The run with another win rate of best of 4."""
    found = read_json(run / "eval" / "results.json")
    for row in found["policies"]:
        if row["name"] == "best_of_n":
            row |= {"win_rate": win.to_json(), "other_judges": others}
    return with_results(run, found)


# ---- the first sentence --------------------------------------------------------------------------------------------


def test_better_by_people_in_one_sentence(tmp_path: Path) -> None:
    run = judged_run(tmp_path, "people", prompts(0.71, 0.06, 64))
    assert told(run)["sentence"] == (
        "The trained model is better: people prefer its answer to that of the model it began with in 71% of "
        "comparisons on 64 held-out prompts (95% interval 65% to 77%)."
    )
    assert told(run)["tone"] == "good" and not told(run)["alarms"]
    assert page_of(run).text.index("The trained model is better") < page_of(run).text.index("KL")


def test_the_command_says_what_the_report_says_first(tmp_path: Path) -> None:
    run = judged_run(tmp_path, "people", prompts(0.71, 0.06, 64))
    assert run_lines(run)[0] == told(run)["sentence"] and run_lines(tmp_path) == []


@pytest.mark.parametrize(
    ("kind", "named"),
    [("second_reward_model", "a second reward model"), ("chat", "AI feedback"), ("function", "a function of yours"),
     ("simulated", "simulated annotators (programs)")],
)  # fmt: skip
def test_every_judge_is_named_and_no_program_is_called_people(tmp_path: Path, kind: str, named: str) -> None:
    sentence = told(judged_run(tmp_path, kind, prompts(0.7, 0.05, 90)))["sentence"]
    assert named in sentence and "people" not in sentence and "human" not in sentence
    assert JUDGE_KINDS[kind].prefers in sentence


def test_worse_and_the_reward_model_was_pleased(tmp_path: Path) -> None:
    """The proxy goes from -.04 +- .05 to 1.34 +- .05 while the judge says worse: the plainest sign of gaming."""
    found = told(judged_run(tmp_path, "people", prompts(0.31, 0.06, 64)))
    assert (
        found["sentence"].startswith("The trained model is worse: people prefer its answer") and found["tone"] == "bad"
    )
    assert "in only 31% of comparisons on 64 held-out prompts (95% interval 25% to 37%)" in found["sentence"]
    assert found["alarms"] == [
        "The reward model likes its answers more (mean score -0.04 before, 1.34 after) while the judge likes them "
        "less: it has learnt to please the reward model (reward hacking)."
    ]


def test_nothing_is_shown_and_how_many_prompts_are_missing(tmp_path: Path) -> None:
    """85 prompts show a true share of .65 (`tests/test_trust.py`, by hand): 20 are 65 too few."""
    found = told(judged_run(tmp_path, "people", prompts(0.54, 0.14, 20)))
    assert "is not shown to be better" in found["sentence"] and "on 20 held-out prompts" in found["sentence"]
    assert found["notes"][0] == (
        "Nothing was shown, as the interval holds one half: 65 more prompts would be needed to show a true share of "
        "65%."
    )
    assert "the judge does not confirm it" in found["notes"][1]  # the proxy rose
    assert found["tone"] == "mixed" and not found["alarms"]


def test_nothing_is_shown_by_enough_prompts(tmp_path: Path) -> None:
    """p = .52: (.979982 + .841621 * sqrt(.52 * .48))^2 / .02^2 = 1.400456^2 / .0004 = 4,903.2; 100 are there."""
    note = told(judged_run(tmp_path, "people", prompts(0.52, 0.05, 100)))["notes"][0]
    assert "A true share of 65% would have been seen." in note and "about 4,804 more" in note
    even = told(judged_run(tmp_path, "people", prompts(0.5, 0.05, 100)))["notes"][0]
    assert "would have been seen" in even and "more" not in even  # no number of prompts shows that one half is not


def test_no_interval_shows_nothing(tmp_path: Path) -> None:
    found = told(judged_run(tmp_path, "people", Interval(0.7, math.nan, math.nan, 12, 1)))
    assert "on 12 held-out prompts of 1 topics, too few topics for an interval" in found["sentence"]
    assert "Nothing was shown, as there is no interval: 84 more" in found["notes"][0] and found["tone"] == "mixed"


def test_its_own_reward_model_proves_nothing(tmp_path: Path) -> None:
    """A judge that puts all texts in the order of the proxy is the proxy, whatever it is called and scaled."""
    run = judged_run(tmp_path, "second_reward_model", prompts(0.9, 0.03, 90))
    found = read_json(run / "eval" / "results.json")
    found["judges"] = {"second_reward_model": ""}
    with_results(run, found)
    rows, draw = samples_rows(), random.Random(0)
    for row in rows:
        row["proxy"] = draw.gauss(0, 1)
        row["judge"] = 3 * row["proxy"] - 1
    write_jsonl(run / "eval" / "samples.jsonl", rows)
    said = told(run)
    assert "the reward model that it was trained to please prefers its answer" in said["sentence"]
    assert "Nothing else has judged it" in said["notes"][0] and said["tone"] == "mixed"
    rows[0]["judge"] += 9.0  # one text that it sees otherwise, and it is a judge of its own
    write_jsonl(run / "eval" / "samples.jsonl", rows)
    assert "a second reward model" in told(run)["sentence"] and told(run)["tone"] == "good"


def test_policies_that_no_run_made_go_by_their_names(tmp_path: Path) -> None:
    run = judged_run(tmp_path, "function", prompts(0.7, 0.05, 90))
    (run / "resolved.json").unlink()
    assert told(run)["sentence"].startswith(
        "PPO is better: the judge, a function of yours, prefers its answer to that of SFT"
    )


# ---- best of n -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "begins"),
    [(0.60, 0.66, "It is not shown to beat what comes"),
     (0.60, 0.67, "It is not shown to beat what comes"),
     (0.76, 0.80, "It is not shown to beat what comes"),
     (0.78, 0.82, "It is beaten"),
     (0.55, 0.63, "It is ahead of what comes")],
)  # fmt: skip
def test_best_of_n_beside_the_policy(tmp_path: Path, low: float, high: float, begins: str) -> None:
    """The policy wins .71 [.65, .77] by the judge that scores: an interval that touches or lies above says so."""
    run = fabricate(tmp_path / "run", win_rate=Interval(0.71, 0.65, 0.77, 64, 64))
    best_of_4(run, Interval((low + high) / 2, low, high, 64, 64))
    note = told(run)["notes"][-1]
    assert note.startswith(begins) and "without" in note[:45], note
    assert note.endswith("), at 4 times the cost of each answer.")
    assert "drawing 4 answers from the model it began with and keeping the one that the reward model likes best" in note
    assert f"({100 * low:.0f}% to {100 * high:.0f}%)" in note
    assert note in page_of(run).text and note in write_model_card(run).read_text(encoding="utf-8")


def test_best_of_n_is_compared_by_one_judge(tmp_path: Path) -> None:
    """People look at no best of n: then the judge that scores both speaks of both, and is named."""
    run = judged_run(tmp_path, "people", prompts(0.9, 0.04, 64), win_rate=iv(0.66))
    note = told(best_of_4(run, iv(0.64)))["notes"][-1]
    assert (
        "wins 64% of comparisons (59% to 69%; by the same judge, Ratings, the trained model wins 66%, 61% to 71%)"
        in note
    )
    assert note.startswith("It is not shown to beat what comes without training") and "90%" not in note
    found = read_json(run / "eval" / "results.json")
    found["judges"] = {"ratings": "", "people": ""}  # the judge that decides is another that scores
    with_results(run, found)
    said = {"score": iv(0.1).to_json(), "win_rate": iv(0.64).to_json(), "length_controlled": None}
    note = told(best_of_4(run, iv(0.2), people=said))["notes"][-1]
    assert note.startswith("It is ahead of what comes without training") and "(59% to 69%)" in note


def test_best_of_n_itself_needs_no_such_sentence(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", candidate="best_of_8", uncured=False, best_of=8)
    assert not [note for note in told(run)["notes"] if "training" in note]
    assert "8 answers drawn for every one that is given" in guards(read_run(run))["cost"]


# ---- floors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broken", "says"),
    [({"length_ratio": 1.8}, "Its answers are 80% longer than before (length ratio 1.80, must be 0.8 to 1.25)"),
     ({"length_ratio": 0.3}, "Its answers are 70% shorter than before (length ratio 0.30, must be 0.8 to 1.25)"),
     ({"distinct_share": 0.4}, "40% of its answers differ from all others (distinct 0.40, must be at least 0.95)"),
     ({"nll_excess": 1.5}, "To the model it began with its answers are less likely than its own (NLL above 1.50")],
)  # fmt: skip
def test_a_broken_floor_stands_beside_the_sentence_in_plain_words(tmp_path: Path, broken: Any, says: str) -> None:
    run = judged_run(tmp_path, "people", prompts(0.71, 0.06, 64), **broken)
    found = told(run)
    assert found["tone"] == "bad" and found["warning"] == "Do not trust this gain as it stands."
    assert len(found["alarms"]) == 1 and found["alarms"][0].startswith(says)
    text = page_of(run).text
    assert text.index("is better") < text.index(says) < text.index("One prompt, before and after")
    assert found["held"] == "1 of 5 floors are not held."


def test_what_was_guarded_in_plain_words_with_the_terms_behind(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", length_ratio=1.2)
    summary = read_json(run / "summary.json") | {"asked": {"called": "simulated annotators", "judgements": 1200}}
    write_json(run / "summary.json", summary)
    found = guards(read_run(run))
    assert found["cost"] == ["7 minutes of computing", "1,200 judgements by simulated annotators"]  # 431 seconds
    assert [one["told"] for one in found["guarded"]][:2] == [
        "The reward model puts 79% of held-out pairs in the order that they were judged in",
        "Its answers are 20% longer than before",
    ]
    assert found["moved"] == "It is 8.8 nats an answer away from the model it began with"
    text = page_of(run).text
    assert "Its answers are 20% longer than before ( length ratio 1.20, must be 0.8 to 1.25)" in text
    write_json(run / "summary.json", summary | {"asked": {"answers": 240, "people": 3, "of_them_simulated": 9}})
    assert guards(read_run(run))["cost"][1] == "240 answers by 3 people (9 of them by programs)"


# ---- several rounds ------------------------------------------------------------------------------------------------


def of_rounds(folder: Path, *promoted: bool) -> Path:
    """A run of rounds, each of which wins 60 % against its champion; from the second 80 % against the first."""
    run = fabricate(folder / "run", uncured=False, win_rate=prompts(0.6, 0.05, 90))
    rows = []
    for number, became in enumerate(promoted, 1):
        place = run if number == 1 else run / f"round_{number}"
        if number > 1:
            fabricate(place, uncured=False, win_rate=prompts(0.6, 0.05, 90))
            started_from(place, champion="round_1" if promoted[0] else "")
        win = {"value": 0.6, "low": 0.55, "high": 0.65}
        first = {"kl": 9.0, "judge": "ratings", "win_rate": prompts(0.8, 0.05, 90).to_json() if number > 1 else win}
        row = {"round": number, "judge_win_rate": 0.6, "judge_win_rate_low": 0.55, "judge_win_rate_high": 0.65,
               "decided_by": "ratings", "first": first, "reward_accuracy": 0.8, "kl": 8.0, "answers": 30, "people": 2,
               "policy": "x", "promoted": became, "reasons": [], "candidate": "ppo",
               "report": (place / "report.html").relative_to(run).as_posix()}  # fmt: skip
        rows.append(row)
    write_json(run / "summary.json", read_json(run / "summary.json") | {"rounds": rows})
    return run


def best_of_4_of_round_1(run: Path, win: Interval) -> None:
    found = read_json(run / "eval" / "results.json")
    for row in found["policies"]:
        row |= {"win_rate": win.to_json()} if row["name"] == "best_of_n" else {}
    write_json(run / "eval" / "results.json", found)


def started_from(place: Path, champion: str) -> None:
    """The results of a later round: from a champion of an earlier one they tell the first start too."""
    found = read_json(place / "eval" / "results.json")
    if champion:
        against = FirstVerdict(iv(9.0), {"ratings": prompts(0.8, 0.05, 90)})
        kept = {"kl": against.kl.to_json(), "win_rates": {"ratings": against.win_rates["ratings"].to_json()}}
        found["policies"] = [row | ({"first": kept} if row["name"] == "ppo" else {}) for row in found["policies"]]
        found["policies"].append({**found["policies"][0], "name": "first", "role": "baseline"})
        rows = [row | {"policy": "first", "completion": "long ago"} for row in samples_rows() if row["policy"] == "sft"]
        write_jsonl(place / "eval" / "samples.jsonl", [*samples_rows(), *rows])
    with_results(place, found)


def test_after_rounds_the_policy_that_stands_is_told_against_the_first_start(tmp_path: Path) -> None:
    run = of_rounds(tmp_path, True, True)
    assert told(run)["sentence"] == (
        "After 2 rounds the trained model is better: the judge prefers its answer to that of the model that round 1 "
        "began with in 80% of comparisons on 90 held-out prompts (95% interval 75% to 85%)."
    )
    shown = example(read_run(run))
    assert shown["titles"] == ["where round 1 began", "PPO"]
    assert shown["before"].head == "long ago" and shown["more"] == "round_2/report.html#samples"
    best_of_4_of_round_1(run, prompts(0.74, 0.04, 90))  # against the same first model, by the same judge
    assert told(run)["notes"][-1].startswith(
        "It is not shown to beat what comes without training: drawing 4 answers from the model that round 1"
    )
    assert "wins 74% of comparisons (70% to 78%), at" in told(run)["notes"][-1]
    assert guards(read_run(run))["cost"] == [
        "14 minutes of computing", "30 answers by 2 people in round 1", "30 answers by 2 people in round 2",
    ]  # fmt: skip
    own = told(run / "round_2")
    assert "to that of the model this round began with in 60%" in own["sentence"]
    assert "Against the model that round 1 began with it wins 80% of comparisons (75% to 85%)." in own["notes"]
    card = write_model_card(run).read_text(encoding="utf-8")  # of what round 1 has published
    assert "in 60% of comparisons" in card and "After 2 rounds" not in card


def test_after_a_refused_round_the_one_before_it_stands(tmp_path: Path) -> None:
    run = of_rounds(tmp_path, True, False)
    found = told(run)
    assert "in 60% of comparisons" in found["sentence"] and found["sentence"].startswith("After 2 rounds the trained")
    assert found["notes"][0] == "This is the model of round 1: what was made after it was not promoted."
    assert example(read_run(run))["more"] == "#samples"


def test_where_no_round_was_promoted_the_last_one_is_told(tmp_path: Path) -> None:
    run = of_rounds(tmp_path, False, False)
    note = "No round’s model was promoted: what round 1 began with still stands. This is round 2’s."
    assert told(run)["notes"][0] == note
    assert example(read_run(run))["more"] == "round_2/report.html#samples"
    shutil.rmtree(run / "round_2")  # somebody made room
    assert example(read_run(run))["more"] == "#samples"
    write_report(run)


# ---- which text ----------------------------------------------------------------------------------------------------


def test_the_median_by_hand() -> None:
    assert median_place([3.0, -1.0, 2.0, 9.0, 0.5]).index == 2  # -1 .5 [2] 3 9
    assert median_place([3.0, -1.0, 2.0, 9.0]).index == 2  # of 2 and 3 the lower
    assert median_place([0.5, 0.5, -0.5, 0.5, -0.5]).index == 0  # -.5 -.5 [.5] .5 .5, the first of them in the file
    assert median_place([4.0]).number == 1 and median_place([1.0, 2.0, 3.0]).of == 3


def changed_by(*changes: float) -> list[dict[str, Any]]:
    """A prompt each: the first answers differ by so much for the judge, the second ones the other way round."""
    return [
        {"policy": name, "topic": f"t{i}", "prompt": f"Prompt {i}", "sample": k, "completion": f"{name} {i}/{k}",
         "judge": 0.0 if name == "sft" else (change if k == 0 else -50.0 * change), "proxy": float(i * k), "tokens": 3,
         "finished": True}
        for name in ("sft", "ppo")
        for i, change in enumerate(changes)
        for k in range(2)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "wanted", "says"),
    [((5.0, -2.0, 1.0, 0.5, 3.0), 2, "prefers the answer after (its score: +0.00 before, +1.00 after)"),
     ((5.0, -2.0, -1.0, -0.5, 3.0), 3, "prefers the answer before (its score: +0.00 before, -0.50 after)"),
     ((7.0, -7.0, 0.0), 2, "it is a tie (its score: +0.00 before, +0.00 after)")],
)  # fmt: skip
def test_the_prompt_in_the_middle_is_shown_and_never_the_best(
    tmp_path: Path, changes: Sequence[float], wanted: int, says: str
) -> None:
    run = fabricate(tmp_path / "run", uncured=False)
    write_jsonl(run / "eval" / "samples.jsonl", changed_by(*changes))
    shown = example(read_run(run))
    assert (shown["before"].head, shown["after"].head) == (f"sft {wanted}/0", f"ppo {wanted}/0")
    assert shown["says"].startswith("On this prompt ") and says in shown["says"]
    middle = (len(changes) + 1) // 2
    assert (
        f"{len(changes)} held-out prompts" in shown["rule"]
        and f"number {middle}, the one in the middle" in shown["rule"]
    )
    text = page_of(run).text
    assert shown["rule"] in text and "Before (SFT)" in text and "After (PPO)" in text
    assert page_of(run).text == text  # drawn twice, the same


def test_what_people_said_of_pairs_chooses_and_is_told(tmp_path: Path) -> None:
    """Shares .0 .33 .5 1 1 in order: the third is the pair that is alike; of four the second, 2 against 1."""
    run = judged_run(tmp_path, "people", prompts(0.7, 0.05, 90))
    asked: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which <b>way</b>?"}]
    said = {"a": [1.0, 1.0], "b": [0.0], "c": [1.0, 0.0, 0.0], "alike": [], "e": [1.0], "nobody": []}
    rows = [
        {"prompt": asked, "topic": "", "champion": f"{name} was", "candidate": f"{name} is", "candidate_wins": wins,
         "alike": name == "alike"}
        for name, wins in said.items()
    ]  # fmt: skip
    write_jsonl(run / "judged_people" / "pairs.jsonl", rows)
    shown = example(read_run(run))
    assert shown["before"].head == "alike was" and shown["says"] == "On this prompt it is a tie (the two are alike)."
    write_jsonl(run / "judged_people" / "pairs.jsonl", [row for row in rows if not row["alike"]])
    shown = example(read_run(run))
    assert (shown["before"].head, shown["after"].head) == ("c was", "c is")
    assert (
        shown["says"]
        == "On this prompt people prefer the answer before (of 3 answers: 1 for it, 2 against, 0 undecided)."
    )
    assert "4 held-out prompts in the order of what was said of their pairs" in shown["rule"]
    assert [one.speaker for one in shown["turns"]] == ["system", "user"]
    raw = write_report(run).read_text(encoding="utf-8")
    assert "Which &lt;b&gt;way&lt;/b&gt;?" in raw and "1 turn before this one" in raw


def test_where_pairs_were_not_kept_the_judge_that_scored_is_named(tmp_path: Path) -> None:
    shown = example(read_run(judged_run(tmp_path, "chat", prompts(0.7, 0.05, 90))))
    assert "Ratings, a judge that scores single answers, prefers" in shown["says"] and "chat" not in shown["says"]


def test_a_second_judge_that_scores_and_decides_chooses_by_its_own_scores(tmp_path: Path) -> None:
    run = judged_run(tmp_path, "people", prompts(0.7, 0.05, 90))
    found = read_json(run / "eval" / "results.json")
    with_results(run, {**found, "judges": {"ratings": "", "people": ""}})
    rows = [row | {"judge:people": -row["judge"]} for row in changed_by(1.0, 2.0, 4.0, 8.0)]
    write_jsonl(run / "eval" / "samples.jsonl", rows)
    shown = example(read_run(run))
    assert shown["after"].head == "ppo 2/0"  # -8 -4 -2 -1: the lower of the two in the middle


def test_without_texts_the_verdict_still_stands(tmp_path: Path) -> None:
    run = judged_run(tmp_path, "people", prompts(0.71, 0.06, 64))
    (run / "eval" / "samples.jsonl").unlink()
    text = page_of(run).text
    assert "The trained model is better" in text and "no judged answers of both models were kept" in text
    write_jsonl(run / "eval" / "samples.jsonl", [{"policy": "sft"}, {"nothing": 1}])
    assert "The trained model is better" in page_of(run).text


def test_texts_are_escaped_and_folded(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", uncured=False)
    rows = changed_by(1.0)
    for row in rows:
        row |= {"completion": HOSTILE + " again and again" * 60, "prompt": "<|im_start|>user\n" + HOSTILE}
    write_jsonl(run / "eval" / "samples.jsonl", rows)
    raw = write_report(run).read_text(encoding="utf-8")
    assert (
        "<script>alert" not in raw
        and "<img" not in raw
        and "<|im_start|>" not in Page(raw).text.split("Policies on")[0]
    )
    first = raw.partition("Policies on test prompts")[0]
    assert first.count("The rest (") == 2 and "<script" not in first


# ---- prompts as they are shown -------------------------------------------------------------------------------------

CHATML = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
LLAMA = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nWhy?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)
GEMMA = "<bos><start_of_turn>user\nBe brief.\n\nWhy?<end_of_turn>\n<start_of_turn>model\n"
ZEPHYR = "<|system|>\nBe brief.</s>\n<|user|>\nWhy?</s>\n<|assistant|>\n"
PHI = "<|system|>\nBe brief.<|end|>\n<|user|>\nWhy?<|end|>\n<|assistant|>\n"
HH = "\n\nHuman: Be brief.\n\nAssistant: I am.\n\nHuman: Why?\n\nAssistant:"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [(CHATML, "system:Be brief. user:Why?"), (LLAMA, "system:Be brief. user:Why?"), (GEMMA, "user:Be brief.\n\nWhy?"),
     (ZEPHYR, "system:Be brief. user:Why?"), (PHI, "system:Be brief. user:Why?"),
     (HH, "user:Be brief. assistant:I am. user:Why?"),
     ("Film: X\nReview:", ""), ("", ""), ("He said <|im_start|>user\nno", ""), (CHATML + "and more", ""),
     ("<|im_start|>user\nhi<|im_end|>\nwho is it?", ""), ("Human nature: what is it?", "")],
)  # fmt: skip
def test_turns_in_place_of_markup(text: str, wanted: str) -> None:
    """As the templates of these families write them; what is not turns throughout is shown as it is."""
    if text == CHATML + "and more":  # the assistant has begun: that is a turn too
        wanted = "system:Be brief. user:Why? assistant:and more"
    assert " ".join(f"{one.speaker}:{one.said.head}" for one in shown_turns(text, 200)) == wanted
    assert last_said(CHATML) == "Why?" and last_said("plain") == "plain"


def test_folding_loses_nothing() -> None:
    text = "word " * 100
    found = folded(text, 83)
    assert len(found.head) <= 83 and f"{found.head} {found.rest}" == text.strip()
    assert folded("x" * 300, 100).head == "x" * 100 and folded("x" * 300, 100).rest == "x" * 200
    assert folded("a b " * 29, 100).rest == ""  # a fifth more is shown whole
    assert folded("  ", 10).head == ""
