"""kinds of studies: errors of single videos on four levels, beside pairs"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

AXES = ("text_alignment", "medical_accuracy", "visual_quality")


def upgrade() -> None:
    op.add_column("study", sa.Column("kind", sa.Text(), nullable=False, server_default="pairs"))
    op.alter_column("study", "kind", server_default=None)
    op.add_column("study_answer", sa.Column("error_level", sa.Integer(), nullable=True))
    for axis in AXES:
        op.alter_column("study_answer", axis, nullable=True)


def downgrade() -> None:
    op.execute("DELETE FROM study WHERE kind <> 'pairs'")  # the tables of before have no place for them
    for axis in AXES:
        op.alter_column("study_answer", axis, nullable=False)
    op.drop_column("study_answer", "error_level")
    op.drop_column("study", "kind")
