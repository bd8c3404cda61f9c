"""standing of every item: one row per video, clip and stretch to search, kept by triggers; indexes of the audit site"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# The steps whose word counts for an item. Others (recheck, forget, encode, …) look at it and leave it where it stands.
STEPS = "'download','segment','classify','cut','quality','decide','deduplicate','privacy','caption'"

FUNCTIONS = f"""
CREATE FUNCTION standing_words(title text, channel text, tags text[]) RETURNS tsvector
LANGUAGE sql IMMUTABLE AS $$
  SELECT setweight(to_tsvector('simple', left(coalesce(title, ''), 5000)), 'A')
      || to_tsvector('simple', left(coalesce(channel, ''), 500))
      || to_tsvector('simple', left(array_to_string(tags, ' '), 5000))
$$;

CREATE FUNCTION standing_category(of_video text, at_frame integer) RETURNS text
LANGUAGE sql STABLE AS $$
  SELECT piece->>'category'
  FROM (SELECT detail FROM step_run
        WHERE step = 'classify' AND subject = of_video AND status = 'kept' AND NOT superseded
        ORDER BY id DESC LIMIT 1) AS run,
       jsonb_array_elements(run.detail->'clips') AS piece
  WHERE (piece->>'start_frame')::integer = at_frame
  LIMIT 1
$$;

CREATE FUNCTION standing_of_video() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    INSERT INTO standing (id, kind, video_id, step, status, decided_at, source_name, title, channel, licence, words)
    VALUES (NEW.id, 'video', NEW.id, 'discover', 'kept', NEW.discovered_at, NEW.source_name, NEW.title, NEW.channel,
            NEW.licence, standing_words(NEW.title, NEW.channel, NEW.tags))
    ON CONFLICT (id) DO NOTHING;
  ELSE
    UPDATE standing SET title = NEW.title, channel = NEW.channel, licence = NEW.licence,
           words = standing_words(NEW.title, NEW.channel, NEW.tags)
    WHERE video_id = NEW.id;
  END IF;
  RETURN NULL;
END $$;

CREATE FUNCTION standing_of_clip() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO standing (id, kind, video_id, step, status, reason, decided_at, run_id, source_name, title, channel,
                        licence, category, words)
  SELECT NEW.id, 'clip', NEW.video_id, run.step, run.status, run.reason, run.finished_at, run.id, whole.source_name,
         whole.title, whole.channel, whole.licence, standing_category(NEW.video_id, NEW.start_frame), whole.words
  FROM standing AS whole, step_run AS run
  WHERE whole.id = NEW.video_id AND run.id = NEW.step_run_id
  ON CONFLICT (id) DO NOTHING;
  RETURN NULL;
END $$;

CREATE FUNCTION standing_of_run() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE standing SET step = NEW.step, status = NEW.status, reason = NEW.reason, decided_at = NEW.finished_at,
         run_id = NEW.id
  WHERE id = NEW.subject AND step <> 'forget';
  IF NEW.step = 'classify' AND NEW.status = 'kept' THEN
    UPDATE standing SET category = coalesce(standing_category(clip.video_id, clip.start_frame), category)
    FROM clip WHERE clip.video_id = NEW.subject AND standing.id = clip.id;
  ELSIF NEW.step = 'cut' AND NEW.status = 'kept' THEN
    DELETE FROM standing WHERE id = NEW.subject AND kind = 'stretch';
  ELSIF NEW.step = 'cut' THEN
    INSERT INTO standing (id, kind, video_id, step, status, reason, decided_at, run_id, source_name, title, channel,
                          licence, words)
    SELECT NEW.subject, 'stretch', whole.id, NEW.step, NEW.status, NEW.reason, NEW.finished_at, NEW.id,
           whole.source_name, whole.title, whole.channel, whole.licence, whole.words
    FROM standing AS whole WHERE whole.id = split_part(NEW.subject, '/', 1)
    ON CONFLICT (id) DO NOTHING;
  END IF;
  RETURN NULL;
END $$;

CREATE FUNCTION standing_of_tombstone() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE standing SET step = 'forget', status = 'rejected', reason = 'forgotten', category = NULL,
         decided_at = NEW.forgotten_at
  WHERE video_id = NEW.video_id AND step <> 'forget';
  RETURN NULL;
END $$;

