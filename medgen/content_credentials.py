"""C2PA content credentials of videos: signed in the file, read back by the standard's own library.

Who sets MEDGEN_C2PA_CERTIFICATE and MEDGEN_C2PA_KEY signs with a certificate that others may trust. Without them the
installation makes a certificate for itself, whose authority's key is thrown away: a reader then says that nobody
changed the file since it was signed, but not who signed it. See docs/uses.md.
"""

import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from filelock import FileLock

from medgen import __version__
from medgen.canonical import digest_of
from medgen.errors import ItemFailed, RunStopped
from medgen.home import private_home
from medgen.settings import Settings, current

FORMAT = "video/mp4"
ASSERTION = "org.medgen.creation"
# Made wholly by a trained model; IPTC's term, which C2PA 2.2 section 18.15 asks for.
MADE_BY_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
VALID_DAYS = 3650
RENEW_BEFORE = timedelta(days=30)
# No network: neither a manifest's address nor a certificate's is asked.
_OFFLINE = {
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_after_sign": True},
    "builder": {"thumbnail": {"enabled": False}},
}


class CannotSign(RunStopped):
    """Content credentials can't be signed: the certificate or its key is missing, unfit or expired."""


@dataclass(frozen=True)
class Signing:
    """What content credentials are signed with.

    Args:
        certificates: PEM, own first, then its authorities.
        key: PEM of the private key; in no repr, log or record.
        algorithm: as C2PA names it, for example "es256".
        own: made by this installation for itself.
    """

    certificates: str
    key: "_Secret"
    algorithm: str
    own: bool

    @property
    def digest(self) -> str:
        """sha256 (hex) over the certificates."""
        return digest_of(self.certificates)


class _Secret(str):
    """Text that doesn't show."""

    def __repr__(self) -> str:
        return "'…'"


@dataclass(frozen=True)
class Credentials:
    """Content credentials as they were read.

    Args:
        state: "Trusted" (the certificate leads to one that is trusted), "Valid" (the file is as it was signed) or
            "Invalid".
        issuer: organisation of the certificate.
        facts: what the file says of how it was made; `actions`: what was done to it.
        problems: codes of what is wrong, for example "assertion.bmffHash.mismatch".
    """

    state: str
    issuer: str
    facts: Mapping[str, Any]
    actions: Sequence[Mapping[str, Any]]
    problems: tuple[str, ...]


def signing(settings: Settings | None = None) -> Signing:
    """What this installation signs with; its own key and certificate are made when they are first asked for.

    Raises:
        CannotSign: what is set is not there, does not go together or has expired.
    """
    settings = settings or current()
    if settings.c2pa_certificate and settings.c2pa_key:
        return _signing(settings.c2pa_certificate, settings.c2pa_key, own=False)
    folder = private_home(settings.home) / "credentials"
    folder.mkdir(mode=stat.S_IRWXU, exist_ok=True)
    certificates, key = folder / "certificates.pem", folder / "key.pem"
    with FileLock(folder / "lock"):
        if not certificates.is_file() or _expires(certificates) - datetime.now(UTC) < RENEW_BEFORE:
            _make(certificates, key)
    return _signing(certificates, key, own=True)


def sign(source: Path, target: Path, signing: Signing, title: str, agent: str, facts: Mapping[str, Any]) -> None:
    """Writes an MP4 with content credentials.

    Args:
        title: of the video.
        agent: the model that made it, as people call it.
        facts: JSON; they stand in the assertion `ASSERTION` and, as parameters, in the action `c2pa.created`.

    Raises:
        CannotSign: the library refuses the certificate or the key.
        ItemFailed: not_signed, with the library's words.
    """
    from c2pa import Builder, C2paError, C2paSignerInfo, Context, Settings, Signer

    created = {"action": "c2pa.created", "digitalSourceType": MADE_BY_MODEL, "softwareAgent": {"name": agent}}
    manifest = {
        "claim_generator_info": [{"name": "medgen", "version": __version__}],
        "title": title,
        "format": FORMAT,
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [created]}},
            {"label": ASSERTION, "data": dict(facts)},
        ],
    }
    try:
        info = C2paSignerInfo(signing.algorithm, signing.certificates.encode(), str(signing.key).encode(), None)
        signer = Signer.from_info(info)
    except C2paError as error:
        raise CannotSign(f"the certificate for content credentials can't be used: {error}") from error
    try:
        with (
            signer,
            Context(Settings.from_dict(_OFFLINE)) as context,
            Builder(json.dumps(manifest), context) as builder,
            source.open("rb") as read,
            target.open("w+b") as written,
        ):
            builder.sign(signer, FORMAT, read, written)
    except C2paError as error:
        raise ItemFailed("not_signed", f"the content credentials could not be written: {error}") from error


