"""What a rehearsal does inside an installation, a process each: see `bench.rehearsal`, which starts and measures them.

    python -m bench.rehearsal_work refresh JSON       a night: {"world": …, "arguments": …}
    python -m bench.rehearsal_work command NAME …      a command of `medgen`, its words as they are
    python -m bench.rehearsal_work counts             what is on record, and some of its names
    python -m bench.rehearsal_work training RELEASE   lays out the job of a training over a release

Prints JSON. How many SQL statements the process made, and the most parameters that one had, go to `statements.json`
beside the rehearsal's listings.
"""

import atexit
import json
import sys
import time
from pathlib import Path
from typing import Any

SAMPLE = 400  # clips that are named


def count_statements(path: Path) -> None:
    """Writes what SQLAlchemy sends to a database, until this process ends, to a file."""
    from sqlalchemy import Engine, event

    counted: dict[str, Any] = {"statements": 0, "most_parameters": 0, "statement": ""}

    def count(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        parameters = parameters[0] if many and parameters else parameters
        counted["statements"] += 1
        if len(parameters or ()) > counted["most_parameters"]:
            counted.update(most_parameters=len(parameters), statement=statement[:500])

    event.listen(Engine, "before_cursor_execute", count)
    atexit.register(lambda: path.write_text(json.dumps(counted)))


def refresh(asked: dict[str, Any]) -> dict[str, Any]:
    """The summary of a refresh with made-up steps."""
    from apps.prefect_server import prefect_server
    from medgen.settings import current

    # Made-up steps import Prefect, which must know its server by then.
    with prefect_server(current().home) as server, server.kept_alive():
        from apps.run_flow import run_flow
        from bench.made_up_steps import World, install

        install(World(**asked["world"] | {"calls": Path(asked["world"]["calls"])}))
        return run_flow("refresh", asked["arguments"], quiet=True)


def counts() -> dict[str, Any]:
    """Rows and bytes on record; the newest release; clips and step runs that stand twice."""
    from sqlalchemy import text

    from medgen.catalog import open_catalog
    from medgen.settings import current
    from medgen.web.quotas import bytes_below

    queries = {
        "listed": "SELECT count(*) FROM video",
        "clips": "SELECT count(*) FROM clip",
        "step_runs": "SELECT count(*) FROM step_run",
        "superseded": "SELECT count(*) FROM step_run WHERE superseded AND NOT transient",
        "doubled": "SELECT count(*) - count(DISTINCT key) FROM step_run WHERE NOT superseded",
        "postgres_bytes": "SELECT pg_database_size(current_database())",
    }
    with open_catalog().connect() as connection:
        found: dict[str, Any] = {name: connection.scalar(text(query)) for name, query in queries.items()}
        newest = connection.execute(
            text("SELECT name, digest, clips FROM release ORDER BY created_at DESC, name LIMIT 1")
        ).first()
        sample = text("SELECT id FROM clip ORDER BY md5(id) LIMIT :most")
        found["clip_ids"] = list(connection.scalars(sample, {"most": SAMPLE}))
    found |= dict(zip(("release", "digest", "released"), newest or ("", "", 0), strict=True))
    home = current().home
    found["store_objects"] = sum(1 for _ in current().store_folder.glob("??/*"))
    found["store_bytes"] = bytes_below(current().store_folder)
    found["prefect_bytes"] = sum(path.stat().st_size for path in (home / "prefect").glob("prefect.db*"))
    return found


def training(release: str) -> dict[str, Any]:
    """Lays out a training job over a release: each clip's own file stands for its latents."""
    from medgen.ledger import Work, open_ledger
    from medgen.model_lineage import LATENTS
    from models.training.config import configured
    from tasks.training.job_folder import materialize_job, working_folder
    from tasks.training.released import stream_clips

    ledger = open_ledger()
    began = time.perf_counter()
    inputs = {LATENTS + clip.clip_id: clip.sha256 for clip in stream_clips(ledger, release)[0]}
    inputs["empty"] = next(iter(inputs.values()))
    read_s = time.perf_counter() - began
    work = Work(release, inputs, access={"base": "none"})
    clips = stream_clips(ledger, release)[0]
    job = materialize_job(ledger.store, working_folder("rehearsal"), work, clips, configured("nano", {}), "none")
    return {"clips": len(job.samples), "read_s": read_s, "laid_out_s": time.perf_counter() - began - read_s}


def main(command: str, *arguments: str) -> None:
    """Does one thing and prints what came of it."""
    from medgen.settings import current

    count_statements(current().home / "rehearsal" / "statements.json")
    match command:
        case "refresh":
            done = refresh(json.loads(arguments[0]))
        case "command":
            from apps.cli import app

            app(arguments)  # which ends the process
            raise AssertionError
        case "training":
            done = training(*arguments)
        case _:
            done = counts()
    sys.stdout.write(json.dumps(done, default=str) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
