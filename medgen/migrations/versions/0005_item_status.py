"""item_status, until now called standing; the steps whose word counts are a table, which the pipeline fills itself"""

from importlib import import_module

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# What the pipeline consists of so far. Steps that it gets later join the table when they first run.
STEPS = ("download", "segment", "classify", "cut", "quality", "decide", "deduplicate", "privacy", "caption")
INDEXES = (
    "at", "kind", "status", "reason", "step", "channel", "licence", "category", "source_name", "video", "words",
)  # fmt: skip

FUNCTIONS = """
CREATE FUNCTION item_words(title text, channel text, tags text[]) RETURNS tsvector
LANGUAGE sql IMMUTABLE AS $$
  SELECT setweight(to_tsvector('simple', left(coalesce(title, ''), 5000)), 'A')
      || to_tsvector('simple', left(coalesce(channel, ''), 500))
      || to_tsvector('simple', left(array_to_string(tags, ' '), 5000))
$$;

CREATE FUNCTION item_category(of_video text, at_frame integer) RETURNS text
LANGUAGE sql STABLE AS $$
  SELECT piece->>'category'
  FROM (SELECT detail FROM step_run
        WHERE step = 'classify' AND subject = of_video AND status = 'kept' AND NOT superseded
        ORDER BY id DESC LIMIT 1) AS run,
       jsonb_array_elements(run.detail->'clips') AS piece
  WHERE (piece->>'start_frame')::integer = at_frame
  LIMIT 1
$$;

CREATE FUNCTION item_status_of_video() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    INSERT INTO item_status (id, kind, video_id, step, status, decided_at, source_name, title, channel, licence, words)
    VALUES (NEW.id, 'video', NEW.id, 'discover', 'kept', NEW.discovered_at, NEW.source_name, NEW.title, NEW.channel,
            NEW.licence, item_words(NEW.title, NEW.channel, NEW.tags))
    ON CONFLICT (id) DO NOTHING;
  ELSE
    UPDATE item_status SET title = NEW.title, channel = NEW.channel, licence = NEW.licence,
           words = item_words(NEW.title, NEW.channel, NEW.tags)
    WHERE video_id = NEW.id;
  END IF;
  RETURN NULL;
END $$;

CREATE FUNCTION item_status_of_clip() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO item_status (id, kind, video_id, step, status, reason, decided_at, run_id, source_name, title, channel,
                        licence, category, words)
  SELECT NEW.id, 'clip', NEW.video_id, run.step, run.status, run.reason, run.finished_at, run.id, whole.source_name,
         whole.title, whole.channel, whole.licence, item_category(NEW.video_id, NEW.start_frame), whole.words
  FROM item_status AS whole, step_run AS run
  WHERE whole.id = NEW.video_id AND run.id = NEW.step_run_id
  ON CONFLICT (id) DO NOTHING;
  RETURN NULL;
END $$;

CREATE FUNCTION item_status_of_run() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM item_step WHERE name = NEW.step) THEN
    RETURN NULL;
  END IF;
  UPDATE item_status SET step = NEW.step, status = NEW.status, reason = NEW.reason, decided_at = NEW.finished_at,
         run_id = NEW.id
  WHERE id = NEW.subject AND step <> 'forget';
  IF NEW.step = 'classify' AND NEW.status = 'kept' THEN
    UPDATE item_status SET category = coalesce(item_category(clip.video_id, clip.start_frame), category)
    FROM clip WHERE clip.video_id = NEW.subject AND item_status.id = clip.id;
  ELSIF NEW.step = 'cut' AND NEW.status = 'kept' THEN
    DELETE FROM item_status WHERE id = NEW.subject AND kind = 'stretch';
  ELSIF NEW.step = 'cut' THEN
    INSERT INTO item_status (id, kind, video_id, step, status, reason, decided_at, run_id, source_name, title, channel,
                          licence, words)
    SELECT NEW.subject, 'stretch', whole.id, NEW.step, NEW.status, NEW.reason, NEW.finished_at, NEW.id,
           whole.source_name, whole.title, whole.channel, whole.licence, whole.words
    FROM item_status AS whole WHERE whole.id = split_part(NEW.subject, '/', 1)
    ON CONFLICT (id) DO NOTHING;
  END IF;
  RETURN NULL;
END $$;

CREATE FUNCTION item_status_of_tombstone() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE item_status SET step = 'forget', status = 'rejected', reason = 'forgotten', category = NULL,
         decided_at = NEW.forgotten_at
  WHERE video_id = NEW.video_id AND step <> 'forget';
  RETURN NULL;
END $$;

-- Everything anew from the records: for a catalog that was filled before, or past the triggers.
CREATE FUNCTION rebuild_item_status() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM item_status;
  CREATE TEMPORARY TABLE last_word ON COMMIT DROP AS
    SELECT DISTINCT ON (subject) subject, id, step, status, reason, finished_at
    FROM step_run WHERE step IN (SELECT name FROM item_step) AND NOT superseded ORDER BY subject, id DESC;
  ANALYZE last_word;
  INSERT INTO item_status (id, kind, video_id, step, status, reason, decided_at, run_id, source_name, title, channel,
                        licence, words)
  SELECT v.id, 'video', v.id, coalesce(w.step, 'discover'), coalesce(w.status, 'kept'), w.reason,
         coalesce(w.finished_at, v.discovered_at), w.id, v.source_name, v.title, v.channel, v.licence,
         item_words(v.title, v.channel, v.tags)
  FROM video v LEFT JOIN last_word w ON w.subject = v.id;
  CREATE TEMPORARY TABLE told_category ON COMMIT DROP AS
    SELECT DISTINCT ON (1, 2)
           run.subject, (piece->>'start_frame')::integer AS start_frame, piece->>'category' AS category
    FROM (SELECT DISTINCT ON (subject) subject, detail FROM step_run
          WHERE step = 'classify' AND status = 'kept' AND NOT superseded ORDER BY subject, id DESC) AS run,
         jsonb_array_elements(run.detail->'clips') AS piece;
  ANALYZE told_category;
  INSERT INTO item_status (id, kind, video_id, step, status, reason, decided_at, run_id, source_name, title, channel,
                        licence, category, words)
  SELECT c.id, 'clip', c.video_id, coalesce(w.step, made.step), coalesce(w.status, made.status),
         CASE WHEN w.id IS NULL THEN made.reason ELSE w.reason END, coalesce(w.finished_at, made.finished_at),
         coalesce(w.id, made.id), s.source_name, s.title, s.channel, s.licence, t.category, s.words
  FROM clip c
  JOIN item_status s ON s.id = c.video_id
  JOIN step_run made ON made.id = c.step_run_id
  LEFT JOIN last_word w ON w.subject = c.id
  LEFT JOIN told_category t ON t.subject = c.video_id AND t.start_frame = c.start_frame
  ON CONFLICT (id) DO NOTHING;
  INSERT INTO item_status (id, kind, video_id, step, status, reason, decided_at, run_id, source_name, title, channel,
                        licence, words)
  SELECT w.subject, 'stretch', s.id, w.step, w.status, w.reason, w.finished_at, w.id, s.source_name, s.title,
         s.channel, s.licence, s.words
  FROM last_word w JOIN item_status s ON s.id = split_part(w.subject, '/', 1)
  WHERE w.step = 'cut' AND w.status <> 'kept' AND position('/' in w.subject) > 0
  ON CONFLICT (id) DO NOTHING;
  UPDATE item_status SET step = 'forget', status = 'rejected', reason = 'forgotten', category = NULL,
         decided_at = t.forgotten_at
  FROM tombstone t WHERE t.video_id = item_status.video_id;
END $$;

CREATE TRIGGER item_status_of_video AFTER INSERT OR UPDATE OF title, channel, licence, tags ON video
  FOR EACH ROW EXECUTE FUNCTION item_status_of_video();
CREATE TRIGGER item_status_of_clip AFTER INSERT ON clip FOR EACH ROW EXECUTE FUNCTION item_status_of_clip();
CREATE TRIGGER item_status_of_run AFTER INSERT ON step_run FOR EACH ROW
  EXECUTE FUNCTION item_status_of_run();
CREATE TRIGGER item_status_of_tombstone AFTER INSERT ON tombstone
  FOR EACH ROW EXECUTE FUNCTION item_status_of_tombstone();
"""


