"""Which hosts may be asked: by name, and by the addresses that a name resolves to.

No address that is not public is reached unless the operator lists it. This is what keeps a listing or a redirect from
making the pipeline read from the network that it runs in (server-side request forgery).
"""

import ipaddress
import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

from medgen.errors import ItemFailed
from medgen.web.failures import Refused

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# Not public either, though not every version of `ipaddress` knows it: the special-purpose registries of IANA, and
# site-local addresses (RFC 3879), which some networks still use.
_SPECIAL = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "64:ff9b:1::/48", "3fff::/20", "fec0::/10")))
_ADDRESS = re.compile(r"[0-9a-f:]+[.:]", re.IGNORECASE)  # how patterns of addresses begin


@dataclass(frozen=True)
class HostPolicy:
    """Which hosts may be asked.

    Args:
        allowed: names and addresses, with * as wildcard; none listed: any public host. An address that is not public
            must be listed itself, or its host without a wildcard.
        denied: likewise; what is denied is never allowed.
    """

    allowed: tuple[str, ...] = ()
    denied: tuple[str, ...] = ()

    def check_name(self, host: str) -> None:
        """Raises Refused when a host may not be asked, by its name alone."""
        if _listed(host, self.denied):
            raise Refused(ItemFailed("host_refused", f"host {host!r} is denied"))
        if self.allowed and not _listed(host, self.allowed):
            listed = ", ".join(self.allowed)
            raise Refused(ItemFailed("host_refused", f"host {host!r} is not among those allowed: {listed}"))

    def check_address(self, host: str, address: Address) -> None:
        """Raises Refused when a host may not be asked because of its address."""
        if _address_listed(address, self.denied):
            raise Refused(ItemFailed("host_refused", f"host {host!r} is at {address}, which is denied"))
        named = host in (pattern.lower() for pattern in self.allowed) or _address_listed(address, self.allowed)
        if not named and not _is_public(address):
            message = f"host {host!r} is at {address}, which is no public address; list it to allow it"
            raise Refused(ItemFailed("host_refused", message))


def _listed(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern.lower()) for pattern in patterns)


def _address_listed(address: Address, patterns: Iterable[str]) -> bool:
    """Whether an address, or the IPv4 address inside it, matches a pattern; those for names don't count."""
    spellings = [_canonical_spelling(pattern) for pattern in patterns if _ADDRESS.match(pattern)]
    return _listed(str(address), spellings) or _listed(str(_inner(address)), spellings)


def _canonical_spelling(pattern: str) -> str:
    try:
        return str(ipaddress.ip_address(pattern))
    except ValueError:
        return pattern


def _is_public(address: Address) -> bool:
    inner = _inner(address)
    special = any(inner in network for network in _SPECIAL)
    return inner.is_global and not inner.is_multicast and not inner.is_reserved and not special


def _inner(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for (mapped, 6to4, Teredo, NAT64 of RFC 6052), or itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in ipaddress.ip_network("64:ff9b::/96"):
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1] or address
    return address


def host_of(url: str) -> str:
    """The canonical host of a URL. Raises ValueError when the URL can't be parsed."""
    return canonical_host(urlsplit(url).hostname or "")


def canonical_host(host: str) -> str:
    """A host's name in lower case, in ASCII, without a final dot."""
    with suppress(UnicodeError):  # names too long or odd for IDNA fail when they are looked up
        host = host.encode("idna").decode()
    return host.lower().rstrip(".")


def addresses_of(host: str, port: int | None) -> Iterator[tuple[Address, tuple[Any, ...]]]:
    """(address, socket address) of every address of a host. Raises OSError when the name can't be resolved."""
    for *_, socket_address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        yield ipaddress.ip_address(str(socket_address[0]).split("%")[0]), socket_address
