"""item_status knows clips of published sets: their step is import, their category what the set says of them"""

from importlib import import_module

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

FUNCTIONS = """
CREATE FUNCTION first_step(of_source text) RETURNS text LANGUAGE sql STABLE AS $$
  SELECT CASE WHEN EXISTS (SELECT FROM source WHERE name = of_source AND kind = 'published set')
         THEN 'import' ELSE 'discover' END
$$;

CREATE FUNCTION given_category(step text, detail jsonb) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN step = 'import' THEN nullif(detail->>'category', '') END
$$;
"""
# What stands in the functions of 0005 → what takes its place.
CHANGES = (
    ("NEW.id, 'video', NEW.id, 'discover',", "NEW.id, 'video', NEW.id, first_step(NEW.source_name),"),
    (
        "item_category(NEW.video_id, NEW.start_frame), whole.words",
        "coalesce(item_category(NEW.video_id, NEW.start_frame), given_category(run.step, run.detail)), whole.words",
    ),
    ("ELSIF NEW.step = 'cut' AND", "ELSIF NEW.step IN ('cut', 'import') AND"),
    ("ELSIF NEW.step = 'cut' THEN", "ELSIF NEW.step IN ('cut', 'import') THEN"),
    ("coalesce(w.step, 'discover')", "coalesce(w.step, first_step(v.source_name))"),
    ("t.category, s.words", "coalesce(t.category, given_category(made.step, made.detail)), s.words"),
    ("WHERE w.step = 'cut' AND", "WHERE w.step IN ('cut', 'import') AND"),
)
TRIGGERS = "CREATE TRIGGER"  # what follows in 0005 stays


def _functions() -> str:
    """The functions of 0005, to be written over those that are there."""
    text: str = import_module("medgen.migrations.versions.0005_item_status").FUNCTIONS
    return text[: text.index(TRIGGERS)].replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")


def functions() -> str:
    """Those of 0005 with the changes, to be written over those that are there."""
    changed = _functions()
    for before, after in CHANGES:
        assert changed.count(before) == 1, before
        changed = changed.replace(before, after)
    return changed


def upgrade() -> None:
    op.get_bind().exec_driver_sql(FUNCTIONS + functions())


def downgrade() -> None:
    op.get_bind().exec_driver_sql(_functions())
    op.execute("DROP FUNCTION first_step(text)")
    op.execute("DROP FUNCTION given_category(text, jsonb)")
