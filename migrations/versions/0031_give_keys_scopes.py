"""give keys scopes. Stored keys keep those of their tier.

Revision: 0031
After: 0030
"""

import sqlalchemy as sa
from alembic import op

revision = "0031"
down_revision = "0030"


def upgrade() -> None:
    op.add_column("keys", sa.Column("scopes", sa.ARRAY(sa.Text()), nullable=True))


def downgrade() -> None:
    # Without the column they could do what every caller can, which they were not given.
    op.execute("UPDATE keys SET revoked_at = coalesce(revoked_at, now()) WHERE NOT scopes @> ARRAY['use']")
    op.drop_column("keys", "scopes")
