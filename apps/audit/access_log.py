"""The access log of the audit site: who looked at what, and when. A line of JSON each, in a file for each month."""

import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path


class AccessLog:
    """Appends to `access-YEAR-MONTH.jsonl` in a folder, readable by its owner alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._guard = threading.Lock()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, person: str, address: str, method: str, asked: str, status: int) -> None:
        """Puts an answer on record.

        Args:
            person: who asked; empty: whoever has the site's one token, or nobody who may look.
            address: where from.
            asked: path and query, without any token.
        """
        when = datetime.now(UTC)
        row = {
            "at": when.isoformat(timespec="milliseconds"), "person": person, "from": address, "method": method,
            "asked": asked, "status": status,
        }  # fmt: skip
        line = json.dumps(row, ensure_ascii=False) + "\n"
        with self._guard:
            handle = os.open(self.folder / f"access-{when:%Y-%m}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(handle, line.encode())
            finally:
                os.close(handle)
