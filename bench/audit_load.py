"""How fast the audit site answers over a large catalog: 1 million clips and 10 million step runs, made in Postgres.

    python -m bench.audit_load --home /tmp/auditload            # makes the catalog (once), then measures
    python -m bench.audit_load --home /tmp/auditload --clips 20000   # a small one, to try the script

The catalog is made with INSERT … SELECT generate_series; hashes are made up, sizes, indexes and distributions are
not. The site runs as users run it, in a process of its own; each request is timed from here, one after the other and
then two at once. Figures go to standard output as JSON.
"""

import argparse
import atexit
import http.client
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from psycopg import sql

REASONS = ("overlay_text", "poor_technical_quality", "still_picture", "blurred", "resolution_too_low", "flicker")
CATEGORIES = ("medical imaging", "surgery", "education", "clinical practice", "animation")
WORDS = tuple(
    "echocardiography laparoscopic cholecystectomy mitral valve knee arthroscopy ultrasound lecture surgery anatomy "  # noqa: SIM905
    "patient heart lung brain MRI CT endoscopy suture ward nurse training kidney liver spine fracture cataract".split()
)

# A clip in five is rejected by decide; those have no later steps. hashint4 spreads without a table of random numbers.
MAKE = """
SET session_replication_role = replica;
SET synchronous_commit = off;
SET maintenance_work_mem = '1GB';
SET work_mem = '256MB';
INSERT INTO source VALUES ('big', 'listing', 'big.jsonl', now());
INSERT INTO artifact SELECT md5('clip' || n) || md5('x' || n), 'video/mp4', 1000000, now()
  FROM generate_series(1, {clips}) n;
INSERT INTO artifact SELECT md5('video' || n) || md5('x' || n), 'video/mp4', 50000000, now()
  FROM generate_series(1, {videos}) n;
CREATE TEMPORARY TABLE numbers AS
  SELECT string_agg(md5('f' || n), '') AS many FROM generate_series(1, 2000) n;
INSERT INTO video SELECT 'v' || left(md5('v' || n), 16), 'big', NULL, 'https://example.org/' || n,
    w.words[1 + mod(abs(hashint4(n)), 25)] || ' ' || w.words[1 + mod(abs(hashint4(n * 7)), 25)] || ' ' ||
    w.words[1 + mod(abs(hashint4(n * 13)), 25)] || ' number ' || n,
    'a description', ARRAY['tag' || mod(n, 500)], 'channel ' || mod(abs(hashint4(n)), 20000),
    (ARRAY['Creative Commons Attribution', 'CC0', 'YouTube'])[1 + mod(abs(hashint4(n * 3)), 3)], '2024-05-01', 300,
    timestamptz '2024-01-01' + n * interval '30 seconds'
  FROM generate_series(1, {videos}) n, (SELECT string_to_array('{words}', ' ') AS words) w;
CREATE TEMPORARY TABLE made AS
  SELECT n, 1 + (n - 1) / 5 AS video, 'c' || left(md5('c' || n), 16) AS id,
         'v' || left(md5('v' || (1 + (n - 1) / 5)), 16) AS video_id,
         mod(abs(hashint4(n)), 5) = 0 AS bad, (ARRAY[{reasons}])[1 + mod(abs(hashint4(n * 3)), {n_reasons})] AS reason
  FROM generate_series(1, {clips}) n;
CREATE TEMPORARY TABLE steps AS
  SELECT v.step, v.place, v.id AS subject, v.video, NULL::integer AS n, 'kept' AS status, NULL::text AS reason FROM
    (SELECT s.step, s.place, 'v' || left(md5('v' || k), 16) AS id, k AS video
     FROM generate_series(1, {videos}) k, (VALUES ('download', 1), ('segment', 2), ('classify', 3)) s(step, place)) v
  UNION ALL
  SELECT s.step, s.place, CASE WHEN s.step = 'cut' THEN m.video_id || '/' || m.n || '-' || m.n + 200 ELSE m.id END,
         m.video, m.n, CASE WHEN m.bad AND s.step = 'decide' THEN 'rejected' ELSE 'kept' END,
         CASE WHEN m.bad AND s.step = 'decide' THEN m.reason END
  FROM made m, (VALUES ('cut', 4), ('quality', 5), ('decide', 6), ('deduplicate', 7), ('privacy', 8), ('caption', 9))
    s(step, place)
  WHERE NOT (m.bad AND s.place > 6);
INSERT INTO step_run (key, superseded, step, version, subject, status, reason, transient, detail, params, context,
    models, code_version, flow_run_id, attempts, decodes, started_at, finished_at, record_hash)
  SELECT md5(step || subject || round) || md5('k' || round), round > 0, step, 1, subject, status, reason, false,
    CASE step
      WHEN 'classify' THEN jsonb_build_object('clips', (SELECT jsonb_agg(jsonb_build_object(
        'start_frame', 200 * (k - 1), 'category', (ARRAY[{categories}])[1 + mod(video, {n_categories})]))
        FROM generate_series(1, 5) k))
      WHEN 'decide' THEN jsonb_build_object('metric', 'overlay_words', 'score',
        CASE WHEN reason IS NULL THEN 3 ELSE 40 END, 'threshold', 20, 'checks',
        jsonb_build_array(jsonb_build_object('reason', 'overlay_text', 'metric', 'overlay_words',
        'score', CASE WHEN reason IS NULL THEN 3 ELSE 40 END, 'threshold', 20, 'passes_when', 'at most',
        'passed', reason IS NULL)))
      WHEN 'quality' THEN jsonb_build_object('motion_type', 'pan', 'numbers', (SELECT substr(many,
        1 + mod(abs(hashint4(n)), 59000), 5000) FROM numbers))
      WHEN 'deduplicate' THEN '{{"duplicate_of": null}}'::jsonb
      WHEN 'privacy' THEN '{{"found": {{"faces": false, "identifiers": []}}, "blurred": []}}'::jsonb
      ELSE '{{}}'::jsonb END,
    '{{"frame_similarity": 0.55, "medical_threshold": 0.5, "max_overlay_words": 20}}', '{{}}',
    '{{"frames": "0123456789abcdef"}}', '0.1.0', 'flow-' || (video / 10000), 1, 1, at, at + interval '1 second',
    md5('r' || step || subject || round) || md5('h')
  FROM (SELECT steps.*, round, timestamptz '2024-06-01' + (video * 40 + place * 3 - round) * interval '1 second' AS at
        FROM steps, generate_series(0, {rounds}) round
        WHERE round = 0 OR mod(abs(hashint4(video)), 1000) < {again}) whole
  ORDER BY video, place, n NULLS FIRST;
"""

