"""Signatures of evidence packs, in minisign's format (https://jedisct1.github.io/minisign/): Ed25519.

An installation has a key of its own, made at first use. Whoever checks a pack needs its public half from somewhere else
than the pack: publish it where whoever may write the catalog can't.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from minisign import Error, KeyPair, PublicKey, SecretKey, Signature

from medgen.errors import RunStopped

KEY, PUBLIC_KEY = "minisign.key", "minisign.pub"


class KeyUnusable(RunStopped):
    """A key file can't be read, is no minisign key, or is encrypted and the password is wrong."""


class SignatureWrong(RunStopped):
    """What was signed is not what is there, or another key signed it."""


def own_key(home: Path) -> Path:
    """File of the installation's secret key, which only its owner may read, made at first use beside the public one.

    Args:
        home: the installation's data folder.
    """
    folder = home / "evidence"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / KEY
    if not path.exists():
        made = folder / f".{KEY}-{os.getpid()}"
        with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(bytes(KeyPair.generate().secret_key))
        with suppress(FileExistsError):
            os.link(made, path)  # whole or not at all, and never over one that is there
        made.unlink()
    public = folder / PUBLIC_KEY
    if not public.exists():
        public.write_bytes(bytes(secret_key(path).get_public_key()))
    return path


def secret_key(path: Path, ask: Callable[[str], str] | None = None) -> SecretKey:
    """The key in a file.

    Args:
        ask: asks for the password of an encrypted one.

    Raises:
        KeyUnusable: names the file and the reason.
    """
    try:
        key = SecretKey.from_bytes(path.read_bytes())
        if key.is_encrypted():
            if ask is None:
                raise KeyUnusable(f"{path} is encrypted: its password is needed")
            key.decrypt(ask(f"Password of {path}"))
    except (OSError, Error, ValueError) as error:
        raise KeyUnusable(f"{path} is no usable minisign key: {error}") from None
    return key


def public_key(given: str) -> PublicKey:
    """A public key: a file of minisign's, or the line of base64 in it. Raises KeyUnusable."""
    try:
        path = Path(given)
        return PublicKey.from_bytes(path.read_bytes()) if path.is_file() else PublicKey.from_base64(given)
    except (OSError, Error, ValueError) as error:
        raise KeyUnusable(f"{given[:200]!r} is no minisign public key: {error}") from None


def one_line(key: PublicKey) -> str:
    """A public key as it is told: the base64 of its file."""
    return str(key.to_base64().decode())


def sign(path: Path, key: SecretKey, comment: str) -> None:
    """Writes PATH.minisig, as `minisign -S` does.

    Args:
        comment: signed too; minisign shows it when it verifies.
    """
    signature = key.sign(path.read_bytes(), trusted_comment=comment, untrusted_comment="signature by medgen")
    path.with_name(f"{path.name}.minisig").write_bytes(bytes(signature))


def check(path: Path, key: PublicKey) -> str:
    """The signed comment of a file whose signature, PATH.minisig, is right.

    Raises:
        SignatureWrong: there is none, or it is another file's or another key's.
    """
    try:
        signature = Signature.from_bytes(path.with_name(f"{path.name}.minisig").read_bytes())
        key.verify(path.read_bytes(), signature)
    except OSError:
        raise SignatureWrong(f"there is no signature of {path.name}") from None
    except (Error, ValueError) as error:
        raise SignatureWrong(f"the signature of {path.name} is not by the key {one_line(key)}: {error}") from None
    return str(signature.trusted_comment)
