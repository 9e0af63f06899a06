"""The film demo as a task: reviews and ratings into the store, and out of it what each stage reads.

A recipe names it ``accord.demo.films:FILMS``, as it would a user's own.

Splits are by film: "train" teaches the reward model and gives the prompts of the policy; "judge" teaches the judge
alone (its ratings; its texts may be read by the language model); "valid" chooses checkpoints; "test" is reported.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from accord.config import Section
from accord.demo.about import about_films
from accord.demo.film_reviews import (
    HUMAN_SOURCE,
    RATING_HIGH,
    RATING_LOW,
    FilmReviews,
    completion_for,
    fetch,
    film_split,
    prompt_for,
    read_reviews,
    records_of,
)
from accord.demo.probes import film_probes
from accord.demo.taste import (
    GUIDELINE,
    agreement,
    build_taste,
    describe_taste,
    ordinary_length,
    simulate_rankings,
    taste_annotators,
)
from accord.evals.judges import fit_text_judge, load_text_judge
from accord.evals.pairs import HeldOutPairs, RatedCompletion, rated_pairs
from accord.evals.reward_card import measure_reward_model
from accord.files import read_json, write_json
from accord.formats.facts import ORIGINS
from accord.formats.jsonl import write_jsonl
from accord.formats.stage_rows import read_demonstrations, read_rankings
from accord.loop.cache import Inputs
from accord.loop.samples import as_facts, read_samples
from accord.loop.task import Annotators, Asked, PlainTask, RewardCheck, Split, TaskJudge, TaskPlace
from accord.models.placement import Placement
from accord.progress import Log
from accord.records import Completion, Prompt, RankedGroup, Ranking, ranks_by_value
from accord.scoring.scorer import Scorer
from accord.seeds import stream_seed
from accord.store import Store

#: The baseline that the floor names: taught by the human rankings of film reviews. The card also shows one taught by
#: all human rankings (products, tweets, words), as the reward model is.
BASELINE = "tfidf_bradley_terry"
HUMAN_ORIGIN = "human ratings"
# Each kind of text has a prompt of its own. Words beside reviews taught that one good word beats a sentence: the
# policy fell from 30 tokens to 7 while judge and proxy rose (docs/LOG.md, "Negative results").
OTHER_PROMPTS = {"amazon": "Product review:", "editorial": "Editorial:", "tweet": "Tweet:", "word": "Word:"}
SIMULATED_ORIGIN = ORIGINS["simulated"]
LANGUAGE_CORPORA = ("amazon", "tweet")  # opinions in everyday words; words alone and newspaper editorials are not
LANGUAGE_SPLITS: tuple[Split, ...] = ("train", "judge")


class FilmConfig(Section):
    """How ratings become rankings, and who the simulated annotators are: ``task.options`` of the film demo."""

    group_size: int = Field(9, ge=2, le=64, description="Most texts in one ranking (K).")
    deals: int = Field(2, ge=1, description="Rankings that each rated review is dealt into.")
    tie_width: float = Field(0.5, gt=0, description="Mean ratings that round to the same step of this width tie.")
    other_corpora: tuple[Literal["amazon", "editorial", "tweet", "word"], ...] = Field(
        ("amazon", "tweet", "word"), strict=False, description="Rated texts besides film reviews that are ranked too."
    )
    annotators: int = Field(8, ge=1, description="Simulated annotators; each keeps a hidden taste of its own.")
    annotators_per_group: int = Field(2, ge=1, description="Simulated annotators that rank the same group.")


class FilmTask(PlainTask):
    """The task of writing reviews that people read as positive: prompts name a film, people rate the texts."""

    has = frozenset({"demonstrations", "judgements", "texts"})
    guideline = GUIDELINE

    def __init__(self, place: TaskPlace) -> None:
        super().__init__(place)
        self.config = place.options(FilmConfig)
        self.settings = {"films": self.config.model_dump()}
        file = place.folder.joinpath
        self.judges = {"ratings": TaskJudge({"ratings": file("reviews_judge.jsonl")}, fit_ratings, load_ratings)}
        taste = {"words": file("words.json"), "human": file("demonstrations.jsonl")}
        self.annotators = {"simulated": Annotators(taste, self.simulated, self.settings)}
        reviews = {split: file(f"reviews_{split}.jsonl") for split in ("valid", "test")}
        self.held_out = RewardCheck(reviews, review_card, BASELINE)

    def path(self, kind: str, split: Split) -> Path:
        name = {"judgements": "rankings"}.get(kind, kind)
        plain = split == "train" and kind != "prompts"
        return self.place.folder / (f"{name}.jsonl" if plain else f"{name}_{split}.jsonl")

    def judgements(self, split: Split) -> Path | None:
        """Return the rankings of people's ratings; the "judge" split has ratings for its judge and no rankings."""
        return None if split == "judge" else super().judgements(split)

    def prepare(self, inputs: Inputs, folder: Path, log: Log) -> Any:
        """Fetch, verify, join, load into the store, and write the files of all stages. Returns the manifest."""
        log(0.0, "fetching and joining reviews and ratings")
        data = read_reviews(fetch(self.place.cache, self.place.from_dir))
        with Store.open(self.place.store) as facts:
            facts.add(records_of(data))
            counts = facts.counts()
            rated = rated_by_film(facts)
        write_texts(data, folder)
        write_judged(data, folder)
        write_json(folder / "words.json", data.words())
        num_rankings = write_rankings(self.config, data, rated, folder, self.place.seed)
        manifest = {
            "artefacts": dict(data.sha256),
            "counts": data.counts(),
            "films": dict(Counter(film_split(film) for film in rated)),
            "rated_reviews": dict(Counter(film_split(review.film) for review in data.rated)),
            "human_rankings": num_rankings,
            "store": counts,
            **about_films(rated, (review.film for review in data.rated)),
        }
        write_json(folder / "manifest.json", manifest)
        return manifest

    def simulated(self, inputs: Inputs, asked: Asked) -> Any:
        """Let simulated annotators rank a policy's samples; keep it all in the store."""
        return rank_samples(self.config, asked, words=read_json(inputs["words"]), human_texts=_texts(inputs["human"]))


