"""Files of other tools in and out: ``accord import``, ``accord export``, ``accord data inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from accord.cli.options import Ignore, Json, PromptField, TopicField, Verbose
from accord.cli.project import (
    Project,
    ProjectDir,
    find_place,
    find_project,
    import_file,
    named_columns,
    next_after_import,
)
from accord.cli.talk import Talk, path_text, talking
from accord.errors import DataError, UsageError
from accord.files import child, name_from

if TYPE_CHECKING:
    from accord.formats import Format, Imported, Inspection, ReadAs

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at data files.")

FileFormat = Annotated[
    str | None, typer.Option("--format", metavar="F", help="The file's format; recognised by its rows without it.")
]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="Read at most N rows.")]
Column = Annotated[str | None, typer.Option(metavar="COLUMN", help="With --prompt-field: the column that says this.")]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="KIND", help="Take items of this kind, see `accord data inspect`; or all."),
]
MaxRejects = Annotated[int, typer.Option(min=0, metavar="N", help="Give up when more than N rows are no good.")]
AsMessages = Annotated[bool, typer.Option("--messages", help="Write every prompt as messages, for chat models.")]

SpreadsheetSafe = Annotated[
    bool, typer.Option("--spreadsheet-safe", help="Of CSV: an apostrophe before what a spreadsheet would run.")
]


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines, a JSON array, CSV or Parquet; .gz, .zst.")],
    format: FileFormat = None,
    prompt_field: PromptField = None,
    topic_field: TopicField = None,
    system_field: Column = None,
    system: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file whose text stands before every prompt as the system's.")
    ] = None,
    completion_field: Column = None,
    label_field: Column = None,
    rating_field: Column = None,
    chosen_field: Column = None,
    rejected_field: Column = None,
    answer_fields: Annotated[
        str | None, typer.Option(metavar="A,B", help="Two answers, of which --choice-field says the better one.")
    ] = None,
    choice_field: Column = None,
    choice: Annotated[
        str, typer.Option(metavar="first=X,second=Y,tie=Z", help="What the choice's column says for which answer.")
    ] = "",
    annotator_field: Column = None,
    ignore: Ignore = None,
    judged_by: Annotated[
        str, typer.Option(metavar="WHO", help="Who judged, where rows do not say: people, models, models:NAME.")
    ] = "",
    axis: Annotated[
        str, typer.Option(metavar="NAME", help="Of a set that judges several things this one alone: helpfulness.")
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write rows for the stages here, store nothing."),
    ] = None,
    only: Only = None,
    messages: AsMessages = False,
    spreadsheet_safe: SpreadsheetSafe = False,
    source: Annotated[
        str, typer.Option(metavar="NAME", help="Who wrote and judged it, where it is not said; the file's name.")
    ] = "",
    scale: Annotated[str, typer.Option(metavar="LOW,HIGH", help="The scale of ratings that do not say it.")] = "",
    limit: Limit = None,
    max_rejects: MaxRejects = 1_000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and write nothing.")] = False,
    project: ProjectDir = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Read prompts, completions and judgements in any known format.

    They become facts in the project's store, or with -o rows that every stage reads. Importing twice adds nothing.
    Rows that are no good are left out and written to a rejects file, with what is wrong and how to mend it.

    \b
    Examples:
      accord import prefs.jsonl
      accord import bot_log.jsonl --prompt-field question --topic-field category
      accord import votes.csv --prompt-field q --answer-fields left,right --choice-field vote --choice first=L,second=R
      accord import hh.jsonl.gz -o prefs.jsonl
      accord import trees.jsonl.gz -o answers.jsonl --only sample
    """
    with talking(json, verbose) as talk:
        from accord import formats

        ends, meant = _scale(scale), _choice(choice)
        columns = named_columns(
            prompt_field,
            topic_field,
            system=system_field,
            system_text=_text_of(system),
            completion=completion_field,
            label=label_field,
            rating=rating_field,
            chosen=chosen_field,
            rejected=rejected_field,
            answers=tuple(answer_fields.split(",")) if answer_fields else (),
            choice=choice_field,
            means=meant,
            annotator=annotator_field,
        )
        read_as = _read_as(format, columns, ignore, judged_by=judged_by, axis=axis)
        bounds: dict[str, Any] = {"limit": limit, "max_rejects": max_rejects}
        next_step = ""
        if dry_run:
            found = formats.count_items(file, read_as, **bounds)
        elif output is not None:
            how: dict[str, Any] = {"messages": messages, "spreadsheet_safe": spreadsheet_safe}
            found = formats.convert_file(file, output, read_as, only=only or (), **how, **bounds)
            _warn_of_formulas(talk, output, found.formulas)
            next_step = _stage_after(found, output)
        else:
            home = _project(project, "give -o FILE to convert the file, --dry-run to count, or run `accord init` first")
            found = import_file(home, file, read_as, source=source, scale=ends, **bounds)
            next_step = next_after_import(home, "accord import FILE   (nothing of this file could be used)")
        talk.result(_said(found), next_step=next_step)


