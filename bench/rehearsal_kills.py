"""First nights that are killed at work: what comes out must be what an undisturbed one gives.

A kill is `kill -9` of everything of the installation. Kills are spread evenly over the work: the n-th comes when that
part of all calls of the steps' functions has been made.
"""

import time
from pathlib import Path
from typing import Any

from bench import kill
from bench.made_up_steps import CALL
from bench.rehearsed_installation import Rehearsal

LOOK_S = 0.02


def recovers(folder: Path, videos: int, kills: int, seed: int) -> dict[str, Any]:
    """Figures of a night that was killed so many times beside one that was not, and `faults`: what differs."""
    whole, killed = (Rehearsal(folder / name, videos, seed=seed) for name in ("whole", "killed"))
    for rehearsal in (whole, killed):
        rehearsal.listings(0, videos)
    expected = whole.run(whole.night({}, 1))[0]
    calls = _calls(whole)
    kill.take_prefect_database(whole.home, killed.home)
    done = 0
    while done < kills:
        process = killed.start(killed.night({}, 1))
        at = calls * (done + 1) // (kills + 1)
        while process.poll() is None and _calls(killed) < at:
            time.sleep(LOOK_S)
        if process.poll() is not None:
            break  # it got through: what was made again counted as work
        kill.kill_all(killed.home, process)
        done += 1
    summary = killed.run(killed.night({}, 1))[0]
    faults = kill.compare(summary, expected, kill.state(killed.home), kill.state(whole.home))
    counts, counted = killed.counts(), whole.counts()
    if counts["superseded"] or counts["doubled"]:
        faults.append(f"{counts['superseded']} records superseded for no failure, {counts['doubled']} keys twice")
    faults += kill.verified(killed.home)
    return {
        "videos": videos,
        "kills": done,
        "digest": summary["digest"],
        "clips": summary["clips"],
        "calls": calls,
        "made_again": _calls(killed) - calls,  # work whose record a kill prevented
        "executed_by_the_last": summary["executed"],
        "step_runs": {"killed": counts["step_runs"], "whole": counted["step_runs"]},
        "faults": faults,
    }


def _calls(rehearsal: Rehearsal) -> int:
    return rehearsal.calls.stat().st_size // CALL.itemsize if rehearsal.calls.exists() else 0
