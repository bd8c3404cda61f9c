"""Alembic's entry: migrates over the connection handed in by `medgen.migrations.upgrade`."""

from alembic import context

from medgen.catalog import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