def export(
    format: Annotated[str, typer.Option("--format", metavar="F", help="The format to write; a wrong one lists them.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="The file, .jsonl .json .csv .parquet, .gz .zst."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Convert this file, not the project's store.")
    ] = None,
    data_format: Annotated[str | None, typer.Option(metavar="F", help="The format of --data.")] = None,
    only: Only = None,
    spreadsheet_safe: SpreadsheetSafe = False,
    simulated: Annotated[bool, typer.Option("--simulated", help="Also what simulated annotators said.")] = False,
    ai: Annotated[bool, typer.Option("--ai", help="Also AI feedback: what models and functions said.")] = False,
    as_said: Annotated[
        bool, typer.Option("--as-said", help="Every judgement that stands, unweighted; gold and programs' ones too.")
    ] = False,
    messages: AsMessages = False,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Of --data read at most N rows.")] = None,
    max_rejects: MaxRejects = 1_000,
    project: ProjectDir = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write what the store holds, or a file, in another format.

    From the store comes what training wants: people's judgements, weighted by how far each person can be relied on,
    without answers to gold questions and what was adjudicated; --as-said takes it all. What a format has no words for
    is left out and counted: a tie is no preference. A manifest beside the file says what was written from what.

    \b
    Examples:
      accord export --format accord --only ranking -o rankings.jsonl
      accord export --format trl-preference -o prefs.jsonl
      accord export --format hh -o hh.jsonl.gz
      accord export --format sharegpt --data demos.csv -o demos.json
    """
    with talking(json, verbose) as talk:
        from accord import formats
        from accord.store import Store

        formats.members(format)
        if output is None:
            home = find_place(project)
            output = child(_made(home.root / "exports"), name_from(f"{format}{formats.suffix_of(format)}"))
        if data is not None:
            bounds: dict[str, Any] = {"limit": limit, "max_rejects": max_rejects}
            how: dict[str, Any] = {"messages": messages, "spreadsheet_safe": spreadsheet_safe}
            found = formats.convert_file(data, output, data_format, to=format, only=only or (), **how, **bounds)
            _warn_of_formulas(talk, output, found.formulas)
            talk.result(_said(found))
            return
        from accord.people.exporting import write_judgements
        from accord.store import require_sound

        choice: dict[str, Any] = {"simulated": simulated, "ai": ai, "as_said": as_said}
        choice |= {"kinds": only or (), "messages": messages, "spreadsheet_safe": spreadsheet_safe}
        place = find_place(project).store
        require_sound(place)
        with Store.open(place) as store:
            written = write_judgements(store, output, format, **choice)
        _warn_of_formulas(talk, output, None if spreadsheet_safe else written.formulas)
        talk.result(written)


def _warn_of_formulas(talk: Talk, output: Path, count: int | None) -> None:
    if count:
        talk.log.note(
            f"warning: {count:,} cells of {path_text(output)} begin as formulas do (= + - @): a spreadsheet would run"
            " them. --spreadsheet-safe puts an apostrophe before each; programs read the file as it is"
        )


@app.command()
def inspect(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files; of several, the prompts they share.")],
    format: FileFormat = None,
    ignore: Ignore = None,
    limit: Limit = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Say what a file is and why, what it holds, and show three examples. Needs no project.

    \b
    Examples:
      accord data inspect prefs.jsonl
      accord data inspect train.parquet test.parquet --json
    """
    with talking(json, verbose) as talk:
        from accord import formats

        found = formats.inspect_files(files, _read_as(format, None, ignore), limit=limit)
        talk.result(found[0] if len(found) == 1 else found, text="\n\n".join(map(_text, found)))


def _read_as(format: str | None, columns: Format | None, ignore: list[str] | None, **said: str) -> ReadAs:
    """How a file is read: in a format by name, by the columns that the user named, or as it is recognised."""
    from accord.formats import ReadAs

    if format is not None and columns is not None:
        raise UsageError("--prompt-field reads a table of prompts, and --format says what else it is", hint="give one")
    return ReadAs(columns or format, frozenset(ignore or ()), **said)


def _choice(text: str) -> dict[str, str]:
    """What stands in a choice's column, by what it means: ``first=X,second=Y`` turned round."""
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    if not all(equals and value for _, equals, value in pairs):
        raise UsageError(f"--choice is {text!r}", hint="write it like first=A,second=B,tie=C")
    return {value.strip(): choice.strip() for choice, _, value in pairs}


def _text_of(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"the system prompt cannot be read: {error}", where=str(file), hint="give a text file"
        ) from error
    return text or _refuse_empty(file)


def _refuse_empty(file: Path) -> NoReturn:
    raise DataError("the system prompt is empty", where=str(file), hint="write it there, or leave --system out")


#: What a file of rows is for, by the kind that most of them are.
_STAGES = {
    "prompt": "accord sample --model DIR --data {} -o samples.jsonl",
    "demonstration": "accord sft --model DIR --data {} -o sft",
    "conversation": "accord sft --model DIR --data {} -o sft",
}


def _stage_after(found: Imported, output: Path) -> str:
    """The stage that reads what was written."""
    most = next(iter(found.kinds), "")
    return _STAGES.get(most, "accord reward --model DIR --data {} -o reward").format(path_text(output))


def _project(given: Path | None, hint: str) -> Project:
    home = find_project(given)
    if home is None:
        raise UsageError("there is no project here", hint=hint)
    return home


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def _scale(text: str) -> tuple[float, float] | None:
    if not text:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise UsageError(f"--scale is {text!r}", hint="give two numbers, like 1,7") from None
    return low, high


def _said(found: Imported) -> dict[str, Any]:
    """The result without what does not apply."""
    return {name: value for name, value in vars(found).items() if value is not None and value != {}}


def _text(found: Inspection) -> str:
    from accord.formats.inspecting import printable

    detected = found.detected
    also = f" (as well {', '.join(detected.also)})" if detected.also else ""
    counts = ", ".join(f"{count:,} {name}" for name, count in found.counts.items())
    lines = [
        f"{found.file}: {detected.format}{also}, {detected.container}",
        f"why: {detected.why}",
        f"rows: {found.rows:,}, {found.rejected:,} of them no good",
        *(f"  {reject}" for reject in found.first_rejects),
        f"counts: {counts}",
        f"kinds: {', '.join(f'{count:,} {kind}' for kind, count in found.kinds.items())}",
        *(f"judged by {who}: {count:,}" for who, count in found.judged_by.items()),
        "fields: " + ", ".join(f"{name} ({_held(held)})" for name, held in found.fields.items()),
        *(
            f"length of {name} in characters, 5 / 50 / 95 / 100 %: {_slashed(ends)}"
            for name, ends in found.lengths.items()
        ),
        f"repeated: {found.repeated_items:,} items, {found.repeated_prompts:,} prompts",
        *(f"prompts also in {other}: {count:,}" for other, count in found.shared_prompts.items()),
    ]
    return "\n".join([*map(printable, lines), *found.examples])


def _held(held: Any) -> str:
    return ", ".join(f"{kind} {count:,}" for kind, count in held.items())


def _slashed(ends: Any) -> str:
    return " / ".join(f"{end:,}" for end in ends)
