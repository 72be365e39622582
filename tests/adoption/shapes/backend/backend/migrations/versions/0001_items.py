import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "items", sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String, nullable=False)
    )
    op.execute("INSERT INTO items (name) SELECT 'item ' || n FROM generate_series(1, 50) n")


def downgrade() -> None:
    op.drop_table("items")
