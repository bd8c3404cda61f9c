"""source_identity: which place goes by which name; those on record keep the names that they have"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "source_identity",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("added_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_source_identity_label", "source_identity", ["label"])
    op.execute(
        "INSERT INTO source_identity (name, label, place, uri, added_at) "
        "SELECT name, name, uri, uri, added_at FROM source"
    )


def downgrade() -> None:
    op.drop_table("source_identity")
