"""The demo's task as files: film reviews into the store, and out of it what each stage eats.

Splits are by film: "train" teaches the reward model and gives the prompts of the policy; "judge" teaches the judge
alone (its ratings; its texts may be read by the language model); "valid" chooses checkpoints; "test" is reported.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.config import DataConfig, LabelConfig
from accord.demo.film_reviews import (
    HUMAN_SOURCE,
    RATING_HIGH,
    RATING_LOW,
    FilmReviews,
    Split,
    completion_for,
    fetch,
    prompt_for,
    read,
    records_of,
    split_of,
)
from accord.demo.taste import (
    GUIDELINE,
    agreement,
    annotators,
    build_taste,
    describe,
    ordinary_length,
    simulate_rankings,
)
from accord.files import write_json
from accord.formats.facts import ORIGINS
from accord.formats.jsonl import write_jsonl
from accord.people.desk import Desk
from accord.people.intake import queue_groups
from accord.records import Completion, Prompt, RankedGroup, Source
from accord.seeds import stream_seed
from accord.store import Store

HUMAN_ORIGIN = "human ratings"
OTHER_PROMPTS = {"amazon": "Product review:", "editorial": "Editorial:", "tweet": "Tweet:", "word": "Word:"}
SIMULATED_ORIGIN = ORIGINS["simulated"]
LANGUAGE_CORPORA = ("amazon", "tweet")  # opinions in everyday words; words alone and newspaper editorials are not
LANGUAGE_SPLITS: tuple[Split, ...] = ("train", "judge")


def prepare(config: DataConfig, folder: Path, *, store: str, cache: Path, from_dir: Path | None, seed: int) -> Any:
    """Fetch, verify, join, load into the store, and write the files of all stages. Returns the manifest."""
    data = read(fetch(cache, from_dir))
    with Store.open(store) as facts:
        facts.add(records_of(data))
        counts = facts.counts()
        rated = rated_by_film(facts)
    write_texts(data, folder)
    write_judged(data, folder)
    write_json(folder / "words.json", data.words())
    rng = random.Random(stream_seed(seed, "rankings"))
    train = film_groups(config, {f: rows for f, rows in rated.items() if split_of(f) == "train"}, rng)
    write_groups(folder / "rankings.jsonl", [*train, *other_groups(config, data, rng)])
    once = config.model_copy(update={"deals": 1})
    write_groups(
        folder / "rankings_valid.jsonl",
        film_groups(once, {f: rows for f, rows in rated.items() if split_of(f) == "valid"}, rng),
    )
    manifest = {
        "artefacts": dict(data.sha256),
        "counts": data.counts(),
        "films": dict(Counter(split_of(film) for film in rated)),
        "rated_reviews": dict(Counter(split_of(review.film) for review in data.rated)),
        "human_rankings": len(train),
        "store": counts,
    }
    write_json(folder / "manifest.json", manifest)
    return manifest


# -- what the language model reads ------------------------------------------------------------------------------------


def write_texts(data: FilmReviews, folder: Path) -> None:
    """Plain texts, demonstrations and prompts. Nothing of a valid or test film is read by the language model."""

    def of(items: Iterable[Any], *splits: Split) -> list[Any]:
        return [item for item in items if split_of(item.film) in splits]

    def demonstrations(reviews: Iterable[Any]) -> list[dict[str, str]]:
        return [{"prompt": prompt_for(r.film), "completion": completion_for(r.text), "topic": r.film} for r in reviews]

    reviews = data.reviews()
    language = of(reviews, *LANGUAGE_SPLITS)
    plain = [r.text for r in language] + [p.text for p in of(data.plots, *LANGUAGE_SPLITS)]
    plain += [o.text for o in data.others if o.corpus in LANGUAGE_CORPORA]
    random.Random(0).shuffle(plain)
    write_jsonl(folder / "texts.jsonl", [{"text": completion_for(t)} for t in plain])
    write_jsonl(folder / "texts_valid.jsonl", [{"text": completion_for(r.text)} for r in of(reviews, "valid")])
    write_jsonl(folder / "demonstrations.jsonl", demonstrations(language))
    write_jsonl(folder / "demonstrations_valid.jsonl", demonstrations(of(reviews, "valid")))
    for split in ("train", "valid", "test"):
        films = sorted({review.film for review in of(reviews if split == "train" else data.rated, split)})
        write_jsonl(folder / f"prompts_{split}.jsonl", [{"prompt": prompt_for(f), "topic": f} for f in films])


def write_judged(data: FilmReviews, folder: Path) -> None:
    """Rated reviews of the films that nothing trains on: the judge's own, and those it and the report are held to."""
    for split in ("judge", "valid", "test"):
        rows = [
            {"film": r.film, "text": r.text, "mean": round(r.mean, 4), "verdict": r.verdict}
            for r in data.rated
            if split_of(r.film) == split
        ]
        write_jsonl(folder / f"reviews_{split}.jsonl", rows)


