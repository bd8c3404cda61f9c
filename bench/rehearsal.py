"""A rehearsal of nights at the paper's size: only the work on pictures and on the network is made up.

    python -m bench.rehearsal --videos 140000 --home FOLDER [--phases first,quiet,…] [--json] [--write docs/scale.md]
    python -m bench.rehearsal --videos 300 --kills 10

Flow, ledger, catalog, store, Prefect, release, takedown, verification and audit site are the product's own, each phase
in fresh processes; the steps' functions are those of `bench.made_up_steps`. What a phase cost is read from the system
and kept in FOLDER, so that phases may be rehearsed one after the other.
"""

import atexit
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import numpy as np
import typer

from bench.audit_load import ask
from bench.made_up_listing import OTHERS, PROCEDURES, video_url
from bench.process_costs import KINDS, Costs, ProcessCosts
from bench.rehearsal_kills import recovers
from bench.rehearsal_report import report, section
from bench.rehearsed_installation import Rehearsal, err

NEW_VIDEOS, TAKEN_DOWN = 500, 100  # at most; of few videos a 20th and a 100th part
LEAST_TAKEN_DOWN = 5  # so that clips are among them
REQUESTS = 300  # of each kind of page
SMOKE_VIDEOS, SMOKE_PHASES = (
    150,
    "first,quiet,takedown,after,verify,gc,status,audit,training",
)  # nights pay for their start
COMMAND = ("bench.rehearsal_work", "command")
REASONS = ("overlay_text", "poor_aesthetic", "border_not_croppable", "mediocre", "duplicate", "not_medical")


def refreshed(rehearsal: Rehearsal, settings: Mapping[str, Any] | None = None, frame_model: int = 1) -> dict[str, Any]:
    """A night's figures."""
    before = made_up(rehearsal)
    summary, seconds, costs = rehearsal.run(rehearsal.night(settings or {}, frame_model))
    made_up_s, store_s = (now - then for now, then in zip(made_up(rehearsal), before, strict=True))
    names = ("executed", "reused", "clips", "release", "digest")
    facts = {name: summary[name] for name in names}
    items = summary["executed"] + summary["reused"]
    return figures(items, seconds, costs, made_up_s=made_up_s) | facts | {"store_s": round(store_s, 3)}


def made_up(rehearsal: Rehearsal) -> tuple[float, float]:
    """(processor seconds that made-up work took so far, seconds that it waited for the store)."""
    from bench.made_up_steps import CALL

    rows = np.fromfile(rehearsal.calls, CALL) if rehearsal.calls.exists() else np.zeros(0, CALL)
    return float(rows["made_up_s"].sum(dtype=float)), float(rows["store_s"].sum(dtype=float))


def figures(items: int, seconds: float, costs: Costs, made_up_s: float = 0.0) -> dict[str, Any]:
    """Of any phase. The processor time of an item is that of all processes without what was made up."""
    each = 1000 / max(1, items)
    per_item = {kind: round(costs.cpu_s[kind] * each, 4) for kind in KINDS}
    per_item |= {"made_up": round(made_up_s * each, 4)}
    per_item |= {"beside": round((sum(costs.cpu_s.values()) - made_up_s) * each, 4)}
    peak = {kind: round(costs.peak_mib[kind]) for kind in KINDS}
    return {
        "seconds": round(seconds, 1),
        "items": items,
        "cpu_s": {kind: round(costs.cpu_s[kind], 1) for kind in KINDS} | {"made_up": round(made_up_s, 1)},
        "cpu_ms_per_item": per_item,
        "peak_mib": peak | {"largest": max(peak.values())},
        **costs.statements,
    }


def first(rehearsal: Rehearsal) -> dict[str, Any]:
    """The first night."""
    rehearsal.listings(0, rehearsal.videos)
    return refreshed(rehearsal)


