"""The torch side of the evaluation: log-probabilities, KL, selection and the files, on tiny random models."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from accord.config import EvalConfig
from accord.errors import DataError, UsageError
from accord.evals.bench import Bench, ScoredSamples, best_of_n_points
from accord.evals.contestants import Contestant, EvalPrompts, read_once
from accord.evals.evaluate import EvalRun, evaluate_policies
from accord.evals.judges import Judge, fit_text_judge
from accord.evals.results import Floor, PolicyRow, Snapshot, plain, snapshot_floors
from accord.evals.samples import (
    LoadedPolicy,
    PolicySamples,
    completion_logps,
    completion_sums,
    draw_samples,
    sample_policy,
)
from accord.evals.select import choose, select_snapshot
from accord.formats.jsonl import write_jsonl
from accord.models.decoder import CausalLM, ScalarModel, init_score_head, init_weights
from accord.models.folder import RewardScale, save_policy, save_scalar
from accord.models.placement import PLAIN
from accord.models.shape import DecoderConfig
from accord.rollout.engine import Sampling
from accord.scoring.reward_model import RewardModel
from accord.stats import Interval
from accord.text.batches import Example
from accord.text.tokenizer import Tokenizer, train_tokenizer

TEXTS = [
    "a warm and patient film about two sisters who run a lighthouse",
    "dull talk and a plot that forgets its own beginning",
    "the songs are lovely and the ending earns its tears",
    "two hours of noise, and nobody to care about",
]
FILMS = ["Lighthouse", "Noise", "Patience", "Beginning"]
PROMPTS = [f"Film: {film}\nReview:" for film in FILMS]
SAMPLING = Sampling(max_new_tokens=12, samples_per_prompt=3)
GRPO = Contestant("grpo", {1: Path("grpo")})
START = Contestant("sft", {0: Path("sft")}, "reference")


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return train_tokenizer([*TEXTS, *PROMPTS], 300)


def shape(words: Tokenizer, **changes: object) -> DecoderConfig:
    config = DecoderConfig(
        vocab_size=words.vocab_size,
        width=16,
        ffn=24,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_width=8,
        max_positions=64,
    )
    return replace(config, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folders(words: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three random policies; "flat" has zero weights in its head, so each of its tokens has probability 1 / V."""
    root = tmp_path_factory.mktemp("models")
    made = {}
    for seed, name in enumerate(("sft", "ppo", "flat")):
        model = CausalLM(shape(words, tied=False))
        init_weights(model, seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2.0)  # away from the uniform law of small weights
            if name == "flat":
                model.lm_head.weight.zero_()
        save_policy(root / name, model, words)
        made[name] = root / name
    scorer = ScalarModel(shape(words))
    init_weights(scorer, 7)
    init_score_head(scorer, 7)
    save_scalar(root / "reward", scorer, words, RewardScale(0.1, 2.0))
    return made | {"reward": root / "reward"}


