"""Which artifacts on record the store has lost: one look through the whole store instead of a question an artifact."""

from sqlalchemy import Engine, text

from medgen.catalog import now
from medgen.store import Store

_LOST = text(
    """
    INSERT INTO lost_artifact (sha256)
    SELECT artifact.sha256 FROM artifact LEFT JOIN held ON held.sha256 = artifact.sha256 AND held.bytes = artifact.bytes
    WHERE held.sha256 IS NULL AND artifact.created_at < :began
    ON CONFLICT DO NOTHING
    """
)


def note_lost_artifacts(engine: Engine, store: Store) -> int:
    """Fills the table `lost_artifact` anew: what the store has not, or not as many bytes of as are on record.

    What is lost later is noticed by the next look. What comes back while this one goes on is taken for lost, which
    costs its items a question each and nothing else. What takedowns removed counts as lost too.

    Returns:
        Number of lost artifacts.
    """
    began = now()
    with engine.begin() as connection:
        connection.execute(text("CREATE TEMPORARY TABLE held (sha256 text, bytes bigint) ON COMMIT DROP"))
        cursor = connection.connection.cursor()
        with cursor.copy("COPY held (sha256, bytes) FROM STDIN") as copy:
            for digest, _, size in store.digests():
                copy.write_row((digest, size))
        connection.execute(text("ANALYZE held"))
        connection.execute(text("LOCK TABLE lost_artifact IN SHARE ROW EXCLUSIVE MODE"))  # another refresh looks too
        connection.execute(text("DELETE FROM lost_artifact"))
        return connection.execute(_LOST, {"began": began}).rowcount