FILMS = FilmTask


def _texts(demonstrations: Path) -> list[str]:
    return [completion for _, completion in read_demonstrations(demonstrations)]


# -- what the language model reads ------------------------------------------------------------------------------------


def write_texts(data: FilmReviews, folder: Path) -> None:
    """Write plain texts, demonstrations and prompts. Nothing of a valid or test film is read by the language model."""

    def of(items: Iterable[Any], *splits: Split) -> list[Any]:
        return [item for item in items if film_split(item.film) in splits]

    def demonstrations(reviews: Iterable[Any]) -> list[dict[str, str]]:
        return [{"prompt": prompt_for(r.film), "completion": completion_for(r.text), "topic": r.film} for r in reviews]

    reviews = data.reviews()
    language = of(reviews, *LANGUAGE_SPLITS)
    plain = [r.text for r in language] + [p.text for p in of(data.plots, *LANGUAGE_SPLITS)]
    plain += [o.text for o in data.others if o.corpus in LANGUAGE_CORPORA]
    # One order for every seed: the language model of a run is the same file wherever the settings are.
    random.Random(0).shuffle(plain)
    write_jsonl(folder / "texts.jsonl", [{"text": completion_for(t)} for t in plain])
    write_jsonl(folder / "texts_valid.jsonl", [{"text": completion_for(r.text)} for r in of(reviews, "valid")])
    write_jsonl(folder / "demonstrations.jsonl", demonstrations(language))
    write_jsonl(folder / "demonstrations_valid.jsonl", demonstrations(of(reviews, "valid")))
    for split in ("train", "valid", "test"):
        # Policies are reported on films with ratings; training may ask for reviews of any.
        films = sorted({review.film for review in of(reviews if split == "train" else data.rated, split)})
        write_jsonl(folder / f"prompts_{split}.jsonl", [{"prompt": prompt_for(f), "topic": f} for f in films])


