"""The funnel guard: what departs from history or drops everything stops a release, what varies by chance does not."""

from hypothesis import given
from hypothesis import strategies as st

from medgen.takedown import BLOCKED, TAKEN_DOWN
from tasks.curation.funnel_guard import departures, stopped


def entry(step: str, total: int, kept: int) -> dict:
    return {"step": step, "in": total, "kept": kept, "rejected": {"no_medical_term": total - kept}, "failed": {}}


def test_a_step_that_drops_everything_is_named_with_its_share_and_reason() -> None:
    history = [[entry("discover", 300, kept), entry("download", kept, kept - 5)] for kept in (200, 210, 190)]
    (found,) = departures([entry("discover", 300, 0), entry("download", 0, 0)], history, 0.5)
    assert (found.step, found.kept, found.total) == ("discover", 0, 300)
    assert "discover kept 0 of 300 (0%), where 67% was usual; most were dropped for no_medical_term" in str(found)


def test_a_step_that_rejects_everything_needs_no_history() -> None:
    for total, history in ((300, []), (2, []), (4, [[entry("discover", 300, 200)]]), (6, [[entry("discover", 9, 2)]])):
        (found,) = departures([entry("discover", total, 0), entry("download", 0, 0)], history, 0.5)
        assert (found.step, found.kept, found.total) == ("discover", 0, total)
    assert "because a step rejects all that it is given: discover kept 0 of 2" in str(
        stopped("medgen", departures([entry("discover", 2, 0)], [], 0.5))
    )
    told = [[entry("discover", 300, 0)]]  # and was released nevertheless
    failed = entry("discover", 3, 3) | {"kept": 0, "failed": {"http_404": 3}}
    taken_down = entry("discover", 3, 3) | {"kept": 0, "rejected": {TAKEN_DOWN: 2, BLOCKED: 1}}
    assert not departures([entry("discover", 300, 0)], told, 0.5)
    assert not departures([failed], [], 0.5) and not departures([taken_down], [], 0.5)


def test_without_history_or_with_few_subjects_less_is_no_departure() -> None:
    assert departures([entry("discover", 300, 1)], [], 0.5) == []
    assert departures([entry("discover", 4, 1)], [[entry("discover", 300, 300)]], 0.5) == []
    assert departures([entry("discover", 300, 1)], [[entry("discover", 4, 4)]], 0.5) == []


@given(st.integers(5, 500), st.floats(0.05, 1))
def test_the_usual_share_never_departs(total: int, share: float) -> None:
    table = [entry("quality", total, round(share * total))]
    assert departures(table, [table] * 3, 0.5) == []


@given(st.integers(5, 10))
def test_few_subjects_need_to_miss_their_share_by_more(total: int) -> None:
    """Half of a handful may be chance: one clip of five where two in five were usual stops nobody."""
    assert departures([entry("quality", total, 1)], [[entry("quality", 100, 40)]], 0.5) == []
