"""Files into the store and out again, from the command line: counts, facts, nothing twice, every reason told."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from test_cli import Done

from accord import formats
from accord.formats import Item
from accord.records import Annotator, Source
from accord.store import Store

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
USER = {"role": "user", "content": "Why?"}

ITEMS = [
    Item(
        prompt=(USER,),
        completions=("Because.", "No.", "Who?"),
        ranks=(1, 2, 2),
        labels=(True, True, False),
        annotator="ann",
        created_at="2026-01-02T03:04:05+00:00",
        sources=(Source(origin="policy", name="m", version="3"), None, None),
    ),
    Item(prompt="Pick", completions=("a", "b"), ranks=(2.5, 1), strength="slightly", topic="t"),
    Item(prompt="Say", completions=("hi",), labels=(False,), extra={"id": 5}),
    Item(prompt="Rate", completions=("x",), ratings=(4,), scale=(1, 7), axis="truthfulness"),
    Item(prompt="Show", completions=("so",), demonstration=True),
    Item(prompt="Open question"),
    Item(prompt="Nobody judged", completions=("this", "that")),
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_items_become_facts_and_facts_items() -> None:
    with Store.open("facts.db") as store:
        new = store.add(formats.to_records(ITEMS, source="file"))
        assert store.add(formats.to_records(ITEMS, source="file")) == 0
        assert store.verify() == []
        counts = store.counts()
        assert (counts["prompts"], counts["completions"], counts["rankings"]) == (7, 9, 2)
        assert (counts["labels"], counts["ratings"], counts["demonstrations"], counts["annotators"]) == (1, 1, 1, 2)
        assert new == 7 + 9 + 2 + 1 + 1 + 1 + 2
        first, second = store.rankings()
        assert first.ranks == (1, 2, 2) and first.unacceptable == first.completion_ids[2:]
        assert first.created_at == "2026-01-02T03:04:05+00:00" and second.created_at.startswith("1970-01-01")
        assert second.ranks == (2, 1) and second.strength == "slightly"
        assert {a.name: a.annotator_kind for a in store.annotators()} == {"ann": "human", "file": "human"}
        again = list(formats.from_facts(store))
    wanted = Source(origin="policy", name="file")
    kinds = [item.kind for item in again]
    assert kinds[:5] == ["ranking", "ranking", "demonstration", "label", "rating"]
    assert sorted(kinds[5:]) == ["prompt", "sample"]
    assert again[0].sources == (Source(origin="policy", name="m", version="3"), wanted, wanted)
    assert again[0].prompt == (USER,) and again[0].annotator == "ann" and again[0].labels == (True, True, False)
    assert again[1].topic == "t" and again[1].created_at == "" and again[1].ranks == (2, 1)
    assert again[4].ratings == (4,) and again[4].scale == (1, 7) and again[4].axis == "truthfulness"
    with Store.open("again.db") as store:
        store.add(formats.to_records(again, source="file"))
        assert store.counts() == counts


@pytest.mark.parametrize("name", ["rater 7", ""])
def test_simulated_annotators_stay_simulated_through_a_file(name: str, elsewhere: Path) -> None:
    """Exported as said, and imported into another store: nobody becomes a person on the way."""
    kinds = {"simulated": "simulated annotators", "model": "AI feedback", "human": "people"}
    said_by = [
        Item(prompt="p", completions=("a", text), ranks=(1, 2), annotator=name and f"{name} {kind}", origin=origin)
        for text, (kind, origin) in zip("bcd", kinds.items(), strict=True)
    ]
    for number in range(2):
        with Store.open(f"{number}.db") as store:
            store.add(formats.to_records(said_by, source="file"))
            assert {(one.name, one.annotator_kind) for one in store.annotators()} == {
                (f"{name} {kind}" if name else "file", kind) for kind in kinds
            }
            assert not any("origin" in prompt.meta for prompt in store.prompts())
            formats.write_items(elsewhere / "said.jsonl", formats.from_facts(store), "accord")
        said_by = list(formats.read_items(elsewhere / "said.jsonl"))
        assert {item.completions[1]: item.origin for item in said_by} == dict(zip("bcd", kinds.values(), strict=True))


def test_what_makes_no_fact_is_counted() -> None:
    left_out: Counter[str] = Counter()
    odd = [
        Item(prompt="p", completions=("s",), labels=(True,), steps=True),
        Item(prompt="p", completions=("x",), ratings=(9,)),
        Item(prompt="p", completions=("x",), ratings=(9,), scale=(1, 7)),
        Item(prompt="p", completions=(" ",), demonstration=True),
        Item(prompt=None, completions=((USER,),)),
        Item(prompt=(USER,), completions=(({"role": "assistant", "content": None, "tool_calls": [1]},),)),
        Item(prompt="p", completions=("a", "a"), ranks=(1, 2)),
    ]
    assert list(formats.to_records(odd, source="s", left_out=left_out)) == []
    assert sum(left_out.values()) == len(odd) == len(left_out)


def test_what_an_earlier_version_called_models_stays_ai_feedback() -> None:
    item = Item(prompt="p", completions=("a", "b"), ranks=(1, 2), origin="models", annotator="robot")
    (annotator,) = [one for one in formats.to_records([item], source="s") if isinstance(one, Annotator)]
    assert (annotator.name, annotator.annotator_kind) == ("robot", "model")


def test_an_annotator_may_be_given() -> None:
    robot = Annotator(name="robot", annotator_kind="model")
    records = list(formats.to_records(ITEMS[1:2], source="s", annotator=robot))
    assert robot in records and records[-1].annotator_id == robot.id


PAIRS = """{"prompt": "p", "chosen": "a", "rejected": "b"}
{"prompt": "p", "chosen": "a"}
{"prompt": "q", "chosen": "c", "rejected": "d"}
"""
FOUND = {"prompts": 2, "completions": 4, "judgements": 2, "pairs": 2}
COUNTS = {"format": "trl-preference", "rows": 3, "rejected": 1, **FOUND}


def project() -> None:
    assert Done("init", "home").code == 0


def told(done: Done) -> dict[str, Any]:
    assert done.code == 0, done.err
    found: dict[str, Any] = done.json
    return found


def test_import_into_a_project_twice(elsewhere: Path) -> None:
    project()
    (elsewhere / "Prefs.jsonl").write_text(PAIRS)
    first = told(Done("import", "Prefs.jsonl", "--project", "home", "--json"))
    assert {name: first[name] for name in COUNTS} == COUNTS and first["new"] == 2 + 4 + 2 + 1
    notes = elsewhere / "home" / "imports" / "prefs.jsonl"
    [reject] = [json.loads(line) for line in (notes / "rejects.jsonl").read_text().splitlines()]
    assert reject["where"] == "Prefs.jsonl:2" and reject["field"] == "rejected" and reject["problem"] == "is missing"
    assert reject["fix"] and json.loads(reject["row"]) == {"prompt": "p", "chosen": "a"}
    before = (notes / "manifest.json").read_bytes()
    assert told(Done("import", "Prefs.jsonl", "--project", "home", "--json"))["new"] == 0
    assert (notes / "manifest.json").read_bytes() == before
    manifest = json.loads(before)
    assert manifest["counts"]["pairs"] == 2 and len(manifest["source"]["sha256"]) == 64
    assert manifest["schema"] == {"chosen": 2 + 1, "prompt": 3, "rejected": 2} and manifest["tool"].startswith(
        "accord "
    )


def test_import_to_rows_and_its_limits(elsewhere: Path) -> None:
    (elsewhere / "prefs.jsonl").write_text(PAIRS)
    done = told(Done("import", "prefs.jsonl", "-o", "out/rows.jsonl", "--json"))
    assert done["written"] == 2 and done["rejects"] == "out/rows.jsonl.rejects.jsonl"
    rows = [json.loads(line) for line in (elsewhere / "out" / "rows.jsonl").read_text().splitlines()]
    assert rows[0] == {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2]}
    assert told(Done("import", "prefs.jsonl", "--dry-run", "--limit", "1", "--json"))["pairs"] == 1
    for argv, code, what in (
        (("import", "prefs.jsonl"), 2, "no project here"),
        (("import", "prefs.jsonl", "--dry-run", "--max-rejects", "0"), 3, "more than 0 rows are no good"),
        (("import", "prefs.jsonl", "-o", "prefs.jsonl"), 2, "the output is the file that is read"),
        (("import", "prefs.jsonl", "-o", "x.jsonl", "--only", "cake"), 2, "no kind 'cake'"),
        (("import", "prefs.jsonl", "--dry-run", "--scale", "1"), 2, "--scale is '1'"),
        (("import", "prefs.jsonl", "--dry-run", "--format", "cake"), 2, "there is no 'cake'"),
        (("import", "gone.jsonl", "--dry-run"), 3, "no such file"),
    ):
        done = Done(*argv)
        assert done.code == code and what in done.err, (argv, done.err)
    assert (elsewhere / "prefs.jsonl").read_text() == PAIRS


def test_export_from_a_project(elsewhere: Path) -> None:
    project()
    (elsewhere / "prefs.jsonl").write_text(PAIRS)
    told(Done("import", "prefs.jsonl", "--project", "home", "--json"))
    done = told(Done("export", "--format", "trl", "--project", "home", "--json"))
    assert done["format"] == "trl-preference" and done["rows"] == 2
    written = (elsewhere / "home" / "exports" / "trl.jsonl").read_text()
    assert [json.loads(line)["chosen"] for line in written.splitlines()] == ["a", "c"]
    assert told(Done("export", "--format", "csv", "--project", "home", "--json"))["file"] == "csv.csv"
    assert formats.detect(elsewhere / "home" / "exports" / "csv.csv").format == "accord"
    for argv, what in (
        (("export", "--format", "cake", "-o", "x"), "give one of accord, alpaca"),
        (("export", "--format", "hh-redteam", "-o", "x", "--project", "home"), "can be read only"),
        (("export", "--format", "hh"), "no project here"),
    ):
        done = Done(*argv)
        assert done.code == 2 and what in done.err, done.err


def test_export_leads_no_link_out_of_the_project(elsewhere: Path) -> None:
    project()
    (elsewhere / "secret").write_text("keep")
    (elsewhere / "home" / "exports" / "hh.jsonl").symlink_to(elsewhere / "secret")
    done = Done("export", "--format", "hh", "--project", "home")
    assert done.code == 2 and "is no name for a file" in done.err
    assert (elsewhere / "secret").read_text() == "keep"


def test_conversion_between_formats(elsewhere: Path) -> None:
    (elsewhere / "prefs.jsonl").write_text(PAIRS)
    done = told(Done("export", "--format", "sharegpt", "--data", "prefs.jsonl", "-o", "chat.json.gz", "--json"))
    assert done["format"] == "trl-preference" and done["written"] == 2
    assert formats.detect("chat.json.gz").format == "sharegpt-preference"
    back = [item.prompt for item in formats.read_items("chat.json.gz")]
    assert back == [({"role": "user", "content": "p"},), ({"role": "user", "content": "q"},)]


def test_inspect_says_what_and_why_and_shows_three(elsewhere: Path) -> None:
    row = {"prompt": "p\x1b[31m", "chosen": "good", "rejected": "bad", "\x1b[2J": 1}
    other = {**row, "prompt": "q"}
    (elsewhere / "a.jsonl").write_text("\n".join(map(json.dumps, [row, row, {**row, "chosen": "best"}, other])))
    (elsewhere / "b.jsonl").write_text(json.dumps(other))
    done = Done("data", "inspect", "a.jsonl", "b.jsonl")
    assert done.code == 0, done.err
    for line in (
        "a.jsonl: trl-preference",
        'why: 4 of the first 4 rows: "prompt", "chosen" and "rejected"',
        "rows: 4, 0 of them no good",
        "counts: 2 prompts, 5 completions, 4 judgements, 4 pairs",
        "repeated: 1 items, 2 prompts",
        "prompts also in b.jsonl: 1",
        "fields: prompt (a string 4), chosen (a string 4), rejected (a string 4)",
        "length of completions in characters, 5 / 50 / 95 / 100 %: 3 / 4 / 4 / 4",
        "  rank 1: good",
    ):
        assert line in done.out, line
    assert done.out.count("[ranking]") == 3 + 1 and "\x1b" not in done.out
    (elsewhere / "c.jsonl").write_text(
        json.dumps({"messages": [{"role": "us\x1b[1m", "content": "q"}, {"role": "assistant", "content": "a"}]})
        + '\n{"\x1b": '
    )
    done = Done("data", "inspect", "c.jsonl")
    assert "us\\x1b[1m" in done.out and "\x1b" not in done.out and done.code == 0
    [first, _] = Done("data", "inspect", "a.jsonl", "b.jsonl", "--json").json
    assert first["detected"]["format"] == "trl-preference" and len(first["examples"]) == 3


@pytest.mark.skipif(not DATA.is_dir(), reason="the files of shared/data are not here")
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("hh-harmless-base-test.jsonl.gz", ("hh", 2312, 2312, 2312)),
        ("oasst-en_100_tree.jsonl", ("oasst-trees", 100, 212, 754)),
    ],
)
def test_the_real_files_become_facts(name: str, wanted: tuple[str, int, int, int]) -> None:
    project()
    done = told(Done("import", str(DATA / name), "--project", "home", "--json"))
    assert (done["format"], done["rows"], done["judgements"], done["pairs"]) == wanted and done["rejected"] == 0
    assert "left_out" not in done
    with Store.open("home/accord.db") as store:
        assert store.counts()["rankings"] == wanted[2]
