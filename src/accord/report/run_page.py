"""The report of a run: one self-contained HTML page, the model card, and the table over seeds. Torch-free.

Pages load nothing: styles and pictures are inside, there is no script. Whatever a run has not written is left out with
a line that says why.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import accord
from accord.files import read_json, write_text
from accord.report import parts
from accord.report.figures import Figure, dot_of, seeds_frontier, snapshot_line, win_figure
from accord.report.glossary import GLOSSARY, TERMS
from accord.report.run_folder import RunFolder, read_run

SECTIONS = {
    "floors": parts.tiles,
    "policies": parts.policies,
    "before_after": parts.before_after,
    "frontiers": parts.frontiers,
    "without_cure": parts.without_cure,
    "reward_model": parts.reward_model,
    "training": parts.training,
    "data": parts.data,
    "settings": parts.settings,
}


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` from what the run has written so far, and return its path.

    Raises:
        DataError: there is no such folder.
        ResourceError: the page cannot be written.
    """
    run = read_run(run_dir)
    sections = {name: parts.part(build, run) for name, build in SECTIONS.items()}
    context = {"name": _run_name(run), "seed": _seed(run), "headline": parts.part(parts.headline, run), **sections}
    return write_page(run_dir / "report.html", "report.html.j2", context)


def write_model_card(run_dir: Path) -> Path:
    """Write ``README.md``, a Hugging Face model card of the chosen policy, and return its path."""
    run = read_run(run_dir)
    context = {
        "name": _run_name(run),
        "seed": _seed(run),
        "headline": parts.part(parts.headline, run),
        "numbers": parts.part(_card_numbers, run),
        "floors": parts.part(parts.tiles, run),
        "reward_model": parts.part(parts.reward_model, run),
        "data": parts.part(parts.data, run),
        "base": run.get("resolved.json").get("base", {}).get("model", ""),
        "shape": run.get("resolved.json").get("model", {}),
        "lstm": _is_lstm(run_dir, run),
    }
    return write_page(run_dir / "README.md", "model_card.md.j2", context)


def _is_lstm(run_dir: Path, run: RunFolder) -> bool:
    """Whether the published policy opens with Accord alone; before there is one, what the recipe asks for."""
    config = run_dir / "model" / "config.json"
    if config.exists():
        return bool(read_json(config).get("model_type") == "accord_lstm")
    return bool(run.get("resolved.json").get("model", {}).get("kind") == "lstm")


def write_seeds_report(out_dir: Path, seed_dirs: Sequence[Path]) -> Path:
    """Write ``report.html`` and ``table.md`` over the runs of several seeds, and return the page's path."""
    rows = [_seed_row(path, out_dir) for path in seed_dirs]
    done = [row for row in rows if not row["absent"]]
    context = {
        "name": out_dir.name,
        "rows": rows,
        "columns": [(name, TERMS.get(term)) for name, term, _, _ in RUN_COLUMNS],
        "totals": _totals(done),
        "wins": _wins(done),
        "all_held": bool(rows) and all(row.get("held") for row in rows),
        "figures": _seed_figures(done),
    }
    write_page(out_dir / "table.md", "table.md.j2", context)
    return write_page(out_dir / "report.html", "seeds.html.j2", context)


