"""The sections of a run's report, each made from what the run wrote. Torch-free.

A section that cannot be made raises `Absent` with the reason; `part` turns that, and any gap in the files, into a
line for the reader.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accord.report.figures import (
    CURVES,
    Curve,
    Figure,
    MetricRows,
    ResultRow,
    accuracies,
    by_gap,
    calibration_figure,
    floor_gauge,
    frontier,
    training_figure,
    training_legend,
    win_rates,
)
from accord.report.glossary import TERMS
from accord.report.names import policy_title, style_of, title_of
from accord.report.run_folder import BESIDE, GATE, Absent, RunFolder
from accord.report.svg import bars
from accord.report.turns import last_said
from accord.seeds import stream_seed

Draw = Callable[[str, Curve, Sequence[tuple[str, str, MetricRows]]], Figure | None]
NONE = "–"
ORDER = ("baseline", "reference", "best_of_n", "candidate", "control")  # from before to after
NUM_DRAWN = 6
MOST_SHOWN = 300  # characters of a prompt above its completions

# Measures of a policy in the order of the table, with their decimals.
MEASURES = (
    ("Is it better?", (("win_rate", 3), ("length_controlled", 3), ("judge", 3), ("proxy", 3))),
    ("How far did it go?", (("kl", 2), ("nll", 3), ("nll_excess", 3))),
    ("How long are its texts?", (("tokens", 1), ("words", 1), ("length_ratio", 3), ("end_rate", 3))),
    (
        "How varied are they?",
        (("entropy", 3), ("distinct_share", 3), ("distinct_2", 3), ("self_bleu", 3), ("repetition", 3)),
    ),
)
FLOOR_NAMES = {
    "judge_win_rate_low": "Win rate against {reference}, lower end",
    "length_ratio": "Length ratio",
    "nll_excess": "NLL above {reference}’s own",
    "distinct_share": "Distinct completions",
    "reward_accuracy": "Reward accuracy against TF-IDF",
    "kl": "KL to {reference}",
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


def row_of(results: ResultRow, name: str) -> ResultRow:
    """The row of a policy on test prompts."""
    for row in results["policies"]:
        if row["name"] == name:
            found: ResultRow = row
            return found
    raise Absent(f"policy {name!r} was not evaluated")


def candidate_row(results: ResultRow) -> ResultRow:
    """The row of the run's candidate on test prompts."""
    if not results["candidate"]:
        raise Absent("no candidate was evaluated")
    return row_of(results, results["candidate"])


def reason_of(results: ResultRow) -> str:
    """Why the candidate's snapshot was chosen; empty where there was nothing to choose."""
    return str(results["selections"].get(results["candidate"], {}).get("reason", ""))


# ---- rounds --------------------------------------------------------------------------------------------------------


def rounds(run: RunFolder) -> dict[str, Any]:
    """The rounds of a run that has several: what each found, and which policy is the champion after it."""
    found = run.get("summary.json").get("rounds")
    if not found:
        raise Absent("this run has one round")
    return {"rows": [_round(row) for row in found]}


def _round(row: ResultRow) -> dict[str, Any]:
    win = {"value": row["judge_win_rate"], "low": row["judge_win_rate_low"], "high": row["judge_win_rate_high"]}
    first = row.get("first") or {"win_rate": None, "kl": None}
    return {
        "decided": title_of(str(row.get("decided_by", ""))) or NONE,
        "first_win_rate": _ranged(first["win_rate"]),
        "first_kl": number(first["kl"], 2),
        "number": row["round"],
        "report": row["report"],
        "answers": _answers(row),
        "accuracy": number(row["reward_accuracy"]),
        "win_rate": _ranged(win),
        "kl": number(row["kl"], 2),
        "promoted": row["promoted"],
        "became": "promoted" if row["promoted"] else "refused: " + "; ".join(row["reasons"]),
        "champion": row["policy"],
    }


def _answers(row: ResultRow) -> str:
    """How many answers a round has, and whose."""
    if "called" in row:
        return f"{row['judgements']:,} by {row['called']}"
    among = f", {row['of_them_simulated']:,} of them simulated" if row.get("of_them_simulated") else ""
    return f"{row['answers']:,}, by {row['people']}{among}" if "answers" in row else NONE


def _ranged(found: Any, digits: int = 3) -> str:
    """A number with its interval in one text."""
    return " ".join(filter(None, interval(found, digits).values()))


# ---- who says so ---------------------------------------------------------------------------------------------------


