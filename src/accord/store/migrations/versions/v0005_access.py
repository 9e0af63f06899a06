"""Who made what lets people in, when it was taken back, and a log of access that nobody changes."""

from __future__ import annotations

from alembic import op

from accord.store.migrations.versions import v0001_facts as first

revision = "0005"
down_revision = "0004"

_COLUMNS = """
ALTER TABLE invites ADD COLUMN person_id BIGINT REFERENCES people (id);
ALTER TABLE invites ADD COLUMN revoked_at DOUBLE PRECISION;
ALTER TABLE tokens ADD COLUMN made_by BIGINT REFERENCES people (id);
ALTER TABLE sessions ADD COLUMN token_id BIGINT REFERENCES tokens (id);
ALTER TABLE sessions ADD COLUMN link_id BIGINT REFERENCES invites (id);
"""

_LOG = """
CREATE TABLE access_log (
    id {key},
    at DOUBLE PRECISION NOT NULL,
    by_id BIGINT REFERENCES people (id),
    about_id BIGINT REFERENCES people (id),
    action TEXT NOT NULL,
    detail TEXT NOT NULL
);
"""

# Before this version an invitation outlived whoever made it: those of people who could not make them now end here.
_VOID = """
UPDATE invites SET revoked_at = created_at
WHERE used_by IS NULL AND EXISTS (
    SELECT 1 FROM people WHERE people.id = invites.invited_by AND (
        people.disabled OR people.role = 'annotator' OR (people.role = 'manager' AND invites.role <> 'annotator')
    )
);
"""


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    first.run(_COLUMNS, ";")
    first.run(_LOG.format(key=first.KEY[dialect]), ";")
    first.run(_VOID, ";")
    first.guard("access_log", "id = NEW.id", dialect)
