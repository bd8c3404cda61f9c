"""Evidence packs as files: a BagIt bag (RFC 8493) in a ZIP archive, signed.

The bag's `tagmanifest-sha256.txt` holds the sha256 of `manifest-sha256.txt`, which holds that of each file; so its
signature covers all. `minisign -V` and `sha256sum -c` check it without medgen.
"""

import logging
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bagit import Bag, BagError, make_bag
from minisign import PublicKey, SecretKey

from apps.evidence.signature import check, public_key, sign
from medgen.errors import RunStopped

SIGNED, OWN_KEY = "tagmanifest-sha256.txt", "minisign.pub"
MOST_FILES = 1000
MOST_BYTES = 64 * 2**30  # of what is unpacked to be checked


class PackWrong(RunStopped):
    """An evidence pack is none, or is not as it was packed. Says what differs."""


@dataclass(frozen=True)
class Checked:
    """A pack that is as it was packed.

    Args:
        info: what its bag-info.txt says.
        comment: the signed comment.
    """

    info: Mapping[str, str]
    comment: str


def seal(folder: Path, out: Path, info: Mapping[str, str], key: SecretKey, comment: str) -> None:
    """Makes a folder a signed bag and writes it to a ZIP file, which appears whole or not at all.

    Args:
        info: for bag-info.txt.
        comment: signed too.
    """
    logging.getLogger("bagit").setLevel(logging.ERROR)
    make_bag(str(folder), dict(info), checksums=["sha256"])
    sign(folder / SIGNED, key, comment)
    (folder / OWN_KEY).write_bytes(bytes(key.get_public_key()))
    part = out.with_name(f".{out.name}.part")
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                archive.write(path, f"{out.stem}/{path.relative_to(folder)}")
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def check_pack(path: Path, key: PublicKey | None = None) -> Checked:
    """Checks a pack's signature and every file in it.

    Args:
        key: that it must be signed with; without one, the key that lies in the pack, which proves only that nothing
            was changed by accident.

    Raises:
        PackWrong: no pack, too large a one, or one whose files are not those that were packed.
        SignatureWrong: signed by another key, or changed after it was signed.
    """
    logging.getLogger("bagit").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="medgen-evidence-") as scratch:
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
                if len(members) > MOST_FILES or sum(member.file_size for member in members) > MOST_BYTES:
                    raise PackWrong(f"{path} holds more than {MOST_FILES} files or {MOST_BYTES / 2**30:.0f} GiB")
                archive.extractall(scratch)  # which leads no name out of the folder
            (folder,) = Path(scratch).iterdir()
            comment = check(folder / SIGNED, key or public_key(str(folder / OWN_KEY)))
            bag = Bag(str(folder))
            bag.validate()
        except (OSError, zipfile.BadZipFile, BagError, ValueError) as error:
            raise PackWrong(f"{path} is no evidence pack, or is not as it was packed: {error}") from None
        return Checked(dict(bag.info), comment)