def judged_of(run: RunFolder) -> list[ResultRow]:
    """What each judge says of the candidate, the most trusted first: people too, where the summary has them."""
    results = run.get("eval/results.json")
    found = run.get("summary.json").get("judges") or results.get("judged", {}).get(results.get("candidate"), [])
    return list(found)


def judges(run: RunFolder) -> dict[str, Any]:
    """A row for each judge: what it is, what it says and on how much, and which of them decides."""
    results, found = run.need("eval/results.json"), judged_of(run)
    if not found:
        raise Absent("what its judges say was not kept apart")
    return {
        "rows": [_judge(row) for row in found],
        "leads": title_of(next(iter(results["judges"]), "")),
        "people": any(row["kind"] == "people" for row in found),
    }


def _judge(row: ResultRow) -> dict[str, Any]:
    more = f"too few to say: {row['missing']:,} more prompts needed" if row["missing"] else row["says"]
    return {
        "name": title_of(row["judge"]),
        "called": row["called"] + (f"; {row['note']}" if row["note"] else ""),
        "win_rate": _ranged(row["win_rate"]),
        "ties": NONE if row["ties"] is None else percent(row["ties"]),
        "prompts": f"{row['win_rate']['n']:,}" if row["win_rate"] else "0",
        "says": more if row["says"] == "too few to say" else row["says"],
        "decides": row["decides"],
    }


# ---- floors --------------------------------------------------------------------------------------------------------


def standings(run: RunFolder) -> dict[str, Any]:
    """All policies on one scale by each judge, how far judges agree, sample-size advice, and what each policy does."""
    found = run.need(f"eval/{BESIDE}")
    of, behaviour = found["standings"], found["behaviour"]
    titles = {row["name"]: policy_title(row) for row in run.need("eval/results.json")["policies"]}
    return {
        "rankings": [
            (title_of(judge), [_ranked(row, titles) for row in rows]) for judge, rows in of["rankings"].items()
        ],
        "agreement": [(" and ".join(map(title_of, one["judges"])), interval(one["alike"])) for one in of["agreement"]],
        "needed": [_advice(titles[name], count, of["have"]) for name, count in of["needed"].items()],
        "refusals": [(titles[name], interval(share)) for name, share in of["refusals"].items()],
        "behaviour": [
            (titles.get(name, title_of(name)), [interval(row[key]) for key, _ in BEHAVIOUR])
            for name, row in behaviour.items()
        ],
        "columns": [heading for _, heading in BEHAVIOUR],
        "left_out": [f"{titles.get(name, name)}: {why}" for name, why in found["left_out"].items()],
    }


#: What is looked at of each policy besides, and its heading.
BEHAVIOUR = (
    ("plain_nll", "Nats a token on plain texts"),
    ("perplexity", "Perplexity there"),
    ("knows", "Right answer likelier"),
    ("still_knows", "The same when told it is wrong"),
    ("gives_in", "Nats it gives in by"),
    ("refuses_harm", "Harmful prompts refused"),
)


def _ranked(row: ResultRow, titles: Mapping[str, str]) -> dict[str, Any]:
    rank = f"{row['rank']}" + (
        "" if row["rank_low"] == row["rank_high"] else f" ({row['rank_low']} to {row['rank_high']})"
    )
    return {"name": titles[row["name"]], "rank": rank, "strength": interval(row["strength"])}


def _advice(title: str, needed: int | None, have: int) -> str:
    """Return how many topics would show a win rate of 55 %."""
    if needed is None:
        return f"{title}: all topics say the same, so that nothing tells how many would show 5 points."
    enough = "there are enough" if needed <= have else f"there are {have:,}"
    return f"{title}: to see 5 points (a win rate of 55%) with a chance of 80% it takes {needed:,} topics; {enough}."


def floors_of(run: RunFolder) -> list[ResultRow]:
    """The floors of the summary (the reward model's among them), else those of the evaluation."""
    found = run.get("summary.json").get("floors")
    if isinstance(found, Mapping):
        return [{"name": name, **floor} for name, floor in found.items()]
    results = run.need("eval/results.json")
    return list(results["floors"].get(results["candidate"], ()))


def floor_name(run: RunFolder, name: str) -> str:
    """How pages call a floor."""
    return run.names.fill(FLOOR_NAMES.get(name, name.replace("_", " ")))


