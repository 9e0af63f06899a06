"""Many annotators against a real ``accord label`` that is killed in the middle: nothing acknowledged is lost.

In small; how quick it is, is measured by hand (``python -m benchmarks.people_load``), on a machine with nothing else.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from accord.config import LabelConfig
from accord.people.desk import Desk
from benchmarks.people_load import Load, Log, audit, run


@pytest.mark.slow
def test_a_killed_server_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    (tmp_path / "accord.yaml").write_text("store: accord.db\n")
    result = run(tmp_path, Load(annotators=10, every_s=0.5, seconds=5.0))
    assert result["acknowledged"] == result["in_the_store"] == result["facts"] > 50
    assert (result["lost"], result["double"], result["damaged"]) == (0, 0, 0)
    assert result["sent_twice"] > 0 and result["answered_unlike_the_first"] == 0
    assert result["refused"] == {} and result["interrupted_requests"] > 0


def test_the_audit_sees_what_was_lost(tmp_path: Path) -> None:
    from accord.store import Store

    with Store.open(tmp_path / "accord.db") as store:
        Desk(store, LabelConfig())
    log = Log(acknowledged={"a submission that nobody kept": (1, "task")})
    assert audit(tmp_path, log)["lost"] == 1
