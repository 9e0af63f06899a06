"""Published sets of judgements, each under its own field names.

Who judged follows from the set: people, or models (then it is AI feedback). Where a set judges several things
(helpfulness, safety), each stands on an ``axis`` of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from accord.formats.format import Fields, Format, has, row_by_row
from accord.formats.hh import dialogue_turns
from accord.formats.item import Item, TextOrTurns, beside, turns_of
from accord.formats.rows import InputRow
from accord.formats.scored import MODEL_COLUMNS, SCORE_COLUMNS, model, scored_ranks, written_by
from accord.records import Source, Strength

_AI, _PEOPLE = "AI feedback", "people"
# How far from the middle of -3 .. 3 a choice is, as HelpSteer's people were asked.
_STRENGTHS: Mapping[int, Strength] = {1: "slightly", 2: "better", 3: "significantly"}


def _pair(
    row: InputRow, prompt: TextOrTurns, texts: Sequence[TextOrTurns], ranks: Sequence[float], **said: Any
) -> Item:
    if texts[0] == texts[1]:
        row.fail("", "both answers are the same", "remove the row: it says nothing")
    return Item(prompt=beside(prompt, *texts), completions=tuple(texts), ranks=tuple(ranks), **said)


def _ranks(first: float, second: float) -> tuple[int, int]:
    """Return the ranks of two scores: the higher one is better, equal ones are a tie."""
    return (1, 1) if first == second else (1, 2) if first > second else (2, 1)


# -- HelpSteer ---------------------------------------------------------------------------------------------------------

_HELPSTEER_AXES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
# HelpSteer2 marks the turns of a dialogue so; the last one is the assistant's, still to be given.
_MARK = re.compile(r"<extra_id_1>(User|Assistant)\n?")


def _read_helpsteer(row: InputRow) -> Iterable[Item]:
    prompt, answer = _helpsteer_prompt(row.text("prompt")), row.text("response")
    for axis in _HELPSTEER_AXES:
        value = row.figure(axis, row.get(axis))
        yield Item(prompt=prompt, completions=(answer,), ratings=(value,), scale=(0, 4), axis=axis, origin=_PEOPLE)


def _helpsteer_prompt(text: str) -> TextOrTurns:
    first, *rest = _MARK.split(text)
    if not rest:
        return text
    turns = [("user", first)] if first.strip() else []
    turns += [(role.lower(), said) for role, said in zip(rest[::2], rest[1::2], strict=True)]
    if turns[-1][0] == "assistant" and not turns[-1][1].strip():
        turns.pop()
    return tuple({"role": role, "content": said.strip("\n")} for role, said in turns)


def _read_helpsteer_preference(row: InputRow) -> Iterable[Item]:
    texts = (row.text("response_1"), row.text("response_2"))
    strength = row.figure("preference_strength", row.get("preference_strength"))
    return [_graded(row, _helpsteer_prompt(row.text("prompt")), texts, strength, "preference_strength")]


def _read_helpsteer3(row: InputRow) -> Iterable[Item]:
    texts = (row.text("response1"), row.text("response2"))
    strength = row.figure("overall_preference", row.get("overall_preference"))
    return [_graded(row, row.messages("context"), texts, strength, "overall_preference")]


def _graded(row: InputRow, prompt: TextOrTurns, texts: Sequence[str], strength: float, name: str) -> Item:
    """Return a choice on -3 .. 3, where below 0 the first answer is better."""
    if strength not in range(-3, 4):
        row.fail(name, f"is {strength:g}", "write -3 (the first is much better) .. 3 (the second is)")
    clear = _STRENGTHS.get(abs(int(strength)))
    return _pair(row, prompt, texts, _ranks(-strength, strength), strength=clear, origin=_PEOPLE)


# -- UltraFeedback and what distilabel writes --------------------------------------------------------------------------

_ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")


def _read_ultrafeedback(row: InputRow) -> Iterable[Item]:
    prompt = row.text("instruction")
    answers = [row.object(f"completions[{i}]", one) for i, one in enumerate(row.items("completions"))]
    if not answers:
        row.fail("completions", "are none", "remove the row: nobody answered")
    texts = tuple(row.string("completions.response", one.get("response")) for one in answers)
    common: dict[str, Any] = {
        "prompt": prompt,
        "completions": texts,
        "sources": tuple(model(str(one.get("model") or "")) for one in answers),
        "origin": _AI,
        "annotator": "gpt-4",
    }
    for aspect in _ASPECTS:
        ratings = tuple(_aspect(row, one, aspect) for one in answers)
        if any(rating is not None for rating in ratings):
            yield Item(**common, ratings=ratings, scale=(1, 5), axis=aspect)
    overall = tuple(_or_none(row, "overall_score", one.get("overall_score")) for one in answers)
    if any(rating is not None for rating in overall):
        yield Item(**common, ratings=overall, scale=(1, 10), axis="overall")


def _aspect(row: InputRow, answer: Fields, aspect: str) -> float | None:
    found = answer.get("annotations")
    rated = found.get(aspect) if isinstance(found, dict) else None
    return _or_none(row, f"{aspect}.Rating", rated.get("Rating") if isinstance(rated, dict) else None)


def _or_none(row: InputRow, name: str, value: Any) -> float | None:
    return None if value in (None, "", "N/A") else row.figure(name, value)


def _read_scored(row: InputRow) -> Iterable[Item]:
    """Return a pair that a model rated: dialogues or answers, equal ratings are a tie."""
    prompt, chosen, rejected = _sides(row)
    sources = written_by(row, *MODEL_COLUMNS)
    return [_pair(row, prompt, (chosen, rejected), scored_ranks(row), sources=sources, origin=_AI)]


def _sides(row: InputRow) -> tuple[TextOrTurns, TextOrTurns, TextOrTurns]:
    """Return prompt, chosen and rejected of sides that are answers, or dialogues that begin alike."""
    chosen, rejected = (row.text_or_messages(name) for name in ("chosen", "rejected"))
    if isinstance(chosen, str) or isinstance(rejected, str):
        return _asked(row), chosen, rejected
    if len(chosen) > 1 and chosen[:-1] == rejected[:-1]:
        return chosen[:-1], chosen[-1:], rejected[-1:]
    if len(chosen) == len(rejected) == 1:
        return turns_of(_asked(row)), chosen, rejected
    row.fail("rejected", "does not begin as chosen does", "begin both with the same messages")


def _asked(row: InputRow) -> TextOrTurns:
    name = next((name for name in ("instruction", "input", "question", "prompt") if name in row), "prompt")
    asked, system = row.text_or_messages(name), row.optional_text("system")
    return ({"role": "system", "content": system}, *turns_of(asked)) if system else asked


def _read_distilabel(row: InputRow) -> Iterable[Item]:
    """Return the answers that a model rated, in its order; chosen and rejected are two of them."""
    prompt = _asked(row)
    rating = "rating" if "rating" in row else "ratings"
    texts = [row.string("generations", text) for text in row.items("generations")]
    ratings = [row.figure(rating, value) for value in row.items(rating)]
    if len(ratings) != len(texts) or len(texts) < 2:
        row.fail(rating, f"are {len(ratings)} for {len(texts)} generations", "write one for each, two at least")
    names = row.fields.get("generation_models") or ("",) * len(texts)
    ordered = sorted(set(ratings), reverse=True)
    by = next((row.name(name) for name in ("labelling_model", "model_name") if name in row), "")
    ranks = tuple(ordered.index(value) + 1 for value in ratings)
    sources = tuple(model(str(name)) for name in names)
    return [Item(prompt=prompt, completions=tuple(texts), ranks=ranks, sources=sources, origin=_AI, annotator=by)]


# -- safety ------------------------------------------------------------------------------------------------------------


def _read_beavertails(row: InputRow) -> Iterable[Item]:
    safe = row.truth("is_safe", row.get("is_safe"))
    said: dict[str, Any] = {"prompt": row.text("prompt"), "completions": (row.text("response"),)}
    return [Item(**said, labels=(safe,), axis="safety", origin=_PEOPLE)]


def _read_safe_rlhf(row: InputRow) -> Iterable[Item]:
    prompt, texts = row.text("prompt"), (row.text("response_0"), row.text("response_1"))
    sources = written_by(row, "response_0_source", "response_1_source")
    for name, axis in (("better_response_id", "helpfulness"), ("safer_response_id", "safety")):
        first = row.figure(name, row.get(name))
        if first not in (0, 1):
            row.fail(name, f"is {first:g}", "write 0 or 1, the number of the response")
        yield _pair(row, prompt, texts, _ranks(-first, first - 1), axis=axis, sources=sources, origin=_PEOPLE)
    labels = tuple(row.truth(name, row.get(name)) for name in ("is_response_0_safe", "is_response_1_safe"))
    yield Item(prompt=prompt, completions=texts, labels=labels, axis="safety", sources=sources, origin=_PEOPLE)


# -- comparisons -------------------------------------------------------------------------------------------------------


def _read_shp(row: InputRow) -> Iterable[Item]:
    first = row.truth("labels", row.get("labels"))
    texts = (row.text("human_ref_A"), row.text("human_ref_B"))
    people = (Source(origin="human", name="reddit"),) * 2
    return [_pair(row, row.text("history"), texts, (1, 2) if first else (2, 1), sources=people, origin=_PEOPLE)]


def _read_summaries(row: InputRow) -> Iterable[Item]:
    texts, sources = [], []
    for i, one in enumerate(row.items("summaries")):
        summary = row.object(f"summaries[{i}]", one)
        texts.append(row.string(f"summaries[{i}].text", summary.get("text")))
        sources.append(_summariser(str(summary.get("policy") or "")))
    choice = row.figure("choice", row.get("choice"))
    if len(texts) != 2 or choice not in (0, 1):
        row.fail("choice", f"is {choice:g} of {len(texts)} summaries", "write 0 or 1, the number of the better one")
    ranks = _ranks(-choice, choice - 1)
    said = {"annotator": row.name("worker"), "origin": _PEOPLE, "sources": tuple(sources)}
    return [_pair(row, _post(row), texts, ranks, **said)]


def _read_summary_axes(row: InputRow) -> Iterable[Item]:
    summary = row.object("summary", row.get("summary"))
    axes = row.object("summary.axes", summary.get("axes") or {})
    text, source = row.string("summary.text", summary.get("text")), _summariser(str(summary.get("policy") or ""))
    for axis, value in axes.items():
        if value is not None:
            yield Item(
                prompt=_post(row),
                completions=(text,),
                ratings=(row.figure(f"axes.{axis}", value),),
                scale=(1, 7),
                axis=axis,
                sources=(source,),
                annotator=row.name("worker"),
                origin=_PEOPLE,
            )


def _summariser(policy: str) -> Source | None:
    return Source(origin="human", name="reference") if policy == "ref" else model(policy)


def _post(row: InputRow) -> str:
    """Return what was summarised, laid out as in the paper (Stiennon et al. 2020, appendix B.1)."""
    info = row.object("info", row.get("info"))
    if info.get("article"):
        return f"Article: {row.string('info.article', info['article'])}\n\nTL;DR:"
    parts = {"SUBREDDIT": f"r/{info.get('subreddit')}", "TITLE": info.get("title"), "POST": info.get("post")}
    return "\n\n".join([*(f"{name}: {row.string(f'info.{name}', text)}" for name, text in parts.items()), "TL;DR:"])


def _read_nectar(row: InputRow) -> Iterable[Item]:
    answers = [row.object(f"answers[{i}]", one) for i, one in enumerate(row.items("answers"))]
    texts = tuple(row.string("answers.answer", one.get("answer")) for one in answers)
    ranks = tuple(row.figure("answers.rank", one.get("rank")) for one in answers)
    if len(texts) < 2 or min(ranks) < 1:
        row.fail("answers", f"are {len(texts)}, ranked from {min(ranks, default=0):g}", "rank two at least, from 1")
    sources = tuple(model(str(one.get("model") or "")) for one in answers)
    prompt = dialogue_turns(row, "prompt")
    said: dict[str, Any] = {"completions": texts, "ranks": ranks, "sources": sources}
    return [Item(prompt=prompt, **said, origin=_AI, annotator="gpt-4")]


def _read_webgpt(row: InputRow) -> Iterable[Item]:
    question = row.object("question", row.get("question"))
    prompt = row.string("question.full_text", question.get("full_text"))
    texts = (row.text("answer_0"), row.text("answer_1"))
    first, second = (row.figure(name, row.get(name)) for name in ("score_0", "score_1"))
    return [_pair(row, prompt, texts, _ranks(first, second), origin=_PEOPLE)]


def _read_alpaca_eval(row: InputRow) -> Iterable[Item]:
    """Return a comparison whose ``preference`` is 1 + the probability that the second answer is better."""
    preference = row.figure("preference", row.get("preference"))
    if not 1 <= preference <= 2:
        row.fail("preference", f"is {preference:g}", "write 1 (the first is better) .. 2 (the second is)")
    texts = (row.text("output_1"), row.text("output_2"))
    ranks = _ranks(1.5, preference)
    sure = None if preference == 1.5 else max(preference - 1, 2 - preference)
    by = {"annotator": row.name("annotator"), "origin": _AI, "sources": written_by(row, "generator_1", "generator_2")}
    return [_pair(row, row.text("instruction"), texts, ranks, probability=sure, **by)]


def _read_rewardbench(row: InputRow) -> Iterable[Item]:
    """Return one ranking of the right answers before the wrong ones; right ones are a tie."""
    right, wrong = (
        [row.string(name, text) for text in ([value] if isinstance(value, str) else row.listed(name, value))]
        for name, value in ((name, row.get(name)) for name in ("chosen", "rejected"))
    )
    if not right or not wrong or set(right) & set(wrong):
        row.fail("rejected", "shares an answer with chosen, or one is empty", "remove the row: it says nothing")
    ranks = (1,) * len(right) + (2,) * len(wrong)
    sources = _sources(row, len(ranks))
    return [Item(prompt=row.text_or_messages("prompt"), completions=(*right, *wrong), ranks=ranks, sources=sources)]


def _sources(row: InputRow, number: int) -> tuple[Source | None, ...]:
    names = row.fields.get("models")
    if isinstance(names, list) and len(names) == number:
        return tuple(model(str(name)) for name in names)
    return written_by(row, *MODEL_COLUMNS) if number == 2 else ()


# -- steps, and prompts with a right answer ----------------------------------------------------------------------------


def _read_prm800k(row: InputRow) -> Iterable[Item]:
    """Return each way through a solution that people rated: the chosen steps, then every other step tried there.

    Steps are rated -1, 0 or 1; only -1 and 1 are labels, the 0 of a step that brings nothing stays a rating.
    """
    question = row.object("question", row.get("question"))
    problem = row.string("question.problem", question.get("problem"))
    steps = row.listed("label.steps", row.object("label", row.get("label")).get("steps"))
    said: dict[str, Any] = {"prompt": problem, "steps": True, "scale": (-1, 1), "origin": _PEOPLE}
    said |= {"annotator": row.name("labeler"), "created_at": row.moment("timestamp")}
    way: list[tuple[str, float | None]] = []
    for i, value in enumerate(steps):
        step = row.object(f"label.steps[{i}]", value)
        tried = list(_tried(row, f"label.steps[{i}]", step))
        place = step.get("chosen_completion")
        last = i == len(steps) - 1
        chosen = tried[place] if isinstance(place, int) and 0 <= place < len(tried) else None
        for j, one in enumerate(tried):
            if one[1] is not None and (chosen is None or j != place):
                yield _steps([*((text, None) for text, _ in way), one], said)
        human = step.get("human_completion")
        if chosen is not None:
            way.append(chosen)
        elif isinstance(human, dict) and isinstance(human.get("text"), str):
            way.append((human["text"], None))
        elif not last:
            row.fail(f"label.steps[{i}]", "says not which completion the next step follows", "remove the row")
    if any(rating is not None for _, rating in way):
        yield _steps(way, said)


def _tried(row: InputRow, field: str, step: Fields) -> Iterator[tuple[str, float | None]]:
    for one in row.listed(f"{field}.completions", step.get("completions") or []):
        completion = row.object(f"{field}.completions", one)
        rating = completion.get("rating")
        text = row.string(f"{field}.text", completion.get("text"))
        yield text, None if rating is None else row.figure(f"{field}.rating", rating)


def _steps(way: Sequence[tuple[str, float | None]], said: Mapping[str, Any]) -> Item:
    ratings = tuple(rating for _, rating in way)
    labels = tuple(None if not rating else rating > 0 for rating in ratings)
    return Item(**said, completions=tuple(text for text, _ in way), ratings=ratings, labels=labels)


def _read_rft(row: InputRow) -> Iterable[Item]:
    """Return the prompt; the reference answer is for a grader, not to be imitated, and stays beside it."""
    messages = row.messages("messages")
    if messages[-1]["role"] == "assistant":
        row.fail("messages", "end with the assistant's words", "end with what is asked")
    return [Item(prompt=messages)]


# -- the rows of the table ---------------------------------------------------------------------------------------------


def _all_of(*names: str) -> Callable[[Fields], str]:
    """Return a test for rows that have all these fields."""
    shown = ", ".join(f'"{name}"' for name in names)
    return lambda fields: shown if all(fields.get(name) is not None for name in names) else ""


def _scored_why(fields: Fields) -> str:
    """Return why a pair is one that a model rated, as in UltraFeedback's binarized sets and those made like it."""
    scores = SCORE_COLUMNS & fields.keys()
    known = {"prompt_id", "raw_generation_responses"} & fields.keys() or set(MODEL_COLUMNS) <= fields.keys()
    pair = all(isinstance(fields.get(name), str | list) for name in ("chosen", "rejected"))
    return f'"chosen" and "rejected" with {", ".join(sorted(scores))}' if pair and len(scores) > 1 and known else ""


