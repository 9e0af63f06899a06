"""The report, the model card and the table over seeds, from a fabricated run: nothing here was measured."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from accord.config import EvalConfig, Recipe
from accord.demo.about import about_films
from accord.demo.probes import film_probes
from accord.errors import DataError
from accord.evals.probes import run_probes
from accord.evals.results import (
    CurvePoint,
    EvalResults,
    JudgeVerdict,
    PolicyRow,
    Selection,
    Snapshot,
    policy_floors,
    snapshot_floors,
    summarise,
    with_judge,
)
from accord.evals.reward_card import Accuracies, RewardCard, card_json
from accord.evals.trust import judge_said, told_in_order
from accord.files import read_json, write_json
from accord.formats.jsonl import write_jsonl
from accord.report.glossary import GLOSSARY, TERMS
from accord.report.names import title_of
from accord.report.parts import MEASURES
from accord.report.run_page import write_model_card, write_report
from accord.report.seeds_page import write_seeds_report
from accord.report.svg import Axis, Point, Series, chart, nice_ticks
from accord.stats import Calibration, CalibrationBin, Interval

HOSTILE = "<script>alert('x')</script> & \"quotes\" <img src=x onerror=alert(1)>"
VOID = {"meta", "link", "br", "img", "input", "hr"}


# ---- a run that never ran ------------------------------------------------------------------------------------------


def iv(value: float, half: float = 0.05) -> Interval:
    return Interval(value, value - half, value + half, 348, 87)


def policy(name: str, judge: float, distance: float, **changes: Any) -> PolicyRow:
    values: dict[str, Any] = {
        "name": name,
        "role": "candidate",
        "other_judges": {},
        "note": f"note on {name}",
        "best_of": 1,
        "num_samples": 348,
        "judge": iv(judge),
        "proxy": iv(judge * 1.7 - 0.3),
        "win_rate": iv(0.5 + judge / 5),
        "length_controlled": iv(0.48 + judge / 5),
        "kl": iv(distance, 0.4),
        "kl_is_bound": False,
        "tokens": iv(31.7, 1.2),
        "words": 22.9,
        "length_ratio": 0.973,
        "nll": iv(4.412),
        "nll_excess": 0.118,
        "distinct_2": 0.713,
        "self_bleu": 0.214,
        "distinct_share": 0.997,
        "repetition": 0.006,
        "end_rate": 0.983,
        "entropy": iv(1.873),
    }
    return PolicyRow(**values | changes)


BARE = "ppo without a leash"
UNCURED = {
    "role": "control",
    "tokens": iv(7.3, 0.5),
    "words": 4.1,
    "length_ratio": 0.224,
    "nll_excess": 1.361,
    "distinct_share": 0.618,
}


def snapshot(step: int, row: PolicyRow) -> Snapshot:
    return Snapshot(step, row, snapshot_floors(EvalConfig(), row))


def results_of(seed: int = 0, uncured: bool = True, candidate: str = "ppo", **own: Any) -> EvalResults:
    chosen = policy(candidate, 0.964, 8.75, **own)
    start = {"role": "reference", "win_rate": None, "length_controlled": None, "length_ratio": 1.0, "nll_excess": 0.0}
    bound = Interval(0.636, math.nan, math.nan, 348, 87)
    rows = [
        policy("sft", 0.151, 0.0, **start),
        policy("base", -0.212, 9.12, role="baseline"),
        policy("best_of_n", 0.524, 0.636, role="baseline", best_of=4, kl=bound, kl_is_bound=True),
        chosen,
    ]
    steps = [(10, 0.42, 2.6), (20, 0.71, 5.9), (30, 0.95, 8.6), (40, 1.02, 12.4)]
    snapshots = tuple(snapshot(step, policy(candidate, judge, kl)) for step, judge, kl in steps)
    bare = tuple(
        snapshot(step, policy(BARE, judge, kl, length_ratio=ratio, nll_excess=1.5 - ratio, role="control"))
        for step, judge, kl, ratio in [(10, 0.8, 9.0, 0.62), (20, 1.3, 17.0, 0.22)]
    )
    return EvalResults(
        seed=seed,
        judges={"ratings": "b2:0123456789abcdef"},
        num_test_prompts=87,
        num_valid_prompts=41,
        samples_per_prompt=4,
        max_new_tokens=80,
        temperature=1.0,
        reference="sft",
        candidate=candidate,
        policies=(*rows, policy(BARE, 1.287, 17.31, **UNCURED)) if uncured else tuple(rows),
        floors={candidate: policy_floors(EvalConfig(), chosen)},
        folders={candidate: "rl/snapshots/step_000030", BARE: "rl_uncured/snapshots/step_000020"},
        start=rows[0],
        selections={candidate: Selection(30, True, "step 30 has the highest judge score", snapshots)},
        controls={BARE: bare} if uncured else {},
        best_of_n_curve=tuple(
            CurvePoint(n, math.log(n) - (n - 1) / n, iv(0.15 + 0.19 * math.log(n)), iv(0.5 * math.log(n)))
            for n in (1, 2, 4, 8, 16)
        ),
    )


def reward_card_of() -> RewardCard:
    return RewardCard(
        model=Accuracies(iv(0.792, 0.02), {"same_verdict": iv(0.764, 0.03)}, None),
        baselines={
            "tfidf_bradley_terry": Accuracies(iv(0.771, 0.02), {"same_verdict": iv(0.742, 0.03)}, iv(0.021, 0.015)),
            "longer_wins": Accuracies(iv(0.517, 0.03), {"same_verdict": iv(0.521, 0.04)}, iv(0.275, 0.03)),
        },
        by_gap={"1-2": iv(0.693), "2-3": iv(0.802), "3-4": iv(0.894)},
        gap_unit="rating points",
        calibration=Calibration(
            0.043, tuple(CalibrationBin(0.55 + 0.1 * i, 0.53 + 0.1 * i, 300 - i) for i in range(5))
        ),
        length_correlation=0.127,
    )


def samples_rows(candidate: str = "ppo") -> list[dict[str, Any]]:
    texts = {
        "sft": "a plot, and then some more of it",
        candidate: "warm, funny and very much alive",
        BARE: "bravo!",
    }
    return [
        {
            "policy": name,
            "topic": f"Film {film}",
            "prompt": f"Film: Film {film}\nReview:",
            "sample": k,
            "completion": f" {text} ({film}/{k})" if film else f" {HOSTILE} ({name}/{k})",
            "judge": 0.1 * film - 0.05 * k + (0.5 if name == candidate else 0.0),
            "proxy": 0.3 * film,
            "tokens": 12 + film,
            "finished": k == 0,
        }
        for name, text in texts.items()
        for film in range(9)
        for k in range(2)
    ]


def write_metrics(run: Path, uncured: bool) -> None:
    loss = [{"step": i, "loss": 3 + 4 / (i + 1), "seconds": i} for i in range(400)]
    for stage in ("pretrain", "sft"):
        write_jsonl(run / stage / "metrics.jsonl", loss)
    write_jsonl(run / "reward" / "metrics.jsonl", [{**row, "accuracy": 0.8 - 0.3 / (row["step"] + 1)} for row in loss])
    for stage, drop in (("rl", 0.0), ("rl_uncured", 0.6)):
        if stage == "rl" or uncured:
            write_jsonl(run / stage / "metrics.jsonl", [rl_row(i, drop) for i in range(40)])
    (run / "rl" / "events.jsonl").write_text('{"step": 3, "alarm": "no end", "cause": "completions are cut"}\n')


def rl_row(step: int, drop: float) -> dict[str, float | None]:
    row: dict[str, float | None] = {
        "step": step, "score": 0.05 * step, "kl": 0.2 * step, "length": 32 * (1 - drop * step / 40),
        "reference_nll": 4.3, "entropy": 4.1 - 0.02 * step, "eos_rate": 0.98, "distinct": 1.0,
        "explained_variance": None if step == 0 else 0.5, "value_loss": 0.1, "clip_high": 0.04, "clip_low": 0.03,
        "kl_coef": 0.05, "length_price": 0.01 * step,
    }  # fmt: skip
    return row


def fabricate(run: Path, *, seed: int = 0, uncured: bool = True, candidate: str = "ppo", **own: Any) -> Path:
    results = results_of(seed, uncured, candidate, **own)
    write_json(run / "eval" / "results.json", results.to_json())
    write_jsonl(run / "eval" / "samples.jsonl", samples_rows(candidate))
    probes = {
        "reward model": run_probes(lambda t: [float(len(x)) for x in t], film_probes()),
        "judge": run_probes(lambda t: [0] * len(t), film_probes()),
    }
    write_json(run / "reward" / "card.json", card_json(reward_card_of(), probes))
    card, found = (read_json(run / name) for name in ("reward/card.json", "eval/results.json"))
    write_json(
        run / "summary.json",
        summarise(found, card, baseline="tfidf_bradley_terry", seconds=431.0, counts={"films": 507}),
    )
    write_metrics(run, uncured)
    write_json(run / "resolved.json", Recipe(name="made-up", seed=seed).resolved())
    versions = {"accord": "0.1.0", "python": "3.11.2", "packages": {"torch": "2.13.0"}, "cores": 2}
    write_json(run / "env.json", {**versions, "precision": "bfloat16", "command": "accord demo --seed 0 'a<b'"})
    write_json(
        run / "data" / "manifest.json",
        {
            "artefacts": {"vaderSentiment-3.3.2.tar.gz": "5d7c06e0", "unknown.zip": "77777777"},
            "counts": {"rated_reviews": 10375, "rated_films": 507},
            **about_films([f"Film {i}" for i in range(507)], [f"Film {i % 507}" for i in range(10375)]),
        },
    )
    told = {"rankings": 400, "tied": 0.125, "description": ["8 simulated annotators, programs and not people."]}
    write_json(run / "ask" / "stage.json", {"identity": "x", "seconds": 12.5, "result": told})
    write_json(run / "pretrain" / "stage.json", {"identity": "x", "seconds": 131.0, "result": {}})
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return fabricate(tmp_path / "run")


# ---- reading the page back -----------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags balanced, ids unique, everything a test wants to know."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def page_of(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def test_page_is_self_contained_and_whole(run: Path) -> None:
    raw = write_report(run).read_text(encoding="utf-8")
    page = Page(raw)
    assert re.findall(r"(?i)https?://", raw) == []
    assert {tag for tag, _ in page.tags} & {"link", "iframe", "object", "img"} == set()
    [script] = re.findall(r"<script[^>]*>(.*?)</script>", raw, re.DOTALL)  # no other one could run: the hash is its own
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'\"" in raw
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") or name == "src" for name in attrs)]
    assert "@import" not in raw and "url(" not in raw
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    targets = [href for attrs in page.all("a") if (href := attrs["href"])]
    assert {href.removeprefix("#") for href in targets} <= set(ids)
    assert 'class="absent"' not in raw


def test_page_is_accessible(run: Path) -> None:
    page = page_of(run)
    pictures = [attrs for attrs in page.all("svg") if attrs.get("aria-hidden") != "true"]
    assert len(pictures) > 15
    assert all(attrs["role"] == "img" and len(attrs["aria-label"] or "") > 20 for attrs in pictures)
    assert len(page.all("caption")) == len(page.all("table")) >= 6
    assert [tag for tag, _ in page.tags if tag == "h1"] == ["h1"]
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(deeper - level <= 1 for level, deeper in pairwise(levels))
    assert page.all("html")[0]["lang"] == "en"


def test_a_gate_that_was_overruled_stands_on_the_first_screen(run: Path) -> None:
    assert "overruled" not in page_of(run).text
    finding = {"rule": "accuracy", "says": "refuse", "reason": "it orders 0.50 of pairs right"}
    write_json(run / "gate.json", {"says": "refuse", "overruled": True, "findings": [finding]})
    text = page_of(run).text
    assert "The reward model was refused, and the recipe overruled that: it orders 0.50 of pairs right." in text
    assert "refuse (overruled by the recipe)" in text  # in the reward model's section
    write_json(run / "gate.json", {"says": "warn", "overruled": True, "findings": [finding | {"says": "warn"}]})
    assert "was refused" not in page_of(run).text and "it orders 0.50 of pairs right" in page_of(run).text


def test_every_number_of_the_results_stands_there(run: Path) -> None:
    page, results = page_of(run), read_json(run / "eval" / "results.json")
    for row in results["policies"]:
        for key, digits in [measure for _, group in MEASURES for measure in group]:
            found = row[key] if isinstance(row[key], dict) else {"value": row[key]}
            for bound in ("value", "low", "high"):
                if found and found.get(bound) is not None:
                    assert f"{found[bound]:,.{digits}f}" in page.text, (row["name"], key, bound)
    for one in results["selections"]["ppo"]["snapshots"]:
        assert f"{one['row']['judge']['value']:.3f}" in page.text
    card = read_json(run / "reward" / "card.json")
    for value in (card["model"]["all_pairs"]["value"], card["calibration"]["error"], card["length_correlation"]):
        assert f"{value:.3f}" in page.text
    assert "≤ 0.64" in page.text  # best-of-n's KL is a bound
    assert "5d7c06e0" in page.text and "MIT" in page.text and "not stated" in page.text
    assert "accord demo --seed 0 'a<b'" in page.text
    assert "simulated annotators, programs and not people" in page.text


def test_headline_says_who_won(run: Path, tmp_path: Path) -> None:
    told = "The trained model is better: the judge prefers its answer to that of the model it began with in 69% of"
    assert f"{told} comparisons on 348 held-out prompts of 87 topics (95% interval 64% to 74%)." in page_of(run).text
    assert "All 5 floors are held." in page_of(run).text
    assert 'role="alert"' not in (run / "report.html").read_text()
    even = page_of(fabricate(tmp_path / "even", win_rate=iv(0.52)))
    assert "The trained model is not shown to be better" in even.text
    worse = page_of(fabricate(tmp_path / "worse", win_rate=iv(0.31)))
    assert "The trained model is worse: the judge prefers its answer" in worse.text


def test_a_broken_floor_is_red(tmp_path: Path) -> None:
    page = page_of(fabricate(tmp_path / "bad", length_ratio=0.412))
    assert "1 of 5 floors are not held." in page.text
    told = "Its answers are 59% shorter than before (length ratio 0.41, must be 0.8 to 1.25)"
    assert told in page.text
    assert [attrs for attrs in page.all("div") if attrs.get("role") == "alert"]
    assert [attrs for attrs in page.all("div") if attrs.get("class") == "tile broken"]


def test_text_is_escaped(run: Path) -> None:
    raw = write_report(run).read_text(encoding="utf-8")
    assert "<script>alert" not in raw and "<img" not in raw
    assert HOSTILE in " ".join(Page(raw).words)  # shown, as text


def test_samples_are_drawn_by_the_seed_with_best_and_worst(run: Path, tmp_path: Path) -> None:
    page = page_of(run)
    ppo = {(row["topic"], row["sample"]): row["judge"] for row in samples_rows() if row["policy"] == "ppo"}
    best, worst = max(ppo, key=lambda key: ppo[key]), min(ppo, key=lambda key: ppo[key])
    assert f"{best[0]} PPO’s best by the judge" in page.text
    assert f"{worst[0]} PPO’s worst by the judge" in page.text
    assert page_of(run).text == page.text
    other = page_of(fabricate(tmp_path / "other", seed=1))

    def drawn(of: Page) -> list[str]:
        return re.findall(r"(Film \d) drawn by the seed", of.text)

    assert len(drawn(page)) == 6 and drawn(page) != drawn(other)


def test_what_became_of_the_control(run: Path) -> None:
    text = page_of(run).text
    assert f"What differs: note on {BARE}." in text
    assert "the texts shrink: from 31.7 to 7.3 tokens on average" in text
    assert "1.36 nats per token more surprising than its own" in text
    assert "62% of them are distinct" in text and "17.3 nats away" in text


# ---- missing parts -------------------------------------------------------------------------------------------------


def test_without_an_uncured_run(tmp_path: Path) -> None:
    text = page_of(fabricate(tmp_path / "run", uncured=False)).text
    assert "Left out: this run has no control" in text
    assert "The trained model is better" in text


@pytest.mark.parametrize(
    ("name", "title"),
    [("grpo", "GRPO"), ("dpo", "DPO"), ("dr_grpo", "Dr GRPO"), ("reinforce_baseline", "Reinforce baseline"),
     ("simpo", "SimPO"), ("best_of_4", "Best of 4"), ("No leash", "No leash")],
)  # fmt: skip
def test_a_run_is_told_by_the_name_of_its_candidate(tmp_path: Path, name: str, title: str) -> None:
    run = fabricate(tmp_path / "run", candidate=name, uncured=False)
    text = page_of(run).text
    assert title_of(name) == title and f"After ({title})" in text and f"{title}’s best by the judge" in text
    assert f"Chosen of {title}: step 30" in text and f"The score that {title} was asked to raise" in text
    card = write_model_card(run).read_text(encoding="utf-8")
    assert f"| measure | SFT | {title} |" in card and f"optimised as\n{title}" in card
    assert "PPO" not in text + card and "- ppo" not in card
    seeds = write_seeds_report(tmp_path, [run]).read_text(encoding="utf-8")
    assert f"Over 1 seeds {title} wins" in seeds and "PPO" not in seeds


def test_a_run_of_best_of_n_alone_has_a_page(tmp_path: Path) -> None:
    """Nothing was trained: no snapshots, no reward card, no metrics, no manifest; two judges."""
    run = tmp_path / "run"
    bound = Interval(0.636, math.nan, math.nan, 348, 87)
    found = results_of(uncured=False, candidate="best_of_4", best_of=4, kl=bound, kl_is_bound=True)
    told = JudgeVerdict(iv(0.123), iv(0.456), None)
    rows = tuple(replace(row, other_judges={"helpful": told}) for row in found.policies)
    judges = {"ratings": "b2:01", "helpful": ""}
    found = replace(found, selections={}, folders={}, policies=rows, judges=judges, best_of_n_curve=())
    write_json(run / "eval" / "results.json", found.to_json())
    text = page_of(run).text
    assert "Best of 4 is better: the judge prefers its answer to that of SFT" in text and "at most 0.6 nats" in text
    assert "Helpful: win rate" in text and "0.456 [0.406, 0.506]" in text
    for gap in ("reward/card.json", "eval/samples.jsonl", "no control", "nothing was measured along KL"):
        assert gap in text
    summary = summarise(read_json(run / "eval" / "results.json"), seconds=3.0)
    assert summary["reward_accuracy"] is None and summary["candidate"] == "best_of_4"
    assert "reward_accuracy" not in summary["floors"] and "judge_win_rate_low" in summary["floors"]
    write_json(run / "summary.json", summary)
    assert "All 4 floors are held." in page_of(run).text
    assert "Best of 4" in write_model_card(run).read_text(encoding="utf-8")
    write_seeds_report(tmp_path, [run])


def test_who_says_so_stands_under_the_headline_the_most_trusted_first(run: Path) -> None:
    """People are too few to say, so that the second reward model decides: both are said, and how many are missing."""
    found = read_json(run / "eval" / "results.json")
    second = judge_said("ratings", "second_reward_model", iv(0.69), note="other prompts")
    people = judge_said("people", "people", Interval(0.6, 0.4, 0.8, 20, 20), ties=0.25, note="40 answers by 3 people")
    alone = {**found, "judged": {"ppo": told_in_order([second])}}
    assert "is better: the judge, a second reward model, prefers its answer" in page_of_results(run, alone)
    text = page_of_results(run, with_judge(alone, people))
    assert "Few people have judged it" in write_model_card(run).read_text(encoding="utf-8")
    assert "is better: the judge, a second reward model, prefers its answer" in text
    table = text.split("The judges, in the order of trust")[1].split("Policies on test prompts")[0]
    assert table.index("people, in blind pairs; 40 answers by 3 people") < table.index("Ratings ← decides")
    assert "0.600 [0.400, 0.800] 25% 20 too few to say: 43 more prompts needed" in table  # 63 with a quarter of ties
    enough = judge_said("people", "people", iv(0.7), ties=0.0)
    assert "The trained model is better: people prefer its answer" in page_of_results(run, with_judge(alone, enough))
    worse = judge_said("people", "people", iv(0.3))
    text = page_of_results(run, with_judge(alone, worse))
    assert "The trained model is worse: people prefer its answer" in text and "1 of 5 floors are not held" in text


def page_of_results(run: Path, results: dict[str, Any]) -> str:
    write_json(run / "eval" / "results.json", results)
    summary = summarise(results, read_json(run / "reward" / "card.json"), baseline="tfidf_bradley_terry")
    write_json(run / "summary.json", summary)
    return page_of(run).text


def test_a_card_without_parts_baselines_and_probes_is_shown(run: Path) -> None:
    bare = replace(reward_card_of(), baselines={}, gap_unit="ranks", model=Accuracies(iv(0.7), {}, None))
    write_json(run / "reward" / "card.json", card_json(bare, {}))
    text = page_of(run).text
    assert "No baseline stands beside it." in text and "No probes were scored." in text
    assert "same verdict" not in text.split("The reward model")[1].split("Training")[0]


def test_several_candidates_stand_side_by_side(run: Path) -> None:
    found = results_of()
    other = policy("dpo", 0.7, 6.5)
    chosen = Selection(5, True, "step 5 is the only one", (snapshot(5, other),))
    both = replace(
        found,
        policies=(*found.policies, other),
        floors={**found.floors, "dpo": policy_floors(EvalConfig(), other)},
        selections={**found.selections, "dpo": chosen},
        folders={**found.folders, "dpo": "dpo/snapshots/step_000005"},
    )
    write_json(run / "eval" / "results.json", both.to_json())
    rows = [{"step": i, "loss": 0.69 - 0.01 * i, "accuracy": 0.5 + 0.01 * i} for i in range(20)]
    write_jsonl(run / "dpo" / "metrics.jsonl", rows)
    text = page_of(run).text
    assert "Chosen of DPO: step 5 is the only one" in text and "Chosen of PPO: step 30" in text
    assert "PPO and DPO" in text or "DPO and PPO" in text
    assert "Pairs ordered right by the policy" in text


FILES = (
    "resolved.json", "env.json", "summary.json", "data/manifest.json", "reward/card.json", "eval/results.json",
    "eval/samples.jsonl", "rl/metrics.jsonl", "ask/stage.json", "pretrain", "rl", "reward", "eval",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("gone", FILES)
def test_any_missing_part_is_left_out(run: Path, gone: str) -> None:
    path = run / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page_of(run)
    write_model_card(run)
    write_seeds_report(run.parent, [run])


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "null", "{}", '{"policies": 3, "selection": null, "floors": {}}', "\xff"]
)
@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".json")])
def test_any_damaged_part_is_left_out(run: Path, name: str, damage: str) -> None:
    (run / name).write_bytes(damage.encode("latin-1"))
    page_of(run)
    write_model_card(run)
    write_seeds_report(run.parent, [run])


def test_an_empty_run_says_what_is_missing(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert "This run is not evaluated yet." in page.text
    assert page.text.count("Left out:") >= 8
    assert "this run has not written reward/card.json" in page.text


def test_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such run folder"):
        write_report(tmp_path / "nowhere")


def test_half_a_row_of_a_killed_run_is_left_out(run: Path) -> None:
    with (run / "rl" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "sco')
    assert "Left out" not in page_of(run).text


# ---- model card and seeds ------------------------------------------------------------------------------------------


def test_the_model_card_of_an_lstm_names_it(run: Path) -> None:
    resolved = json.loads((run / "resolved.json").read_text())
    for kind, says in (("llama", True), ("lstm", False)):
        (run / "resolved.json").write_text(json.dumps(resolved | {"model": {"kind": kind, "layers": 2, "width": 8}}))
        text = write_model_card(run).read_text(encoding="utf-8")
        assert text.startswith("---\nlicense")
        assert ("library_name: transformers\n" in text) == ("`AutoModelForCausalLM`" in text) == says
        assert ("- Base: an LSTM, 2 layers of width 8, trained" in text) != says


def test_the_model_card_of_a_given_model_claims_nothing_about_it(run: Path) -> None:
    resolved = json.loads((run / "resolved.json").read_text())
    (run / "resolved.json").write_text(json.dumps(resolved | {"base": {"model": "smollm2"}}))
    (run / "model").mkdir(exist_ok=True)
    (run / "model" / "config.json").write_text(json.dumps({"model_type": "accord_lstm"}))
    text = write_model_card(run).read_text(encoding="utf-8")
    assert text.startswith("---\nlicense: other\n") and "library_name" not in text
    assert "- Base: smollm2, a given model. Its licence" in text and "Accord alone" in text


def test_model_card(run: Path) -> None:
    text = write_model_card(run).read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "apache-2.0", "language": ["en"], "pipeline_tag": "text-generation",
        "library_name": "transformers", "tags": ["rlhf", "ppo", "accord"],
    }  # fmt: skip
    assert "| Win rate against SFT | – | 0.693 [0.643, 0.743] |" in body
    assert "## Limitations" in body and "sentiment, not quality" in body
    assert "| Length ratio | 0.973 | 0.8 to 1.25 | held |" in body
    assert not re.search(r"\n{4,}", body)


def test_seeds_report(tmp_path: Path) -> None:
    dirs = [fabricate(tmp_path / f"seed_{seed}", seed=seed, kl=iv(8.0 + seed, 0.5)) for seed in (0, 1, 2)]
    page = Page(write_seeds_report(tmp_path, dirs).read_text(encoding="utf-8"))
    assert "Over 3 seeds PPO wins 69% of comparisons with SFT on average, 69% at least." in page.text
    assert "All floors are held on every seed." in page.text
    assert [attrs["href"] for attrs in page.all("a") if "report.html" in (attrs["href"] or "")] == [
        f"seed_{seed}/report.html" for seed in (0, 1, 2)
    ]
    told, _, *table = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    assert told.startswith("Over 3 seeds PPO wins 69%")
    assert table[0].startswith("| Seed | Win rate | KL | Length ratio | NLL above SFT |")
    assert table[2].startswith("| 0 | 0.693 [0.643, 0.743] | 8.00 [7.50, 8.50] | 0.973 | 0.118 | 0.997 | 0.792")
    # mean, least and largest KL of 8, 9 and 10
    assert [line.split(" | ")[2] for line in table[5:]] == ["9.00", "8.00", "10.00"]
    assert len({line.count("|") for line in table}) == 1


def test_seeds_report_with_an_unfinished_seed(tmp_path: Path) -> None:
    dirs = [fabricate(tmp_path / "seed_0"), tmp_path / "seed_1", tmp_path / "seed_2"]
    (tmp_path / "seed_2").mkdir()
    page = Page(write_seeds_report(tmp_path, dirs).read_text(encoding="utf-8"))
    assert page.text.count("not finished") == 2
    assert "Not every floor is held on every seed." in page.text


def test_summary(run: Path) -> None:
    summary = read_json(run / "summary.json")
    assert summary["reward_accuracy"] == pytest.approx(0.792) and summary["baseline_accuracy"] == pytest.approx(0.771)
    assert summary["judge_win_rate_low"] == pytest.approx(0.6428) and summary["kl"] == pytest.approx(8.75)
    assert (
        summary["floors"]["reward_accuracy"]["held"]
        and summary["floors"]["reward_accuracy"]["bound"] == "at least 0.771"
    )
    assert set(summary["floors"]) == {
        "reward_accuracy", "judge_win_rate_low", "length_ratio", "nll_excess", "distinct_share",
    }  # fmt: skip


# ---- pieces --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0.03, 0.97, [0.2, 0.4, 0.6, 0.8]), (-1, 1, [-1, -0.5, 0, 0.5, 1]), (5, 5, [5])],
)
def test_nice_ticks(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_chart_puts_points_where_the_axes_say() -> None:
    """Plot area: x from 46 to 440 - 14, y from 270 - 40 up to 26; the middle of the data is the middle of the area."""
    points = (Point(0, 0, label="1 < 2 <b>"), Point(5, 50), Point(10, 100))
    made = chart([Series("a<b", "ppo", points)], Axis("x", (0, 10)), Axis("y", (0, 100)), title="t")
    places = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', made)]
    assert places == [(46, 230), (236, 128), (426, 26)]
    assert "a&lt;b" in made and "a<b" not in made
    assert "1 &lt; 2 &lt;b&gt;" in made and "<b>" not in made


def test_every_measure_is_defined_once() -> None:
    assert len(TERMS) == len(GLOSSARY)
    assert {key for _, group in MEASURES for key, _ in group} <= set(TERMS)


@pytest.mark.parametrize("module", ["report.run_page", "evals.results"])
def test_the_report_needs_no_torch(module: str) -> None:
    told = f"import sys, accord.{module}; print('torch' in sys.modules, 'sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_results_survive_json() -> None:
    text = json.dumps(results_of().to_json(), allow_nan=False)
    assert json.loads(text)["policies"][2]["kl"] == {
        "value": 0.636,
        "low": None,
        "high": None,
        "n": 348,
        "clusters": 87,
    }
