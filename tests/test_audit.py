"""The audit site in a browser, over a real refresh: what an auditor does, from a rejected clip to a model and back."""

import io
import json
import shutil
import subprocess
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import axe_playwright_python
import prov.model
import pyarrow.parquet as pq
import pytest
from minisign import KeyPair
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import create_engine

from medgen.ledger import Ledger
from medgen.postgres import embedded_url
from medgen.settings import Settings
from medgen.store import Store, file_digest
from tests.browser import chromium, new_context
from tests.conftest import demo_corpus, forked, free_port, medgen, medgen_here, medgen_running
from tests.recorded import Recorder
from tests.waiting import wait_until

VIDEOS = ("echo-sector.mp4", "echo-subtitled.mp4")
SIZES = {"phone": {"width": 390, "height": 844}, "desk": {"width": 1440, "height": 900}}


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], str]:
    """A refreshed installation: its home, the names of two releases, and the digest of a model on record.

    The first release takes what the second, which stands last, rejects for its overlay text.
    """
    source = tmp_path_factory.mktemp("source")
    for name in VIDEOS:
        shutil.copyfile(demo_corpus() / name, source / name)
    home = tmp_path_factory.mktemp("audited") / "home"
    releases = []
    for settings in (("--set", "max_overlay_words=100000", "--set", "near_duplicates=keep"), ()):
        done = medgen("refresh", "--source", f"films={source}", "--json", *settings, home=home, inline=True)
        releases.append(json.loads(done.stdout)["release"])
    # Training is another matter than auditing: a record of a model is enough here.
    engine = create_engine(embedded_url(home / "postgres"))
    ledger = Ledger(engine, Store(Settings(home=home)))
    with engine.connect() as connection:
        run_id = connection.exec_driver_sql(
            f"SELECT step_run_id FROM release WHERE name = '{releases[1]}'"
        ).scalar_one()
    digest, _ = Recorder(ledger).model("nano-tested", releases[1], ledger.load([run_id])[run_id])
    engine.dispose()
    return home, releases, digest


@pytest.fixture(scope="module")
def site(installation: tuple[Path, list[str], str]) -> Iterator[str]:
    """Address of `medgen audit` over the installation."""
    port = free_port()
    with medgen_running("audit", "--port", str(port), home=installation[0], **forked("apps.cli")) as process:
        address = f"http://127.0.0.1:{port}"
        while process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"{address}/robots.txt", timeout=5):
                break
            time.sleep(0.1)
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        yield address
        process.terminate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Browser, site: str) -> Iterator[Page]:
    """A page that fails its test when anything goes wrong in it: scripts, refused content, requests to elsewhere."""
    context = new_context(browser, viewport=SIZES["desk"], base_url=site, accept_downloads=True)
    troubles: list[str] = []
    opened = context.new_page()
    opened.on("console", lambda m: troubles.append(m.text) if m.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: troubles.append(str(error)))
    opened.on("request", lambda r: None if r.url.startswith((site, "blob:", "data:")) else troubles.append(r.url))
    opened.on("response", lambda r: troubles.append(f"{r.status} {r.url}") if r.status >= 500 else None)
    yield opened
    context.close()
    assert troubles == []


def test_a_rejected_clip_is_found_by_its_reason_and_says_why(page: Page) -> None:
    page.goto("/")
    page.get_by_role("navigation", name="Main").get_by_role("link", name="Search").click()
    page.wait_for_url("**/items")  # loaded whole, with the script that listens to the form
    with page.expect_response(lambda r: "reason=overlay_text" in r.url):
        page.get_by_label("Reason").select_option("overlay_text")
    expect(page.get_by_role("link", name="Remove the filter reason")).to_be_visible()
    rows = page.locator("table.rows tbody tr")
    assert rows.count() >= 1
    assert "reason=overlay_text" in page.url  # the address can be handed on
    for row in rows.all():
        assert "overlay text" in row.inner_text()
    rows.first.get_by_role("link").first.click()
    expect(page.locator("#why")).to_contain_text("rejected it because too much text lies over the picture: overlay")
    expect(page.locator("#why")).to_contain_text("where no more than")
    expect(page.locator(".proof")).to_contain_text("records are as they were written")
    # The comparison that decided stands in the timeline, with its bar told to those who can't see it.
    failed = page.locator(".timeline li.rejected .checks li", has=page.locator(".no")).first
    assert "failed" in (failed.locator("svg").get_attribute("aria-label") or "")