def new(rehearsal: Rehearsal) -> dict[str, Any]:
    """A night with a new listing."""
    rehearsal.listings(rehearsal.videos, min(NEW_VIDEOS, max(1, rehearsal.videos // 20)))
    return refreshed(rehearsal)


def takedown(rehearsal: Rehearsal) -> dict[str, Any]:
    """`medgen forget` of many videos at once."""
    count = min(TAKEN_DOWN, max(LEAST_TAKEN_DOWN, rehearsal.videos // 100))
    urls = [video_url(number * rehearsal.videos // count) for number in range(count)]
    command = [*COMMAND, "forget", *urls, "--reason", "rehearsal", "--yes", "--json"]
    reports, seconds, costs = rehearsal.run(command)
    return figures(len(reports), seconds, costs) | {"clips": sum(len(report["clips"]) for report in reports)}


def verify(rehearsal: Rehearsal) -> dict[str, Any]:
    """`medgen verify` of all records, artifacts and releases."""
    found, seconds, costs = rehearsal.run([*COMMAND, "verify", "--json"])
    return figures(rehearsal.counts()["step_runs"], seconds, costs) | {"clean": found["clean"]}


def gc(rehearsal: Rehearsal) -> dict[str, Any]:
    """`medgen gc`."""
    found, seconds, costs = rehearsal.run([*COMMAND, "gc", "--grace-minutes", "0", "--json"])
    return figures(rehearsal.counts()["store_objects"], seconds, costs) | {"removed": found["objects"]}


def status(rehearsal: Rehearsal) -> dict[str, Any]:
    """`medgen status`."""
    _, seconds, costs = rehearsal.run([*COMMAND, "status", "--json"])
    return figures(rehearsal.counts()["step_runs"], seconds, costs)


def audit(rehearsal: Rehearsal) -> dict[str, Any]:
    """Searches, clip pages and the release's page of the audit site, two at a time."""
    known = rehearsal.counts()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began = time.perf_counter()
    site = rehearsal.start(["apps.cli", "audit", "--port", str(port)])
    watched = ProcessCosts(site, rehearsal.home)
    pages: dict[str, Any] = {}
    try:
        _wait_for(port, site)
        for kind, addresses in _addresses(known, min(REQUESTS, rehearsal.videos)).items():
            with ThreadPoolExecutor(2) as pool:
                answers = [a for part in pool.map(partial(ask, port), (addresses[::2], addresses[1::2])) for a in part]
            if bad := [answer for answer in answers if answer[1] != 200]:
                raise SystemExit(f"the audit site answered {bad[0][1]} for {bad[0][2]}")
            times = np.array([seconds for seconds, _, _ in answers]) * 1000
            pages[kind] = {f"p{p}_ms": round(float(np.percentile(times, p)), 1) for p in (50, 95)}
            pages[kind]["requests"] = len(times)
    finally:
        site.terminate()
        site.wait()
        costs = watched.end()
    requests = sum(page["requests"] for page in pages.values())
    return figures(requests, time.perf_counter() - began, costs) | {"pages": pages}


def _wait_for(port: int, site: subprocess.Popen[str]) -> None:
    while site.poll() is None:
        try:
            ask(port, ["/robots.txt"])
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"the audit site exited {site.returncode}")


def _addresses(known: Mapping[str, Any], most: int) -> dict[str, list[str]]:
    """Of each kind of page; the release's page is asked for less often, because there is one."""
    words = [procedure.split(" ") for procedure in PROCEDURES]
    searches: list[dict[str, Any]] = [
        *({"q": " ".join(procedure)} for procedure in words),
        *({"q": f"{procedure[-1]} case {number}"} for number, procedure in enumerate(words)),
        *({"reason": reason} for reason in REASONS),
        *({"status": "rejected", "q": procedure[0]} for procedure in words),
        *({"kind": "video", "q": procedure[-1]} for procedure in words),
        {"release": known["release"]},
        {"metric": "aesthetic", "low": 2, "high": 3},
        {"q": OTHERS[0]},
        {},
    ]
    clips = known["clip_ids"] or [""]
    return {
        "search": [f"/items?{urlencode(searches[n % len(searches)])}" for n in range(most)],
        "clip page": [f"/clips/{quote(clips[n % len(clips)])}" for n in range(most)],
        "release page": [f"/releases/{quote(known['release'])}"] * (most // 3),
    }


def training(rehearsal: Rehearsal) -> dict[str, Any]:
    """The job of a training over the newest release, laid out."""
    release = rehearsal.counts()["release"]
    found, seconds, costs = rehearsal.run(["bench.rehearsal_work", "training", release])
    return figures(found["clips"], seconds, costs) | {name: round(found[name], 2) for name in ("read_s", "laid_out_s")}


PHASES: dict[str, Callable[[Rehearsal], dict[str, Any]]] = {
    "first": first,
    "quiet": refreshed,
    "new": new,
    "threshold": partial(refreshed, settings={"max_overlay_words": 12}),
    "model": partial(refreshed, frame_model=2),
    "takedown": takedown,
    "after": refreshed,
    "verify": verify,
    "gc": gc,
    "status": status,
    "audit": audit,
    "training": training,
}


def rehearse(
    videos: Annotated[int, typer.Option("--videos", min=20, help="Videos that discover keeps.")] = 140_000,
    home: Annotated[
        Path | None, typer.Option("--home", help="The installation; by default one that is removed again.")
    ] = None,
    phases: Annotated[str, typer.Option(help="Comma-separated; in this order.")] = ",".join(PHASES),
    rows_per_video: Annotated[int, typer.Option(min=1, help="Listed rows for each video that discover keeps.")] = 3,
    seed: Annotated[int, typer.Option(help="Of all that is made up.")] = 1,
    kills: Annotated[int, typer.Option("--kills", min=0, help="Only kill first nights, so many times.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print facts as JSON for machines.")] = False,
    write: Annotated[
        Path | None, typer.Option("--write", help="Markdown file whose section for this size is replaced.")
    ] = None,
    smoke: Annotated[bool, typer.Option(help="Only see whether it runs, on the smallest input.")] = False,
) -> None:
    """Rehearses nights and prints what they cost."""
    if smoke:
        videos, phases = SMOKE_VIDEOS, SMOKE_PHASES
    chosen = phases.split(",")
    if unknown := set(chosen) - PHASES.keys():
        raise typer.BadParameter(f"no such phase: {', '.join(sorted(unknown))}; there are {', '.join(PHASES)}")
    if home is None:
        home = Path(tempfile.mkdtemp(prefix="mr-"))  # short: a socket's address has room for 107 bytes
        atexit.register(shutil.rmtree, home, ignore_errors=True)
    home = home.resolve()
    if kills:
        facts = recovers(home, videos, kills, seed)
        sys.stdout.write(json.dumps(facts, indent=1) + "\n")
        raise typer.Exit(bool(facts["faults"]))
    rehearsal = Rehearsal(home, videos, rows_per_video, seed, any_server=smoke)
    for phase in chosen:
        err.print(f"{time.strftime('%H:%M:%S')} {phase}", highlight=False)
        rehearsal.keep(phase, PHASES[phase](rehearsal))
        err.print(json.dumps(rehearsal.figures[phase]), highlight=False, soft_wrap=True)
    facts = report(videos, rehearsal.figures, list(PHASES), rehearsal.counts())
    if write:
        section(write, facts)
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(rehearse)
