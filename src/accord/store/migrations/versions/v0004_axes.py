"""Rankings and labels may answer one question of several: helpfulness, safety."""

from __future__ import annotations

from accord.store.migrations.versions import v0001_facts as first

revision = "0004"
down_revision = "0003"

_COLUMNS = """
ALTER TABLE rankings ADD COLUMN axis TEXT NOT NULL DEFAULT '';
ALTER TABLE labels ADD COLUMN axis TEXT NOT NULL DEFAULT '';
"""


def upgrade() -> None:
    first.run(_COLUMNS, ";")
