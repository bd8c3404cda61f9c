"""Results of shards: what stands is not looked at again, what no longer stands is, item by item."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import insert
from sqlalchemy.orm import Session

from flows.shards_in_flight import ShardsInFlight
from medgen.catalog import LostArtifact, open_catalog
from medgen.errors import ItemFailed
from medgen.ledger import Outcome, StepIdentity, Work, open_ledger
from medgen.lost_artifacts import note_lost_artifacts
from medgen.parameters import Parameters
from medgen.retries import request_retry
from medgen.shard import Item, Step
from medgen.shard_results import ShardReference, ShardResults, run_stored
from medgen.store import Store, open_store
from medgen.takedown import create_tombstones
from tasks.curation.curation_step import CurationStep
from tasks.operations.failures import failures

worked_on: list[str] = []


def note(work: Work, store: Store, down: set[str], for_good: bool = False) -> Outcome:
    worked_on.append(work.subject)
    if work.subject in down:
        raise ItemFailed("not_now", "asked to wait", transient=not for_good, later=not for_good)
    return Outcome("kept", outputs={"note": store.put_bytes(work.subject.encode(), "text/plain")})


def test_only_what_no_longer_stands_is_done_again(home: Path) -> None:
    down = {"d"}
    step = Step(
        StepIdentity("note", 1, {}, {}),
        partial(note, down=down),
        work_of=lambda item, past: Work(item.subject, context={"n": 1}),
        runs_in="inline",
    )
    items = [Item(subject) for subject in "abcd"]
    results = ShardResults(open_ledger())

    def night() -> tuple[ShardReference, list[str], list[str]]:
        """The reference, what was kept, and what was worked on."""
        worked_on.clear()
        note_lost_artifacts(open_catalog(), open_store())
        made = run_stored(step, items)
        return made, [item.subject for item in results.items(made)], list(worked_on)

    first, kept, worked = night()
    assert (kept, worked, first.ended) == ([*"abc"], [*"abcd"], 1)
    assert night()[1:] == ([*"abc"], ["d"])  # what failed for a cause that may pass, and nothing else
    down.clear()
    made, kept, worked = night()
    assert (kept, worked, made.executed, made.reused, made.ended) == ([*"abcd"], ["d"], 1, 3, 0)
    assert night()[1:] == ([*"abcd"], [])
    digests = {s: open_store().put_bytes(s.encode(), "text/plain").sha256 for s in "ab"}
    open_store().remove(digests["b"])
    assert night()[1:] == ([*"abcd"], ["b"])
    with open_catalog().begin() as connection:  # taken for lost, and there
        connection.execute(insert(LostArtifact).values(sha256=digests["a"]))
    worked_on.clear()
    made = run_stored(step, items)
    assert ([item.subject for item in results.items(made)], worked_on) == ([*"abcd"], [])
    # What failed for good stays so until somebody asks for it, once.
    down.add("a")
    open_store().remove(digests["a"])
    waiting = replace(step, function=partial(note, down=down, for_good=True))
    step = waiting
    assert night()[1:] == ([*"bcd"], ["a"]) and night()[1:] == ([*"bcd"], [])
    with Session(open_catalog()) as session, session.begin():
        assert request_retry(session, "not_now", "other") == 0 and request_retry(session, "not_now") == 1
    assert failures(open_ledger())[0]["retried"]
    assert night()[1:] == ([*"bcd"], ["a"]) and night()[1:] == ([*"bcd"], [])
    down.clear()
    with Session(open_catalog()) as session, session.begin():
        request_retry(session, "not_now", "note")
    assert night()[1:] == ([*"abcd"], ["a"]) and night()[1:] == ([*"abcd"], [])
    create_tombstones(open_catalog(), {"c": "http://videos.example/c"}, "asked", {})
    made, kept, worked = night()
    assert (kept, worked, made.ended) == ([*"abd"], [], 1)
    assert night()[1:] == ([*"abd"], [])


class Parametersless(Parameters):
    """Of steps without any."""


class DoneHere:
    """Stands for the future of a task that has ended."""

    def __init__(self, made: ShardReference) -> None:
        self.made = made

    def wait(self) -> None:
        """It has ended."""

    def result(self, raise_on_failure: bool) -> ShardReference:
        """What it made."""
        return self.made


class TasksHere(ShardsInFlight):
    """Shards under way whose tasks run here; `submitted` names their steps."""

    def __init__(self) -> None:
        super().__init__(Parametersless(), retry_quarantined=False)
        self.submitted: list[str] = []

    def _submit(self, step: CurationStep[Any], label: str, upstream: Any) -> Any:
        self.submitted.append(step.name)
        reference = upstream.made if isinstance(upstream, DoneHere) else upstream
        return DoneHere(run_stored(step.step(Parametersless()), ShardResults(open_ledger()).items(reference)))


def test_steps_after_one_that_tries_some_items_again_are_looked_up_before_they_are_submitted(home: Path) -> None:
    down = {"d"}

    def step(name: str) -> CurationStep[Any]:
        def made(params: Parametersless) -> Step:
            return Step(
                StepIdentity(name, 1, {}, {}),
                partial(note, down=down if name == "download" else set()),
                work_of=lambda item, past: Work(item.subject),
                runs_in="inline",
            )

        return CurationStep(name, Parametersless, made)

    steps = [step(name) for name in ("download", "segment", "classify")]

    def night() -> tuple[list[str], list[tuple[str, int]]]:
        """The steps that were submitted, and (step, how many it kept) of all results."""
        flight = TasksHere()
        flight.send([("shard-1", [Item(subject) for subject in "abcd"])], steps)
        flight.finish()
        assert not flight.errors
        return flight.submitted, [(made.step, made.kept) for made in flight.results]

    three = [("download", 3), ("segment", 3), ("classify", 3)]
    assert night() == (["download", "segment", "classify"], three)
    assert night() == (["download"], three)  # d is still down, and the others have passed all steps
    down.clear()
    four = [("download", 4), ("segment", 4), ("classify", 4)]
    assert night() == (["download", "segment", "classify"], four)
    assert night() == ([], four)
