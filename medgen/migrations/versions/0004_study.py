"""studies: videos of several systems, rated blind by people"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "study",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("systems", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("consent", sa.Text(), nullable=False),
        sa.Column("step_run_id", sa.BigInteger(), sa.ForeignKey("step_run.id"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "study_pair",
        sa.Column("study_name", sa.Text(), sa.ForeignKey("study.name", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("prompt_id", sa.Text(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("category", sa.Text(), nullable=False),
        sa.Column("first_system", sa.Text(), nullable=False),
        sa.Column("second_system", sa.Text(), nullable=False),
        sa.Column("first_sha256", sa.String(64), sa.ForeignKey("artifact.sha256"), nullable=False),
        sa.Column("second_sha256", sa.String(64), sa.ForeignKey("artifact.sha256"), nullable=False),
        sa.Column("expected", sa.Text(), nullable=True),
    )
    op.create_table(
        "study_rater",
        sa.Column("study_name", sa.Text(), sa.ForeignKey("study.name", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("token_sha256", sa.String(64), nullable=False, unique=True),
        sa.Column("showing", postgresql.JSONB(), nullable=False),
        sa.Column("consented_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("withdrawn_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "study_answer",
        sa.Column("study_name", sa.Text(), primary_key=True),
        sa.Column("rater", sa.Integer(), primary_key=True),
        sa.Column("pair", sa.Integer(), primary_key=True),
        sa.Column("swapped", sa.Boolean(), nullable=False),
        sa.Column("text_alignment", sa.Text(), nullable=False),
        sa.Column("medical_accuracy", sa.Text(), nullable=False),
        sa.Column("visual_quality", sa.Text(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=True),
        sa.Column("revisions", sa.Integer(), nullable=False),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revised_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["study_name", "rater"], ["study_rater.study_name", "study_rater.number"], ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["study_name", "pair"], ["study_pair.study_name", "study_pair.number"], ondelete="CASCADE"
        ),
    )


def downgrade() -> None:
    for table in ("study_answer", "study_rater", "study_pair", "study"):
        op.drop_table(table)
