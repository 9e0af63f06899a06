"""The tables of the work as SQLite has them, word for word: what a store on disk holds must not drift."""

from __future__ import annotations

TABLES = {
    "people": """id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, role TEXT NOT NULL CHECK (role IN ('admin',
        'manager', 'annotator')), annotator_id BIGINT NOT NULL UNIQUE REFERENCES annotators (id), disabled
        BOOLEAN NOT NULL, lean INTEGER NOT NULL, created_at DOUBLE PRECISION NOT NULL""",
    "invites": """id INTEGER PRIMARY KEY, token_hash TEXT NOT NULL UNIQUE, role TEXT NOT NULL CHECK (role IN ('admin',
        'manager', 'annotator')), invited_by BIGINT REFERENCES people (id), created_at DOUBLE PRECISION NOT
        NULL, expires_at DOUBLE PRECISION NOT NULL, used_by BIGINT REFERENCES people (id), person_id BIGINT
        REFERENCES people (id), revoked_at DOUBLE PRECISION""",
    "sessions": """id INTEGER PRIMARY KEY, token_hash TEXT NOT NULL UNIQUE, person_id BIGINT NOT NULL REFERENCES people
        (id), expires_at DOUBLE PRECISION NOT NULL, token_id BIGINT REFERENCES tokens (id), link_id BIGINT REFERENCES
        invites (id)""",
    "tokens": """id INTEGER PRIMARY KEY, token_hash TEXT NOT NULL UNIQUE, person_id BIGINT NOT NULL REFERENCES people
        (id), label TEXT NOT NULL, created_at DOUBLE PRECISION NOT NULL, revoked_at DOUBLE PRECISION, made_by BIGINT
        REFERENCES people (id)""",
    "access_log": """id INTEGER PRIMARY KEY, at DOUBLE PRECISION NOT NULL, by_id BIGINT REFERENCES people (id), about_id
        BIGINT REFERENCES people (id), action TEXT NOT NULL, detail TEXT NOT NULL""",
    "served": """id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, who TEXT NOT NULL, said_by TEXT NOT NULL,
        said_by_kind TEXT NOT NULL, model TEXT NOT NULL, version TEXT NOT NULL, prompt TEXT NOT NULL, form TEXT NOT
        NULL, text TEXT NOT NULL, detail TEXT NOT NULL, created_at DOUBLE PRECISION NOT NULL""",
    "feedback": """id INTEGER PRIMARY KEY, who TEXT NOT NULL, key TEXT NOT NULL, served_id BIGINT NOT NULL REFERENCES
        served (id), kind TEXT NOT NULL, body TEXT NOT NULL, judgement_ids TEXT NOT NULL, created_at DOUBLE PRECISION
        NOT NULL, UNIQUE (who, key)""",
    "recalls": """id INTEGER PRIMARY KEY, source TEXT NOT NULL, kind TEXT NOT NULL
        CHECK (kind IN ('recall', 'opt_out')), reason TEXT NOT NULL,
        created_at DOUBLE PRECISION NOT NULL, ended_at DOUBLE PRECISION""",
    "signals": """id INTEGER PRIMARY KEY, served_id BIGINT NOT NULL REFERENCES served (id), kind TEXT NOT NULL,
        judge TEXT NOT NULL, value DOUBLE PRECISION, detail TEXT NOT NULL, created_at DOUBLE PRECISION NOT NULL,
        UNIQUE (served_id, kind, judge)""",
    "guidelines": """rev INTEGER NOT NULL PRIMARY KEY, text TEXT NOT NULL, written_by BIGINT REFERENCES people (id),
        created_at DOUBLE PRECISION NOT NULL""",
    "confirmations": """person_id BIGINT NOT NULL REFERENCES people (id), rev INTEGER NOT NULL
        REFERENCES guidelines (rev), created_at DOUBLE PRECISION NOT NULL, PRIMARY KEY (person_id, rev)""",
    "tasks": """id INTEGER PRIMARY KEY, task_id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, prompt_id BIGINT NOT NULL
        REFERENCES prompts (id), overlap INTEGER NOT NULL, free INTEGER NOT NULL, turn DOUBLE PRECISION NOT
        NULL, group_name TEXT NOT NULL, gold TEXT, origin TEXT NOT NULL, created_at DOUBLE PRECISION NOT
        NULL, CHECK (free BETWEEN 0 AND overlap)""",
    "task_completions": """task_id BIGINT NOT NULL REFERENCES tasks (id), position INTEGER NOT NULL, completion_id
        BIGINT NOT NULL REFERENCES completions (id), PRIMARY KEY (task_id, position)""",
    "assignments": """id INTEGER PRIMARY KEY, task_id BIGINT NOT NULL REFERENCES tasks (id), person_id BIGINT NOT NULL
        REFERENCES people (id), shown TEXT NOT NULL, state TEXT NOT NULL CHECK (state IN ('leased',
        'expired', 'released', 'submitted', 'skipped', 'barred')), counts BOOLEAN NOT NULL, revision INTEGER NOT NULL,
        guideline_rev INTEGER NOT NULL, given_at DOUBLE PRECISION NOT NULL, until DOUBLE PRECISION NOT NULL,
        draft TEXT, reason TEXT NOT NULL, note TEXT NOT NULL, UNIQUE (person_id, task_id)""",
    "submissions": """id INTEGER PRIMARY KEY, submission_id TEXT NOT NULL UNIQUE, task_id BIGINT NOT NULL REFERENCES
        tasks (id), person_id BIGINT NOT NULL REFERENCES people (id), revision INTEGER NOT NULL, key TEXT NOT
        NULL, shown TEXT NOT NULL, answer TEXT NOT NULL, seconds DOUBLE PRECISION NOT NULL, pauses_s DOUBLE
        PRECISION NOT NULL, guideline_rev INTEGER NOT NULL, created_at DOUBLE PRECISION NOT NULL, undone_at
        DOUBLE PRECISION, extra BOOLEAN NOT NULL, adjudication BOOLEAN NOT NULL, judgement_ids TEXT NOT
        NULL, UNIQUE (person_id, key)""",
}
INDEXES = {
    "ix_tasks_free": "CREATE INDEX ix_tasks_free ON tasks (turn, id) WHERE free > 0",
    "ix_assignments_state": "CREATE INDEX ix_assignments_state ON assignments (state, until)",
    "ix_assignments_person": "CREATE INDEX ix_assignments_person ON assignments (person_id, state)",
    "ix_submissions_task": "CREATE UNIQUE INDEX ix_submissions_task ON submissions "
    "(task_id, person_id, adjudication, revision)",
    "ix_feedback_served": "CREATE INDEX ix_feedback_served ON feedback (served_id, kind)",
    "ix_submissions_person": "CREATE INDEX ix_submissions_person ON submissions (person_id, created_at)",
}