FILL = """
INSERT INTO clip SELECT m.id, m.video_id, r.id, 200 * mod(m.n - 1, 5), 200 * mod(m.n - 1, 5) + 180, 8 * mod(m.n - 1, 5),
    8 * mod(m.n - 1, 5) + 7.2, 640, 480, 25, md5('clip' || m.n) || md5('x' || m.n)
  FROM made m JOIN step_run r ON r.subject = m.video_id || '/' || m.n || '-' || m.n + 200 AND r.step = 'cut'
    AND NOT r.superseded;
INSERT INTO step_output SELECT step_run_id, 'clip', digest FROM clip;
INSERT INTO step_output SELECT id, 'video', md5('video' || video) || md5('x' || video) FROM
  (SELECT r.id, row_number() OVER (ORDER BY r.id) AS video FROM step_run r
    WHERE step = 'download' AND NOT superseded) made;
INSERT INTO score SELECT r.id, s.metric, r.subject, s.base + s.spread * mod(abs(hashint8(r.id)), 1000) / 1000.0, NULL
  FROM step_run r, (VALUES ('aesthetic', 2.0, 5.0), ('technical', 5.0, 90.0), ('overlay_words', 0.0, 60.0),
    ('sharpness', 20.0, 300.0)) s(metric, base, spread) WHERE r.step = 'quality' AND NOT r.superseded;
INSERT INTO step_input SELECT r.id, 'trail', NULL, p.id FROM step_run r
  JOIN step_run p ON p.subject = r.subject AND NOT p.superseded AND NOT r.superseded
    AND (p.step, r.step) IN (('quality', 'decide'), ('decide', 'deduplicate'), ('deduplicate', 'privacy'),
                             ('privacy', 'caption'), ('download', 'segment'), ('segment', 'classify'));
INSERT INTO step_input SELECT r.id, 'cut', NULL, c.step_run_id FROM step_run r JOIN clip c ON c.id = r.subject
  WHERE r.step = 'quality' AND NOT r.superseded;
INSERT INTO step_input SELECT c.step_run_id, 'classify', NULL, r.id FROM clip c
  JOIN step_run r ON r.subject = c.video_id AND r.step = 'classify' AND NOT r.superseded;
INSERT INTO caption SELECT r.id, k.kind, r.subject, 'A caption of a clip that shows something medical.', 'template',
    md5('m') || md5('m'), 'v1' FROM step_run r, (VALUES ('brief'), ('detailed')) k(kind)
  WHERE r.step = 'caption' AND NOT r.superseded;
"""