-- Everything anew from the records: for a catalog that was filled before, or past the triggers.
CREATE FUNCTION rebuild_standing() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM standing;
  CREATE TEMPORARY TABLE last_word ON COMMIT DROP AS
    SELECT DISTINCT ON (subject) subject, id, step, status, reason, finished_at
    FROM step_run WHERE step IN ({STEPS}) AND NOT superseded ORDER BY subject, id DESC;
  ANALYZE last_word;
  INSERT INTO standing (id, kind, video_id, step, status, reason, decided_at, run_id, source_name, title, channel,
                        licence, words)
  SELECT v.id, 'video', v.id, coalesce(w.step, 'discover'), coalesce(w.status, 'kept'), w.reason,
         coalesce(w.finished_at, v.discovered_at), w.id, v.source_name, v.title, v.channel, v.licence,
         standing_words(v.title, v.channel, v.tags)
  FROM video v LEFT JOIN last_word w ON w.subject = v.id;
  CREATE TEMPORARY TABLE told_category ON COMMIT DROP AS
    SELECT DISTINCT ON (1, 2)
           run.subject, (piece->>'start_frame')::integer AS start_frame, piece->>'category' AS category
    FROM (SELECT DISTINCT ON (subject) subject, detail FROM step_run
          WHERE step = 'classify' AND status = 'kept' AND NOT superseded ORDER BY subject, id DESC) AS run,
         jsonb_array_elements(run.detail->'clips') AS piece;
  ANALYZE told_category;
  INSERT INTO standing (id, kind, video_id, step, status, reason, decided_at, run_id, source_name, title, channel,
                        licence, category, words)
  SELECT c.id, 'clip', c.video_id, coalesce(w.step, made.step), coalesce(w.status, made.status),
         CASE WHEN w.id IS NULL THEN made.reason ELSE w.reason END, coalesce(w.finished_at, made.finished_at),
         coalesce(w.id, made.id), s.source_name, s.title, s.channel, s.licence, t.category, s.words
  FROM clip c
  JOIN standing s ON s.id = c.video_id
  JOIN step_run made ON made.id = c.step_run_id
  LEFT JOIN last_word w ON w.subject = c.id
  LEFT JOIN told_category t ON t.subject = c.video_id AND t.start_frame = c.start_frame
  ON CONFLICT (id) DO NOTHING;
  INSERT INTO standing (id, kind, video_id, step, status, reason, decided_at, run_id, source_name, title, channel,
                        licence, words)
  SELECT w.subject, 'stretch', s.id, w.step, w.status, w.reason, w.finished_at, w.id, s.source_name, s.title,
         s.channel, s.licence, s.words
  FROM last_word w JOIN standing s ON s.id = split_part(w.subject, '/', 1)
  WHERE w.step = 'cut' AND w.status <> 'kept' AND position('/' in w.subject) > 0
  ON CONFLICT (id) DO NOTHING;
  UPDATE standing SET step = 'forget', status = 'rejected', reason = 'forgotten', category = NULL,
         decided_at = t.forgotten_at
  FROM tombstone t WHERE t.video_id = standing.video_id;
END $$;

CREATE TRIGGER standing_of_video AFTER INSERT OR UPDATE OF title, channel, licence, tags ON video
  FOR EACH ROW EXECUTE FUNCTION standing_of_video();
CREATE TRIGGER standing_of_clip AFTER INSERT ON clip FOR EACH ROW EXECUTE FUNCTION standing_of_clip();
CREATE TRIGGER standing_of_run AFTER INSERT ON step_run FOR EACH ROW
  WHEN (NEW.step IN ({STEPS})) EXECUTE FUNCTION standing_of_run();
CREATE TRIGGER standing_of_tombstone AFTER INSERT ON tombstone
  FOR EACH ROW EXECUTE FUNCTION standing_of_tombstone();
"""

BY = ("kind", "status", "reason", "step", "channel", "licence", "category", "source_name")


def upgrade() -> None:
    op.create_table(
        "standing",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("video_id", sa.Text(), nullable=False),
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=True),
        sa.Column("source_name", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("channel", sa.Text(), nullable=True),
        sa.Column("licence", sa.Text(), nullable=True),
        sa.Column("category", sa.Text(), nullable=True),
        sa.Column("words", postgresql.TSVECTOR(), nullable=False),
    )
    op.get_bind().exec_driver_sql(FUNCTIONS)
    op.execute("SELECT rebuild_standing()")
    op.create_index("ix_standing_at", "standing", ["decided_at", "id"])
    for column in BY:
        op.create_index(f"ix_standing_{column}", "standing", [column, "decided_at", "id"])
    op.create_index("ix_standing_video", "standing", ["video_id"])
    op.create_index("ix_standing_words", "standing", ["words"], postgresql_using="gin")
    op.drop_index("ix_score_metric_value", "score")
    op.create_index("ix_score_metric_value", "score", ["metric", "value", "clip_id"])
    op.drop_index("ix_step_run_step_status_reason", "step_run")
    op.create_index("ix_step_run_step_status_reason", "step_run", ["step", "status", "reason", "id"])
    op.create_index(
        "ix_step_run_flow",
        "step_run",
        ["flow_run_id", "id"],
        postgresql_where=sa.text("flow_run_id IS NOT NULL"),
    )
    op.create_index(
        "ix_step_run_copy_of",
        "step_run",
        [sa.text("(detail ->> 'duplicate_of')")],
        postgresql_where=sa.text("step = 'deduplicate'"),
    )


def downgrade() -> None:
    op.drop_index("ix_step_run_copy_of", "step_run")
    op.drop_index("ix_step_run_flow", "step_run")
    op.drop_index("ix_step_run_step_status_reason", "step_run")
    op.create_index("ix_step_run_step_status_reason", "step_run", ["step", "status", "reason"])
    op.drop_index("ix_score_metric_value", "score")
    op.create_index("ix_score_metric_value", "score", ["metric", "value"])
    for table, trigger in (("video", "video"), ("clip", "clip"), ("step_run", "run"), ("tombstone", "tombstone")):
        op.execute(f"DROP TRIGGER standing_of_{trigger} ON {table}")
        op.execute(f"DROP FUNCTION standing_of_{trigger}()")
    op.execute("DROP FUNCTION rebuild_standing()")
    op.execute("DROP FUNCTION standing_category(text, integer)")
    op.execute("DROP FUNCTION standing_words(text, text, text[])")
    op.drop_table("standing")