def write_page(path: Path, template: str, context: Mapping[str, Any]) -> Path:
    """Fill a template; everything in it is escaped but the pictures, which are escaped where they are drawn."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=not template.endswith(".md.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"version": accord.__version__, "glossary": GLOSSARY, "terms": TERMS}
    write_text(path, environment.get_template(template).render(context))
    return path


def _run_name(run: RunFolder) -> str:
    return str(run.get("resolved.json").get("name", run.path.name))


def _seed(run: RunFolder) -> Any:
    return run.get("resolved.json").get("seed", run.get("eval/results.json").get("seed", parts.NONE))


def _card_numbers(run: RunFolder) -> dict[str, Any]:
    """The chosen policy's and SFT's measures as rows of texts."""
    results = run.need("eval/results.json")
    found = {name: parts.find(results, name) for name in ("sft", "ppo")}
    rows = []
    for _, measures in parts.MEASURES:
        for key, digits in measures:
            cells = [parts.interval(row[key], digits) for row in found.values()]
            rows.append([TERMS[key].name, *(" ".join(filter(None, cell.values())) for cell in cells)])
    return {"rows": rows, "prompts": results["num_test_prompts"], "samples": results["samples_per_prompt"]}


# ---- seeds ---------------------------------------------------------------------------------------------------------

# Column, glossary term, key of a seed's numbers, decimals.
RUN_COLUMNS = (
    ("Win rate", "win_rate", "win_rate", 3),
    ("KL", "kl", "kl", 2),
    ("Length ratio", "length_ratio", "length_ratio", 3),
    ("NLL above SFT", "nll_excess", "nll_excess", 3),
    ("Distinct", "distinct_share", "distinct_share", 3),
    ("Reward accuracy", "reward_accuracy", "accuracy", 3),
    ("Same verdict", "same_verdict", "same_verdict", 3),
    ("TF-IDF baseline", "tfidf", "baseline", 3),
    ("Seconds", "", "seconds", 0),
)
SEED_LINES = {"judge": "judge score", "proxy": "proxy score"}


def _seed_row(path: Path, out_dir: Path) -> Mapping[str, Any]:
    if not path.is_dir():
        return {"seed": path.name, "link": "#", "absent": "it has no folder yet"}
    run = read_run(path)
    head = {"seed": _seed(run), "link": Path(os.path.relpath(path / "report.html", out_dir)).as_posix()}
    return {**head, **parts.part(run_numbers, run)}


def run_numbers(run: RunFolder) -> dict[str, Any]:
    results, card, summary = run.need("eval/results.json"), run.need("reward/card.json"), run.need("summary.json")
    ppo, same = parts.find(results, "ppo"), card["model"]["same_verdict"]
    values = {
        "win_rate": ppo["win_rate"],
        "kl": ppo["kl"],
        "length_ratio": ppo["length_ratio"],
        "nll_excess": ppo["nll_excess"],
        "distinct_share": ppo["distinct_share"],
        "accuracy": card["model"]["all_pairs"],
        "same_verdict": same,
        "baseline": summary["baseline_accuracy"],
        "seconds": summary["seconds"],
    }
    return {
        "values": values,
        "cells": [parts.interval(values[key], digits) for _, _, key, digits in RUN_COLUMNS],
        "held": all(floor["held"] for floor in summary["floors"].values()),
        "broken": [name.replace("_", " ") for name, floor in summary["floors"].items() if not floor["held"]],
        "lines": {measure: snapshot_line(f"seed {_seed(run)}", results, measure) for measure in SEED_LINES},
    }


def _totals(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Mean, least and largest of each column over the finished seeds."""
    if not rows:
        return []
    columns = [[_plain_value(row["values"][key]) for row in rows] for _, _, key, _ in RUN_COLUMNS]
    shown = []
    for name, of in (("mean", lambda v: sum(v) / len(v)), ("least", min), ("largest", max)):
        texts = [
            parts.number(of(values), digits) if None not in values else parts.NONE
            for values, (_, _, _, digits) in zip(columns, RUN_COLUMNS, strict=True)
        ]
        shown.append((name, texts))
    return shown


def _wins(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Mean and least win rate over the finished seeds, in percent."""
    values = [row["values"]["win_rate"]["value"] for row in rows]
    return {"mean": parts.percent(sum(values) / len(values)), "least": parts.percent(min(values))} if values else {}


def _plain_value(found: Any) -> Any:
    return found["value"] if isinstance(found, Mapping) else found


def _seed_figures(rows: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Win rates of the finished seeds, then judge and proxy of all their snapshots along KL."""
    if not rows:
        return []
    wins = [dot_of(f"seed {row['seed']}", "ppo", row["values"]["win_rate"]) for row in rows]
    along = [seeds_frontier([row["lines"][measure] for row in rows], label) for measure, label in SEED_LINES.items()]
    return [win_figure("Win rate of PPO against SFT by the judge, test films", wins), *along]