def _distilabel_why(fields: Fields) -> str:
    rated = next((name for name in ("rating", "ratings") if isinstance(fields.get(name), list)), "")
    found = rated and has(fields, generations=list) and {"chosen", "rejected"} & fields.keys()
    return f'"generations" and their "{rated}"' if found else ""


def _rewardbench_why(fields: Fields) -> str:
    lists = has(fields, chosen=list, rejected=list) and all(isinstance(x, str) for x in fields["chosen"])
    texts = has(fields, chosen=str, rejected=str)
    known = "subset" in fields and (lists or texts) and isinstance(fields.get("prompt"), str | list)
    return '"chosen", "rejected" and a "subset"' if known else ""


def _ultrafeedback_why(fields: Fields) -> str:
    found = has(fields, instruction=str, completions=list, models=list)
    return '"instruction", "models" and their "completions"' if found else ""


def _rft_why(fields: Fields) -> str:
    found = has(fields, messages=list) and "reference_answer" in fields
    return '"messages" and a "reference_answer"' if found else ""


_Reader = Callable[[InputRow], Iterable[Item]]
_Row = tuple[str, _Reader, Callable[[Fields], str], tuple[str, ...], tuple[str, ...]]
_HELPSTEER2 = ("prompt", "response_1", "response_2", "preference_strength")
_HELPSTEER2_MORE = ("preference_statement", "preference_elaboration", "three_most_similar_preferences")
_PKU = ("prompt", "response_0", "response_1", "better_response_id", "safer_response_id")
_PKU_SAFE = ("is_response_0_safe", "is_response_1_safe", "response_0_source", "response_1_source")
_SUMMARIES = ("info", "summaries", "choice")
_ALPACA_EVAL = ("instruction", "output_1", "output_2", "generator_1", "generator_2", "preference")
_SHP = ("history", "human_ref_A", "human_ref_B", "labels")
_WEBGPT = ("question", "answer_0", "answer_1", "score_0", "score_1")
_SCORED = ("prompt", "instruction", "system", "chosen", "rejected", "messages", *sorted(SCORE_COLUMNS), *MODEL_COLUMNS)
_DISTILABEL = ("instruction", "input", "question", "prompt", "system", "generations", "rating", "ratings")
_DISTILABEL_MORE = ("chosen", "rejected", "original_chosen", "original_rejected", "chosen_score", "labelling_prompt")
_MADE = (
    "raw_labelling_response",
    "labelling_model",
    "generation_models",
    "model_name",
    "rejected_score",
    "new_generations",
)
# Name: title, reader, test, fields that are read, fields that look like a judgement and are kept beside it.
_TABLE: Mapping[str, _Row] = {
    "helpsteer": (
        "HelpSteer 1 and 2",
        _read_helpsteer,
        _all_of("prompt", "response", *_HELPSTEER_AXES),
        ("prompt", "response", *_HELPSTEER_AXES),
        (),
    ),
    "helpsteer2-preference": (
        "HelpSteer2: preference",
        _read_helpsteer_preference,
        _all_of(*_HELPSTEER2),
        _HELPSTEER2,
        (*_HELPSTEER2_MORE, "all_preferences_unprocessed"),
    ),
    "helpsteer3": (
        "HelpSteer3: preference",
        _read_helpsteer3,
        _all_of("context", "response1", "response2", "overall_preference"),
        ("context", "response1", "response2", "overall_preference"),
        ("individual_preference",),
    ),
    "ultrafeedback": (
        "UltraFeedback",
        _read_ultrafeedback,
        _ultrafeedback_why,
        ("instruction", "completions", "models"),
        ("correct_answers", "incorrect_answers"),
    ),
    "distilabel": ("distilabel", _read_distilabel, _distilabel_why, _DISTILABEL, (*_DISTILABEL_MORE, *_MADE)),
    "scored-preference": (
        "UltraFeedback binarized, Tulu 3, Capybara",
        _read_scored,
        _scored_why,
        _SCORED,
        ("new_generations",),
    ),
    "beavertails": (
        "BeaverTails",
        _read_beavertails,
        _all_of("prompt", "response", "is_safe"),
        ("prompt", "response", "is_safe"),
        (),
    ),
    "safe-rlhf": ("PKU-SafeRLHF", _read_safe_rlhf, _all_of(*_PKU), (*_PKU, *_PKU_SAFE), ()),
    "shp": ("Stanford Human Preferences", _read_shp, _all_of(*_SHP), _SHP, ("score_A", "score_B", "score_ratio")),
    "summarize-comparisons": (
        "OpenAI: summaries compared",
        _read_summaries,
        _all_of(*_SUMMARIES),
        (*_SUMMARIES, "worker"),
        (),
    ),
    "summarize-axes": (
        "OpenAI: summaries rated",
        _read_summary_axes,
        _all_of("info", "summary"),
        ("info", "summary", "worker"),
        (),
    ),
    "nectar": ("Nectar", _read_nectar, _all_of("prompt", "answers"), ("prompt", "answers"), ("good_natured",)),
    "webgpt": ("WebGPT comparisons", _read_webgpt, _all_of(*_WEBGPT), _WEBGPT, ()),
    "alpaca-eval": (
        "AlpacaEval annotations",
        _read_alpaca_eval,
        _all_of(*_ALPACA_EVAL),
        (*_ALPACA_EVAL, "annotator"),
        (),
    ),
    "rewardbench": (
        "RewardBench 1 and 2",
        _read_rewardbench,
        _rewardbench_why,
        ("prompt", "chosen", "rejected", *MODEL_COLUMNS, "models"),
        ("num_correct", "num_incorrect", "total_completions"),
    ),
    "prm800k": (
        "PRM800K",
        _read_prm800k,
        _all_of("question", "label", "labeler"),
        ("question", "label", "labeler", "timestamp"),
        ("is_quality_control_question",),
    ),
    "openai-rft": ("OpenAI: reinforcement fine-tuning", _read_rft, _rft_why, ("messages",), ()),
}

PUBLISHED: tuple[Format, ...] = tuple(
    Format(name, title, frozenset(own), why, row_by_row(read, own), None, understood=frozenset(beside))
    for name, (title, read, why, own, beside) in _TABLE.items()
)