def upgrade() -> None:
    _drop("standing", "standing_words", "standing_category")
    op.rename_table("standing", "item_status")
    op.execute("ALTER INDEX standing_pkey RENAME TO item_status_pkey")
    for index in INDEXES:
        op.execute(f"ALTER INDEX ix_standing_{index} RENAME TO ix_item_status_{index}")
    item_step = op.create_table("item_step", sa.Column("name", sa.Text(), primary_key=True))
    op.bulk_insert(item_step, [{"name": name} for name in STEPS])
    op.get_bind().exec_driver_sql(FUNCTIONS)


def downgrade() -> None:
    _drop("item_status", "item_words", "item_category")
    op.drop_table("item_step")
    op.rename_table("item_status", "standing")
    op.execute("ALTER INDEX item_status_pkey RENAME TO standing_pkey")
    for index in INDEXES:
        op.execute(f"ALTER INDEX ix_item_status_{index} RENAME TO ix_standing_{index}")
    op.get_bind().exec_driver_sql(import_module("medgen.migrations.versions.0003_standing_of_every_item").FUNCTIONS)


def _drop(name: str, words: str, category: str) -> None:
    """Drops the triggers that keep the table `name`, and the functions behind them."""
    for table, trigger in (("video", "video"), ("clip", "clip"), ("step_run", "run"), ("tombstone", "tombstone")):
        op.execute(f"DROP TRIGGER {name}_of_{trigger} ON {table}")
        op.execute(f"DROP FUNCTION {name}_of_{trigger}()")
    op.execute(f"DROP FUNCTION rebuild_{name}()")
    op.execute(f"DROP FUNCTION {category}(text, integer)")
    op.execute(f"DROP FUNCTION {words}(text, text, text[])")
