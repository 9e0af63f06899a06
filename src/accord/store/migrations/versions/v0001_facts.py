"""The facts: texts, who wrote them, who judged them and how; and the triggers that keep them as they are."""

from __future__ import annotations

from collections.abc import Sequence

from alembic import op

revision = "0001"
down_revision = None

KEY = {"sqlite": "INTEGER PRIMARY KEY", "postgresql": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"}
# Clustered by its key, a table of four small columns needs half the space.
CLUSTERED = {"sqlite": " WITHOUT ROWID", "postgresql": ""}

_FACTS = """
CREATE TABLE texts (
    id {key},
    content_id TEXT NOT NULL UNIQUE,
    text TEXT NOT NULL
);
CREATE TABLE sources (
    id {key},
    content_id TEXT NOT NULL UNIQUE,
    origin TEXT NOT NULL CHECK (origin IN ('human', 'policy', 'user')),
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    sampling TEXT NOT NULL
);
CREATE TABLE annotators (
    id {key},
    content_id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    annotator_kind TEXT NOT NULL CHECK (annotator_kind IN ('human', 'simulated', 'model')),
    note TEXT NOT NULL
);
CREATE TABLE prompts (
    id {key},
    content_id TEXT NOT NULL UNIQUE,
    text_id BIGINT NOT NULL REFERENCES texts (id),
    topic TEXT NOT NULL,
    meta TEXT NOT NULL
);
CREATE TABLE completions (
    id {key},
    content_id TEXT NOT NULL UNIQUE,
    prompt_id BIGINT NOT NULL REFERENCES prompts (id),
    text_id BIGINT NOT NULL REFERENCES texts (id),
    source_id BIGINT NOT NULL REFERENCES sources (id),
    meta TEXT NOT NULL
);
CREATE INDEX ix_completions_prompt_id ON completions (prompt_id);
"""

_JUDGEMENTS = """
CREATE TABLE {name} (
    id {key},
    content_id TEXT NOT NULL UNIQUE,
    annotator_id BIGINT NOT NULL REFERENCES annotators (id),
    created_at TEXT NOT NULL,
    seconds DOUBLE PRECISION CHECK (seconds >= 0),
    guideline_id BIGINT NOT NULL REFERENCES texts (id),
    note_id BIGINT NOT NULL REFERENCES texts (id),
    flags TEXT NOT NULL,
    supersedes_id BIGINT REFERENCES {name} (id),
    {subject}_id BIGINT NOT NULL REFERENCES {subject}s (id){more}
);
CREATE UNIQUE INDEX ix_{name}_supersedes_id ON {name} (supersedes_id) WHERE supersedes_id IS NOT NULL;
CREATE INDEX ix_{name}_{subject}_id ON {name} ({subject}_id);
"""

_SUBJECTS = {
    "rankings": ("prompt", []),
    "ratings": (
        "completion",
        [
            "value DOUBLE PRECISION NOT NULL",
            "low DOUBLE PRECISION NOT NULL",
            "high DOUBLE PRECISION NOT NULL",
            "CHECK (value BETWEEN low AND high)",
        ],
    ),
    "labels": ("completion", ["good BOOLEAN NOT NULL"]),
    "demonstrations": ("prompt", ["text_id BIGINT NOT NULL REFERENCES texts (id)"]),
}

_ITEMS = """
CREATE TABLE ranking_items (
    ranking_id BIGINT NOT NULL REFERENCES rankings (id),
    position INTEGER NOT NULL,
    completion_id BIGINT NOT NULL REFERENCES completions (id),
    rank INTEGER NOT NULL CHECK (rank >= 1),
    PRIMARY KEY (ranking_id, position),
    UNIQUE (ranking_id, completion_id)
){clustered};
CREATE INDEX ix_ranking_items_completion_id ON ranking_items (completion_id);
"""

# INSERT OR REPLACE deletes without telling the trigger on DELETE, hence the third: what is there already is kept.
_SQLITE_GUARDS = """
CREATE TRIGGER {name}_refuses_update BEFORE UPDATE ON {name}
BEGIN SELECT RAISE(ABORT, '{name} is append-only: add a new row instead'); END
--
CREATE TRIGGER {name}_refuses_delete BEFORE DELETE ON {name}
BEGIN SELECT RAISE(ABORT, '{name} is append-only: add a new row instead'); END
--
CREATE TRIGGER {name}_refuses_replace BEFORE INSERT ON {name}
WHEN EXISTS (SELECT 1 FROM {name} WHERE {same})
BEGIN SELECT RAISE(IGNORE); END
"""

_POSTGRESQL_REFUSAL = """
CREATE FUNCTION accord_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION '% is append-only: add a new row instead', TG_TABLE_NAME; END $$
"""

_POSTGRESQL_GUARDS = """
CREATE TRIGGER {name}_refuses_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {name}
FOR EACH STATEMENT EXECUTE FUNCTION accord_refuse()
"""

FACT = "id = NEW.id OR content_id = NEW.content_id"
_ITEM = "ranking_id = NEW.ranking_id AND (position = NEW.position OR completion_id = NEW.completion_id)"
_SAME = (
    dict.fromkeys(("texts", "sources", "annotators", "prompts", "completions"), FACT)
    | dict.fromkeys(_SUBJECTS, f"{FACT} OR supersedes_id = NEW.supersedes_id")
    | {"ranking_items": _ITEM}
)


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    run(_FACTS.format(key=KEY[dialect]), ";")
    for name, (subject, columns) in _SUBJECTS.items():
        run(judgements(name, subject, columns, dialect), ";")
    run(_ITEMS.format(clustered=CLUSTERED[dialect]), ";")
    if dialect == "postgresql":
        op.execute(_POSTGRESQL_REFUSAL.strip())
    for name, same in _SAME.items():
        guard(name, same, dialect)


def judgements(name: str, subject: str, columns: Sequence[str], dialect: str) -> str:
    """The table of one kind of judgement on a prompt or a completion."""
    more = "".join(f",\n    {column}" for column in columns)
    return _JUDGEMENTS.format(name=name, subject=subject, more=more, key=KEY[dialect])


def guard(name: str, same: str, dialect: str) -> None:
    """Make a table append-only; ``same`` says which rows are one."""
    guards = {"sqlite": _SQLITE_GUARDS, "postgresql": _POSTGRESQL_GUARDS}[dialect]
    run(guards.format(name=name, same=same), "--")


def run(script: str, separator: str) -> None:
    """Execute the statements of a script."""
    for statement in script.split(separator):
        if statement.strip():
            op.execute(statement.strip())
