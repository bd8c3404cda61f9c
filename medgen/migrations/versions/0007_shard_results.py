"""shard_result and lost_artifact: what steps made of whole shards, and what the store misses"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "shard_result",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("runs", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_shard_result_used_at", "shard_result", ["used_at"])
    op.create_table("lost_artifact", sa.Column("sha256", sa.String(64), primary_key=True))


def downgrade() -> None:
    op.drop_table("lost_artifact")
    op.drop_table("shard_result")