class CountingJudge:
    """Likes the letter e: a score anyone can check."""

    def score(self, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
        return torch.tensor([float(completion.count("e")) for _, completion in pairs])


class PromptJudge:
    """Counts the characters of prompt and completion: a judge that needs both."""

    def score(self, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
        return torch.tensor([100.0 * len(prompt) + len(completion) for prompt, completion in pairs])


class LengthScorer:
    def score(self, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
        return torch.tensor([float(len(completion)) for _, completion in pairs])


def bench_of(folders: dict[str, Path], K: int = 3) -> Bench:
    return Bench(
        "validation",
        tuple(PROMPTS),
        tuple(FILMS),
        LoadedPolicy.load(folders["sft"], PLAIN),
        LengthScorer(),
        {"letters": CountingJudge()},
        replace(SAMPLING, samples_per_prompt=K),
        seed=5,
        resamples=200,
        placement=PLAIN,
    )


# ---- log-probabilities and KL --------------------------------------------------------------------------------------


def test_completion_logps_against_a_plain_forward(folders: dict[str, Path]) -> None:
    """Second implementation: one text at a time, full softmax over all logits, no batch, no padding."""
    policy = LoadedPolicy.load(folders["sft"], PLAIN)
    rows = [(PROMPTS[0], TEXTS[0]), (PROMPTS[1], TEXTS[1][:9]), (PROMPTS[2], TEXTS[2][:20])]
    examples = [
        Example(tuple(policy.tokenizer.encode(p)), (*policy.tokenizer.encode(" " + c)[:15], policy.tokenizer.end_id))
        for p, c in rows
    ]
    expected = []
    for example in examples:
        ids = torch.tensor([example.prompt + example.completion])
        logp_TV = F.log_softmax(policy.model(ids)[0].float() / 0.7, dim=-1)
        start = len(example.prompt)
        expected.append(sum(float(logp_TV[start + t - 1, token]) for t, token in enumerate(example.completion)))
    found = completion_logps(policy.model, examples, policy.tokenizer.pad_id, 0.7)
    assert found == pytest.approx(expected, abs=1e-4)


def test_entropy_against_a_plain_forward_and_of_a_uniform_policy(folders: dict[str, Path], words: Tokenizer) -> None:
    """Scipy's entropy of each position's softmax, one text at a time; a uniform policy says log V at each token."""
    from scipy.stats import entropy

    policy = LoadedPolicy.load(folders["sft"], PLAIN)
    prompt, said = policy.tokenizer.encode(PROMPTS[0]), policy.tokenizer.encode(" " + TEXTS[0])[:9]
    example, other = Example(tuple(prompt), tuple(said)), Example(tuple(prompt[:3]), tuple(said[:2]))
    probs_TV = F.softmax(policy.model(torch.tensor([[*prompt, *said]]))[0].double() / 0.7, dim=-1).detach().numpy()
    expected = sum(entropy(probs_TV[len(prompt) + t - 1]) for t in range(len(said)))
    found = completion_sums(policy.model, [other, example], policy.tokenizer.pad_id, 0.7)[1]
    assert found[1] == pytest.approx(expected, abs=1e-4)
    flat = sample_policy(folders["flat"], PROMPTS, SAMPLING, reference=folders["flat"], seed=1, placement=PLAIN)
    assert flat.entropy_PK == pytest.approx(flat.tokens_PK * math.log(words.vocab_size), rel=1e-5)


def test_kl_of_a_policy_to_itself_is_exactly_zero(folders: dict[str, Path]) -> None:
    """Also where the same weights are loaded twice, so that both passes really run."""
    twice = sample_policy(folders["sft"], PROMPTS, SAMPLING, reference=folders["sft"], seed=1, placement=PLAIN)
    assert (twice.kl_PK == 0).all()
    assert (twice.logp_PK < 0).all()
    own = LoadedPolicy.load(folders["sft"], PLAIN)
    once = draw_samples(own, own, PROMPTS, SAMPLING, seed=1)
    assert once.texts == twice.texts and (once.logp_PK == twice.logp_PK).all()


def test_a_flat_reference_says_log_vocabulary_a_token(folders: dict[str, Path], words: Tokenizer) -> None:
    """Closed form: under a uniform reference, - log p of a completion of n tokens is n log V."""
    samples = sample_policy(folders["sft"], PROMPTS, SAMPLING, reference=folders["flat"], seed=1, placement=PLAIN)
    assert samples.ref_logp_PK == pytest.approx(-samples.tokens_PK * math.log(words.vocab_size), rel=1e-5)
    assert samples.kl_PK.mean() > 0


def test_kl_estimate_agrees_with_the_exact_kl(folders: dict[str, Path]) -> None:
    """One token a completion, so that KL is a sum over the vocabulary: the mean over samples must come near it."""
    prompt = PROMPTS[:1]
    samples = sample_policy(
        folders["ppo"], prompt, Sampling(1, 4000), reference=folders["sft"], seed=3, placement=PLAIN
    )
    laws = []
    for name in ("ppo", "sft"):
        policy = LoadedPolicy.load(folders[name], PLAIN)
        ids = torch.tensor([policy.tokenizer.encode(prompt[0])])
        laws.append(F.log_softmax(policy.model(ids)[0, -1].double(), dim=-1))
    exact = float((laws[0].exp() * (laws[0] - laws[1])).sum())
    error = samples.kl_PK.std() / math.sqrt(samples.kl_PK.size)
    assert exact > 5 * error  # else the check would see nothing
    assert abs(samples.kl_PK.mean() - exact) < 4 * error


def test_samples_follow_the_seed_alone(folders: dict[str, Path]) -> None:
    one, same, other = (
        sample_policy(folders["ppo"], PROMPTS, SAMPLING, reference=folders["sft"], seed=seed, placement=PLAIN)
        for seed in (1, 1, 2)
    )
    assert one.texts == same.texts and (one.kl_PK == same.kl_PK).all()
    assert one.texts != other.texts


def test_other_tokenizer_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    strange = train_tokenizer(["zebra zebra quartz quartz"], 290)
    model = CausalLM(shape(strange))
    init_weights(model, 0)
    save_policy(tmp_path / "strange", model, strange)
    with pytest.raises(DataError, match="different tokenizers"):
        sample_policy(tmp_path / "strange", PROMPTS, SAMPLING, reference=folders["sft"], seed=0)


# ---- rows ----------------------------------------------------------------------------------------------------------


def hand_made() -> tuple[ScoredSamples, ScoredSamples]:
    """Two topics, two samples each: the policy's and the reference's."""
    ours = PolicySamples(
        texts=((" see the eel", " eel eel eel"), (" no", " no")),
        finished_PK=np.array([[True, True], [True, False]]),
        tokens_PK=np.array([[4, 4], [2, 2]]),
        logp_PK=np.array([[-4.0, -6.0], [-1.0, -1.0]]),
        ref_logp_PK=np.array([[-8.0, -8.0], [-3.0, -2.0]]),
    )
    theirs = PolicySamples(
        texts=((" abe", " each"), (" eve", " no")),
        finished_PK=np.ones((2, 2), dtype=bool),
        tokens_PK=np.array([[3, 3], [5, 5]]),
        logp_PK=np.full((2, 2), -4.0),
        ref_logp_PK=np.full((2, 2), -4.0),
    )
    judged = [np.array([[5.0, 3.0], [0.0, 0.0]]), np.array([[1.0, 1.0], [2.0, 0.0]])]
    proxies = [np.array([[1.0, 2.0], [3.0, 4.0]]), np.zeros((2, 2))]
    return ScoredSamples(ours, judged[0], proxies[0]), ScoredSamples(theirs, judged[1], proxies[1])


def test_row_by_hand(folders: dict[str, Path]) -> None:
    bench = replace(bench_of(folders), prompts=tuple(PROMPTS[:2]), topics=tuple(FILMS[:2]))
    ours, theirs = hand_made()
    row = bench.row(GRPO, ours, theirs, note="n")
    assert row.kl.value == pytest.approx((4 + 2 + 2 + 1) / 4)
    assert row.nll.value == pytest.approx((8 + 8 + 3 + 2) / (4 + 4 + 2 + 2))
    assert row.nll_excess == pytest.approx(21 / 12 - 16 / 16)
    assert row.length_ratio == pytest.approx(3 / 4)  # (4+4+2+2)/4 against (3+3+5+5)/4
    assert row.words == pytest.approx((3 + 3 + 1 + 1) / 4)
    assert row.end_rate == pytest.approx(3 / 4)
    assert row.distinct_share == pytest.approx(3 / 4)
    # film 1: 5 and 3 against 1, 1: four wins. film 2: 0, 0 against 2: two losses; against 0: two ties. -> (1 + 1/4) / 2
    assert row.win_rate is not None and row.win_rate.value == pytest.approx((1 + 0.25) / 2)
    assert (row.judge.value, row.proxy.value) == (pytest.approx(2.0), pytest.approx(2.5))
    assert row.judge.clusters == 2
    own = bench.row(START, theirs, theirs)
    assert own.win_rate is None and own.kl.value == 0 and own.length_ratio == 1 and own.nll_excess == 0


def test_judges_and_proxy_read_the_prompt_and_the_completion_as_it_was_drawn(folders: dict[str, Path]) -> None:
    bench = replace(bench_of(folders), prompts=("one", "three"), topics=("a", "b"))
    scored = replace(bench, judges={"both": PromptJudge(), "e": CountingJudge()}).scored(hand_made()[0].samples)
    assert scored.judge_PK.tolist() == [[312.0, 312.0], [503.0, 503.0]]  # " see the eel" has 12 characters
    assert scored.proxy_PK.tolist() == [[12.0, 12.0], [3.0, 3.0]]
    assert {name: score.tolist() for name, score in scored.others.items()} == {"e": [[5.0, 6.0], [0.0, 0.0]]}


def test_the_other_judges_have_win_rates_of_their_own(folders: dict[str, Path]) -> None:
    bench = replace(bench_of(folders), prompts=tuple(PROMPTS[:2]), topics=tuple(FILMS[:2]))
    ours, theirs = hand_made()
    told = replace(ours, others={"reverse": -ours.judge_PK}), replace(theirs, others={"reverse": -theirs.judge_PK})
    row = bench.row(GRPO, *told)
    other = row.other_judges["reverse"]
    assert row.win_rate is not None and other.win_rate is not None
    assert other.win_rate.value == pytest.approx(1 - row.win_rate.value)
    assert other.score.value == pytest.approx(-row.judge.value)


def test_best_by_proxy_picks_within_each_n(folders: dict[str, Path]) -> None:
    pool = bench_of(folders).sample("sft", folders["sft"], 6)
    best = pool.best_by_proxy(3)
    for p in range(len(PROMPTS)):
        for k in range(2):
            group = list(range(3 * k, 3 * k + 3))
            winner = max(group, key=lambda i: pool.proxy_PK[p, i])
            assert best.samples.texts[p][k] == pool.samples.texts[p][winner]
            assert best.proxy_PK[p, k] == pool.proxy_PK[p, group].max()
    assert best.samples.tokens_PK.shape == (4, 2)


def test_best_of_n_points_start_at_the_reference(folders: dict[str, Path]) -> None:
    bench = bench_of(folders)
    pool = bench.sample("sft", folders["sft"], 8)
    points = best_of_n_points(bench, pool)
    assert [point.n for point in points] == [1, 2, 4, 8]
    assert points[0].kl_bound == 0
    assert points[0].judge.value == pytest.approx(pool.judge_PK.mean())
    assert points[-1].proxy.value == pytest.approx(pool.proxy_PK.max(axis=1).mean())
    assert points[1].kl_bound == pytest.approx(math.log(2) - 0.5)


# ---- floors and selection ------------------------------------------------------------------------------------------


def test_floor_bounds() -> None:
    ratio = Floor("length_ratio", 0.4, 0.8, 1.25)
    assert not ratio.held and ratio.bound == "0.8 to 1.25" and ratio.violation == pytest.approx(0.5)
    assert Floor("nll_excess", 0.5, high=0.5).held
    assert Floor("nll_excess", 0.75, high=0.5).violation == pytest.approx(0.5)
    assert Floor("distinct_share", 0.95, 0.95).held
    assert not Floor("judge_win_rate_low", 0.5, 0.5, strict=True).held
    assert Floor("x", 0.7, 0.5).to_json() == {
        "name": "x", "value": 0.7, "low": 0.5, "high": None, "bound": "at least 0.5", "held": True,
    }  # fmt: skip


def plain_row(judge: float, **changes: float) -> PolicyRow:
    def interval(value: float) -> Interval:
        return Interval(value, value - 0.1, value + 0.1, 8, 4)

    numbers = {"length_ratio": 1.0, "nll_excess": 0.1, "distinct_share": 1.0, "kl": 5.0} | changes
    return PolicyRow(
        name="ppo",
        role="candidate",
        other_judges={},
        note="",
        best_of=1,
        num_samples=8,
        judge=interval(judge),
        proxy=interval(judge),
        win_rate=interval(0.7),
        length_controlled=interval(0.7),
        kl=interval(numbers["kl"]),
        kl_is_bound=False,
        tokens=interval(30.0),
        words=20.0,
        length_ratio=numbers["length_ratio"],
        nll=interval(4.0),
        nll_excess=numbers["nll_excess"],
        distinct_2=0.5,
        self_bleu=0.2,
        distinct_share=numbers["distinct_share"],
        repetition=0.0,
        end_rate=1.0,
    )


def snapshot(step: int, judge: float, **changes: float) -> Snapshot:
    row = plain_row(judge, **changes)
    return Snapshot(step, row, snapshot_floors(EvalConfig(), row))


@pytest.mark.parametrize(
    "broken",
    [{"length_ratio": 0.2}, {"length_ratio": 1.4}, {"nll_excess": 0.6}, {"distinct_share": 0.9}, {"kl": 16.0}],
)
def test_choose_takes_the_best_judged_that_holds_every_floor(broken: dict[str, float]) -> None:
    best, reason = choose([snapshot(30, 3.0, **broken), snapshot(20, 2.0), snapshot(10, 1.0)])
    assert best.step == 20
    assert "2 of 3 snapshots that hold every floor" in reason
    best, reason = choose([snapshot(30, 3.0, **broken), snapshot(20, 2.0)])
    assert best.step == 20 and "the only one of 2" in reason


def test_choose_among_violators_takes_the_least_and_says_so() -> None:
    best, reason = choose([snapshot(10, 1.0, length_ratio=0.7), snapshot(20, 9.0, length_ratio=0.2)])
    assert best.step == 10 and not best.held
    assert reason.startswith("no snapshot holds every floor") and "length_ratio 0.7 (0.8 to 1.25)" in reason


def test_choose_of_equals_the_earlier_and_of_none_an_error() -> None:
    assert choose([snapshot(20, 1.0), snapshot(10, 1.0)])[0].step == 10
    with pytest.raises(DataError, match="no snapshot"):
        choose([])


def test_select_snapshot_measures_and_chooses(folders: dict[str, Path]) -> None:
    """The reference itself stands among the snapshots: KL 0 holds the ceiling, so it is chosen over a far one."""
    bench = bench_of(folders)
    config = EvalConfig(kl_ceiling=0.5, nll_excess=50.0, length_low=0.0, length_high=50.0, distinct_share=0.0)
    against = bench.sample("sft", folders["sft"])
    trained = Contestant("ppo", {8: folders["ppo"], 4: folders["sft"]})
    selection = select_snapshot(config, bench, trained, against)
    assert [s.step for s in selection.snapshots] == [4, 8]
    assert selection.snapshots[0].row.kl.value == 0
    assert selection.snapshots[1].row.kl.value > 0.5
    assert selection.step == 4 and selection.held


# ---- the whole -----------------------------------------------------------------------------------------------------


def prompts_file(path: Path, films: Sequence[str]) -> Path:
    write_jsonl(path, [{"prompt": f"Film: {film}\nReview:", "topic": film} for film in films])
    return path


def run_evaluate(folders: dict[str, Path], root: Path, output: Path, *extra: Contestant) -> None:
    judge = fit_text_judge(TEXTS * 2, [2.0, -2.0, 1.5, -1.0] * 2, FILMS * 2)
    contestants = [
        Contestant("base", {0: folders["flat"]}, "baseline"),
        Contestant("best_of_n", {0: folders["sft"]}, "baseline", best_of=2),
        Contestant("grpo", {2: folders["sft"], 4: folders["ppo"]}),
        *extra,
    ]
    evaluate_policies(
        EvalConfig(samples_per_prompt=2, best_of=2, bootstrap=100, curve_samples=4),
        contestants,
        reference=Contestant("sft", {0: folders["sft"]}),
        proxy=RewardModel.load(folders["reward"], PLAIN),
        judges={"ratings": Judge(judge, "second_reward_model"), "letters": Judge(CountingJudge())},
        prompts=EvalPrompts(prompts_file(root / "valid.jsonl", FILMS[:2]), prompts_file(root / "test.jsonl", FILMS)),
        run=EvalRun(output, Sampling(8), seed=3, placement=PLAIN),
    )


def results_of_run(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "results.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_evaluate_writes_the_same_files_again(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        bare = Contestant("no leash", {4: folders["flat"]}, "control", "kl_coef 0")
        run_evaluate(folders, tmp_path, tmp_path / name, bare)
    assert (tmp_path / "a/results.json").read_bytes() == (tmp_path / "b/results.json").read_bytes()
    results = results_of_run(tmp_path / "a")
    rows = {row["name"]: row for row in results["policies"]}
    assert [(name, row["role"]) for name, row in rows.items()] == [
        ("sft", "reference"), ("base", "baseline"), ("best_of_n", "baseline"), ("grpo", "candidate"),
        ("no leash", "control"),
    ]  # fmt: skip
    assert (results["reference"], results["candidate"]) == ("sft", "grpo")
    assert rows["best_of_n"]["kl"]["value"] == pytest.approx(math.log(2) - 0.5)
    assert rows["best_of_n"]["kl"]["low"] is None and rows["best_of_n"]["kl_is_bound"]
    assert rows["no leash"]["note"] == "kl_coef 0"
    assert (
        rows["grpo"]["note"]
        == f"step {results['selections']['grpo']['step']}, chosen by the judge on validation prompts"
    )
    assert [one["step"] for one in results["controls"]["no leash"]] == [4]
    assert [point["n"] for point in results["best_of_n_curve"]] == [1, 2, 4]
    assert {floor["name"] for floor in results["floors"]["grpo"]} == {
        "judge_win_rate_low", "length_ratio", "nll_excess", "distinct_share",
    }  # fmt: skip
    assert list(results["judges"]) == ["ratings", "letters"] and results["judges"]["ratings"].startswith("b2:")
    samples = [json.loads(line) for line in (tmp_path / "a" / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 5 * len(FILMS) * 2
    own = [row for row in samples if row["policy"] == "grpo"]
    assert np.mean([row["judge"] for row in own]) == pytest.approx(rows["grpo"]["judge"]["value"])
    letters = [row["completion"].count("e") for row in own]
    assert [row["judge:letters"] for row in own] == letters
    assert rows["grpo"]["other_judges"]["letters"]["score"]["value"] == pytest.approx(np.mean(letters))


def test_a_stream_keeps_the_samples_of_a_policy_that_is_renamed(folders: dict[str, Path], tmp_path: Path) -> None:
    for name, stream in (("old", ""), ("new", "old"), ("other", "")):
        run_evaluate(
            folders, tmp_path, tmp_path / name, Contestant(name, {0: folders["ppo"]}, "baseline", stream=stream)
        )
    told = {
        name: [
            row["completion"]
            for row in map(json.loads, (tmp_path / name / "samples.jsonl").read_text().splitlines())
            if row["policy"] == name
        ]
        for name in ("old", "new", "other")
    }
    assert told["old"] == told["new"] != told["other"]


def test_several_candidates_are_measured_alike(folders: dict[str, Path], tmp_path: Path) -> None:
    """One whose snapshot is the reference itself, and best of 2, which has nothing to choose."""
    more = [Contestant("dpo", {1: folders["sft"]}), Contestant("best of 2", {0: folders["sft"]}, best_of=2)]
    run_evaluate(folders, tmp_path, tmp_path / "eval", *more)
    results = results_of_run(tmp_path / "eval")
    assert results["candidate"] == "grpo" and set(results["selections"]) == {"grpo", "dpo"}
    assert set(results["floors"]) == {"grpo", "dpo", "best of 2"} and results["controls"] == {}
    assert results["selections"]["dpo"]["snapshots"][0]["row"]["kl"]["value"] == 0


def run_of(folders: dict[str, Path], root: Path, name: str, reference: str, *others: Contestant, curve: int = 1) -> Any:
    """Policies against a reference by two judges, on the files of prompts of `run_evaluate`."""
    files = EvalPrompts(prompts_file(root / "valid.jsonl", FILMS[:2]), prompts_file(root / "test.jsonl", FILMS))
    evaluate_policies(
        EvalConfig(samples_per_prompt=2, best_of=2, bootstrap=100, curve_samples=curve),
        others,
        reference=Contestant(reference, {0: folders[reference]}, stream=reference),
        proxy=LengthScorer(),
        judges={"letters": Judge(CountingJudge()), "long": Judge(LengthScorer(), "second_reward_model")},
        prompts=files,
        run=EvalRun(root / name, Sampling(8), seed=3, placement=PLAIN),
    )
    return results_of_run(root / name)


def test_a_later_round_is_measured_from_the_first_start_too(folders: dict[str, Path], tmp_path: Path) -> None:
    """KL and win rates against it are those of an evaluation whose reference it is, on the same samples."""
    new = Contestant("new", {4: folders["ppo"]})
    first = Contestant("first", {0: folders["flat"]}, "baseline", stream="flat", is_first=True)
    later = run_of(folders, tmp_path, "later", "sft", new, first)
    plain_run = run_of(folders, tmp_path, "plain", "flat", new)
    found = {row["name"]: row for row in later["policies"]}
    own = next(row for row in plain_run["policies"] if row["name"] == "new")
    told = found["new"]["first"]
    assert told["kl"] == own["kl"] and told["win_rates"]["letters"] == own["win_rate"]
    assert told["win_rates"]["long"] == own["other_judges"]["long"]["win_rate"]
    assert found["new"]["kl"] != own["kl"] and found["first"]["first"] is None and found["sft"]["first"]["kl"]["value"]
    assert own["first"] is None
    without = run_of(folders, tmp_path, "without", "sft", new)
    same = next(row for row in without["policies"] if row["name"] == "new")
    assert {**found["new"], "first": None} == same  # who else is measured changes nothing


def test_where_nothing_is_to_be_chosen_nothing_is_drawn_for_it(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Test prompts say the same as beside a policy with several snapshots; the only snapshot is looked at there."""
    drawn: list[str] = []
    sample = Bench.sample
    monkeypatch.setattr(Bench, "sample", lambda self, *rest: drawn.append(self.name) or sample(self, *rest))
    one = Contestant("one", {4: folders["ppo"]})
    alone = run_of(folders, tmp_path, "alone", "sft", one)
    assert set(drawn) == {"test"} and (alone["num_valid_prompts"], alone["best_of_n_curve"]) == (0, [])
    assert alone["selections"]["one"]["step"] == 4 and alone["selections"]["one"]["snapshots"] == []
    assert alone["selections"]["one"]["reason"].startswith("step 4 is the only snapshot, and on test prompts it holds")
    drawn.clear()
    curve = run_of(folders, tmp_path, "curve", "sft", one, curve=2)
    assert drawn.count("validation") == 1 and [point["n"] for point in curve["best_of_n_curve"]] == [1, 2]
    several = Contestant("several", {2: folders["sft"], 4: folders["ppo"]})
    beside = run_of(folders, tmp_path, "beside", "sft", one, several)
    rows = [next(row for row in found["policies"] if row["name"] == "one") for found in (alone, curve, beside)]
    assert rows[0] == rows[1] == rows[2] and len(beside["selections"]["one"]["snapshots"]) == 1


def test_what_the_judges_say_stands_in_the_order_of_trust_and_one_decides(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    found = run_of(folders, tmp_path, "said", "sft", Contestant("new", {4: folders["ppo"]}))
    told = found["judged"]["new"]
    assert [(one["judge"], one["kind"]) for one in told] == [("long", "second_reward_model"), ("letters", "function")]
    row = next(row for row in found["policies"] if row["name"] == "new")
    assert told[1]["win_rate"] == row["win_rate"] and told[0]["win_rate"] == row["other_judges"]["long"]["win_rate"]
    [decides] = [one for one in told if one["decides"]]
    floor = next(one for one in found["floors"]["new"] if one["name"] == "judge_win_rate_low")
    assert floor["value"] == decides["win_rate"]["low"]


def test_what_cannot_be_measured_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two policies are called 'base'"):
        run_evaluate(folders, tmp_path, tmp_path / "eval", Contestant("base", {0: folders["sft"]}))
    with pytest.raises(UsageError, match="no snapshot to measure"):
        Contestant("grpo", {})
    files = EvalPrompts(tmp_path / "valid.jsonl", tmp_path / "test.jsonl")
    with pytest.raises(UsageError, match="there is no judge"):
        evaluate_policies(
            EvalConfig(), [], reference=START, proxy=LengthScorer(), judges={}, prompts=files,
            run=EvalRun(tmp_path, SAMPLING),
        )  # fmt: skip


def test_a_prompt_given_twice_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    prompts_file(tmp_path / "valid.jsonl", FILMS[:1] * 2)
    with pytest.raises(UsageError, match="stands twice"):
        read_once(tmp_path / "valid.jsonl")


def test_plain_refuses_no_number() -> None:
    assert plain({"a": (np.float64(1.5), math.nan), "b": Path("x"), "c": np.arange(2)}) == {
        "a": [1.5, None], "b": "x", "c": [0, 1],
    }  # fmt: skip
