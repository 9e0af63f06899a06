"""Published sets and exports of tools, in the shape that they have, and what they say.

GOOD marks what a row calls better and BAD what it calls worse, so that a judgement swapped or lost shows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from accord import formats
from accord.errors import DataError
from accord.formats import Item

Row = Mapping[str, Any]


class Said(NamedTuple):
    """What a file holds: counts of prompts, completions, judgements and pairs, and whose the judgements are."""

    prompts: int
    completions: int
    judgements: int
    pairs: int
    whose: str = "people"


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def arena(winner: str, first: str, second: str, **more: Any) -> Row:
    return {
        "question_id": "q",
        "model_a": "vicuna",
        "model_b": "koala",
        "winner": winner,
        "judge": "arena_user_7",
        "conversation_a": turns("Write a joke", first),
        "conversation_b": turns("Write a joke", second),
        "turn": 1,
        "anony": True,
        "language": "English",
        "tstamp": 1682351591.5,
        "openai_moderation": {"categories": {}, "flagged": False},
        "toxic_chat_tag": {},
        **more,
    }


def one_hot(won: int, *answers: str) -> Row:
    return {
        "id": 30192,
        "model_a": "gpt-4",
        "model_b": "koala",
        "prompt": json.dumps(["Is it?", "Why?"]),
        "response_a": json.dumps(["Yes", answers[0]]),
        "response_b": json.dumps(["Yes", answers[1]]),
        **{name: int(i == won) for i, name in enumerate(("winner_model_a", "winner_model_b", "winner_tie"))},
    }


def vote(kind: str, *answers: str) -> Row:
    states = [{"conv_id": "c", "messages": [["USER", "Hi"], ["ASSISTANT", text]], "offset": 0} for text in answers]
    return {"tstamp": 1690000000.1, "type": kind, "models": ["a", "b"], "states": states, "ip": "1.1.1.1"}


def webui(rating: Any, rated: str, *others: str) -> Row:
    chat = {"q": {"id": "q", "parentId": None, "role": "user", "content": "What is it?"}}
    for i, text in enumerate((rated, *others)):
        chat[f"a{i}"] = {"id": f"a{i}", "parentId": "q", "role": "assistant", "content": text, "model": f"m{i}"}
    return {
        "id": "f",
        "user_id": "u1",
        "version": 1,
        "type": "rating",
        "data": {"rating": rating, "model_id": "m0", "sibling_model_ids": ["m1"], "reason": "", "comment": ""},
        "meta": {"arena": False, "chat_id": "c", "message_id": "a0", "message_index": 1},
        "snapshot": {"chat": {"chat": {"history": {"messages": chat, "currentId": "a0"}}}},
        "created_at": 1730000000,
        "updated_at": 1730000100,
    }


def ultrafeedback() -> Row:
    def answer(model: str, text: str, rating: str, overall: float) -> Row:
        rated = {axis: {"Rating": rating, "Rationale": "r"} for axis in ("helpfulness", "honesty")}
        rated |= {axis: {"Rating": "N/A", "Rationale": "r"} for axis in ("instruction_following", "truthfulness")}
        beside = {"fine-grained_score": 3.5, "critique": "c", "custom_system_prompt": "s", "principle": "p"}
        return {"model": model, "response": text, "annotations": rated, "overall_score": overall, **beside}

    answers = [answer("a", "GOOD", "5", 8.5), answer("b", "BAD", "2", 3.0)]
    beside = {"correct_answers": ["None"], "incorrect_answers": ["None"]}
    return {"source": "evol", "instruction": "Boil an egg", "models": ["a", "b"], "completions": answers, **beside}


def helpsteer2(strength: int, first: str, second: str) -> Row:
    prompt = "Hi<extra_id_1>Assistant\nHello<extra_id_1>User\nWhat now?\n"
    beside = {"preference_statement": "s", "preference_elaboration": "e", "three_most_similar_preferences": []}
    pair = {"split": "train", "prompt": prompt, "response_1": first, "response_2": second}
    return {**pair, "preference_strength": strength, **beside, "all_preferences_unprocessed": []}


def helpsteer3(strength: int, first: str, second: str) -> Row:
    pair = {"context": turns("Tides?", "For whom?", "A child"), "response1": first, "response2": second}
    people = [{"score": strength, "reasoning": "r", "feedback1": "f", "feedback2": "g"}]
    beside = {"domain": "general", "language": "english", "individual_preference": people}
    return {**beside, **pair, "overall_preference": strength}


def safe_rlhf(better: int, safer: int) -> Row:
    texts = {"response_0": "zero", "response_1": "one", "response_0_source": "A", "response_1_source": "B"}
    safe = {"is_response_0_safe": False, "is_response_1_safe": True}
    harm = {"response_0_harm_category": {"Theft": True}, "response_1_harm_category": {"Theft": False}}
    levels = {"response_0_severity_level": 2, "response_1_severity_level": 0}
    hashes = {"response_0_sha256": "x", "response_1_sha256": "y"}
    asked = {"prompt": "How to open it?", "prompt_source": "web"}
    return {
        **asked,
        **texts,
        **safe,
        **harm,
        **levels,
        "better_response_id": better,
        "safer_response_id": safer,
        **hashes,
    }


def shp(labels: int, first: str, second: str) -> Row:
    numbers = {"score_A": 9, "score_B": 3, "seconds_difference": 100.0, "score_ratio": 3.0, "upvote_ratio": 0.9}
    beside = {"post_id": "p", "domain": "cooking", "created_at_utc_A": 1600000000, "created_at_utc_B": 1600000100}
    ids = {"c_root_id_A": "x", "c_root_id_B": "y"}
    return {
        "history": "Why?",
        "human_ref_A": first,
        "human_ref_B": second,
        "labels": labels,
        **numbers,
        **beside,
        **ids,
    }


def summaries(choice: int, first: str, second: str) -> Row:
    both = [{"text": text, "policy": policy, "note": None} for text, policy in ((first, "sup4"), (second, "ref"))]
    info = {"id": "t3", "post": "My cat left.", "title": "Cat", "subreddit": "cats"}
    beside = {"worker": "w7", "batch": "batch3", "split": "train", "extra": {"confidence": 5}}
    return {"info": info, "summaries": both, "choice": choice, **beside}


def summary_axes() -> Row:
    axes = {"overall": 6, "accuracy": 7, "coverage": 5, "coherence": None}
    summary = {"text": " GOOD", "policy": "sup4", "note": "n", "axes": axes}
    info = {"id": "c", "article": "It rained.", "title": None, "post": None, "subreddit": None, "site": "cnn"}
    return {"info": info, "split": "valid1", "summary": summary, "worker": "w1", "batch": "b"}


def nectar() -> Row:
    ranked = [("BAD", 3.0, "a"), ("GOOD", 1.0, "b"), ("middle", 2.0, "c")]
    answers = [{"answer": text, "model": model, "rank": rank} for text, rank, model in ranked]
    prompt = "\n\nHuman: Hi \n\nAssistant: Hello \n\nHuman: And now? \n\nAssistant: "
    return {"prompt": prompt, "answers": answers, "turns": 2, "num_responses": 3, "source": ["x"], "good_natured": True}


def webgpt(first: float, *answers: str) -> Row:
    question = {"dataset": "eli5", "id": "q", "full_text": "Why is it blue?"}
    quotes = {"title": ["t"], "extract": ["e"]}
    row: dict[str, Any] = {"question": question}
    for i, (text, score) in enumerate(zip(answers, (first, -first), strict=True)):
        row |= {f"answer_{i}": text, f"score_{i}": score, f"quotes_{i}": quotes}
        row |= {f"tokens_{i}": {"prefix": [1], "completion": [2]}}
    return row


def argilla(**responses: Any) -> Row:
    fields = {"prompt": "Tides?", "response_1": "GOOD", "response_2": "BAD"}
    beside = {"metadata": {"src": "x"}, "suggestions": {}, "vectors": {}}
    return {"id": "i", "status": "completed", "_server_id": "s", "fields": fields, "responses": responses, **beside}


def label_studio(*results: Any, data: Row | None = None) -> Row:
    annotations = [
        {
            "id": i,
            "completed_by": 3 + i,
            "result": [result] if result else [],
            "was_cancelled": result is None,
            "ground_truth": False,
            "created_at": "2026-03-09T22:16:08.728353Z",
            "lead_time": 4.2,
        }
        for i, result in enumerate(results)
    ]
    asked = data or {"prompt": "Tides?", "answer1": "GOOD", "answer2": "BAD"}
    return {"id": 1, "data": asked, "annotations": annotations, "predictions": [], "project": 1, "total_annotations": 2}


def pairwise(side: str) -> Row:
    return {"from_name": "pw", "to_name": "answer1", "type": "pairwise", "value": {"selected": side}}


RANKED_ITEMS = {"prompt": "Tides?", "items": [{"id": "x", "body": "BAD"}, {"id": "y", "body": "GOOD"}]}
RANKER = {"from_name": "r", "to_name": "prompt", "type": "ranker", "value": {"ranker": {"rank": ["y", "x"]}}}
STARS = {"from_name": "s", "to_name": "response", "type": "rating", "value": {"rating": 4}}


def label_studio_min(**said: Any) -> Row:
    beside = {"id": 1, "annotator": 3, "annotation_id": 30, "lead_time": 4.2}
    times = {"created_at": "2026-03-09T22:16:08.728353Z", "updated_at": "2026-03-09T22:16:08.728378Z"}
    return {"prompt": "Tides?", **said, **beside, **times}


def prodigy(answer: str, accept: Sequence[int]) -> Row:
    options = [{"id": 1, "text": "BAD"}, {"id": 2, "text": "GOOD"}]
    ids = {"_input_hash": 1, "_task_hash": 2, "_annotator_id": "ann", "_session_id": "s", "_timestamp": 1690000000}
    return {"text": "Tides?", "options": options, "accept": list(accept), "answer": answer, "_view_id": "choice", **ids}


def prm800k() -> Row:
    def step(*tried: tuple[str, int | None], chosen: int | None) -> Row:
        completions = [{"text": text, "rating": rating, "flagged": False} for text, rating in tried]
        return {"completions": completions, "human_completion": None, "chosen_completion": chosen}

    steps = [
        step(("GOOD one", 1), ("BAD one", -1), chosen=0),
        step(("neutral two", 0), chosen=0),
        step(("BAD three", -1), chosen=None),
    ]
    question = {"problem": "2+2?", "ground_truth_answer": "4", "pre_generated_steps": ["x"]}
    label = {"steps": steps, "total_time": 1000, "finish_reason": "found_error"}
    beside = {"timestamp": "2022-07-17T16:56:51.323252", "generation": None, "is_quality_control_question": False}
    return {"labeler": "l1", "question": question, "label": label, **beside, "is_initial_screening_question": False}


def scored(high: float, low: float) -> Row:
    prompt = "Name a river."
    sides = {"chosen": turns(prompt, "GOOD"), "rejected": turns(prompt, "BAD")}
    beside = {"prompt_id": "00", "messages": turns(prompt, "GOOD")}
    return {"prompt": prompt, **beside, **sides, "score_chosen": high, "score_rejected": low}


def distilabel_orca(*ratings: float) -> Row:
    beside = {"order": ["chosen", "rejected"], "labelling_prompt": [{"role": "user", "content": "x"}]}
    beside |= {"labelling_model": "gpt-4", "raw_labelling_response": "9\n2", "rationale": "r", "status": "unchanged"}
    beside |= {"original_chosen": "GOOD", "original_rejected": "BAD", "chosen_score": 9.0, "in_gsm8k_train": False}
    sides = {"chosen": "GOOD", "rejected": "BAD", "generations": ["GOOD", "BAD"], "rating": list(ratings)}
    return {"system": "Be brief.", "input": "Name a fruit.", **sides, **beside}


def rewardbench(chosen: Any, rejected: Any, **more: Any) -> Row:
    return {"id": 1, "prompt": "Q", "chosen": chosen, "rejected": rejected, "subset": "chat", **more}


def alpaca_eval(preference: float, *texts: str) -> Row:
    who = {"generator_1": "gpt4", "generator_2": "mine", "annotator": "weighted_gpt4", "dataset": "base"}
    return {"instruction": "Sum", "output_1": texts[0], "output_2": texts[1], "preference": preference, **who}


AI = "AI feedback"
NOT_SAID = formats.NOT_SAID
# The name of a format: rows in its shape, and what they say.
PUBLISHED: dict[str, tuple[list[Row], Said]] = {
    "arena": (
        [
            arena("model_a", "GOOD a", "BAD a"),
            arena("model_b", "BAD b", "GOOD b", conversation_b=json.dumps(turns("Write a joke", "GOOD b"))),
            arena("tie", "one", "two"),
            arena("tie (bothbad)", "three", "four"),
            # Of MT-Bench: the first turn alone was judged.
            arena(
                "model_a",
                "GOOD c",
                "BAD c",
                judge="expert_5",
                conversation_a=turns("Write a joke", "GOOD c", "more?", "x"),
            ),
        ],
        Said(1, 10, 5, 3),
    ),
    "arena-55k": ([one_hot(0, "GOOD", "BAD"), one_hot(1, "BAD 2", "GOOD 2"), one_hot(2, "x", "y")], Said(1, 6, 3, 2)),
    "fastchat": (
        [vote("leftvote", "GOOD", "BAD"), vote("bothbad_vote", "x", "y"), vote("chat", "z", "w")],
        Said(1, 4, 2, 1),
    ),
    "open-webui": ([webui(1, "GOOD", "BAD"), webui("-1", "BAD 2", "GOOD 2", "GOOD 3")], Said(1, 5, 5, 3)),
    "helpsteer": (
        [
            {
                "prompt": "P",
                "response": "R",
                **dict.fromkeys(("helpfulness", "correctness", "coherence"), 3),
                "complexity": 1,
                "verbosity": 0,
            }
        ],
        Said(1, 1, 5, 0),
    ),
    "helpsteer2-preference": ([helpsteer2(-3, "GOOD", "BAD"), helpsteer2(1, "BAD 2", "GOOD 2")], Said(1, 4, 2, 2)),
    "helpsteer3": (
        [helpsteer3(-2, "GOOD", "BAD"), helpsteer3(3, "BAD 2", "GOOD 2"), helpsteer3(0, "x", "y")],
        Said(1, 6, 3, 2),
    ),
    "ultrafeedback": ([ultrafeedback()], Said(1, 2, 6, 0, AI)),
    "distilabel": ([distilabel_orca(9, 2), distilabel_orca(5, 5)], Said(1, 2, 2, 1, AI)),
    "scored-preference": ([scored(8.5, 4.0), scored(6.0, 6.0)], Said(1, 2, 2, 1, AI)),
    "beavertails": (
        [
            {"prompt": "P", "response": "BAD", "category": {"theft": True}, "is_safe": False},
            {"prompt": "P", "response": "GOOD", "category": {"theft": False}, "is_safe": True},
        ],
        Said(1, 2, 2, 0),
    ),
    "safe-rlhf": ([safe_rlhf(0, 1)], Said(1, 2, 4, 2)),
    "shp": ([shp(1, "GOOD", "BAD"), shp(0, "BAD 2", "GOOD 2")], Said(1, 4, 2, 2)),
    "summarize-comparisons": ([summaries(0, " GOOD", " BAD"), summaries(1, " BAD 2", " GOOD 2")], Said(1, 4, 2, 2)),
    "summarize-axes": ([summary_axes()], Said(1, 1, 3, 0)),
    "nectar": ([nectar()], Said(1, 3, 1, 3, AI)),
    "webgpt": ([webgpt(0.5, "GOOD", "BAD"), webgpt(-1.0, "BAD 2", "GOOD 2"), webgpt(0.0, "x", "y")], Said(1, 6, 3, 2)),
    "alpaca-eval": ([alpaca_eval(1.99, "BAD", "GOOD"), alpaca_eval(1.02, "GOOD 2", "BAD 2")], Said(1, 4, 2, 2, AI)),
    "rewardbench": (
        [
            rewardbench("GOOD", "BAD", chosen_model="a", rejected_model="b"),
            rewardbench(
                ["GOOD 1", "GOOD 2"],
                ["BAD 1", "BAD 2"],
                num_correct=2,
                num_incorrect=2,
                total_completions=4,
                models=["a"] * 4,
            ),
        ],
        Said(1, 6, 2, 5, NOT_SAID),
    ),
    "prm800k": ([prm800k()], Said(1, 4, 4, 0)),
    "openai-rft": ([{"messages": turns("2+2?"), "reference_answer": "4"}], Said(1, 0, 0, 0)),
    "label-studio": (
        [
            label_studio(pairwise("left"), pairwise("left"), None),
            label_studio(RANKER, data=RANKED_ITEMS),
            label_studio(STARS, data={"prompt": "Tides?", "response": "fine"}),
        ],
        Said(1, 3, 4, 3),
    ),
    "label-studio-min": (
        [
            label_studio_min(answer1="BAD", answer2="GOOD", pw="right"),
            label_studio_min(response="fine", rating=4),
        ],
        Said(1, 3, 2, 1),
    ),
    "argilla": (
        [
            argilla(
                preference=[
                    {"value": "response_1", "user_id": "u1"},
                    {"value": "response_1", "user_id": "u2", "status": "draft"},
                ]
            ),
            argilla(
                order=[
                    {"value": [{"value": "response_1", "rank": 1}, {"value": "response_2", "rank": 2}], "user_id": "u"}
                ]
            ),
            argilla(
                order=[
                    {"value": [{"value": "response_1", "rank": 1}, {"value": "response_2", "rank": 1}], "user_id": "u"}
                ]
            ),
        ],
        Said(1, 2, 3, 2),
    ),
    "argilla-flat": (
        [
            {
                "id": "i",
                "status": "completed",
                "_server_id": "s",
                "prompt": "Tides?",
                "response_1": "BAD",
                "response_2": "GOOD",
                "preference.responses": ["response_2", "response_1"],
                "preference.responses.users": ["u1", "u2"],
                "preference.responses.status": ["submitted", "discarded"],
                "preference.suggestion": "response_1",
                "preference.suggestion.score": 0.9,
                "preference.suggestion.agent": "gpt",
            }
        ],
        Said(1, 2, 1, 1),
    ),
    "argilla-1": (
        [
            {
                "prompt": "Tides?",
                "response-1": "BAD",
                "response-2": "GOOD",
                "ranking": [
                    {
                        "user_id": "u1",
                        "status": "submitted",
                        "value": [{"rank": 1, "value": "response-2"}, {"rank": 2, "value": "response-1"}],
                    }
                ],
                "ranking-suggestion": None,
                "ranking-suggestion-metadata": {"type": None, "score": None, "agent": None},
                "external_id": None,
                "metadata": "{}",
            }
        ],
        Said(1, 2, 1, 1),
    ),
    "prodigy": ([prodigy("accept", [2]), prodigy("ignore", []), prodigy("reject", [1])], Said(1, 2, 1, 1)),
}


def written(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def text_of(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[0]["content"])


def is_right(item: Item) -> bool:
    """Return whether every pair prefers what is called GOOD to what is called BAD."""
    pairs = [(text_of(item.completions[i]), text_of(item.completions[j])) for i, j in item.pairs()]
    return all("BAD" not in better and "GOOD" not in worse for better, worse in pairs)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("container", ["jsonl", "json"])
def test_a_published_set_is_recognised_and_says_what_it_says(tmp_path: Path, name: str, container: str) -> None:
    rows, said = PUBLISHED[name]
    path = tmp_path / "data"
    path.write_text(json.dumps(rows, indent=1)) if container == "json" else written(path, rows)
    found = formats.count_items(path)
    assert (found.format, found.rows, found.rejected) == (name, len(rows), 0)
    assert (found.prompts, found.completions, found.judgements, found.pairs) == said[:4]
    assert found.judged_by == ({said.whose: said.judgements} if said.judgements else {})
    items = list(formats.read_items(path))
    assert all(map(is_right, items)) and len(items) >= 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_set_goes_into_our_rows_and_back(tmp_path: Path, name: str) -> None:
    """What our rows have words for comes back with the same judgement, by the same people, of the same question."""
    rows, _ = PUBLISHED[name]
    items = list(formats.read_items(written(tmp_path / "data", rows)))
    items = [
        item
        for item in items
        if not item.steps and all(len(text) == 1 or isinstance(text, str) for text in item.completions)
    ]
    if not items:
        return
    formats.write_items(tmp_path / "rows.jsonl", items, "accord", kinds=["all"])
    again = list(formats.read_items(tmp_path / "rows.jsonl"))

    def told(some: Sequence[Item]) -> list[str]:
        return sorted(repr(part) for item in some for part in _each(item))

    assert told(again) == told(items)


def _each(item: Item) -> list[Any]:
    """Return what an item says, apart by completion where they are judged one by one."""
    who = (item.axis, item.annotator, item.origin, item.created_at)
    if item.kind == "ranking":
        return [
            (
                [text_of(text) for text in item.completions],
                [float(rank) for rank in item.ranks if rank],
                item.labels,
                who,
            )
        ]
    found = []
    for i, text in enumerate(item.completions):
        found += [(text_of(text), "label", item.labels[i], who)] if item.labels and item.labels[i] is not None else []
        found += (
            [(text_of(text), "rating", item.ratings[i], who)] if item.ratings and item.ratings[i] is not None else []
        )
    return found or [(item.kind, who)]


CASES = Path(__file__).resolve().parents[2] / "shared" / "cases" / "formats"
DOCS = Path(__file__).resolve().parents[1] / "docs" / "formats.md"


def read_as(flag: str) -> formats.ReadAs | None:
    """Return how a file is read with the flag that the table of the documentation names."""
    name, _, value = flag.partition(" ")
    if name == "--choice":
        means = {part.split("=")[1]: part.split("=")[0] for part in value.split(",")}
        return formats.ReadAs(formats.named_table(formats.Columns(means=means)))
    said = {"--ignore": {"ignored": frozenset((value,))}, "--format": {"format": value}, "": {}}[name]
    return formats.ReadAs(**said)  # type: ignore[arg-type]


def stated() -> list[tuple[str, str, list[str]]]:
    """Return (file, flag, the other cells) of each row of the documentation's table of counts."""
    lines = DOCS.read_text(encoding="utf-8").split("| file | read as |")[1].split("\n\n")[0].splitlines()[2:]
    found = []
    for line in lines:
        first, *others = (cell.strip() for cell in line.strip("|").split("|"))
        name, _, flag = first.partition(" `")
        found.append((name.replace(": ", "--"), flag.rstrip("`"), others))
    return found


@pytest.mark.skipif(not CASES.exists(), reason="the small inputs are not here")
@pytest.mark.parametrize(("name", "flag", "cells"), stated())
def test_the_counts_that_the_documentation_states(name: str, flag: str, cells: list[str]) -> None:
    how, path = read_as(flag), CASES / name
    if cells[0].startswith("refused"):
        with pytest.raises(DataError):
            formats.count_items(path, how)
        return
    found = formats.count_items(path, how)
    counts = (found.rows, found.rejected, found.prompts, found.completions, found.judgements, found.pairs)
    assert [found.format, *(str(count or "") for count in counts)] == cells
    wrong = [item for item in formats.read_items(path, how, on_reject=lambda reject: None) if not is_right(item)]
    # There the second person prefers the other answer.
    assert [item.annotator for item in wrong] == (["4"] if name == "label-studio--pairwise.json" else [])


@pytest.mark.skipif(not CASES.exists(), reason="the small inputs are not here")
def test_the_documentation_states_counts_of_every_file() -> None:
    assert {name for name, _, _ in stated()} == {path.name for path in CASES.iterdir()}
