"""A stage carried out once: refused where it would replace a model, told where it was finished before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accord.cli.talk import Talk, path_text, to_plain
from accord.cli.verdicts import alarm_lines, verdict_of
from accord.config import Recipe
from accord.files import read_json, write_text
from accord.lock import only_writer
from accord.ranks import launched_ranks
from accord.train.finished import StageCall, finished_call, record_finished, result_before


def called(command: str, made: Recipe, inputs: Mapping[str, Path | None], folder: Path, *sections: str) -> StageCall:
    """Return the stage that a command asks for: these sections of the recipe, these files, this folder."""
    settings = {name: getattr(made, name).model_dump(mode="json") for name in (sections or (command,))}
    given = {name: path for name, path in inputs.items() if path is not None}
    return StageCall(command, settings, made.seed, given, folder)


def carry_out(
    talk: Talk, call: StageCall, work: Callable[[], Any], *, next_step: str, overwrite: bool, resume: bool
) -> None:
    """Do a stage's work and say how it went, unless the very same was done before."""
    with only_writer(call.folder):
        before = result_before(call, overwrite=overwrite, anew=not resume)
        if before is not None:
            done = f"the same command made {path_text(call.model)}; nothing was done (--overwrite: anew)"
            said = _said(call, before)
            _tell(talk, call, before, f"finished before: {done}", next_step, said, finished_before=True)
            return
        _ = call.identity  # of the inputs as they are now: the work may replace one of them
        result = to_plain(work())
        if launched_ranks()[0]:  # the first of several processes writes it down
            return
        said = _said(call, result)
        if call.model.is_dir():
            _write_down(call, result, *said)
        _tell(talk, call, result, "", next_step, said)


def _said(call: StageCall, result: Any) -> tuple[str, list[str]]:
    """Return the verdict and the alarms; nothing where nothing was made, as by a function in the stage's place."""
    if not call.model.is_dir():
        return "", []
    return verdict_of(call.command, result, call.folder), alarm_lines(call.folder)


def _write_down(call: StageCall, result: Mapping[str, Any], verdict: str, alarms: list[str]) -> None:
    from accord.report.stage_card import stage_card

    record_finished(call, result)
    usual = {name: getattr(Recipe(), name).model_dump(mode="json") for name in call.settings}
    kind = str(read_json(call.model / "config.json").get("model_type", ""))
    made, folder = finished_call(call.folder), path_text(call.model)
    card = stage_card(made, verdict, alarms, usual=usual, folder=folder, model_type=kind)
    write_text(call.model / "README.md", card)


def _tell(
    talk: Talk, call: StageCall, result: Any, first: str, next_step: str, said: tuple[str, list[str]], **more: Any
) -> None:
    """Print the verdict, the alarms, then the numbers."""
    if not call.model.is_dir():  # nothing was made: a stage that was replaced by another function
        talk.result(result, next_step=next_step)
        return
    verdict, alarms = said
    lines = [*([first] if first else []), verdict, *(f"alarm: {line}" for line in alarms)]
    talk.result({**result, "verdict": verdict, "alarms": alarms, **more}, above=lines, next_step=next_step)
