"""A throw-away PostgreSQL server for tests: made in a temporary folder, reached by a socket there, gone afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USER = "postgres"


def binaries() -> Path | None:
    """The newest server that is installed: where PATH looks, or where Debian puts it."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    folders = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return max((path.parent for path in folders), key=lambda path: float(path.parent.name), default=None)


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """A running server and its URL. It forgets nothing while it runs, and need not survive: fsync is off."""
    home = Path(tempfile.mkdtemp(prefix="accord-pg-"))  # a socket's path must be short, and root's folders are closed
    user = USER if os.geteuid() == 0 else None  # the server refuses to run as root
    data = home / "data"
    try:
        if user:
            shutil.chown(home, user)
        _run(folder / "initdb", "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C", "-N", user=user)
        options = f"-c listen_addresses= -c unix_socket_directories={home} -c fsync=off"
        control = (folder / "pg_ctl", "-D", data, "-l", home / "log", "-w")
        _run(*control, "-o", options, "start", user=user)
        try:
            yield f"postgresql://{USER}@/postgres?host={home}"
        finally:
            _run(*control, "-m", "immediate", "stop", user=user)
    finally:
        shutil.rmtree(home)


def _run(*command: str | Path, user: str | None) -> None:
    # Not captured by pipes: the server would keep them open for as long as it runs.
    with tempfile.TemporaryFile() as told:
        done = subprocess.run(
            [str(word) for word in command], stdout=told, stderr=told, stdin=subprocess.DEVNULL, user=user, cwd="/"
        )
        told.seek(0)
        assert done.returncode == 0, told.read().decode(errors="replace")
