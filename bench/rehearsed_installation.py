"""An installation in which nights are rehearsed: its listings, its commands, what they cost."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.kill import environment
from bench.made_up_listing import ALLOWED_LICENCES, write_listing
from bench.process_costs import Costs, ProcessCosts

ROOT = Path(__file__).resolve().parent.parent
FILE_VIDEOS = 2500  # of a listing file: the paper's 25 million rows are 50 shards of half a million, with 2,800 each
# As the paper's, on scales as LAION's and DOVER's: what the made-up scores are made for.
SETTINGS: dict[str, Any] = {
    "release_prefix": "rehearsal",
    "licences": ALLOWED_LICENCES,
    "aesthetic_threshold": 3.0,
    "mediocre_aesthetic": 4.0,
    "mediocre_technical": 60.0,
    "search_index": False,  # made-up clips have no embeddings
}

err = Console(stderr=True)


@dataclass
class Rehearsal:
    """One installation and what happens to it.

    Args:
        home: its data folder.
        rows_per_video: rows of the listing for each video that discover keeps.
        any_server: it may use a Prefect server of others, whose costs are not counted.
    """

    home: Path
    videos: int
    rows_per_video: int = 3
    seed: int = 1
    any_server: bool = False
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self._kept.exists():
            self.figures = json.loads(self._kept.read_text())

    @property
    def folder(self) -> Path:
        """What the rehearsal itself needs: listings, logs, figures."""
        return self.home / "rehearsal"

    @property
    def _kept(self) -> Path:
        return self.folder / f"figures-{self.videos}.json"

    @property
    def calls(self) -> Path:
        """See `bench.made_up_steps.World`."""
        return self.folder / "calls"

    def listings(self, first: int, count: int) -> None:
        """Writes the listing files of videos that are not there yet."""
        for start in range(first, first + count, FILE_VIDEOS):
            path = self.folder / "listings" / f"videos-{start:08}.parquet"
            if not path.exists():
                many = min(FILE_VIDEOS, first + count - start)
                write_listing(path, start, many, rows_per_video=self.rows_per_video, seed=self.seed)

    def night(self, settings: Mapping[str, Any], frame_model: int) -> list[str]:
        """The command of a refresh."""
        world = {"seed": self.seed, "videos": self.videos, "calls": str(self.calls), "frame_model": frame_model}
        arguments = {"sources": [str(self.folder / "listings")], **SETTINGS, **settings}
        return ["bench.rehearsal_work", "refresh", json.dumps({"world": world, "arguments": arguments})]

    def start(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """Starts `python -m COMMAND` in the installation, in a session of its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.home.chmod(0o700)
        with (self.folder / "stderr").open("a") as stderr, (self.folder / "stdout").open("w") as stdout:
            return subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                env=environment(self.home, any_server=self.any_server),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )

    def run(self, command: Sequence[str]) -> tuple[Any, float, Costs]:
        """(what a command printed, its seconds, its costs)."""
        statements = self.folder / "statements.json"
        statements.unlink(missing_ok=True)
        began = time.perf_counter()
        process = self.start(command)
        costs = ProcessCosts(process, self.home)
        status = process.wait()
        seconds = time.perf_counter() - began
        spent = costs.end()
        if status:
            err.print((self.folder / "stderr").read_text()[-5000:], markup=False, highlight=False)
            raise SystemExit(f"{' '.join(command)[:200]} exited {status}")
        if statements.exists():
            spent.statements = json.loads(statements.read_text())
        return json.loads((self.folder / "stdout").read_text()), seconds, spent

    def counts(self) -> dict[str, Any]:
        """See `bench.rehearsal_work.counts`."""
        found: dict[str, Any] = self.run(["bench.rehearsal_work", "counts"])[0]
        return found

    def keep(self, phase: str, facts: dict[str, Any]) -> None:
        """Adds a phase's figures to those on the disk."""
        self.figures[phase] = facts
        self._kept.write_text(json.dumps(self.figures, indent=1))
