"""item_status has the category that a model named which caption asked, where one did"""

from importlib import import_module

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

GIVEN = """
CREATE OR REPLACE FUNCTION given_category(step text, detail jsonb) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN step IN ('import', 'caption') THEN nullif(detail->>'category', '') END
$$;
"""
# What stands in the functions of 0012 → what takes its place.
CHANGES = (
    (
        "ELSIF NEW.step IN ('cut', 'import') AND",
        """ELSIF NEW.step = 'caption' THEN
    UPDATE item_status
    SET category = coalesce(given_category(NEW.step, NEW.detail), item_category(clip.video_id, clip.start_frame),
                            category)
    FROM clip WHERE clip.id = NEW.subject AND item_status.id = clip.id AND item_status.step <> 'forget';
  ELSIF NEW.step IN ('cut', 'import') AND""",
    ),
    (
        "coalesce(t.category, given_category(made.step, made.detail)), s.words",
        "coalesce(asked.category, t.category, given_category(made.step, made.detail)), s.words",
    ),
    (
        "LEFT JOIN told_category t ON t.subject = c.video_id AND t.start_frame = c.start_frame",
        """LEFT JOIN told_category t ON t.subject = c.video_id AND t.start_frame = c.start_frame
  LEFT JOIN LATERAL (
    SELECT given_category(run.step, run.detail) AS category FROM step_run run
    WHERE run.step = 'caption' AND run.subject = c.id AND NOT run.superseded ORDER BY run.id DESC LIMIT 1
  ) asked ON true""",
    ),
)


def upgrade() -> None:
    functions: str = import_module("medgen.migrations.versions.0012_published_sets").functions()
    for before, after in CHANGES:
        assert functions.count(before) == 1, before
        functions = functions.replace(before, after)
    op.get_bind().exec_driver_sql(GIVEN + functions)


def downgrade() -> None:
    earlier = import_module("medgen.migrations.versions.0012_published_sets")
    given = earlier.FUNCTIONS[earlier.FUNCTIONS.index("CREATE FUNCTION given_category") :]
    op.get_bind().exec_driver_sql(given.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION") + earlier.functions())