def make(dsn: str, clips: int, released: int) -> dict[str, Any]:
    """Fills the catalog; gives what is in it and how long it took."""
    from medgen.ledger import open_ledger
    from medgen.store import open_store

    began = time.perf_counter()
    open_ledger()
    videos = clips // 5
    # Each video has 3 step runs and each clip 5.4 in the mean; repeated attempts make up the rest of 10 million.
    filled = MAKE.format(
        clips=clips, videos=videos, words=" ".join(WORDS), reasons=_quoted(REASONS), n_reasons=len(REASONS),
        categories=_quoted(CATEGORIES), n_categories=len(CATEGORIES), rounds=1, again=670,
    )  # fmt: skip
    with psycopg.connect(dsn, autocommit=True) as connection:
        indexes = connection.execute(
            "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename IN "
            "('step_run', 'score', 'step_input', 'item_status', 'clip') AND indexname NOT LIKE '%_pkey'"
        ).fetchall()
        foreign = connection.execute("SELECT 1 FROM pg_constraint WHERE contype = 'f' LIMIT 1").fetchone()
        assert foreign  # stays; rows are loaded with their triggers off
        for name, _ in indexes:
            connection.execute(f'DROP INDEX "{name}"')
        connection.execute(filled)
        _say("step runs", began)
        for _, definition in indexes:
            if " ON public.step_run " in definition:
                connection.execute(definition)
        connection.execute("ANALYZE step_run")
        _say("their indexes", began)
        connection.execute(FILL)
        _say("clips, scores, lineage", began)
        connection.execute("BEGIN; SELECT rebuild_item_status(); COMMIT")
        _say("item_status", began)
        for _, definition in indexes:
            if " ON public.step_run " not in definition:
                connection.execute(definition)
        _say("indexes", began)
        store = open_store()
        for name, share in (("big-one", 1.0), ("big-two", 0.9)):
            _release(connection, store, name, int(released * share))
        connection.execute("VACUUM ANALYZE")
        counts = {
            table: _number(connection, sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table)))
            for table in ("video", "clip", "step_run", "score", "step_input", "caption", "item_status", "release_clip")
        }
        size = _number(connection, sql.SQL("SELECT pg_database_size(current_database())"))
    return {"rows": counts, "database_gb": round(size / 1e9, 2), "made_in_s": round(time.perf_counter() - began)}


def _quoted(values: Sequence[str]) -> str:
    """SQL literals, separated by commas."""
    return ", ".join(f"'{value}'" for value in values)


def _number(connection: psycopg.Connection[Any], query: sql.SQL | sql.Composed) -> int:
    row = connection.execute(query).fetchone()
    assert row
    return int(row[0])