def test_a_kept_clip_plays_and_leads_to_its_release_and_model_and_back(
    page: Page, installation: tuple[Path, list[str], str]
) -> None:
    _, releases, digest = installation
    page.goto(f"/items?kind=clip&status=kept&release={releases[1]}")
    page.locator("table.rows tbody a").first.click()
    clip = page.url.partition("?")[0]
    video = page.locator("video")
    video.evaluate("video => video.play()")
    # Not by Playwright's own way of waiting: it needs scripts made of text, which the pages refuse.
    wait_until(lambda: video.evaluate("video => video.currentTime") > 0.2, "the video does not play")
    assert video.evaluate("video => video.videoWidth") > 0
    # Jumping asks for a range in the middle.
    video.evaluate("video => { video.pause(); video.currentTime = video.duration - 0.5 }")
    wait_until(lambda: video.evaluate("video => !video.seeking && video.readyState >= 2"), "it seeks for ever")
    expect(page.locator("svg.strip .clip.current")).to_have_count(1)
    assert page.locator("blockquote.caption").count() == 2
    expect(page.locator("#content")).to_contain_text("colours: matrix ")  # what was done to its source's pictures
    page.get_by_role("link", name=releases[1]).first.click()
    page.wait_for_url(f"**/releases/{releases[1]}")
    expect(page.locator("table.funnel tbody tr")).to_have_count(11)
    page.get_by_role("link", name="nano-tested").click()
    page.wait_for_url(f"**/models/{digest}")
    expect(page.locator("#content")).to_contain_text("imaging_quality")
    # Back by the graph: model, release, clip.
    page.get_by_role("link", name="Lineage graph").click()
    page.get_by_role("link", name=f"release {releases[1]}").click()
    page.wait_for_url(f"**/lineage/release/{releases[1]}")
    page.locator(f"svg.graph a[href$='{clip.rsplit('/', 1)[1]}']").click()
    page.get_by_role("link", name="Open the page of this clip").click()
    assert page.url.partition("?")[0] == clip


def test_results_are_put_in_order_shown_and_gone_through(page: Page, installation: tuple[Path, list[str], str]) -> None:
    page.goto("/items?kind=clip")
    rows = page.locator("table.rows tbody tr")
    newest = rows.locator("code").all_inner_texts()
    assert len(newest) >= 2
    with page.expect_response(lambda r: "sort=oldest" in r.url):
        page.get_by_label("Order").select_option("oldest")
    expect(page.locator("#results")).to_contain_text("oldest decision first")
    wait_until(lambda: rows.locator("code").all_inner_texts() == newest[::-1], "not sorted")
    pictures = page.locator("table.rows img.thumbnail")
    pictures.last.scroll_into_view_if_needed()
    shown = "p => p.complete && p.naturalWidth > 0"
    wait_until(lambda: all(picture.evaluate(shown) for picture in pictures.all()), "pictures are missing")
    rows.first.get_by_role("link").first.click()
    here = page.url.partition("?")[0]
    page.get_by_role("link", name="next in results").click()
    page.wait_for_url(lambda url: url.partition("?")[0] != here)
    page.get_by_role("link", name="before in results").click()
    page.wait_for_url(lambda url: url.partition("?")[0] == here)
    page.goto("/leaderboard")
    expect(page.locator("#content")).to_contain_text("nano-tested")
    page.locator("thead a").first.click()
    expect(page.locator("th[aria-sort]")).to_have_count(1)


