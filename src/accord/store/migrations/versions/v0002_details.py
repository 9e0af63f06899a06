"""What else an annotator can say: strength, unacceptable, axes, remarks, withdrawals; and prompts of messages."""

from __future__ import annotations

from alembic import op

from accord.store.migrations.versions import v0001_facts as first

revision = "0002"
down_revision = "0001"

_COLUMNS = """
ALTER TABLE prompts ADD COLUMN form TEXT NOT NULL DEFAULT 'text' CHECK (form IN ('text', 'messages'));
ALTER TABLE rankings ADD COLUMN strength TEXT
    CHECK (strength IN ('significantly', 'better', 'slightly', 'negligibly'));
ALTER TABLE ranking_items ADD COLUMN unacceptable BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE ratings ADD COLUMN axis TEXT NOT NULL DEFAULT '';
"""

_WITHDRAWALS = """
CREATE TABLE withdrawals (
    id {key},
    content_id TEXT NOT NULL UNIQUE,
    annotator_id BIGINT NOT NULL REFERENCES annotators (id),
    judgement_id TEXT NOT NULL,
    created_at TEXT NOT NULL,
    note TEXT NOT NULL
);
CREATE INDEX ix_withdrawals_judgement_id ON withdrawals (judgement_id);
"""


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    first.run(_COLUMNS, ";")
    first.run(first.judgements("remarks", "completion", [], dialect), ";")
    first.run(_WITHDRAWALS.format(key=first.KEY[dialect]), ";")
    first.guard("remarks", f"{first.FACT} OR supersedes_id = NEW.supersedes_id", dialect)
    first.guard("withdrawals", first.FACT, dialect)
