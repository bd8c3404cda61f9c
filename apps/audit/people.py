"""Who may look at the audit site by name: a token for each person, of which the file holds a digest only."""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

from medgen.errors import RunStopped

MOST_CHARACTERS = 80  # of a name


class PeopleUnusable(RunStopped):
    """The file of people can't be read, or a name does not fit in it."""


def pass_of(token: str) -> str:
    """What a browser keeps instead of a token, hex; the token does not follow from it."""
    return hashlib.sha256(b"medgen audit " + token.encode()).hexdigest()


def digest_of_pass(kept: str) -> str:
    """What is on file of a pass, hex: who reads the file can log in with nothing that stands there."""
    return hashlib.sha256(kept.encode()).hexdigest()


class People:
    """The people on file. The file is read again when it changed, so that who was removed is out at once.

    Args:
        path: JSON, {name: digest}. Without a file there are none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int] | None = None
        self._names: Mapping[str, str] = {}

    def by_digest(self) -> Mapping[str, str]:
        """Digest → name. Raises PeopleUnusable."""
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            self._seen, self._names = None, {}
            return self._names
        if (stat.st_mtime_ns, stat.st_ino) != self._seen:
            self._names = {digest: name for name, digest in self._read().items()}
            self._seen = (stat.st_mtime_ns, stat.st_ino)
        return self._names

    def names(self) -> list[str]:
        """All names, in order. Raises PeopleUnusable."""
        return sorted(self.by_digest().values())

    def add(self, name: str) -> str:
        """Gives a person a new token, which is told once; one that they had is void. Raises PeopleUnusable."""
        if not name.strip() or len(name) > MOST_CHARACTERS or not name.isprintable():
            raise PeopleUnusable(f"{name[:MOST_CHARACTERS]!r} is no name: 1 to {MOST_CHARACTERS} printable characters")
        token = secrets.token_urlsafe(24)
        with self._locked():
            self._write(self._read() | {name: digest_of_pass(pass_of(token))})
        return token

    def remove(self, name: str) -> None:
        """Takes a person's token back. Raises PeopleUnusable: there is no such person."""
        with self._locked():
            people = self._read()
            if people.pop(name, None) is None:
                known = ", ".join(sorted(people)) or "nobody"
                raise PeopleUnusable(f"{name[:MOST_CHARACTERS]!r} has no token; who has one: {known}")
            self._write(people)

    def _locked(self) -> FileLock:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return FileLock(self.path.with_suffix(".lock"))

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise PeopleUnusable(f"{self.path} can't be read: {error}") from None
        if not isinstance(found, dict) or not all(isinstance(digest, str) for digest in found.values()):
            raise PeopleUnusable(f"{self.path} is no list of people: it must be {{name: digest}}")
        return found

    def _write(self, people: Mapping[str, str]) -> None:
        part = self.path.with_suffix(".part")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(people, file, indent=1, ensure_ascii=False)
        part.replace(self.path)
