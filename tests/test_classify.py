"""The temporal rule: stretches and pieces, as properties."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tasks.classify import pieces, stretches


@given(
    fps=st.sampled_from([10.0, 24.0, 25.0, 29.97, 30.0, 59.94]),
    length_s=st.floats(0.5, 90.0),
    offset=st.integers(0, 100),
)
def test_pieces_are_6_to_10_s_and_do_not_overlap(fps: float, length_s: float, offset: int) -> None:
    from tasks.classify import Stretch

    frames = max(1, round(length_s * fps))
    times = np.arange(offset + frames + 50) / fps
    stretch = Stretch(offset, offset + frames, 0, 0)
    found = pieces(times, stretch, 6.0, 10.0)
    length = frames / fps
    assert bool(found) == (length >= 6.0 - 1e-6)
    for start, end in found:
        assert 6.0 - 1.01 / fps <= times[end] - times[start] <= 10.0 + 1.01 / fps
        assert offset <= start < end <= offset + frames
    for (_, end), (start, _) in itertools.pairwise(found):
        assert end == start
    if found and not 10.0 < length < 12.0:
        assert (found[0][0], found[-1][1]) == (offset, offset + frames)


@given(data=st.data())
def test_stretches_hold_only_medical_samples_of_one_shot(data: st.DataObject) -> None:
    seconds = data.draw(st.integers(1, 40))
    fps = 5
    cuts = data.draw(st.sets(st.integers(1, seconds * fps - 1), max_size=4)) if seconds * fps > 1 else set()
    frame_shots = np.cumsum([index in cuts for index in range(seconds * fps)])
    sample_frames = np.arange(seconds) * fps
    sample_shots = frame_shots[sample_frames]
    medical = np.array(data.draw(st.lists(st.booleans(), min_size=seconds, max_size=seconds)))
    similar = np.array(data.draw(st.lists(st.booleans(), min_size=seconds - 1, max_size=seconds - 1)), bool)
    found = stretches(medical, similar, sample_frames, sample_shots, frame_shots)
    covered = []
    for run in found:
        assert len(set(frame_shots[run.start : run.end])) == 1
        assert medical[run.first : run.last + 1].all() and similar[run.first : run.last].all()
        inside = [k for k in range(seconds) if run.start <= sample_frames[k] < run.end]
        assert inside == list(range(run.first, run.last + 1))
        covered += inside
    assert covered == [k for k in range(seconds) if medical[k]]
