"""The ledger: nothing twice, nothing lost, nothing changed unseen."""

from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from medgen.canonical import canonical_json
from medgen.catalog import StepRun, now, open_catalog
from medgen.errors import ItemFailed
from medgen.gc import collect_garbage
from medgen.ledger import Ended, Outcome, StepIdentity, Work, open_ledger
from medgen.shard import ShardFailed, Step, run_shard
from medgen.store import Store, open_store
from medgen.verify import verify
from medgen.workplace import workplace

calls: list[str] = []


def measure(work: Work, store: Store, factor: float, fail: frozenset[str] = frozenset()) -> Outcome:
    """A step for tests: stores a text, scores its length; fails for chosen subjects."""
    calls.append(work.subject)
    if work.subject in fail:
        raise ItemFailed("test_trouble", "asked to fail", transient=work.subject.startswith("t"))
    artifact = store.put_bytes(f"{work.subject}*{factor}".encode(), "text/plain")
    if len(work.subject) > 6:
        return Outcome("rejected", "too_long", {"score": len(work.subject), "threshold": 6})
    return Outcome("kept", detail={"n": 1.0}, scores={"length": len(work.subject) * factor}, outputs={"text": artifact})


def step(factor: float = 1.0, fail: frozenset[str] = frozenset(), where: str = "inline") -> Step:
    identity = StepIdentity("measure", 1, {"factor": factor}, {"model": "m" * 64})
    return Step(identity, partial(measure, factor=factor, fail=fail), runs_in=where)


def run(subjects: list[str], made: Step, **options: object) -> object:
    calls.clear()
    return run_shard(made, [Work(subject) for subject in subjects], **options)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(subjects=st.lists(st.text("abcdef", min_size=1, max_size=9), max_size=12), order=st.randoms())
def test_a_second_run_in_any_order_does_nothing(home: Path, subjects: list[str], order: object) -> None:
    first = run(subjects, step())
    shuffled = list(subjects)
    order.shuffle(shuffled)
    second = run(shuffled, step())
    assert calls == [] and second.executed == 0 and second.reused == len(subjects)
    assert {i.lineage["measure"] for i in first.kept} == {i.lineage["measure"] for i in second.kept}
    assert len(first.kept) + len(first.dropped) == len(subjects)
    with Session(open_catalog()) as session:
        doubled = session.execute(
            select(StepRun.key).where(~StepRun.superseded).group_by(StepRun.key).having(func.count() > 1)
        )
        assert doubled.all() == []