def read_credentials(path: Path, trusted: str = "") -> Credentials | None:
    """The content credentials of an MP4; None when it has none.

    Args:
        trusted: PEM of authorities whose certificates count as trusted.

    Raises:
        ItemFailed: bad_credentials when they can't be read at all.
    """
    from c2pa import C2paError, Context, Reader, Settings

    settings = _OFFLINE | ({"trust": {"trust_anchors": trusted}} if trusted else {})
    try:
        with (
            path.open("rb") as file,
            Context(Settings.from_dict(settings)) as context,
            Reader(FORMAT, file, context=context) as reader,
        ):
            told = json.loads(reader.json())
            state = str(reader.get_validation_state())
    except C2paError.ManifestNotFound:
        return None
    except C2paError as error:
        raise ItemFailed("bad_credentials", f"{path.name}: its content credentials can't be read: {error}") from error
    manifest = told["manifests"][told["active_manifest"]]
    by_label = {one["label"]: one["data"] for one in manifest["assertions"]}
    results = told.get("validation_results", {}).get("activeManifest", {})
    return Credentials(
        state=state,
        issuer=str(manifest.get("signature_info", {}).get("issuer", "")),
        facts=by_label.get(ASSERTION, {}),
        actions=by_label.get("c2pa.actions.v2", {}).get("actions", []),
        problems=tuple(sorted({one["code"] for one in results.get("failure", ())})),
    )


def _signing(certificates: Path, key: Path, *, own: bool) -> Signing:
    try:
        chain, secret = certificates.read_bytes(), key.read_bytes()
        first = x509.load_pem_x509_certificates(chain)[0]
        private = serialization.load_pem_private_key(secret, None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CannotSign(f"content credentials: {certificates} or {key} can't be used: {error}") from error
    if first.not_valid_after_utc < datetime.now(UTC):
        raise CannotSign(
            f"content credentials: the certificate {certificates} expired on {first.not_valid_after_utc:%F}"
        )
    if _public(private.public_key()) != _public(first.public_key()):
        raise CannotSign(f"content credentials: {key} is not the key of the first certificate of {certificates}")
    return Signing(chain.decode(), _Secret(secret.decode()), _algorithm(private), own)


def _public(key: Any) -> bytes:
    return bytes(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))


def _algorithm(key: PrivateKeyTypes) -> str:
    """Name of the algorithm that a key signs with, of those that C2PA 2.2 section 13.2 allows."""
    if isinstance(key, ec.EllipticCurvePrivateKey) and (name := _CURVES.get(key.curve.name)):
        return name
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= 2048:
        return "ps256"
    raise CannotSign("content credentials are signed with an EC (P-256, P-384, P-521), Ed25519 or RSA (2048 bits) key")


_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


def _expires(certificates: Path) -> datetime:
    try:
        return x509.load_pem_x509_certificates(certificates.read_bytes())[0].not_valid_after_utc
    except ValueError as error:
        raise CannotSign(f"content credentials: {certificates} holds no certificate: {error}") from error


def _make(certificates: Path, key: Path) -> None:
    """Makes a key, its certificate, and an authority for the two, whose own key nobody keeps."""
    authority, private = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = _certificate("medgen's own authority", authority.public_key(), authority, is_authority=True)
    own = _certificate("medgen content credentials", private.public_key(), authority, is_authority=False)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # The key first: certificates that stand have their key.
    key.unlink(missing_ok=True)
    with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, stat.S_IRUSR | stat.S_IWUSR), "wb") as file:
        file.write(pem)
    making = certificates.with_name(f".{certificates.name}.making")
    making.write_bytes(b"".join(one.public_bytes(serialization.Encoding.PEM) for one in (own, root)))
    making.replace(certificates)


def _certificate(
    name: str, public: ec.EllipticCurvePublicKey, authority: ec.EllipticCurvePrivateKey, *, is_authority: bool
) -> x509.Certificate:
    """A certificate as C2PA 2.2 section 14.5 asks of those that sign claims, or the authority that signs it."""

    def named(text: str) -> x509.Name:
        organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "an installation of medgen")
        return x509.Name([organisation, x509.NameAttribute(NameOID.COMMON_NAME, text)])

    start = datetime.now(UTC) - timedelta(minutes=5)  # clocks differ
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
         "decipher_only"), False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named("medgen's own authority"))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=VALID_DAYS))
        .add_extension(x509.BasicConstraints(is_authority, 0 if is_authority else None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not is_authority, key_cert_sign=is_authority, crl_sign=is_authority, **usage
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
    )
    if not is_authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(authority, hashes.SHA256())