def test_lineage_is_valid_prov_and_openlineage(page: Page, installation: tuple[Path, list[str], str]) -> None:
    _, releases, digest = installation
    page.goto(f"/items?kind=clip&status=kept&release={releases[1]}")
    page.locator("table.rows tbody a").first.click()
    clip = page.url.partition("?")[0].rsplit("/", 1)[1]
    with page.expect_download() as download:
        page.get_by_role("link", name="PROV").click()
    document = prov.model.ProvDocument.deserialize(download.value.path(), format="json")
    named = {str(record.identifier) for record in document.get_records(prov.model.ProvEntity)}
    assert {f"clip:{clip}", f"release:{releases[1]}", f"model:{digest}"} <= named
    steps = {str(t) for a in document.get_records(prov.model.ProvActivity) for t in a.get_asserted_types()}
    assert {f"medgen:{step}" for step in ("discover", "download", "classify", "cut", "decide", "caption")} <= steps
    relations = [type(record) for record in document.get_records(prov.model.ProvRelation)]
    kinds = (prov.model.ProvUsage, prov.model.ProvGeneration, prov.model.ProvCommunication, prov.model.ProvMembership)
    assert all(relations.count(kind) for kind in kinds)
    # Everything that a relation names is told of.
    told = named | {
        str(r.identifier) for k in (prov.model.ProvActivity, prov.model.ProvAgent) for r in document.get_records(k)
    }
    for record in document.get_records(prov.model.ProvRelation):
        assert {
            str(value) for _, value in record.formal_attributes if isinstance(value, prov.model.QualifiedName)
        } <= told
    whole = page.request.get(f"/releases/{releases[1]}/prov.json").text()
    document = prov.model.ProvDocument.deserialize(content=whole, format="json")
    assert f"clip:{clip}" in {str(record.identifier) for record in document.get_records(prov.model.ProvEntity)}
    assert len(list(document.get_records(prov.model.ProvMembership))) >= 1
    for address in (f"/clips/{clip}", f"/releases/{releases[1]}"):
        events = page.request.get(f"{address}/openlineage.json").json()
        assert {event["eventType"] for event in events} == {"START", "COMPLETE"}
        for event in events:
            assert {"eventTime", "producer", "schemaURL", "run", "job"} <= event.keys()
    assert any(one["name"] == f"clip/{clip}" for event in events for one in event.get("inputs", ()))
    about = page.request.get(f"/releases/{releases[1]}/croissant.json").json()
    metadata = next(one for one in about["distribution"] if one["name"] == "metadata.parquet")
    assert len(metadata["sha256"]) == 64 and about["license"]
    assert {"clips/clip_id", "clips/brief_caption"} <= {f["@id"] for f in about["recordSet"][0]["field"]}
    assert page.request.get(f"/releases/{releases[1]}/card.md").text().startswith("---")


def test_two_releases_are_compared(page: Page, installation: tuple[Path, list[str], str]) -> None:
    _, releases, _ = installation
    page.goto("/releases")
    page.get_by_label("Compare", exact=True).select_option(releases[0])
    page.get_by_label("with").select_option(releases[1])
    page.get_by_role("button", name="Compare").click()
    policy = page.locator("table").first
    expect(policy).to_contain_text("max_overlay_words")
    assert int(page.locator("#only-a").inner_text()) >= 1 and page.locator("#only-b").inner_text() == "0"
    expect(page.locator("#content")).to_contain_text("overlay_text")


def test_a_plan_goes_by_what_was_done_here(installation: tuple[Path, list[str], str]) -> None:
    made = json.loads(medgen_here("plan", "--videos", "1000", "--least", "1", "--json", home=installation[0]).stdout)
    cost = {row["step"]: row for row in made["steps"]}
    assert cost["segment"]["rates"] == "measured here on 2 items" and cost["cut"]["rates"].startswith("measured here")
    assert cost["segment"]["items"] == 1000 and cost["segment"]["worker_hours"] > 0
    assert made["totals"]["store_bytes"] > 1000 * min((demo_corpus() / name).stat().st_size for name in VIDEOS)
    few = json.loads(medgen_here("plan", "--videos", "1000", "--json", home=installation[0]).stdout)
    assert all(row["rates"].startswith("shipped") for row in few["steps"])


def test_pages_fit_and_can_be_read_and_reached_by_keyboard(
    browser: Browser, site: str, installation: tuple[Path, list[str], str], tmp_path: Path
) -> None:
    _, releases, digest = installation
    listed = json.loads(urllib.request.urlopen(f"{site}/releases/{releases[1]}/openlineage.json").read())
    clip = next(one["name"] for one in listed[1]["inputs"]).removeprefix("clip/")
    addresses = (
        "/", "/items", f"/clips/{clip}", f"/releases/{releases[1]}", f"/compare?a={releases[0]}&b={releases[1]}",
        f"/models/{digest}", f"/lineage/clip/{clip}", "/runs", "/takedowns", "/listed", "/leaderboard",
    )  # fmt: skip
    for scheme in ("light", "dark"):
        for name, size in SIZES.items():
            context = new_context(browser, viewport=size, color_scheme=scheme, base_url=site, bypass_csp=True)
            opened = context.new_page()
            for number, address in enumerate(addresses):
                opened.goto(address)
                assert opened.evaluate("document.documentElement.scrollWidth") <= size["width"], (address, name)
                assert opened.evaluate(FAINT) == [], (address, scheme)
                assert opened.evaluate(UNNAMED) == [], address
                assert _found_by_axe(opened) == [], (address, name, scheme)
                if name == "phone" or number < 5:
                    opened.screenshot(path=tmp_path / f"{number}-{scheme}-{name}.png")
            opened.goto("/items")
            opened.keyboard.press("Tab")
            assert opened.evaluate("document.activeElement.className") == "skip"
            opened.keyboard.press("Enter")
            assert opened.evaluate("document.activeElement.id") == "content"
            context.close()


