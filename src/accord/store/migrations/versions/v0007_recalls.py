"""Sources of feedback that are recalled or opted out, and signals: what users do without saying anything."""

from __future__ import annotations

from alembic import op

from accord.store.migrations.versions import v0001_facts as first

revision = "0007"
down_revision = "0006"

_TABLES = """
CREATE TABLE recalls (
    id {key},
    source TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('recall', 'opt_out')),
    reason TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    ended_at DOUBLE PRECISION
);
CREATE TABLE signals (
    id {key},
    served_id BIGINT NOT NULL REFERENCES served (id),
    kind TEXT NOT NULL,
    judge TEXT NOT NULL,
    value DOUBLE PRECISION,
    detail TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    UNIQUE (served_id, kind, judge)
);
"""


def upgrade() -> None:
    first.run(_TABLES.format(key=first.KEY[op.get_bind().dialect.name]), ";")