def _release(connection: psycopg.Connection[Any], store: Any, name: str, clips: int) -> None:
    """A release with a metadata table as large as itself, a table of rejected ones and a funnel."""
    chosen = np.random.default_rng(5)
    rows = pa.table(
        {
            "clip_id": [f"c{n:016x}" for n in range(clips)],
            "video_id": [f"v{n // 5:016x}" for n in range(clips)],
            "duration": chosen.normal(8, 1, clips),
            "aesthetic_score": chosen.normal(4.5, 0.6, clips),
            "technical_score": chosen.normal(45, 12, clips),
            "medical_probability": chosen.beta(9, 1, clips),
            "category": chosen.choice(CATEGORIES, clips),
            "licence": chosen.choice(["CC0", "Creative Commons Attribution", "YouTube"], clips),
        }
    )
    out = pa.table(
        {
            "step": ["decide"] * (clips // 5), "subject": [f"c{n:016x}" for n in range(clips // 5)],
            "verdict": ["rejected"] * (clips // 5), "reason": chosen.choice(REASONS, clips // 5),
            "metric": ["overlay_words"] * (clips // 5), "score": chosen.normal(40, 5, clips // 5),
            "threshold": [20.0] * (clips // 5), "title": ["a title"] * (clips // 5),
        }
    )  # fmt: skip
    made = {}
    for role, table in (("metadata", rows), ("rejected", out)):
        scratch = store.scratch(".parquet")
        pq.write_table(table, scratch, compression="zstd")
        made[role] = store.put_file(scratch, "application/vnd.apache.parquet").sha256
    funnel = [
        {"step": step, "unit": unit, "in": clips, "kept": clips - 6000, "failed": {},
         "rejected": dict.fromkeys(REASONS, 1000)}
        for step, unit in (("download", "videos"), ("classify", "videos"), ("decide", "clips"), ("caption", "clips"))
    ]  # fmt: skip
    made["funnel"] = store.put_bytes(json.dumps(funnel).encode(), "application/json").sha256
    run = connection.execute(
        "INSERT INTO step_run (key, superseded, step, version, subject, status, transient, detail, params, context, "
        "models, code_version, attempts, decodes, started_at, finished_at, record_hash) VALUES (md5(%s) || md5('k'), "
        "false, 'release', 2, 'release', 'kept', false, '{}', '{}', '{}', '{}', '0.1.0', 1, 0, now(), now(), "
        "md5(%s) || md5('h')) RETURNING id",
        (name, name),
    ).fetchone()
    assert run
    for role, digest in made.items():
        connection.execute("INSERT INTO artifact VALUES (%s, 'x', 1, now()) ON CONFLICT DO NOTHING", (digest,))
        connection.execute("INSERT INTO step_output VALUES (%s, %s, %s)", (run[0], role, digest))
    connection.execute(
        "INSERT INTO release VALUES (%s, md5(%s) || md5('d'), %s, %s, md5('r') || md5('r'), %s, now())",
        (name, name, json.dumps({"max_overlay_words": clips}), clips, run[0]),
    )
    connection.execute(
        "INSERT INTO release_clip SELECT %s, subject, id FROM step_run WHERE step = 'caption' AND NOT superseded "
        "ORDER BY id DESC LIMIT %s",
        (name, clips),
    )


def questions(dsn: str, count: int, seed: int) -> dict[str, list[str]]:
    """Addresses of each kind of page, chosen by chance: searches of many sorts, further pages included."""
    chosen = random.Random(seed)
    places = [f"c{chosen.getrandbits(64):016x}" for _ in range(2000)]
    query = (
        "SELECT DISTINCT (SELECT id FROM clip WHERE id >= place ORDER BY id LIMIT 1) "
        "FROM unnest(CAST(%s AS text[])) AS place ORDER BY 1"
    )
    with psycopg.connect(dsn) as connection:
        clips = [row[0] for row in connection.execute(query, (places,)).fetchall() if row[0]]
    filters: list[Any] = [
        lambda: {"q": chosen.choice(WORDS)},
        lambda: {"q": f"{chosen.choice(WORDS)} {chosen.choice(WORDS)}"},
        lambda: {"q": f"number {chosen.randrange(1, 200_000)}"},
        lambda: {"q": "nothinglikethis"},
        lambda: {"reason": chosen.choice(REASONS)},
        lambda: {"status": "rejected", "q": chosen.choice(WORDS)},
        lambda: {"step": "decide", "status": "rejected", "reason": chosen.choice(REASONS)},
        lambda: {"channel": f"channel {chosen.randrange(20_000)}"},
        lambda: {"licence": "CC0", "category": chosen.choice(CATEGORIES)},
        lambda: {"metric": "aesthetic", "low": round(chosen.uniform(2, 7), 2)},
        lambda: {"metric": "technical", "low": 94.9, "high": 95},
        lambda: {"metric": "overlay_words", "low": 10, "high": 40, "status": "rejected"},
        lambda: {"release": "big-one"},
        lambda: {"release": "big-two", "q": chosen.choice(WORDS), "category": chosen.choice(CATEGORIES)},
        lambda: {"since": f"2024-0{chosen.randrange(6, 9)}-10", "until": f"2024-0{chosen.randrange(6, 9)}-20"},
        lambda: {"kind": "video", "q": chosen.choice(WORDS)},
        lambda: {},
    ]
    search = [f"/items?{urlencode(chosen.choice(filters)())}" for _ in range(count)]
    return {
        "search": search,
        "clip page": [f"/clips/{quote(chosen.choice(clips))}" for _ in range(count)],
        "release page": [f"/releases/{chosen.choice(['big-one', 'big-two'])}" for _ in range(count)],
    }


def ask(port: int, addresses: list[str]) -> list[tuple[float, int, str]]:
    """(seconds, status, address) of each request, one after the other on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    answers = []
    for address in addresses:
        began = time.perf_counter()
        connection.request("GET", address)
        answer = connection.getresponse()
        answer.read()
        answers.append((time.perf_counter() - began, answer.status, address))
    return answers


def main() -> None:
    """Makes, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="Scratch installation; about 15 GB at full size.")
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--released", type=int, help="Clips of the larger release; by default half of all.")
    parser.add_argument("--requests", type=int, default=300, help="Of each kind.")
    parser.add_argument("--random-urls", type=int, default=10_000, help="Made-up addresses; none may answer 500.")
    parser.add_argument("--smoke", action="store_true", help="Only see whether it runs, on the smallest catalog.")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.home = Path(tempfile.mkdtemp(prefix="medgen-audit-load-"))
        # Registered before the catalog's server, it is called after that one has left.
        atexit.register(shutil.rmtree, arguments.home, ignore_errors=True)
        arguments.clips, arguments.requests, arguments.random_urls = 500, 5, 50
    if arguments.home is None:
        parser.error("name a scratch installation with --home, or --smoke")
    os.environ["MEDGEN_HOME"] = str(arguments.home)
    os.environ.pop("MEDGEN_DATABASE_URL", None)
    from medgen.catalog import open_catalog

    dsn = open_catalog().url.render_as_string(hide_password=False).replace("+psycopg", "")
    with psycopg.connect(dsn) as connection:
        filled = connection.execute("SELECT 1 FROM clip LIMIT 1").fetchone()
    report: dict[str, Any] = {} if filled else make(dsn, arguments.clips, arguments.released or arguments.clips // 2)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    site = subprocess.Popen([sys.executable, "-m", "apps.cli", "audit", "--port", str(port)])
    try:
        for _ in range(240):
            try:
                ask(port, ["/robots.txt"])
                break
            except OSError:
                time.sleep(0.5)
        report["pages"] = {}
        for seed, at_once in ((1, 1), (2, 2)):
            for name, addresses in questions(dsn, arguments.requests, seed).items():
                parts = [addresses[k::at_once] for k in range(at_once)]
                with ThreadPoolExecutor(at_once) as pool:
                    answers = [answer for part in pool.map(partial(ask, port), parts) for answer in part]
                times = np.array([seconds for seconds, _, _ in answers]) * 1000
                slowest = max(answers)
                report["pages"][f"{name}, {at_once} at once"] = figures = {
                    "requests": len(times),
                    **{f"p{p}_ms": round(float(np.percentile(times, p)), 1) for p in (50, 95, 99)},
                    "first_ms": round(answers[0][0] * 1000, 1),
                    "slowest": [round(slowest[0] * 1000, 1), slowest[2]],
                    "statuses": sorted({status for _, status, _ in answers}),
                }
                print(name, at_once, json.dumps(figures), file=sys.stderr, flush=True)
        report["random_urls"] = _random_urls(port, arguments.random_urls)
    finally:
        site.terminate()
        site.wait()
    print(json.dumps(report, indent=1))
    if report["random_urls"]["answered_500"]:
        sys.exit(1)


def _random_urls(port: int, count: int) -> dict[str, Any]:
    from tests.audit_addresses import hostile_addresses

    began = time.perf_counter()
    statuses: dict[int, list[str]] = {}
    # An export of the whole catalog is no fault, but takes minutes: it is asked for in the tests, of a small one.
    asked = [address for address in hostile_addresses(count * 2, seed=3) if not address.startswith("/items.csv")]
    for _, status, address in ask(port, asked[:count]):
        statuses.setdefault(status, []).append(address)
    return {
        "asked": count,
        "by_status": {status: len(addresses) for status, addresses in sorted(statuses.items())},
        "answered_500": statuses.get(500, [])[:5],
        "seconds": round(time.perf_counter() - began),
    }


def _say(what: str, began: float) -> None:
    print(f"{what}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