def _found_by_axe(page: Page) -> list[str]:
    """What axe-core has against a page, a line each: rule and the first element."""
    page.evaluate((Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text())
    found = page.evaluate("async () => (await axe.run()).violations.map(v => `${v.id}: ${v.nodes[0].html}`)")
    return [str(one) for one in found]


# Texts whose contrast is below WCAG AA (4.5 to 1), by their computed colours.
FAINT = """() => {
  const rgb = colour => { const m = colour.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m };
  const linear = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const colour = rgb(getComputedStyle(e).backgroundColor);
      if (colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const passed_over = 'svg, .skip, .hidden-label, .htmx-indicator, .superseded, option, .player';
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const written = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!written || e.closest(passed_over) || !e.checkVisibility()) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))];
    if ((Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5) found.push(e.outerHTML.slice(0, 80));
  }
  return found }"""

# Controls and pictures that a screen reader has no name for.
UNNAMED = """() => {
  const all = 'input:not([type=hidden]), select, button, a[href], img, svg[role=img], video';
  const named = e => e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim() || e.hasAttribute('alt');
  return [...document.querySelectorAll(all)].filter(e => !named(e)).map(e => e.outerHTML.slice(0, 80)) }"""


def test_an_evidence_pack_can_be_checked_by_anybody(installation: tuple[Path, list[str], str], tmp_path: Path) -> None:
    home, (_, release), _ = installation
    packed = json.loads(
        medgen_here("evidence", "pack", release, "--out", str(tmp_path / "r.zip"), "--json", home=home).stdout
    )
    assert (packed["kind"], packed["faults"]) == ("release", [])
    assert (home / "evidence" / "minisign.key").stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(tmp_path / "r.zip") as archive:
        manifest = json.loads(archive.read("r/data/manifest.json"))
        described = pq.read_table(io.BytesIO(archive.read("r/data/metadata.parquet"))).to_pylist()
        lineage = json.loads(archive.read("r/data/prov.json"))
    assert manifest and len(lineage["hadMember"]) == len(described)

    clip = described[0]["clip_id"]
    asked = ("evidence", "pack", clip[:12], "--media", "--out", str(tmp_path / "c.zip"), "--json")
    packed = json.loads(medgen_here(*asked, home=home).stdout)
    assert (packed["kind"], packed["id"], packed["faults"]) == ("clip", clip, [])
    with zipfile.ZipFile(tmp_path / "c.zip") as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / "c"
    # As its README says, with other tools.
    for sums in ("tagmanifest-sha256.txt", "manifest-sha256.txt"):
        subprocess.run(["sha256sum", "--check", "--quiet", sums], cwd=folder, check=True)
    history = json.loads((folder / "data" / "history.json").read_text())
    steps = [step["step"] for step in history["steps"]]
    assert steps[:3] == ["discover", "download", "segment"] and {"classify", "quality", "decide"} <= set(steps)
    assert "licence" in history["video"]
    (media,) = (folder / "data" / "media").iterdir()
    assert media.stem == described[0]["clip_sha256"] == file_digest(media)[0]

    def checked(file: str, *more: str) -> tuple[int, str]:
        done = medgen_here("evidence", "check", str(tmp_path / file), *more, home=home, check=False)
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    own = packed["public_key"]
    assert medgen_here("evidence", "key", home=home).stdout.strip() == own
    assert checked("c.zip", "--key", own)[0] == 0
    assert "only with --key" in checked("c.zip")[1]
    stranger = KeyPair.generate()
    code, said = checked("c.zip", "--key", stranger.public_key.to_base64().decode())
    assert code == 1 and "is not by the key" in said
    # Whoever changes a file must change both lists of digests, and then the signature is wrong.
    told = folder / "data" / "history.json"
    told.write_text(told.read_text().replace('"kept"', '"lost"'))
    for name, sums in (("one.zip", ()), ("all.zip", ("manifest-sha256.txt", "tagmanifest-sha256.txt"))):
        for listed in sums:
            lines = [line.split(maxsplit=1)[1] for line in (folder / listed).read_text().splitlines()]
            digests = [f"{file_digest(folder / line)[0]}  {line}\n" for line in lines]
            (folder / listed).write_text("".join(digests))
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for path in folder.rglob("*"):
                archive.write(path, path.relative_to(tmp_path))
        code, said = checked(name, "--key", own)
        assert code == 1 and ("history.json" in said if not sums else "signature" in said), said
    (tmp_path / "no.zip").write_bytes(b"PK\x03\x04 and no more")
    assert checked("no.zip")[0] == 1 and "no evidence pack" in checked("no.zip")[1]
