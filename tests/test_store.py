"""The store on S3: what the server says is compared with what was sent, and outages are waited out."""

import hashlib
import http.client
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from minio import Minio

from medgen.errors import ItemFailed
from medgen.ledger import Outcome, StepIdentity, Work
from medgen.settings import Settings, current
from medgen.shard import Item, Step, run_shard
from medgen.store import Artifact, Store, StoreUnavailable, open_store, s3_client
from tests.conftest import ACCESS_KEY, SECRET_KEY, S3Server, forget_installation

BUCKET = "medgen"
PART = 5 << 20  # bytes; larger files are sent in parts


class Proxy(ThreadingHTTPServer):
    """Stands in front of an S3 server.

    `trouble` gets each request (method, path) and names what befalls it, if anything: "busy" is answered 503, "halved"
    is a body of which half is stored, or half is sent, as if it were all.
    """

    daemon_threads = True

    def __init__(self, server: S3Server) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.server = server
        self.direct: Minio | None = None
        self.trouble: Callable[[str, str], str | None] = lambda method, path: None
        self.log: list[tuple[str, str]] = []

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def asked(self, method: str) -> int:
        """How many requests for objects came since the log was emptied."""
        return sum(name == method and "sha256/" in urlsplit(path).path for name, path in self.log)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def do_GET(self) -> None:
        proxy = self.server
        self.close_connection = True
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy.log.append((self.command, self.path))
        trouble = proxy.trouble(self.command, self.path)
        if trouble == "busy":
            self._answer(503, {}, b"")
        elif trouble == "halved" and self.command == "PUT":
            assert proxy.direct
            half = body[: len(body) // 2]
            proxy.direct.put_object(BUCKET, urlsplit(self.path).path.split("/", 2)[2], BytesIO(half), len(half))
            self._answer(200, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}, b"")
        else:
            upstream = http.client.HTTPConnection("127.0.0.1", proxy.server.port, timeout=30)
            upstream.request(self.command, self.path, body, dict(self.headers))  # its Host is signed, too
            answer = upstream.getresponse()
            data = answer.read()
            headers = {k: v for k, v in answer.getheaders() if k.lower() not in ("connection", "transfer-encoding")}
            self._answer(answer.status, headers, data[: len(data) // 2] if trouble == "halved" else data)
            upstream.close()

    do_PUT = do_HEAD = do_POST = do_DELETE = do_GET

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        length = headers.get("Content-Length") if self.command == "HEAD" else str(len(body))
        for name, value in (headers | {"Content-Length": length or "0", "Connection": "close"}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One S3 server for all tests here; each has other bytes."""
    running = S3Server(tmp_path_factory.mktemp("s3"))
    yield running
    running.kill()


@pytest.fixture
def proxy(home: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The installation's S3 server, through a proxy."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    forget_installation()
    direct = s3_client(current())
    with Proxy(server) as running:
        threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv("MEDGEN_S3_ENDPOINT", running.endpoint)
        forget_installation()
        running.direct = direct
        yield running
        running.shutdown()


def times(number: int, trouble: str, method: str, part: str = "sha256/") -> Callable[[str, str], str | None]:
    """The first `number` requests of a method whose address holds `part` get into trouble."""
    left = [trouble] * number

    def befalls(asked: str, path: str) -> str | None:
        return left.pop() if left and asked == method and part in path else None

    return befalls


def held(proxy: Proxy, digest: str) -> bytes:
    """What the server really has under a digest."""
    assert proxy.direct
    answer = proxy.direct.get_object(BUCKET, f"sha256/{digest[:2]}/{digest}")
    try:
        return answer.read()
    finally:
        answer.close()
        answer.release_conn()


def place(proxy: Proxy, digest: str, data: bytes, part_size: int = 0) -> None:
    """Puts any bytes under a digest, behind the store's back."""
    assert proxy.direct
    proxy.direct.put_object(BUCKET, f"sha256/{digest[:2]}/{digest}", BytesIO(data), len(data), part_size=part_size)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_half_of_a_body_stored_and_answered_200_is_sent_again(proxy: Proxy) -> None:
    store, data = Store(current()), b"a video, more or less" * 1000
    proxy.trouble = times(1, "halved", "PUT")
    artifact = store.put_bytes(data, "text/plain")
    assert held(proxy, artifact.sha256) == data
    assert proxy.asked("PUT") == 2


def test_a_server_that_stores_halves_for_good_fails_the_item(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medgen.store.OUTAGE_S", 0.1)
    store, data = Store(current()), b"never whole" * 1000
    proxy.trouble = times(99, "halved", "PUT")
    with pytest.raises(StoreUnavailable, match="other bytes than were sent") as failure:
        store.put_bytes(data, "text/plain")
    assert failure.value.transient and failure.value.reason == "store_unavailable"
    assert store.missing([sha256(data)], {sha256(data): len(data)}) == {sha256(data)}


@pytest.mark.parametrize("found", ["half", "others"])
def test_what_lies_on_the_server_under_a_digest_is_not_trusted_unseen(proxy: Proxy, found: str) -> None:
    store, data = Store(current()), f"what was meant, not {found}".encode() * 1000
    place(proxy, sha256(data), data[: len(data) // 2] if found == "half" else bytes(len(data)))
    store.put_bytes(data, "text/plain")
    assert held(proxy, sha256(data)) == data


def test_of_what_is_there_already_nothing_is_sent_and_rarely_anything_read(proxy: Proxy, tmp_path: Path) -> None:
    store = Store(current())
    data = b"".join(hashlib.sha256(str(n).encode()).digest() for n in range((PART + 1000) // 32))
    for whole in (data[:1000], data):  # sent as one, and in two parts
        store.put_bytes(whole, "text/plain")
        proxy.log.clear()
        store.put_bytes(whole, "text/plain")
        assert (proxy.asked("PUT"), proxy.asked("POST"), proxy.asked("GET"), proxy.asked("HEAD")) == (0, 0, 0, 1)
    data += b"."
    place(proxy, sha256(data), data, part_size=PART + 500)  # another client's parts: its ETag tells nothing
    proxy.log.clear()
    store.put_bytes(data, "text/plain")
    assert (proxy.asked("PUT"), proxy.asked("POST"), proxy.asked("GET")) == (0, 0, 1)
    assert Store(current()).read(sha256(data)) == data


def numbered(work: Work, store: Store) -> Outcome:
    """Stores the subject's name."""
    return Outcome("kept", outputs={"text": store.put_bytes(work.subject.encode() * 100, "text/plain")})


STEP = Step(
    StepIdentity("number", 1, {}, {}), numbered, work_of=lambda item, past: Work(item.subject), runs_in="inline"
)


@pytest.mark.parametrize("where", ["s3", "folder"])
def test_an_output_of_which_half_is_left_is_made_again(request: pytest.FixtureRequest, home: Path, where: str) -> None:
    proxy: Proxy | None = request.getfixturevalue("proxy") if where == "s3" else None
    items = [Item(f"{where}-{n}", {}) for n in range(2)]
    assert run_shard(STEP, items).executed == 2
    data = b"%s-1" % where.encode() * 100
    local = open_store().path(sha256(data))
    if proxy:
        place(proxy, sha256(data), data[:50])
        local.unlink()
    else:
        local.chmod(0o644)
        local.write_bytes(data[:50])
    again = run_shard(STEP, items)
    assert again.executed == 1 and len(again.kept) == 2
    assert open_store().read(sha256(data)) == data
    assert (held(proxy, sha256(data)) if proxy else local.read_bytes()) == data


CALLS: dict[str, Callable[[Store, Artifact], object]] = {
    "put": lambda store, it: store.put_bytes(b"put once more", "text/plain").bytes == 13,
    "path": lambda store, it: store.read(it.sha256) == b"read me",
    "actual_digest": lambda store, it: store.actual_digest(it.sha256) == it.sha256,
    "missing": lambda store, it: store.missing([it.sha256, "0" * 64]) == {"0" * 64},
    "digests": lambda store, it: it.sha256 in [digest for digest, _, _ in store.digests()],
    "remove": lambda store, it: store.remove(it.sha256) is None,
    "open": lambda store, it: Store(current()).remote is not None,
}


@pytest.mark.parametrize("call", CALLS)
def test_every_call_waits_until_the_server_is_back(proxy: Proxy, call: str) -> None:
    store = Store(current())
    artifact = store.put_bytes(b"read me", "text/plain")
    (store.folder / artifact.sha256[:2] / artifact.sha256).unlink()
    pending = ["busy"]
    proxy.trouble = lambda method, path: pending.pop() if pending else None
    assert CALLS[call](store, artifact)
    assert not pending


def test_a_listing_goes_on_where_an_outage_cut_it(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medgen.store.LISTED_AT_ONCE", 2, raising=False)
    store = Store(current())
    mine = {store.put_bytes(f"listed {n}".encode(), "text/plain").sha256 for n in range(5)}
    before = [digest for digest, _, _ in store.digests()]
    assert mine <= set(before) and len(before) == len(set(before))
    for trouble in ("busy", "halved"):
        listing = store.digests()
        first = next(listing)[0]
        proxy.trouble = times(1, trouble, "GET", "list-type")
        assert [first, *(digest for digest, _, _ in listing)] == before


def test_a_machine_that_only_fetches_keeps_its_cache_small(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one machine of a cluster makes, others read. Those that run steps come and go."""
    monkeypatch.setattr("medgen.store.RECENT_S", -1.0)  # all was used long ago

    def of_machine(name: str, cache_bytes: int) -> Store:
        access = {"s3_endpoint": s3.endpoint, "s3_access_key": ACCESS_KEY, "s3_secret_key": SECRET_KEY}
        return Store(Settings(home=tmp_path / name, cache_bytes=cache_bytes, **access))

    maker = of_machine("maker", 1_000_000)
    made = [maker.put_bytes(bytes([number]) * 2_000, "text/plain") for number in range(20)]
    for artifact in made:
        reader = of_machine("reader", 10_000)
        assert reader.path(artifact.sha256).read_bytes() == maker.read(artifact.sha256)
        assert sum(path.stat().st_size for path in reader.folder.glob("??/*")) <= 10_000


def test_half_an_object_read_is_no_object(proxy: Proxy, home: Path) -> None:
    store = Store(current())
    artifact = store.put_bytes(b"not to be halved", "text/plain")
    local = store.folder / artifact.sha256[:2] / artifact.sha256
    local.unlink()
    proxy.trouble = times(1, "halved", "GET")
    with pytest.raises(ItemFailed, match="other bytes"):
        store.path(artifact.sha256)
    assert not local.exists() and list(store.temporary.iterdir()) == []
    assert store.read(artifact.sha256) == b"not to be halved"
