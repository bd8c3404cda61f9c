"""flow_run: what a flow run is called, when it began and how it ended"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "flow_run",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("flow", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.Column("outcome", sa.Text()),
    )
    op.create_index("ix_flow_run_flow", "flow_run", ["flow", "started_at"])


def downgrade() -> None:
    op.drop_table("flow_run")
