"""The work beside the facts: people and how they get in, guidelines, tasks, who has them, and what they answered."""

from __future__ import annotations

from alembic import op

from accord.store.migrations.versions import v0001_facts as first

revision = "0003"
down_revision = "0002"

_PEOPLE = """
CREATE TABLE people (
    id {key},
    name TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL CHECK (role IN ('admin', 'manager', 'annotator')),
    annotator_id BIGINT NOT NULL UNIQUE REFERENCES annotators (id),
    disabled BOOLEAN NOT NULL,
    lean INTEGER NOT NULL,
    created_at DOUBLE PRECISION NOT NULL
);
CREATE TABLE invites (
    id {key},
    token_hash TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL CHECK (role IN ('admin', 'manager', 'annotator')),
    invited_by BIGINT REFERENCES people (id),
    created_at DOUBLE PRECISION NOT NULL,
    expires_at DOUBLE PRECISION NOT NULL,
    used_by BIGINT REFERENCES people (id)
);
CREATE TABLE sessions (
    id {key},
    token_hash TEXT NOT NULL UNIQUE,
    person_id BIGINT NOT NULL REFERENCES people (id),
    expires_at DOUBLE PRECISION NOT NULL
);
CREATE TABLE tokens (
    id {key},
    token_hash TEXT NOT NULL UNIQUE,
    person_id BIGINT NOT NULL REFERENCES people (id),
    label TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    revoked_at DOUBLE PRECISION
);
CREATE TABLE guidelines (
    rev INTEGER NOT NULL PRIMARY KEY,
    text TEXT NOT NULL,
    written_by BIGINT REFERENCES people (id),
    created_at DOUBLE PRECISION NOT NULL
);
CREATE TABLE confirmations (
    person_id BIGINT NOT NULL REFERENCES people (id),
    rev INTEGER NOT NULL REFERENCES guidelines (rev),
    created_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (person_id, rev)
);
"""

_TASKS = """
CREATE TABLE tasks (
    id {key},
    task_id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    prompt_id BIGINT NOT NULL REFERENCES prompts (id),
    overlap INTEGER NOT NULL,
    free INTEGER NOT NULL,
    turn DOUBLE PRECISION NOT NULL,
    group_name TEXT NOT NULL,
    gold TEXT,
    origin TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    CHECK (free BETWEEN 0 AND overlap)
);
CREATE INDEX ix_tasks_free ON tasks (turn, id) WHERE free > 0;
CREATE TABLE task_completions (
    task_id BIGINT NOT NULL REFERENCES tasks (id),
    position INTEGER NOT NULL,
    completion_id BIGINT NOT NULL REFERENCES completions (id),
    PRIMARY KEY (task_id, position)
){clustered};
"""

_ANSWERS = """
CREATE TABLE assignments (
    id {key},
    task_id BIGINT NOT NULL REFERENCES tasks (id),
    person_id BIGINT NOT NULL REFERENCES people (id),
    shown TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('leased', 'expired', 'released', 'submitted', 'skipped', 'barred')),
    counts BOOLEAN NOT NULL,
    revision INTEGER NOT NULL,
    guideline_rev INTEGER NOT NULL,
    given_at DOUBLE PRECISION NOT NULL,
    until DOUBLE PRECISION NOT NULL,
    draft TEXT,
    reason TEXT NOT NULL,
    note TEXT NOT NULL,
    UNIQUE (person_id, task_id)
);
CREATE INDEX ix_assignments_state ON assignments (state, until);
CREATE INDEX ix_assignments_person ON assignments (person_id, state);
CREATE TABLE submissions (
    id {key},
    submission_id TEXT NOT NULL UNIQUE,
    task_id BIGINT NOT NULL REFERENCES tasks (id),
    person_id BIGINT NOT NULL REFERENCES people (id),
    revision INTEGER NOT NULL,
    key TEXT NOT NULL,
    shown TEXT NOT NULL,
    answer TEXT NOT NULL,
    seconds DOUBLE PRECISION NOT NULL,
    pauses_s DOUBLE PRECISION NOT NULL,
    guideline_rev INTEGER NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    undone_at DOUBLE PRECISION,
    extra BOOLEAN NOT NULL,
    adjudication BOOLEAN NOT NULL,
    judgement_ids TEXT NOT NULL,
    UNIQUE (person_id, key)
);
CREATE UNIQUE INDEX ix_submissions_task ON submissions (task_id, person_id, adjudication, revision);
CREATE INDEX ix_submissions_person ON submissions (person_id, created_at);
"""


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    for script in (_PEOPLE, _TASKS, _ANSWERS):
        first.run(script.format(key=first.KEY[dialect], clustered=first.CLUSTERED[dialect]), ";")