def tiles(run: RunFolder) -> dict[str, Any]:
    """One tile a floor: value, bound, and a gauge."""
    return {
        "tiles": [
            {
                "name": floor_name(run, floor["name"]),
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


def ordered(results: ResultRow) -> list[ResultRow]:
    """The rows of all policies from what came before to what came after."""
    return sorted(results["policies"], key=lambda row: ORDER.index(style_of(row)))


def policies(run: RunFolder) -> dict[str, Any]:
    """Measures down, policies across; a value beyond a floor is marked."""
    results = run.need("eval/results.json")
    rows = ordered(results)
    bounds = {floor["name"]: floor for floor in results["floors"].get(results["candidate"], ())}
    judged = [row for row in rows if row["win_rate"] is not None]
    return {
        "figure": win_rates(judged, run.names.reference) if judged else None,
        "columns": [{"name": policy_title(r), "style": style_of(r), "note": r["note"]} for r in rows],
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
        "judges": _judges(results, rows),
        "prompts": results["num_test_prompts"],
        "samples": results["samples_per_prompt"],
        "too_long": too_long(results),
        "reason": reason_of(results),
    }


def too_long(results: ResultRow) -> str:
    """How many test prompts a model had no room for, in words; empty where there was room for all."""
    counted = results.get("left_out", {}).get("test", {}).items()
    return "; ".join(f"{count} more were longer than the {whose} takes and are left out" for whose, count in counted)


def _judges(results: ResultRow, rows: Sequence[ResultRow]) -> list[dict[str, Any]]:
    """What the judges beside the leading one say: a row of scores and one of win rates each."""
    found = []
    for name in list(results["judges"])[1:]:
        told = [row["other_judges"][name] for row in rows]
        found += [
            {"name": f"{title_of(name)}: {what}", "cells": [interval(one[key]) for one in told]}
            for what, key in (("score", "score"), ("win rate", "win_rate"), ("at equal length", "length_controlled"))
        ]
    return found


def _cell(row: ResultRow, key: str, digits: int, bound: ResultRow | None) -> dict[str, Any]:
    value = row.get(key)  # results of earlier versions lack some
    cell: dict[str, Any] = interval(value, digits)
    if key == "kl" and row["kl_is_bound"]:
        cell["prefix"] = "≤ "
    of_candidate = row["role"] not in ("reference", "baseline")
    cell["broken"] = of_candidate and bound is not None and value is not None and _beyond(value, bound)
    return cell


def _beyond(value: float, bound: ResultRow) -> bool:
    low, high = bound["low"], bound["high"]
    return (low is not None and value < low) or (high is not None and value > high)


# ---- samples -------------------------------------------------------------------------------------------------------


def completions_by_prompt(run: RunFolder) -> dict[tuple[str, int], dict[str, ResultRow]]:
    """Completions on test prompts by (prompt, sample number), then by policy."""
    if not run.samples:
        raise Absent("this run has not written eval/samples.jsonl")
    found: dict[tuple[str, int], dict[str, ResultRow]] = {}
    for row in run.samples:
        found.setdefault((row["prompt"], row["sample"]), {})[row["policy"]] = row
    return found


def shown_prompt(row: ResultRow) -> str:
    """What stands above completions: the topic where the prompt has one of its own, else the prompt, cut short.

    Of a conversation that is what was said last.
    """
    told = " ".join(last_said(str(row["topic"] or row["prompt"])).split())
    return told if len(told) <= MOST_SHOWN else told[:MOST_SHOWN] + "…"


def before_after(run: RunFolder) -> dict[str, Any]:
    """Completions of reference and candidate for the same prompt: drawn by the seed, and the candidate's extremes."""
    results, names = run.need("eval/results.json"), run.names
    before, after = results["reference"], results["candidate"]
    found = {key: rows for key, rows in completions_by_prompt(run).items() if before in rows and after in rows}
    if not found:
        raise Absent(f"eval/samples.jsonl holds no prompt with completions of both {names.reference} and the candidate")
    keys = sorted(found)
    judged = sorted(keys, key=lambda key: found[key][after]["judge"])
    drawn = _drawn(run, [key for key in keys if key not in (judged[0], judged[-1])])
    tagged = [(key, "drawn by the seed") for key in drawn]
    tagged += [(judged[-1], f"{names.candidate}’s best by the judge")]
    tagged += [(judged[0], f"{names.candidate}’s worst by the judge")]
    return {"pairs": [_pair(run, found[key], (before, after), tag) for key, tag in tagged]}


def _pair(run: RunFolder, rows: Mapping[str, ResultRow], names: tuple[str, str], tag: str = "") -> dict[str, Any]:
    """Two policies' completions of one prompt side by side."""
    results = run.need("eval/results.json")
    told = [(row_of(results, name), rows[name]) for name in names]
    samples = [{"style": style_of(row), "who": policy_title(row), **_sample(one)} for row, one in told]
    return {"prompt": shown_prompt(rows[names[0]]), "tag": tag, "samples": samples}


def _drawn(run: RunFolder, keys: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """One sample of each of a few prompts, by the run's seed and nobody's taste."""
    seed = run.need("eval/results.json")["seed"]
    rng = random.Random(stream_seed(seed, "samples in the report"))
    prompts: dict[str, list[tuple[str, int]]] = {}
    for key in keys:
        prompts.setdefault(key[0], []).append(key)
    chosen = rng.sample(sorted(prompts), min(NUM_DRAWN, len(prompts)))
    return [rng.choice(prompts[prompt]) for prompt in chosen]


def _sample(row: ResultRow) -> dict[str, str]:
    return {
        "text": row["completion"].strip(),
        "judge": f"{row['judge']:+.2f}",
        "proxy": f"{row['proxy']:+.2f}",
        "tokens": str(row["tokens"]),
        "cut": "" if row["finished"] else "cut at the limit",
    }


# ---- frontier and controls -----------------------------------------------------------------------------------------


def frontiers(run: RunFolder) -> dict[str, Any]:
    """Judge and proxy against sqrt(KL) on validation prompts."""
    results = run.need("eval/results.json")
    figures = [
        frontier(results, "judge", "Judge score against KL", "judge score"),
        frontier(results, "proxy", "Proxy score against KL", "proxy score"),
    ]
    if None in figures:
        raise Absent("nothing was measured along KL: no policy has snapshots, and no best of n was drawn")
    tables = [
        {
            "name": title_of(name),
            "reason": one["reason"],
            "rows": [_snapshot_row(run, s, one["step"]) for s in one["snapshots"]],
        }
        for name, one in results["selections"].items()
        if one["snapshots"]
    ]
    return {"figures": figures, "prompts": results["num_valid_prompts"], "tables": tables}


def _snapshot_row(run: RunFolder, snapshot: ResultRow, chosen: int) -> dict[str, Any]:
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
        "broken": [floor_name(run, f["name"]) for f in snapshot["floors"] if not f["held"]],
    }


def controls(run: RunFolder) -> dict[str, Any]:
    """The same training otherwise: what it says it gained, and what became of the texts."""
    results = run.need("eval/results.json")
    rows = [row for row in results["policies"] if row["role"] == "control"]
    if not rows:
        raise Absent("this run has no control")
    bounds = {f["name"]: (f["low"], f["high"]) for f in results["floors"].get(results["candidate"], ())}
    reference = run.names.reference
    figures = [
        frontier(results, key, title, label, allowed=bounds.get(key), with_best_of_n=False)
        for key, title, label in (
            ("length_ratio", "Length against KL; green: allowed", f"length, share of {reference}’s"),
            ("nll_excess", "Strangeness against KL; green: allowed", f"NLL above {reference}’s own, nats per token"),
        )
    ]
    return {
        "controls": [
            {
                "name": policy_title(row),
                "note": row["note"],
                "sentences": _what_happened(run, row, bounds),
                "pairs": _control_pairs(run, row["name"]),
            }
            for row in rows
        ],
        "figures": [figure for figure in figures if figure],
    }


def _what_happened(run: RunFolder, row: ResultRow, bounds: Mapping[str, Any]) -> list[str]:
    """A control against the reference and the candidate, in sentences."""
    results, names = run.need("eval/results.json"), run.names
    start, best = row_of(results, results["reference"]), candidate_row(results)
    proxy, judge = row["proxy"]["value"], row["judge"]["value"]
    told = [
        f"Proxy {number(start['proxy']['value'], 2)} → {number(proxy, 2)} and judge "
        f"{number(start['judge']['value'], 2)} → {number(judge, 2)} against {names.reference}; for {names.candidate} "
        f"the proxy reaches {number(best['proxy']['value'], 2)} and the judge {number(best['judge']['value'], 2)}."
    ]
    rose = proxy > start["proxy"]["value"] and judge > start["judge"]["value"]
    told.append(_lengths("Rewards go up" if rose else "Rewards do not both go up", start, row, bounds))
    strange = "more surprising" if row["nll_excess"] > 0 else "less surprising"
    told.append(
        f"To {names.reference} its texts are {number(abs(row['nll_excess']), 2)} nats per token {strange} than "
        "its own; "
        f"{percent(row['distinct_share'])} of them are distinct; it lies {number(row['kl']['value'], 1)} nats away."
    )
    told.append(
        f"Of all its pairs of neighbouring words {percent(row['distinct_2'])} are different ones; for "
        f"{names.candidate} {percent(best['distinct_2'])}, for {names.reference} {percent(start['distinct_2'])}."
    )
    return told


def _lengths(rewards: str, start: ResultRow, row: ResultRow, bounds: Mapping[str, Any]) -> str:
    """Whether the texts of a policy shrink or swell beyond the bounds."""
    low, high = bounds.get("length_ratio", (None, None))
    lengths = f"from {number(start['tokens']['value'], 1)} to {number(row['tokens']['value'], 1)} tokens"
    if low is not None and row["length_ratio"] < low:
        return f"{rewards} and the texts shrink: {lengths} on average."
    if high is not None and row["length_ratio"] > high:
        return f"{rewards} and the texts swell: {lengths} on average."
    return f"In this run the mean length stayed within its bounds even so: {lengths}."


def _control_pairs(run: RunFolder, name: str) -> list[dict[str, Any]]:
    """A few completions of the candidate and of a control for the same prompts."""
    best = run.need("eval/results.json")["candidate"]
    try:
        found = completions_by_prompt(run)
    except Absent:
        return []
    both = sorted(key for key, rows in found.items() if best in rows and name in rows)
    return [_pair(run, found[key], (best, name)) for key in _drawn(run, both)[:5]]


# ---- reward model --------------------------------------------------------------------------------------------------


def reward_model(run: RunFolder) -> dict[str, Any]:
    """Accuracies beside baselines, calibration, length and probes."""
    card = run.need("reward/card.json")
    all_pairs = card["model"]["all_pairs"]
    return {
        "all_pairs": interval(all_pairs),
        "parts": [
            {"name": name.replace("_", " "), "term": name if name in TERMS else "", "accuracy": interval(found)}
            for name, found in card["model"]["parts"].items()
        ],
        "pairs": f"{all_pairs['n']:,}",
        "topics": all_pairs["clusters"],
        "leads": [
            {"name": title_of(name), "lead": interval(one["model_minus_this"])}
            for name, one in card["baselines"].items()
        ],
        "accuracies": accuracies(card),
        "figures": [calibration_figure(card), by_gap(card)],
        "length_correlation": number(card["length_correlation"]),
        "gate": gate_rows(run.get(GATE)),
        "probes": _probes(card.get("probes", {})),
    }


def gate_rows(gate: Mapping[str, Any]) -> list[dict[str, str]]:
    """What the gate says of the reward model, the worst first; a refusal that the recipe overruled says so."""
    overruled = " (overruled by the recipe)" if gate.get("overruled") else ""
    return [{**one, "says": one["says"] + overruled * (one["says"] == "refuse")} for one in gate.get("findings", ())]


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


def training(run: RunFolder, draw: Draw = training_figure) -> dict[str, Any]:
    """Curves of every stage that logged, and the alarms that rang; ``draw`` draws one."""
    lines = policy_lines(run)
    groups = [
        ("Language model", [("pretrain", _own(run, "pretrain")), ("sft", _own(run, "sft"))]),
        ("Reward model", [("reward", _own(run, "reward"))]),
        (" and ".join(name for name, _, _ in lines), [("policy", lines)]),
    ]
    shown = [
        {"name": name, "figures": figures, "legend": training_legend(found[-1][1])}
        for name, found in groups
        if (figures := [figure for kind, of in found for figure in _curves(run, kind, of, draw)])
    ]
    if not shown:
        raise Absent("no stage of this run has written metrics.jsonl")
    return {"groups": shown, "alarms": training_alarms(run)}


def _own(run: RunFolder, stage: str) -> list[tuple[str, str, MetricRows]]:
    """The one line of a stage that is drawn by itself."""
    return [(title_of(stage), "candidate", run.metrics[stage])] if run.metrics.get(stage) else []


def policy_lines(run: RunFolder) -> list[tuple[str, str, MetricRows]]:
    """Name, style and metrics of every policy that was optimised; the candidate comes first."""
    told = [(run.policy_of(stage), run.metrics[stage]) for stage in run.optimised if run.metrics[stage]]
    told.sort(key=lambda one: one[0]["role"] != "candidate")
    several = sum(row["role"] == "candidate" for row, _ in told) > 1
    return [(policy_title(row), f"m{i % 10}" if several else style_of(row), rows) for i, (row, rows) in enumerate(told)]


def _curves(run: RunFolder, kind: str, lines: Sequence[tuple[str, str, MetricRows]], draw: Draw) -> list[Figure]:
    """The curves of a kind of stage that somebody has logged."""
    drawn = [draw(run.names.fill(curve.title), curve, lines) for curve in CURVES[kind] if lines]
    return [figure for figure in drawn if figure]


def training_alarms(run: RunFolder) -> list[dict[str, Any]]:
    """The alarms that rang in each training that optimised a policy, with their usual cause and how many steps rang."""
    return [
        {"stage": policy_title(run.policy_of(stage)), "alarm": alarm, "cause": cause, "times": times}
        for stage in run.optimised
        for (alarm, cause), times in Counter((e.get("alarm"), e.get("cause")) for e in run.events[stage]).items()
        if alarm
    ]


# ---- data and settings ---------------------------------------------------------------------------------------------


def data(run: RunFolder) -> dict[str, Any]:
    """Files with hash and licence, sizes, splits, and who ranked what, as the task has told it."""
    manifest = run.need("data/manifest.json")
    credits = {one["name"]: one for one in manifest.get("credits", ())}
    rankings = run.stage("ask").get("result", {})
    return {
        "labels": str(manifest.get("labels", "")),
        "artefacts": [
            {"file": name, "licence": credits.get(name, {}).get("license") or "not stated", "sha256": digest}
            for name, digest in manifest.get("artefacts", {}).items()
        ],
        "credits": [one for name, one in credits.items() if name not in manifest.get("artefacts", {})],
        "counts": _counts(manifest.get("counts", {})),
        "splits": [
            {**one, "topics": number(one.get("topics"), 0), "texts": number(one.get("texts"), 0)}
            for one in manifest.get("splits", ())
        ],
        "asked": _asked(rankings) if rankings else {},
    }


def _asked(told: ResultRow) -> dict[str, Any]:
    """Who ranked samples, in words and numbers; ``by`` is what a card says of judgements that are not people's."""
    lines = [str(line) for line in told.get("description", [])]
    called = "" if "people" in told else str(told.get("called", "simulated annotators" if lines else ""))
    by = {"simulated annotators": "**simulated annotators** (programs, not people)", "AI feedback": "**AI feedback**"}
    title = called[:1].upper() + called[1:] if called else "People who were asked"
    return {"title": title, "by": by.get(called, called), "lines": lines, "numbers": _counts(told)}


def _counts(found: ResultRow) -> list[tuple[str, str]]:
    return [
        (name.replace("_", " "), f"{value:,}" if isinstance(value, int) else number(value))
        for name, value in found.items()
        if isinstance(value, int | float)
    ]


def settings(run: RunFolder) -> dict[str, Any]:
    """How to make this run again: command, versions, machine, times, every key of the recipe."""
    env, recipe, origins = run.need("env.json"), run.get("resolved.json"), run.get("origins.json")
    seconds = [(s, run.stage(s)["seconds"]) for s in run.stages if isinstance(run.stage(s).get("seconds"), int | float)]
    rows = [(name.replace("_", " "), value, f"{value:,.0f} s") for name, value in seconds]
    packages = env.get("packages", {})
    return {
        "command": env.get("command", ""),
        "versions": [("accord", env.get("accord")), ("python", env.get("python")), *packages.items()],
        "machine": [(k, v) for k, v in env.items() if k not in ("accord", "python", "packages", "command")],
        "seed": recipe.get("seed", NONE),
        "judges": [
            (title_of(n), digest or NONE) for n, digest in run.get("eval/results.json").get("judges", {}).items()
        ],
        "total": f"{sum(value for _, value in seconds):,.0f} s" if seconds else NONE,
        "times": bars(rows, title="Seconds of work a stage"),
        "keys": [(key, value, origins.get(key, NONE)) for key, value in flat(recipe)],
    }


def flat(found: ResultRow, above: str = "") -> list[tuple[str, str]]:
    """Dotted keys of nested mappings and their values."""
    rows: list[tuple[str, str]] = []
    for key, value in found.items():
        rows += flat(value, f"{above}{key}.") if isinstance(value, Mapping) else [(f"{above}{key}", str(value))]
    return rows
