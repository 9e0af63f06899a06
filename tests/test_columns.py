"""No column that says something is lost: judgements, parts of prompts, who judged; and what the user says of them."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from accord import formats
from accord.cli.main import app
from accord.errors import AccordError, DataError, UsageError
from accord.formats import Columns, Item, ReadAs, named_table
from accord.formats.facts import to_records
from accord.formats.judging_columns import looks_like_judgement
from accord.formats.stage_rows import read_demonstrations, read_lessons, read_prompts, read_rankings
from accord.records import Annotator, Ranking

Row = Mapping[str, Any]


def file(folder: Path, rows: Sequence[Row], name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def items(path: Path, said: Any = None) -> list[Item]:
    return list(formats.read_items(path, said))


def kinds(path: Path, said: Any = None) -> list[str]:
    return [item.kind for item in items(path, said)]


def refused(path: Path, said: Any = None) -> str:
    with pytest.raises(DataError) as caught:
        items(path, said)
    assert caught.value.exit_code == 3
    return str(caught.value)


# -- a column that looks like a judgement is used or refused -----------------------------------------------------------

ANSWER = {"prompt": "Q", "completion": "A"}
PAIR = {"prompt": "Q", "chosen": "A", "rejected": "B"}


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({**ANSWER, "is_better": True}, "is_better"),
        ({**ANSWER, "quality_score": 4}, "quality_score"),
        ({**ANSWER, "label": "meh"}, "label"),
        ({**ANSWER, "thumbsUp": True}, "thumbsUp"),
        ({**PAIR, "score": 3}, "score"),
        ({**PAIR, "winner": "A"}, "winner"),
        ({"prompt": "Q", "response_a": "A", "response_b": "B", "preferred_by_judge": 1}, "preferred_by_judge"),
        ({"question": "Q", "answer": "A", "user_feedback": "bad"}, "user_feedback"),
        ({"question": "Q", "answer_1": "A", "answer_2": "B"}, "answer_1"),
        ({"prompt": "Q", "ratings": [1, 2]}, "ratings"),
        ({"text": "A text.", "label": 0}, "label"),
        (
            {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], "reward": 1.5},
            "reward",
        ),
        ({"instruction": "Q", "output": "A", "preference": 2}, "preference"),
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "votes": 3}, "votes"),
    ],
)
def test_a_column_that_judges_is_refused_by_its_name_unless_it_is_said_to_mean_nothing(
    tmp_path: Path, row: Row, column: str
) -> None:
    path = file(tmp_path, [row, row])
    told = refused(path)
    assert f'"{column}"' in told and "hint" in told
    if row.get("label") != "meh":  # the label of a row that is rejected
        with pytest.raises(DataError):
            formats.inspect_files([path])


@pytest.mark.parametrize("column", ["is_better", "score", "vote"])
def test_a_column_that_means_nothing_is_left_out(tmp_path: Path, column: str) -> None:
    path = file(tmp_path, [{**PAIR, column: 1, "lang": "en"}])
    [item] = items(path, ReadAs(ignored=frozenset((column,))))
    assert item.extra == {"lang": "en"} and item.kind == "ranking"


def test_an_empty_column_says_nothing(tmp_path: Path) -> None:
    assert kinds(file(tmp_path, [{**PAIR, "rating": None}, {**PAIR, "rating": ""}])) == ["ranking", "ranking"]


def test_a_judgement_that_comes_late_in_a_file_is_refused_by_its_line(tmp_path: Path) -> None:
    path = file(tmp_path, [PAIR] * 200 + [{**PAIR, "stars": 2}])
    assert f"{path}:201" in refused(path) and '"stars"' in refused(path)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        *((name, True) for name in ("label", "Rating", "overall_score", "isSafe", "better_response_id", "response_2")),
        *((name, True) for name in ("answer b", "outputB", "human_preference", "THUMBS", "rank", "is_correct")),
        *((name, False) for name in ("language", "chosen_model", "rating_reason", "annotation_id", "text", "topic")),
        *((name, False) for name in ("prompt_id", "source", "badge", "labeller_notes", "ranked_by", "scoreboard")),
    ],
)
def test_which_names_look_like_a_judgement(name: str, is_one: bool) -> None:
    assert looks_like_judgement(name) is is_one


def test_stages_that_imitate_refuse_what_was_judged(tmp_path: Path) -> None:
    """An answer called bad is none to imitate, whatever column says so and however it is written."""
    for label in (0, 1, False, "bad", -1):
        path = file(tmp_path, [{**ANSWER, "label": label}])
        for read in (read_lessons, read_demonstrations):
            with pytest.raises(DataError, match="label"):
                read(path)
        assert [row.text for row in read_prompts(path)] == ["Q"]
    with pytest.raises(DataError, match="is_helpful"):
        read_lessons(file(tmp_path, [{**ANSWER, "is_helpful": False}]))
    late = file(tmp_path, [ANSWER] * 100 + [{**ANSWER, "rating": 1}])
    with pytest.raises(DataError, match="rating"):
        read_lessons(late)


def test_samples_that_were_drawn_are_no_demonstrations(tmp_path: Path) -> None:
    """What `accord sample` wrote: imported it is a sample; who fine-tunes on it has chosen to."""
    drawn = {**ANSWER, "logp": -3.5, "tokens": 7, "finish": "stop", "score": 1.5, "rank": 1, "best_of": 4}
    path = file(tmp_path, [drawn])
    assert kinds(path) == ["sample"] and formats.detect(path).format == "samples"
    assert read_lessons(path) == [("Q", "A")]


# -- labels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("good", "bad"), [(True, False), (1, 0), (1, -1), ("true", "false"), ("True", "FALSE"), ("good", "bad"), (1.0, 0.0)]
)
def test_labels_in_every_writing(tmp_path: Path, good: Any, bad: Any) -> None:
    path = file(tmp_path, [{**ANSWER, "label": good}, {**ANSWER, "completion": "B", "label": bad}])
    assert [item.labels for item in items(path)] == [(True,), (False,)]


def test_one_odd_label_is_a_reject_and_changes_no_other_row(tmp_path: Path) -> None:
    rows = [{**ANSWER, "completion": f"A{i}", "label": i % 2 == 0} for i in range(9)]
    rejects: list[formats.Reject] = []
    path = file(tmp_path, [*rows[:4], {**ANSWER, "label": "perhaps"}, *rows[4:]])
    found = formats.read_items(path, on_reject=rejects.append)
    assert [item.labels[0] for item in found] == [i % 2 == 0 for i in range(9)]
    assert [reject.where for reject in rejects] == [f"{path}:5"] and "'perhaps'" in rejects[0].problem


def test_labels_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "kto.csv"
    path.write_text("prompt,completion,label\nQ,a,True\nQ,b,False\nQ,c,1\nQ,d,0\nQ,e,false\n")
    assert [item.labels[0] for item in items(path)] == [True, False, True, False, False]


# -- choices between two -----------------------------------------------------------------------------------------------


def choices(folder: Path, *values: Any, **more: Any) -> Path:
    return file(
        folder,
        [
            {"prompt": "Q", "response_a": f"a{i}", "response_b": f"b{i}", "label": v, **more}
            for i, v in enumerate(values)
        ],
    )


@pytest.mark.parametrize("values", [(0, 1), (1, 1), (0,), ("0", "1"), (False, True)])
def test_choices_of_0_and_1_are_asked_for(tmp_path: Path, values: tuple[Any, ...]) -> None:
    assert "--choice first=0" in refused(choices(tmp_path, *values))


def test_choices_as_the_user_says_they_mean(tmp_path: Path) -> None:
    path = choices(tmp_path, 0, 1, 2)
    for means, ranks in (
        ({"0": "first", "1": "second", "2": "tie"}, [(1, 2), (2, 1), (1, 1)]),
        ({"1": "first", "0": "second", "2": "both_bad"}, [(2, 1), (1, 2), (1, 1)]),
    ):
        found = items(path, named_table(Columns(means=means)))
        assert [item.ranks for item in found] == ranks
    assert found[2].labels == (False, False)


@pytest.mark.parametrize(
    ("values", "ranks"),
    [
        ((1, 2, 0), [(1, 2), (2, 1), (1, 1)]),
        (("a", "B", "tie"), [(1, 2), (2, 1), (1, 1)]),
        (("response_a", "response_b", "both_bad"), [(1, 2), (2, 1), (1, 1)]),
        (("left", "right", "equal"), [(1, 2), (2, 1), (1, 1)]),
        (("model_a", "model_b", "neither"), [(1, 2), (2, 1), (1, 1)]),
    ],
)
def test_choices_by_number_from_1_and_by_word(tmp_path: Path, values: tuple[Any, ...], ranks: list[Any]) -> None:
    assert [item.ranks for item in items(choices(tmp_path, *values))] == ranks


# -- prompts of several parts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "Add", "input": "1 and 2", "output_1": "3", "output_2": "4", "preference": 2}, "Add\n1 and 2"),
        ({"instruction": "When?", "context": "It was 1999.", "response": "1999"}, "When?\nIt was 1999."),
        ({"question": "When?", "context": "", "answer": "1999"}, "When?"),
        ({"prompt": "When?", "completion": "1999", "context": "It was 1999."}, "When?\nIt was 1999."),
        ({"prompt": "When?", "question": "When?", "response": "1999"}, "When?"),
        ({"instruction": "Translate", "query": "tree", "answer": "arbre"}, "Translate\ntree"),
    ],
)
def test_no_part_of_a_prompt_is_lost(tmp_path: Path, row: Row, prompt: str) -> None:
    assert [item.prompt for item in items(file(tmp_path, [row]))] == [prompt]


@pytest.mark.parametrize(
    "row",
    [
        {"system": "S", "question": "Q", "chosen": "The sun", "rejected": "The moon"},
        {"system": "S", "prompt": "Q", "chosen": "The sun", "rejected": "The moon"},
        {"system": "S", "instruction": "Q", "chosen_response": "The sun", "rejected_response": "The moon"},
    ],
)
def test_a_system_prompt_comes_first_and_answers_that_begin_alike_stay_whole(tmp_path: Path, row: Row) -> None:
    path = file(tmp_path, [row])
    for item in (items(path)[0],):
        assert [turn["content"] for turn in item.prompt] == ["S", "Q"]
        assert [text[0]["content"] for text in item.completions] == ["The sun", "The moon"]
    empty = file(tmp_path, [{**row, "system": ""}], "empty.jsonl")
    assert items(empty)[0].prompt == "Q"


def test_stages_read_all_parts_of_a_prompt(tmp_path: Path) -> None:
    path = file(tmp_path, [{"prompt": "When?", "context": "It was 1999.", "chosen": "1999", "rejected": "Now"}])
    assert [group.prompt for group in read_rankings(path)] == ["When?\nIt was 1999."]


# -- scores, axes, and who judged --------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("score_chosen", "score_rejected"), ("chosen_rating", "rejected_rating")])
def test_equal_scores_are_a_tie_and_scores_the_wrong_way_round_are_no_judgement(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    rows = [dict(zip(names, scores, strict=True)) | PAIR for scores in ((5, 3), (4, 4), (2, 3))]
    rejects: list[formats.Reject] = []
    found = list(formats.read_items(file(tmp_path, rows), on_reject=rejects.append))
    assert [item.ranks for item in found] == [(1, 2), (1, 1)] and len(rejects) == 1
    assert [group.ranks for group in read_rankings(file(tmp_path, rows[:2]))] == [(1, 2), (1, 1)]


def test_one_question_of_several_is_taken_or_the_stage_refuses(tmp_path: Path) -> None:
    both = [
        {"prompt": "Q", "completions": ["a", "b"], "ranks": ranks, "axis": axis}
        for ranks, axis in (([1, 2], "help"), ([2, 1], "safety"))
    ]
    path = file(tmp_path, both)
    assert [item.axis for item in items(path)] == ["help", "safety"]
    with pytest.raises(DataError, match="several questions: help"):
        read_rankings(path)
    found = formats.convert_file(path, tmp_path / "one.jsonl", ReadAs(axis="safety"))
    assert found.written == 1 and found.left_out == {"a ranking of the axis help": 1}
    assert [group.ranks for group in read_rankings(tmp_path / "one.jsonl")] == [(2, 1)]


@pytest.mark.parametrize(
    ("said", "kind", "name"),
    [
        ("", "human", "data.jsonl"),
        ("people", "human", "data.jsonl"),
        ("models", "model", "data.jsonl"),
        ("models:gpt-5", "model", "gpt-5"),
        ("simulated", "simulated", "data.jsonl"),
        ("people:Mara", "human", "Mara"),
    ],
)
def test_who_judged_is_who_the_user_says(tmp_path: Path, said: str, kind: str, name: str) -> None:
    found = items(file(tmp_path, [PAIR]), ReadAs(judged_by=said))
    records = list(to_records(found, source="data.jsonl"))
    [annotator] = [record for record in records if isinstance(record, Annotator)]
    assert (annotator.annotator_kind, annotator.name) == (kind, name)
    assert any(isinstance(record, Ranking) for record in records)


def test_a_name_alone_may_be_anybodys(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="may be a person or a model"):
        ReadAs(judged_by="gpt-4")


def test_a_file_that_says_who_judged_is_believed(tmp_path: Path) -> None:
    rows = [{**PAIR, "origin": "AI feedback", "annotator": "gpt-4"}, {**PAIR, "origin": "people", "annotator": 7}]
    found = items(file(tmp_path, rows), ReadAs(judged_by="simulated"))
    assert [(item.origin, item.annotator) for item in found] == [("AI feedback", "gpt-4"), ("people", "7")]


@pytest.mark.parametrize("name", ["trl-preference", "trl-unpaired", "alpaca-preference", "alpaca-kto"])
def test_who_and_when_are_written_beside_what_a_format_has(tmp_path: Path, name: str) -> None:
    judged: dict[str, Any] = {"labels": (True,)} if name.endswith(("unpaired", "kto")) else {"ranks": (1, 2)}
    said = {"annotator": "Mara", "origin": "AI feedback", "created_at": "2026-11-30T10:00:00+00:00", "topic": "t"}
    item = Item(prompt="Q", completions=("A", "B")[: 1 + ("ranks" in judged)], **judged, **said)
    formats.write_items(tmp_path / "out.jsonl", [item], name)
    [row] = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {key: row[key] for key in said} == said
    assert items(tmp_path / "out.jsonl", name) == [item]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (1700000000, "2023-11-14T22:13:20.000000+00:00"),
        (1700000000.5, "2023-11-14T22:13:20.500000+00:00"),
        (1700000000500, "2023-11-14T22:13:20.500000+00:00"),
        ("1700000000", "2023-11-14T22:13:20.000000+00:00"),
        ("2023-11-14T22:13:20Z", "2023-11-14T22:13:20Z"),
    ],
)
def test_times_and_people_by_number(tmp_path: Path, written: Any, read: str) -> None:
    [item] = items(file(tmp_path, [{**PAIR, "annotator": 12, "created_at": written}]))
    assert (item.annotator, item.created_at) == ("12", read)


# -- files as other programs write them --------------------------------------------------------------------------------

EXPECTED = ("Wie hei\u00dft der Flu\u00df?", "GUT: \u201eAche\u201c \u2013 sicher", "SCHLECHT; K\u00e4se")
SHEET = f'prompt;chosen;rejected\r\n{EXPECTED[0]};{EXPECTED[1]};"{EXPECTED[2]}"\r\n'
TABLES = {
    "cp1252": SHEET.encode("cp1252"),
    "utf-8": SHEET.encode(),
    "utf-8 with a mark": codecs.BOM_UTF8 + SHEET.encode(),
    "utf-16": SHEET.encode("utf-16"),
    "utf-16-be": codecs.BOM_UTF16_BE + SHEET.encode("utf-16-be"),
    "sep=": codecs.BOM_UTF8 + b"sep=;\r\n" + SHEET.encode(),
    "old Macs": SHEET.replace("\r\n", "\r").encode(),
    "an index": SHEET.replace("prompt", ";prompt").replace("Wie", "0;Wie").encode(),
    "empty columns": SHEET.replace("rejected\r", "rejected;;\r").replace('se"\r', 'se";;\r').encode(),
    "capitals": SHEET.replace("prompt", "Prompt").replace("chosen", " Chosen ").encode(),
    "tabs": SHEET.replace(";", "\t").replace("SCHLECHT\t", "SCHLECHT;").encode(),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_as_spreadsheets_save_them(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "sheet.csv"
    path.write_bytes(TABLES[kind])
    [item] = items(path)
    assert (item.prompt, *item.completions) == EXPECTED
    if kind in ("cp1252", "utf-16"):
        assert kind in str(formats.detect(path).container)


def test_a_damaged_letter_does_not_make_another_encoding(tmp_path: Path) -> None:
    """One wrong byte among letters of UTF-8 costs its own row, and the others keep their letters."""
    path = tmp_path / "sheet.csv"
    path.write_bytes("prompt,chosen,rejected\nK\u00e4se?,ja,nein\n".encode() + b"K\xe4se,ja,nein\n")
    rejects: list[formats.Reject] = []
    assert [item.prompt for item in formats.read_items(path, on_reject=rejects.append)] == ["K\u00e4se?"]
    assert "not UTF-8" in rejects[0].problem


def test_a_cell_below_no_name_is_refused_and_an_unknown_column_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "sheet.csv"
    path.write_text("prompt,chosen,rejected,\nQ,a,b,\nQ,c,d,lost?\n")
    rejects: list[formats.Reject] = []
    assert len(list(formats.read_items(path, on_reject=rejects.append))) == 1
    assert "below no column's name" in rejects[0].problem


PAIRS = [{"prompt": f"Q{i}", "chosen": "{a}", "rejected": "[b]"} for i in range(3)]
WRAPPED = {
    "data": {"data": PAIRS},
    "version and data": {"version": "1.0", "data": PAIRS},
    "rows of a hub": {
        "features": [],
        "rows": [{"row_idx": i, "row": row, "truncated_cells": []} for i, row in enumerate(PAIRS)],
    },
    "columns of pandas": {name: {str(i): row[name] for i, row in enumerate(PAIRS)} for name in PAIRS[0]},
    "split of pandas": {"columns": list(PAIRS[0]), "index": [0, 1, 2], "data": [list(row.values()) for row in PAIRS]},
}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("kind", WRAPPED)
def test_rows_inside_one_object(tmp_path: Path, kind: str, indent: int | None) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(WRAPPED[kind], indent=indent))
    assert [(item.prompt, *item.completions) for item in items(path)] == [tuple(row.values()) for row in PAIRS]


def test_objects_spread_over_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(row, indent=2) for row in PAIRS))
    assert [item.prompt for item in items(path)] == ["Q0", "Q1", "Q2"]
    rejects: list[formats.Reject] = []
    path.write_text("\n".join(json.dumps(row, indent=2) for row in PAIRS)[:-3])
    assert len(list(formats.read_items(path, on_reject=rejects.append))) == 2 and "does not end" in rejects[0].problem


def test_a_description_of_data_sets_names_the_files_to_import(tmp_path: Path) -> None:
    path = tmp_path / "dataset_info.json"
    path.write_text(json.dumps({"mine": {"file_name": "mine.json", "ranking": True}}, indent=1))
    assert "mine.json" in refused(path)


def test_nan_says_that_nothing_is_there(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "Q", "chosen": "a", "rejected": "b", "note": NaN}\n')
    assert [dict(item.extra) for item in items(path)] == [{}]


# -- what the user says of columns -------------------------------------------------------------------------------------


def accord(*argv: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(map(str, argv)), prog_name="accord")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout + done.stderr


LOG = {"ask": "Where is it?", "bot": "Here.", "intent": "orders", "csat": 4, "thumbs": 1}


def test_an_unknown_file_gets_the_flags_that_would_read_it(tmp_path: Path) -> None:
    path = file(tmp_path, [{"user_question": "Q", "bot_says": "A", "intent": "x"}])
    told = refused(path)
    assert (
        "--prompt-field user_question" in told
        and "--completion-field bot_says" in told
        and "--topic-field intent" in told
    )


def test_import_by_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file(tmp_path, [LOG, {**LOG, "ask": "When?", "thumbs": 0}], "log.jsonl")
    (tmp_path / "system.txt").write_text("Be kind.\n")
    code, told = accord("import", "log.jsonl", "--prompt-field", "ask", "--dry-run")
    assert code == 3 and '"thumbs"' in told and "--label-field thumbs" in told and "--ignore thumbs" in told
    flags = ["--prompt-field", "ask", "--completion-field", "bot", "--label-field", "thumbs", "--topic-field", "intent"]
    code, told = accord("import", "log.jsonl", *flags, "--system", "system.txt", "-o", "rows.jsonl")
    assert code == 0, told
    found = items(tmp_path / "rows.jsonl")
    assert [(item.labels, item.topic) for item in found] == [((True,), "orders"), ((False,), "orders")]
    assert [turn["content"] for turn in found[0].prompt] == ["Be kind.", "Where is it?"]
    code, told = accord(
        "import", "log.jsonl", "--prompt-field", "ask", "--ignore", "thumbs", "-o", "prompts.jsonl", "--only", "prompt"
    )
    assert code == 0 and kinds(tmp_path / "prompts.jsonl") == ["prompt", "prompt"], told


def test_import_of_a_choice_under_other_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"ask": f"Q{i}", "old": "o", "new": "n", "vote": vote, "who": i} for i, vote in enumerate(("N", "O", "="))]
    file(tmp_path, rows, "votes.jsonl")
    flags = [
        "--prompt-field",
        "ask",
        "--answer-fields",
        "old,new",
        "--choice-field",
        "vote",
        "--annotator-field",
        "who",
    ]
    code, told = accord("import", "votes.jsonl", *flags, "--choice", "first=O,second=N,tie==", "-o", "rows.jsonl")
    assert code == 0, told
    found = items(tmp_path / "rows.jsonl")
    assert [item.ranks for item in found] == [(2, 1), (1, 2), (1, 1)] and [item.annotator for item in found] == list(
        "012"
    )


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"prompt": "q", "chosen": "a"}, "one is named"),
        ({"prompt": "q", "label": "a"}, "what was judged is not named"),
        ({"completion": "a"}, "prompts' column is not named"),
        ({"prompt": "q", "answers": ("a",)}, "1 columns of answers"),
        ({"means": {"0": "left"}}, "--choice has left"),
    ],
)
def test_columns_that_do_not_fit_together(said: dict[str, Any], told: str) -> None:
    with pytest.raises(AccordError, match=told):
        Columns(**said)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "Q", "chosen": "A"}, '"chosen" has no "rejected" beside it'),
        ({"prompt": "Q", "completions": ["A", "B"], "rank": [1, 2]}, 'did you mean "rank"?'),
        ({"question": "Q", "bot_reply": "A", "ts": 3}, "--prompt-field question --completion-field bot_reply"),
    ],
)
def test_what_is_missing_beside_a_column_is_said(tmp_path: Path, row: Row, told: str) -> None:
    assert told in refused(file(tmp_path, [row, row]))


def test_stages_say_what_helps_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='did you mean "rank"'):
        read_rankings(file(tmp_path, [{"prompt": "Q", "completions": ["A", "B"], "rank": [1, 2]}]))
    with pytest.raises(DataError, match='"rejected" is missing'):
        read_rankings(file(tmp_path, [{"prompt": "Q", "chosen": "A"}]))
    with pytest.raises(DataError, match="--prompt-field question"):
        read_prompts(file(tmp_path, [{"question": "Q", "bot_reply": "A"}]))
