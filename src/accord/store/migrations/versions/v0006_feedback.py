"""What a server answered, and what its users said of it: beside the facts, which come to be when somebody says one."""

from __future__ import annotations

from alembic import op

from accord.store.migrations.versions import v0001_facts as first

revision = "0006"
down_revision = "0005"

_TABLES = """
CREATE TABLE served (
    id {key},
    name TEXT NOT NULL UNIQUE,
    who TEXT NOT NULL,
    said_by TEXT NOT NULL,
    said_by_kind TEXT NOT NULL,
    model TEXT NOT NULL,
    version TEXT NOT NULL,
    prompt TEXT NOT NULL,
    form TEXT NOT NULL,
    text TEXT NOT NULL,
    detail TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL
);
CREATE TABLE feedback (
    id {key},
    who TEXT NOT NULL,
    key TEXT NOT NULL,
    served_id BIGINT NOT NULL REFERENCES served (id),
    kind TEXT NOT NULL,
    body TEXT NOT NULL,
    judgement_ids TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    UNIQUE (who, key)
);
CREATE INDEX ix_feedback_served ON feedback (served_id, kind);
"""


def upgrade() -> None:
    first.run(_TABLES.format(key=first.KEY[op.get_bind().dialect.name]), ";")
