"""discovery at scale: takedown, shards read once, politeness, byte budgets"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("video", sa.Column("channel_url", sa.Text(), nullable=True))
    op.create_table(
        "tombstone",
        sa.Column("video_id", sa.Text(), primary_key=True),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", postgresql.JSONB(), nullable=False),
        sa.Column("forgotten_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_tombstone_url", "tombstone", ["url"])
    op.create_table(
        "known_file",
        sa.Column("uri", sa.Text(), primary_key=True),
        sa.Column("mark", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
    )
    op.create_table(
        "host_pace",
        sa.Column("host", sa.Text(), primary_key=True),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "byte_account",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("used", sa.BigInteger(), nullable=False),
    )


def downgrade() -> None:
    for table in ("byte_account", "host_pace", "known_file", "tombstone"):
        op.drop_table(table)
    op.drop_column("video", "channel_url")