@dataclass(frozen=True)
class JudgedReview:
    """A review by a person: its film, people's mean rating (-4..4) and the critic's verdict."""

    film: str
    text: str
    mean: float
    verdict: str


def read_judged(path: Path) -> list[JudgedReview]:
    """The rated reviews of a split, as `write_judged` wrote them."""
    return [JudgedReview(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


# -- rankings: views of the ratings ------------------------------------------------------------------------------------


def rated_by_film(store: Store) -> dict[str, list[tuple[str, float]]]:
    """Human completions of each film with their mean rating, out of the store."""
    films = {prompt.id: prompt.topic for prompt in store.prompts()}
    texts = {c.id: c for c in store.completions(source_name=HUMAN_SOURCE.name)}
    rated: dict[str, list[tuple[str, float]]] = {}
    for row in store.mean_ratings((RATING_LOW, RATING_HIGH)):
        if row.completion_id in texts:
            completion = texts[row.completion_id]
            rated.setdefault(films[completion.prompt_id], []).append((completion.text, row.mean))
    return {film: sorted(rows) for film, rows in sorted(rated.items())}


def film_groups(config: DataConfig, rated: dict[str, list[tuple[str, float]]], rng: random.Random) -> list[RankedGroup]:
    """Reviews of one film ranked by their mean rating, each review dealt into ``deals`` rankings."""
    return [
        ranked_group(config, prompt_for(film), rows, HUMAN_ORIGIN, film)
        for deal in range(config.deals)
        for film, reviews in rated.items()
        for rows in deal_out(reviews, config.group_size, rng, like_length=deal % 2 == 0)
    ]


def other_groups(config: DataConfig, data: FilmReviews, rng: random.Random) -> list[RankedGroup]:
    """Rated texts that are no film reviews: like kind and like length together, under a prompt that names the kind.

    Words are ranked among words only, so that no ranking says that one word is as good as a review.
    """
    groups: list[RankedGroup] = []
    for corpus in config.other_corpora:
        rows = [(completion_for(o.text), o.mean) for o in data.others if o.corpus == corpus]
        dealt = deal_out(rows, config.group_size, rng, like_length=True)
        groups += [
            ranked_group(config, OTHER_PROMPTS[corpus], group, f"{HUMAN_ORIGIN}: {corpus}", "") for group in dealt
        ]
    return groups


def deal_out(
    rows: Sequence[tuple[str, float]], size: int, rng: random.Random, *, like_length: bool
) -> list[list[tuple[str, float]]]:
    """Shuffle into groups of at most ``size``; with ``like_length`` the texts of a group are of similar length."""
    dealt = list(rows)
    rng.shuffle(dealt)
    if like_length:
        dealt.sort(key=lambda row: len(row[0]) * rng.uniform(0.8, 1.25))
    groups = [dealt[start : start + size] for start in range(0, len(dealt), size)]
    return [group for group in groups if len(group) > 1]


def ranked_group(
    config: DataConfig, prompt: str, rows: Sequence[tuple[str, float]], origin: str, topic: str
) -> RankedGroup:
    """Rank texts by mean rating, 1 = best; means that fall into one step of ``tie_width`` are a tie."""
    steps = [round(mean / config.tie_width) for _, mean in rows]
    ranks = tuple(1 + sum(other > step for other in steps) for step in steps)
    return RankedGroup(prompt=prompt, completions=tuple(t for t, _ in rows), ranks=ranks, origin=origin, topic=topic)


def write_groups(path: Path, groups: Iterable[RankedGroup]) -> None:
    """Groups with some order; those that are one single tie teach nothing."""
    write_jsonl(path, [group.to_json() for group in groups if len(set(group.ranks)) > 1])


# -- samples of a policy -----------------------------------------------------------------------------------------------


def _as_facts(
    groups: Iterable[tuple[str, str, Sequence[str]]], source: Source
) -> Iterator[tuple[Prompt, tuple[Completion, ...]]]:
    """Groups (prompt, film, texts) as facts: each prompt with its completions."""
    for text, film, texts in groups:
        prompt = Prompt(text=text, topic=film)
        yield prompt, tuple(Completion(prompt_id=prompt.id, text=written, source=source) for written in texts)


# -- simulated annotators ----------------------------------------------------------------------------------------------


def rank_samples(
    config: DataConfig,
    *,
    groups: Sequence[tuple[str, str, Sequence[str]]],
    source: Source,
    words: Mapping[str, float],
    human_texts: Sequence[str],
    store: str,
    output: Path,
    seed: int,
) -> dict[str, Any]:
    """Let simulated annotators rank groups (prompt, film, texts) of a policy's samples; keep it all in the store.

    Returns who they were and how far they agreed. ``source`` says who wrote the samples, ``words`` are human ratings of
    single words, ``human_texts`` show the ordinary length of a review.
    """
    taste = build_taste(words, ordinary_length(human_texts))
    team = annotators(config.annotators, seed)
    drawn = list(_as_facts(groups, source))
    dealt = [completions for _, completions in drawn]
    prompts = {prompt.id: prompt for prompt, _ in drawn}
    shown = {completion.id: completion for completions in dealt for completion in completions}
    rankings = list(simulate_rankings(dealt, taste, team, seed, per_group=config.annotators_per_group))
    with Store.open(store) as facts:
        facts.add([*(member.record() for member in team), *prompts.values(), *shown.values(), *rankings])
    views = [
        RankedGroup(
            prompt=prompts[ranking.prompt_id].text,
            completions=tuple(shown[i].text for i in ranking.completion_ids),
            ranks=ranking.ranks,
            origin=SIMULATED_ORIGIN,
            topic=prompts[ranking.prompt_id].topic,
            weight=config.simulated_weight,
        )
        for ranking in rankings
    ]
    write_groups(output, views)
    agreed = agreement(rankings, {i: taste.utility(c.text) for i, c in shown.items()})
    return {
        "rankings": len(rankings),
        "annotators": [member.name for member in team],
        "agreement_between": agreed.between,
        "agreement_with_taste": agreed.with_taste,
        "tied": agreed.tied,
        "description": describe(taste, team),
    }


# -- for people --------------------------------------------------------------------------------------------------------


def queue_samples(groups: Sequence[tuple[str, str, Sequence[str]]], source: Source, *, store: str) -> int:
    """Queue groups (prompt, film, texts) of a policy's samples as rankings for people, and return how many were new.

    See `accord.people.intake.queue_groups`. Where there are no guidelines yet, people get those of the simulated.
    """
    with Store.open(store) as facts:
        desk = Desk(facts, LabelConfig())
        if desk.guideline().rev == 0:
            desk.write_guideline(GUIDELINE, None)
        return queue_groups(desk, _as_facts(groups, source), serve_as="ranking", origin=source.name)
