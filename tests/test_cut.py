"""Cut: a clip holds exactly the frames of its stretch, and loses black borders where enough picture remains."""

import cv2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medgen.errors import ItemFailed
from medgen.ledger import Outcome, Work
from medgen.settings import Settings
from medgen.store import Store
from medgen.video.limits import Limits
from medgen.video.pictures import pictures
from tasks.curation.cut import CutParams, cut
from tests.conftest import changing_video, frame_number, numbered_video


@pytest.fixture
def store(tmp_path):
    return Store(Settings(home=tmp_path / "home"))


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return numbered_video(tmp_path_factory.mktemp("cut") / "video.mp4", 60)


def table(store: Store, rows: list[dict], **metadata: str) -> str:
    scratch = store.scratch(".parquet")
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(metadata), scratch)
    return store.put_file(scratch, "application/vnd.apache.parquet").sha256


def cut_out(store: Store, video, start: int, end: int, bordered: int = 0, promised: int = 0, **params) -> Outcome:
    """Cuts frames [start, end). `bordered`: black rows above and below of the samples that borders are found on."""
    frames = [(picture.pts, picture.time_s, picture.rgb()) for picture in pictures(video, Limits())]
    samples = []
    for place in range(start, min(end, len(frames)), 5):
        shown = cv2.cvtColor(frames[place][2], cv2.COLOR_RGB2BGR)
        shown[:bordered] = shown[len(shown) - bordered :] = 0
        samples.append({"frame": place, "jpeg": cv2.imencode(".jpg", shown)[1].tobytes()})
    last = frames[-1]
    rows = [{"pts": pts, "time_s": time_s} for pts, time_s, _ in frames]
    rows += [{"pts": last[0] + n, "time_s": last[1] + n} for n in range(1, promised + 1)]  # of a file that shrank
    work = Work(
        f"v1/{start}-{end}",
        inputs={
            "video": store.put_bytes(video.read_bytes(), "video/mp4").sha256,
            "frames": table(store, rows),
            "samples": table(store, samples),
        },
        context={"start_frame": start, "end_frame": end, "start_s": start / 25, "end_s": end / 25, "size": [640, 480]},
    )
    return cut(work, store, CutParams(**params))


def test_a_clip_holds_exactly_its_frames(store, video):
    outcome = cut_out(store, video, 13, 47)
    clip = outcome.detail["clip"]
    numbers = [frame_number(picture.rgb()) for picture in pictures(store.path(clip["digest"]), Limits())]
    assert numbers == list(range(13, 47))
    assert (clip["width"], clip["height"], clip["fps"], clip["video_id"]) == (640, 480, 25.0, "v1")
    assert outcome.outputs["clip"].sha256 == clip["digest"] and outcome.rows[0].id == clip["id"]
    assert cut_out(store, video, 13, 47).detail == outcome.detail


def test_borders_are_cropped_where_enough_remains_and_noted_where_not(store, video):
    cropped = cut_out(store, video, 0, 30, bordered=40, min_inner_short_side=320)
    assert cropped.detail["borders"]["cropped"] and cropped.detail["borders"]["crop"] is not None
    assert 390 <= cropped.detail["clip"]["height"] <= 400
    left = cut_out(store, video, 0, 30, bordered=40)
    assert left.detail["borders"]["kind"] != "none" and not left.detail["borders"]["cropped"]
    assert left.detail["clip"]["height"] == 480


def test_a_video_that_lacks_promised_frames_fails(store, video):
    with pytest.raises(ItemFailed, match="frames_missing"):
        cut_out(store, video, 50, 65, promised=10)


def test_a_stretch_whose_pictures_change_their_size_fails(store, tmp_path):
    changing = changing_video(tmp_path / "changes.ts", ((640, 480), (320, 240)), 10)
    for params in ({"crop_borders": True}, {"crop_borders": False}):
        with pytest.raises(ItemFailed, match="size_changes"):
            cut_out(store, changing, 0, 18, **params)
    assert cut_out(store, changing, 0, 9).detail["clip"]["height"] == 480
