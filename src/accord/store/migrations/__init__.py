"""Alembic's folder: one file a schema version, run by ``accord.store.migrate``. A released file never changes."""
