"""The report of a run: one self-contained HTML page, and the model card. Torch-free.

Whatever a run has not written is left out with a line that says why.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from accord.files import read_json
from accord.report import first_screen, parts
from accord.report.answers_table import answers_table
from accord.report.glossary import TERMS
from accord.report.goodhart_page import over_optimisation, write_goodhart_page
from accord.report.names import policy_title
from accord.report.pages import write_page
from accord.report.round_gates import round_gates
from accord.report.run_folder import CURVES_FILE, RunFolder, read_run

SECTIONS = {
    "headline": first_screen.headline,
    "example": first_screen.example,
    "guards": first_screen.guards,
    "rounds": parts.rounds,
    "round_gates": round_gates,
    "floors": parts.tiles,
    "judges": parts.judges,
    "standings": parts.standings,
    "policies": parts.policies,
    "before_after": parts.before_after,
    "answers": answers_table,
    "frontiers": parts.frontiers,
    "over_optimisation": over_optimisation,
    "controls": parts.controls,
    "reward_model": parts.reward_model,
    "training": parts.training,
    "data": parts.data,
    "settings": parts.settings,
}


def write_pages(run_dir: Path) -> list[Path]:
    """Write the model card of what a run has published and the page of its over-optimisation, if any, and its page.

    Returns their paths, that of its own page last.
    """
    cards = [write_model_card(run_dir)] if (run_dir / "model").is_dir() else []
    curves = [write_goodhart_page(run_dir)] if (run_dir / CURVES_FILE).is_file() else []
    return [*cards, *curves, write_report(run_dir)]


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` from what the run has written so far, and return its path.

    Raises:
        DataError: there is no such folder.
        ResourceError: the page cannot be written.
    """
    run = read_run(run_dir)
    sections = {name: parts.part(build, run) for name, build in SECTIONS.items()}
    script = (Path(__file__).parent / "templates/filter.js").read_text(encoding="utf-8")
    allowed = "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    context = {"name": run.name, "seed": run.seed, "script": script, "script_hash": allowed, **sections}
    return write_page(run_dir / "report.html", "report.html.j2", context, run.names)


def write_model_card(run_dir: Path) -> Path:
    """Write ``README.md``, a Hugging Face model card of the chosen policy, and return its path."""
    run = read_run(run_dir)
    resolved, manifest = run.get("resolved.json"), run.get("data/manifest.json")
    context = {
        "name": run.name,
        "seed": run.seed,
        "headline": parts.part(first_screen.card_headline, run),
        "numbers": parts.part(_card_numbers, run),
        "judges": parts.part(parts.judges, run),
        "floors": parts.part(parts.tiles, run),
        "reward_model": parts.part(parts.reward_model, run),
        "data": parts.part(parts.data, run),
        "about": str(manifest.get("about", "")),
        "prompt": str(manifest.get("prompt", "")),
        "limits": [str(line) for line in manifest.get("limits", ())],
        "stages": run.stages,
        "tag": run.get("eval/results.json").get("candidate", ""),
        "base": resolved.get("base", {}).get("model", ""),
        "shape": resolved.get("model", {}),
        "lstm": _is_lstm(run_dir, run),
    }
    return write_page(run_dir / "README.md", "model_card.md.j2", context, run.names)


def _is_lstm(run_dir: Path, run: RunFolder) -> bool:
    """Whether the published policy opens with Accord alone; before there is one, what the recipe asks for."""
    config = run_dir / "model" / "config.json"
    if config.exists():
        return bool(read_json(config).get("model_type") == "accord_lstm")
    return bool(run.get("resolved.json").get("model", {}).get("kind") == "lstm")


def _card_numbers(run: RunFolder) -> dict[str, Any]:
    """The measures of the reference and of the chosen policy as rows of texts."""
    results = run.need("eval/results.json")
    found = [parts.row_of(results, results["reference"]), parts.candidate_row(results)]
    rows = []
    for _, measures in parts.MEASURES:
        for key, digits in measures:
            cells = [parts.interval(row.get(key), digits) for row in found]
            name = run.names.fill(TERMS[key].name)
            rows.append([name, *(" ".join(filter(None, cell.values())) for cell in cells)])
    titles = [policy_title(row) for row in found]
    return {
        "rows": rows,
        "titles": titles,
        "prompts": results["num_test_prompts"],
        "samples": results["samples_per_prompt"],
        "too_long": parts.too_long(results),
    }
