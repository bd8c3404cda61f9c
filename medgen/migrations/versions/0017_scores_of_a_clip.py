"""a clip's newest value of a metric is found in an index alone"""

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_score_of_clip", "score", ["clip_id", "metric", "step_run_id"], postgresql_include=["value"])
    op.drop_index("ix_score_clip_id", table_name="score")


def downgrade() -> None:
    op.create_index("ix_score_clip_id", "score", ["clip_id"])
    op.drop_index("ix_score_of_clip", table_name="score")
