"""The page of a reward model measured on held-out judgements: the gate first, then what led to it. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accord.files import read_json
from accord.report.figures import Figure, accuracies, by_gap, calibration_figure, dot_of
from accord.report.names import Names, title_of
from accord.report.pages import write_page
from accord.report.parts import gate_rows, interval, number
from accord.report.svg import dots

CARD = "reward/card.json"
TONES = {"pass": "good", "warn": "mixed", "refuse": "bad"}
PILLS = {"pass": "Pass", "warn": "Go on with care", "refuse": "Refused"}
#: What each facet tells pairs apart by.
FACET_TITLES = {
    "source": "By who judged",
    "margin": "By how clear the choice was",
    "length_gap": "By how long the preferred text is beside the other",
    "topic": "By topic",
    "annotator": "By annotator",
    "place": "By where the preferred text stands",
}
_Card = Mapping[str, Any]
Cell = dict[str, str]


def write_reward_page(folder: Path) -> Path:
    """Write ``report.html`` from ``reward/card.json``, and return its path."""
    return write_page(folder / "report.html", "reward.html.j2", reward_sections(read_json(folder / CARD)), Names())


def reward_sections(card: _Card) -> dict[str, Any]:
    """Return what the page shows, out of the card's numbers."""
    gate = card["gate"]
    return {
        "tone": TONES[gate["says"]],
        "pill": PILLS[gate["says"]] + (", overruled" if gate["overruled"] and gate["says"] == "refuse" else ""),
        "findings": gate_rows(gate),
        "accuracy": interval(card["model"]["all_pairs"]),
        "counts": card["model"]["all_pairs"],
        "files": card["data"],
        "left_out": [f"{title_of(name)}: {why}" for name, why in card["left_out"].items()],
        "figures": [accuracies(card, "whoever judged"), calibration_figure(card), *_by_rank(card)],
        "ceiling": list(_ceiling(card["ceiling"])),
        "unnamed": card["ceiling"]["unnamed"],
        "facets": [_facet(name, rows) for name, rows in card["facets"].items()],
        "subsets": _subsets(card["subsets"]),
        "probes": list(_probe_rows(card)),
        "attacks": [_attack(row) for row in card["attacks"]],
        "attacked": card["attacked"],
        "members": list(_members(card["members"])),
        "drift": list(_drift(card["drift"])),
    }


def _by_rank(card: _Card) -> list[Figure]:
    """Return accuracy by the ranks between two texts, where rankings have more than two."""
    return [by_gap(card)] if len(card["by_gap"]) > 1 else []


def told(found: Mapping[str, Any] | float | None, digits: int = 3) -> Cell:
    """Return an estimate as a cell; one that is unknown says why."""
    if isinstance(found, Mapping) and "why" in found:
        return {"prefix": "", "value": "unknown", "range": str(found["why"])}
    return interval(found, digits)


def _facet(name: str, rows: Sequence[_Card]) -> Figure:
    shown = [dot_of(f"{row['label']} ({row['accuracy']['n']:,})", "candidate", row["accuracy"]) for row in rows]
    title = FACET_TITLES.get(name, title_of(name))
    return Figure(title, dots(shown, title=title, axis="share of pairs ordered as they were judged", rule=0.5))


def _ceiling(found: _Card) -> Iterator[tuple[str, Cell]]:
    """Yield the rows of one person beside the others, and of the model on the same judgements."""
    yield "One person agrees with the others", told(found["human"])
    yield "The model agrees with the same others", told(found["model"])
    yield "The model minus the person", told(found["model_minus_human"])


def _subsets(rows: Sequence[_Card]) -> dict[str, Any]:
    """Return the heading and the rows of the table of subsets, each with an accuracy a scorer."""
    names = list(rows[0]["accuracy"]) if rows else []
    apart, composed = (any(row.get(key) for row in rows) for key in ("separated", "composite"))
    heading = ["Subset", "Kind", "Rows", "Chance", *(title_of(name) for name in names)]
    body = [
        {
            "labels": [row["name"], row["kind"], f"{row['rows']:,}", number(row["chance"])],
            "cells": [interval(row["accuracy"][name]) for name in names]
            + ([told(row["separated"].get("model"))] if apart else [])
            + ([told((row.get("composite") or {}).get("model"))] if composed else []),
        }
        for row in rows
    ]
    heading += ["Model: right and wrong apart"] * apart + ["Model: RewardBench 2’s score of ties"] * composed
    return {"heading": heading, "rows": body}


def _probe_rows(card: _Card) -> Iterator[tuple[str, Cell]]:
    """Yield what is known of length, place and calibration, a row each."""
    habit = card["length_habit"]
    if "why" in habit:
        yield "The longer text is preferred", told(habit)
    else:
        yield "The longer text is preferred by who judged", interval(habit["people"])
        yield "The longer text is preferred by the model", interval(habit["model"])
        yield "The difference", interval(habit["model_minus_people"])
    yield "Sentences that say nothing raise the score", interval(card["padding_rises"])
    yield "Correlation of the score with log(1 + words)", interval(card["length_correlation"])
    yield "The text that stands first is preferred by who judged", told(card["first_preferred"])
    yield (
        "Largest change of a score where texts are scored in another order, or alone",
        interval(card["order_matters"], 6),
    )
    if card.get("concordance"):
        yield "The better of two judged completions of any prompts has the higher score", interval(card["concordance"])
    yield "Calibration error", interval(card["calibration"]["error"])
    yield "Temperature that mends it (above 1: too sure)", told(card["mended"]["temperature"])
    yield "Calibration error after that, on topics that did not choose it", interval(card["mended"]["error"])


def _attack(row: _Card) -> dict[str, Any]:
    reaches = row["reaches"]
    return {
        "name": row["name"],
        "reaches": interval(reaches),
        "lead": interval(row["lead"], 2),
        "example": row["example"],
        "broken": reaches["low"] is not None and reaches["low"] > 0.1,
    }


def _members(found: _Card | None) -> Iterator[tuple[str, Cell]]:
    if found is None:
        return
    for i, accuracy in enumerate(found["accuracies"], 1):
        yield f"Accuracy of member {i}", interval(accuracy)
    yield "Two members order a pair alike", interval(found["alike"])
    yield "All members do", interval(found["unanimous"])
    yield "Accuracy where all do", told(found["accuracy_unanimous"])
    yield "Accuracy where they are split", told(found["accuracy_split"])
    yield "Standard deviation of a score over members", interval(found["spread"])


def _drift(found: _Card | None) -> Iterator[tuple[str, Cell]]:
    if found is None:
        return
    yield "A classifier tells samples from judged texts (0.5: it cannot)", interval(found["told_apart"])
    yield "Share of a sample’s words that no judged text has", interval(found["new_words"])
    yield "Length of samples over that of judged texts", interval(found["longer"], 2)
    yield "Mean score of the samples", interval(found["score_samples"], 2)
    yield "Mean score of the judged texts", interval(found["score_judged"], 2)
    if found["spread_samples"]:
        yield "Members’ deviation on the samples", interval(found["spread_samples"])
        yield "Members’ deviation on the judged texts", interval(found["spread_judged"])
