"""What closes an installation's Prefect server to all others: a secret that the installation's processes share."""

import hashlib
import hmac
import json
import os
import secrets
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

PROOF_PATH, LOG_IN_PATH = "/medgen/proof", "/medgen/log-in"
USER = "medgen"


def auth_string(folder: Path) -> str:
    """The secret as Prefect wants it (`PREFECT_API_AUTH_STRING`, user:password), made at first use.

    Args:
        folder: where Prefect's files of the installation lie. The file `auth` in it is readable by its owner alone.
    """
    path = folder / "auth"
    with suppress(FileExistsError):
        made = folder / f".auth-{os.getpid()}"
        with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(f"{USER}:{secrets.token_urlsafe(32)}")
        try:
            os.link(made, path)  # whole or not at all, and never over one that is there
        finally:
            made.unlink()
    path.chmod(0o600)
    return path.read_text().strip()


def proof(auth: str, challenge: str) -> str:
    """What only who knows the secret can answer: HMAC-SHA256 of the challenge, as hex digits."""
    return hmac.new(auth.encode(), challenge.encode(), hashlib.sha256).hexdigest()


def proves_itself(url: str, auth: str) -> bool:
    """Whether the server whose API is at `url` answers and is this installation's; it isn't told the secret."""
    challenge = secrets.token_hex(16)
    try:
        with urllib.request.urlopen(f"{_root(url)}{PROOF_PATH}?challenge={challenge}", timeout=2) as answer:
            given = json.loads(answer.read(1000))["proof"]
    except (urllib.error.URLError, OSError, ValueError, KeyError, TypeError):
        return False
    return hmac.compare_digest(str(given), proof(auth, challenge))


def log_in_link(url: str, auth: str) -> str:
    """Opened in a browser it logs in to the UI. The secret stands behind the #, which is sent to no server."""
    return f"{_root(url)}{LOG_IN_PATH}#{auth}"


def _root(url: str) -> str:
    return url.removesuffix("/api")