def write_judged(data: FilmReviews, folder: Path) -> None:
    """Write rated reviews of films that nothing trains on: the judge's own, and those that test it and the report."""
    for split in ("judge", "valid", "test"):
        rows = [
            {"film": r.film, "text": r.text, "mean": round(r.mean, 4), "verdict": r.verdict}
            for r in data.rated
            if film_split(r.film) == split
        ]
        write_jsonl(folder / f"reviews_{split}.jsonl", rows)


@dataclass(frozen=True)
class JudgedReview:
    """A review by a person: its film, people's mean rating (-4..4) and the critic's verdict."""

    film: str
    text: str
    mean: float
    verdict: str


def read_judged_reviews(path: Path) -> list[JudgedReview]:
    """Read the rated reviews of a split, as `write_judged` wrote them."""
    return [JudgedReview(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]


# -- what evaluates and trains nothing --------------------------------------------------------------------------------


def fit_ratings(inputs: Inputs, folder: Path, log: Log) -> Any:
    """Fit the judge of a run to the ratings of its own films."""
    rows = read_judged_reviews(inputs["ratings"])
    log(0.0, f"fitting the judge to ratings of {len({r.film for r in rows})} films that trained nothing")
    judge = fit_text_judge([r.text for r in rows], [r.mean for r in rows], [r.film for r in rows])
    judge.save(folder)
    return {"judge": judge.hash}


def load_ratings(folder: Path, placement: Placement) -> Scorer:
    """Load the judge as `fit_ratings` saved it."""
    return load_text_judge(folder)


def review_card(inputs: Inputs, scorer: Scorer, rankings: Path, seed: int) -> dict[str, Any]:
    """Return the accuracy on reviews of test films, beside baselines taught by the same human rankings."""
    valid, test = (held_out_reviews(inputs[split]) for split in ("valid", "test"))
    human = [g for g in read_rankings(rankings) if g.origin != SIMULATED_ORIGIN]
    taught = {BASELINE: [g for g in human if g.topic], "tfidf_all_human_rankings": human}
    probes = [replace(probe, text=completion_for(probe.text)) for probe in film_probes()]
    first = test.texts[0][0]
    return measure_reward_model(scorer, test, taught=taught, valid=valid, probes=(first, probes), seed=seed)


def held_out_reviews(path: Path) -> HeldOutPairs:
    """Return rated reviews of a split as pairs that people ordered."""
    rows = read_judged_reviews(path)
    return rated_pairs(
        [RatedCompletion(prompt_for(r.film), completion_for(r.text), r.film, r.mean, r.verdict) for r in rows]
    )


# -- rankings: views of the ratings ------------------------------------------------------------------------------------


def write_rankings(
    config: FilmConfig, data: FilmReviews, rated: dict[str, list[tuple[str, float]]], folder: Path, seed: int
) -> int:
    """Write the rankings of train and of validation films, and return how many the train films give."""
    # A stream of its own: other settings of a run leave the rankings as they are.
    rng = random.Random(stream_seed(seed, "rankings"))
    train = film_groups(config, {f: rows for f, rows in rated.items() if film_split(f) == "train"}, rng)
    write_groups(folder / "rankings.jsonl", [*train, *other_groups(config, data, rng)])
    # One deal: what measures must not count a review twice.
    once = config.model_copy(update={"deals": 1})
    valid = film_groups(once, {f: rows for f, rows in rated.items() if film_split(f) == "valid"}, rng)
    write_groups(folder / "rankings_valid.jsonl", valid)
    return len(train)


def rated_by_film(store: Store) -> dict[str, list[tuple[str, float]]]:
    """Return the human completions of each film with their mean rating, out of the store."""
    films = {prompt.id: prompt.topic for prompt in store.prompts()}
    texts = {c.id: c for c in store.completions(source_name=HUMAN_SOURCE.name)}
    rated: dict[str, list[tuple[str, float]]] = {}
    for row in store.mean_ratings((RATING_LOW, RATING_HIGH)):
        if row.completion_id in texts:
            completion = texts[row.completion_id]
            rated.setdefault(films[completion.prompt_id], []).append((completion.text, row.mean))
    return {film: sorted(rows) for film, rows in sorted(rated.items())}


def film_groups(config: FilmConfig, rated: dict[str, list[tuple[str, float]]], rng: random.Random) -> list[RankedGroup]:
    """Rank the reviews of one film by their mean rating, each review dealt into ``deals`` rankings."""
    return [
        ranked_group(config, prompt_for(film), rows, HUMAN_ORIGIN, film)
        for deal in range(config.deals)
        for film, reviews in rated.items()
        # Every other deal is of like length: there the better one cannot be told by its length.
        for rows in deal_out(reviews, config.group_size, rng, like_length=deal % 2 == 0)
    ]


def other_groups(config: FilmConfig, data: FilmReviews, rng: random.Random) -> list[RankedGroup]:
    """Group rated texts that are no film reviews by kind and length, under a prompt that names the kind.

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
    config: FilmConfig, prompt: str, rows: Sequence[tuple[str, float]], origin: str, topic: str
) -> RankedGroup:
    """Rank texts by mean rating, 1 = best; means that fall into one step of ``tie_width`` are a tie."""
    steps = [round(mean / config.tie_width) for _, mean in rows]
    texts, ranks = tuple(text for text, _ in rows), ranks_by_value(steps)
    return RankedGroup(prompt=prompt, completions=texts, ranks=ranks, origin=origin, topic=topic)


def write_groups(path: Path, groups: Iterable[RankedGroup]) -> None:
    """Write the groups that have some order; those that are one single tie teach nothing."""
    write_jsonl(path, [group.to_json() for group in groups if len(set(group.ranks)) > 1])


# -- simulated annotators ----------------------------------------------------------------------------------------------


def rank_samples(
    config: FilmConfig, asked: Asked, *, words: Mapping[str, float], human_texts: Sequence[str]
) -> dict[str, Any]:
    """Let simulated annotators rank a policy's samples; keep it all in the store.

    Returns who they were and how far they agreed. ``words`` are human ratings of single words, ``human_texts`` show the
    ordinary length of a review.
    """
    taste = build_taste(words, ordinary_length(human_texts))
    team = taste_annotators(config.annotators, asked.seed)
    drawn = list(as_facts(read_samples(asked.samples), asked.source))
    dealt = [completions for _, completions in drawn]
    prompts = {prompt.id: prompt for prompt, _ in drawn}
    shown = {completion.id: completion for completions in dealt for completion in completions}
    rankings = list(simulate_rankings(dealt, taste, team, asked.seed, per_group=config.annotators_per_group))
    with Store.open(asked.store) as facts:
        facts.add([*(member.record() for member in team), *prompts.values(), *shown.values(), *rankings])
    write_groups(asked.judgements, [_view(one, prompts, shown, asked.weight) for one in rankings])
    agreed = agreement(rankings, {i: taste.utility(c.text) for i, c in shown.items()})
    return {
        "called": SIMULATED_ORIGIN,
        "judgements": len(rankings),
        "annotators": [member.name for member in team],
        "agreement_between": agreed.between,
        "agreement_with_taste": agreed.with_taste,
        "tied": agreed.tied,
        "description": describe_taste(taste, team),
    }


def _view(
    ranking: Ranking, prompts: Mapping[str, Prompt], shown: Mapping[str, Completion], weight: float
) -> RankedGroup:
    """Return a simulated ranking as the reward stage reads it."""
    prompt = prompts[ranking.prompt_id]
    return RankedGroup(
        prompt=prompt.text,
        completions=tuple(shown[i].text for i in ranking.completion_ids),
        ranks=ranking.ranks,
        origin=SIMULATED_ORIGIN,
        topic=prompt.topic,
        weight=weight,
    )