def test_failures_are_isolated_quarantined_and_retried(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medgen.shard.BACKOFF_S", 0.0)
    bad = frozenset({"p1", "t1"})
    result = run(["a", "p1", "t1", "b"], step(fail=bad))
    assert [item.subject for item in result.kept] == ["a", "b"] and len(result.dropped) == 2
    assert calls.count("p1") == 1 and calls.count("t1") == 3  # only transient failures are tried again
    again = run(["a", "p1", "t1", "b"], step())  # t1 has got better; p1 stays quarantined
    assert set(calls) == {"t1"} and again.executed == 1
    assert [item.subject for item in again.kept] == ["a", "t1", "b"]
    forced = run(["a", "p1"], step(), retry_quarantined=True)
    assert calls == ["p1"] and len(forced.kept) == 2
    assert verify(open_ledger(), home / "releases") == []  # superseded attempts stay, and stay sound
    subjects = [f"t{n}" for n in range(12)]
    with pytest.raises(ShardFailed, match="12 of 12 items failed with test_trouble"):
        run(subjects, step(factor=2.0, fail=frozenset(subjects)))


def test_parameters_and_models_are_part_of_the_identity(home: Path) -> None:
    run(["a"], step())
    assert run(["a"], step(factor=2.0)).executed == 1
    assert run(["a"], step()).executed == 0


def test_lost_bytes_are_made_again_and_garbage_is_swept(home: Path) -> None:
    result = run(["a", "b"], step())
    ledger, store = open_ledger(), open_store()
    lost = ledger.load([result.kept[0].lineage["measure"]])[result.kept[0].lineage["measure"]].outputs["text"]
    store.remove(lost)
    assert f"artifact {lost}" in " ".join(verify(ledger, home / "releases"))
    assert run(["a", "b"], step()).executed == 1
    assert verify(ledger, home / "releases") == []
    orphan = store.put_bytes(b"nobody's", "text/plain")
    store.scratch().write_bytes(b"half a file")
    assert collect_garbage(ledger, grace_s=3600).objects == 0
    with workplace(store) as under_way:
        (store.temporary / "download-left-behind").mkdir()
        swept = collect_garbage(ledger, grace_s=-1)
        assert (swept.objects, swept.scratch_files) == (1, 2)
        assert list(store.temporary.iterdir()) == [under_way]
    assert store.missing([orphan.sha256, lost]) == {orphan.sha256}


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE step_run SET status = 'kept', reason = NULL WHERE subject = 'toolong'",
        "UPDATE step_run SET detail = '{\"score\": 5, \"threshold\": 6}' WHERE subject = 'toolong'",
        "UPDATE step_run SET params = '{\"factor\": 3.0}' WHERE subject = 'a'",
        "UPDATE step_run SET finished_at = finished_at + interval '1 hour' WHERE subject = 'a'",
        "UPDATE score SET value = value + 1",
        "DELETE FROM score",
        "DELETE FROM step_output",
    ],
)
def test_verify_names_what_was_altered(home: Path, tampering: str) -> None:
    run(["a", "toolong"], step())
    assert verify(open_ledger(), home / "releases") == []
    with open_catalog().begin() as connection:
        connection.execute(text(tampering))
    faults = verify(open_ledger(), home / "releases")
    assert any("was changed after it was written" in fault for fault in faults), faults


def test_altered_bytes_are_named(home: Path) -> None:
    result = run(["a"], step())
    record = open_ledger().load([result.kept[0].lineage["measure"]])[result.kept[0].lineage["measure"]]
    open_store().path(record.outputs["text"]).write_bytes(b"something else")
    faults = verify(open_ledger(), home / "releases")
    assert len(faults) == 1 and record.outputs["text"] in faults[0] and "changed" in faults[0]


def crash(work: Work, store: Store) -> Outcome:
    """Takes its process down for one subject, hangs for another."""
    import os
    import time

    if work.subject == "segfault":
        os.kill(os.getpid(), 11)
    if work.subject == "hang":
        time.sleep(600)
    return Outcome("kept")


def test_a_crashing_or_hanging_worker_hurts_only_its_item(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medgen.shard.BACKOFF_S", 0.0)
    result = run(["a", "segfault", "hang", "b"], Step(StepIdentity("crash", 1, {}, {}), crash, time_limit_s=5.0))
    assert [item.subject for item in result.kept] == ["a", "b"]
    ended = open_ledger().load([lineage["crash"] for lineage in result.dropped]).values()
    assert {(r.subject, r.reason) for r in ended} == {("segfault", "worker_died"), ("hang", "time_limit")}


def test_migrations_make_the_tables_that_the_code_declares(home: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from medgen.catalog import Base

    with open_catalog().connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


NUMBERS = count()
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), min_size=1, max_size=5))
def test_records_are_given_as_they_are_read_back(home: Path, details: list[dict[str, Any]]) -> None:
    """What is handed on in this run must give the same keys as what the next run reads."""
    ledger = open_ledger()
    identity = StepIdentity("odd", 1, {}, {})
    number = next(NUMBERS)
    ended = {}
    for place, detail in enumerate(details):
        work = Work(f"{number}-{place}")
        outcome = Outcome("kept", detail=detail, scores={"a": 1, "b": 0.1})
        ended[identity.key(work)] = Ended(work, outcome, now(), now())
    written = ledger.write_all(identity, ended, flow_run_id=None)
    assert ledger.find(ended) == written
    assert canonical_json({k: r.detail for k, r in ledger.find(ended).items()}) == canonical_json(
        {k: r.detail for k, r in written.items()}
    )
