"""How a command talks: results on stdout (text or JSON), everything else on stderr, errors as exit codes."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

import typer
from pydantic import BaseModel

from accord.cli.progress import Progress
from accord.errors import AccordError, DataError, Interrupted, ResourceError
from accord.progress import for_json, for_terminal, without_passwords
from accord.ranks import OTHERS_SPEAK_AFTER_S, launched_ranks

#: What is no bug, but the machine's word: it is full, says no, or something else has the name.
_REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOMEM, errno.EMFILE}
_REFUSED |= {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.EFBIG}

TOLD_ABOVE = ("verdict", "alarms", "finished_before")  # of a result, which lines above its numbers say in words


@dataclasses.dataclass(frozen=True)
class Talk:
    """One command's voice. ``log`` is what long work reports to."""

    as_json: bool
    log: Progress
    out: TextIO

    def result(self, value: Any, *, text: str = "", above: Sequence[str] = (), next_step: str = "") -> None:
        """Print what the command made: JSON, or ``text`` (by default one ``key: value`` line each) and a hint.

        ``above`` are lines in front of the numbers; what of the value they say already is left out of the text.
        """
        plain = to_plain(value)
        if self.as_json:
            self.out.write(for_json(json.dumps(plain, ensure_ascii=False, indent=2)) + "\n")
            return
        told = {key: value for key, value in plain.items() if key not in TOLD_ABOVE} if above else plain
        lines = [*above, text or "\n".join(_lines(told)), *([f"next: {next_step}"] if next_step else [])]
        self.out.write(for_terminal("\n".join(lines)) + "\n")


@contextlib.contextmanager
def talking(as_json: bool, verbose: bool) -> Iterator[Talk]:
    """Run a command's body: what it raises becomes a message and an exit code (2, 3, 4, 130; 1 for our own bugs).

    While it runs, whatever the work prints goes to stderr, so that stdout holds the result alone.
    """
    out = voice(sys.stdout)
    try:
        with Progress(voice(sys.stderr)) as log, contextlib.redirect_stdout(sys.stderr):
            yield Talk(as_json, log, out)
    except KeyboardInterrupt as stop:
        # Who was interrupted knows what it has kept.
        kept = getattr(stop, "__notes__", ["the same command again goes on from what is finished, if anything is"])
        code = 128 + (stop.signum if isinstance(stop, Interrupted) else signal.SIGINT)
        _fail("interrupted", kept[-1], code, as_json, verbose, stop)
    except AccordError as error:
        _fail(str(error), "", error.exit_code, as_json, verbose, error)
    except (OSError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno not in _REFUSED:
            _bug(error, as_json, verbose)
        named = f": {error.filename}" if isinstance(error, OSError) and error.filename else ""
        told = f"{error.strerror}{named}" if isinstance(error, OSError) else "out of memory"
        _fail(told, "see `accord doctor` for memory and disk", ResourceError.exit_code, as_json, verbose, error)
    except typer.Exit:
        raise
    except SystemExit as error:
        at = _place_of(error)
        _fail(
            f"sys.exit({error.code!r}) was called in the midst of the work",
            at,
            DataError.exit_code,
            as_json,
            verbose,
            error,
        )
    except Exception as error:
        _bug(error, as_json, verbose)


def voice(stream: TextIO) -> TextIO:
    """Return the stream, or of all but the first of several processes one that nobody reads."""
    return stream if launched_ranks()[0] == 0 else io.StringIO()


def _bug(error: Exception, as_json: bool, verbose: bool) -> NoReturn:
    """An error nobody foresaw: name the place, offer the traceback."""
    told = f"{type(error).__name__}: {error}\n  at:   {_place_of(error)}"
    _fail(told, "this is a bug in Accord; run again with -v for the traceback", 1, as_json, verbose, error)


def _place_of(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}:{last.lineno} in {last.name}"


def _fail(told: str, hint: str, code: int, as_json: bool, verbose: bool, error: BaseException) -> NoReturn:
    rank, _ = launched_ranks()
    if rank:
        if code >= 128:  # a signal, which all have got
            raise typer.Exit(code) from None
        time.sleep(OTHERS_SPEAK_AFTER_S)
        told = f"process {rank}: {told}"
    if verbose:
        sys.stderr.write(for_terminal("".join(traceback.format_exception(error))))
    if as_json and not rank:
        said = {"error": without_passwords(told), "hint": hint, "exit_code": code}
        sys.stdout.write(for_json(json.dumps(said, ensure_ascii=False)) + "\n")
    sys.stderr.write(for_terminal(f"accord: {told}\n" + (f"  hint: {hint}\n" if hint else "")))
    raise typer.Exit(code) from None


def to_plain(value: Any) -> Any:
    """Dataclasses, models and paths as what JSON knows; a float that is not a number becomes null."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(item) for item in value]
    if isinstance(value, float):
        return value if value - value == 0 else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def _lines(plain: Any, indent: str = "") -> Iterator[str]:
    if not isinstance(plain, dict):
        yield f"{indent}{plain}"
        return
    for key, value in plain.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _lines(value, indent + "  ")
        else:
            yield f"{indent}{key}: {value:.4g}" if isinstance(value, float) else f"{indent}{key}: {value}"


def path_text(path: Path) -> str:
    """A path as a reader at the shell would type it: relative where it lies below the working directory."""
    with contextlib.suppress(ValueError, OSError):
        return str(path.resolve().relative_to(Path.cwd()))
    return str(path)
