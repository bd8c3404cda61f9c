"""Mixtures: several releases as one, each with its share of what training draws."""

import pyarrow.parquet as pq
import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from apps.audit.application import create_site
from medgen.catalog import Release
from medgen.errors import ItemFailed
from medgen.holdout import held_out, held_out_videos
from medgen.ledger import Work, open_ledger
from medgen.model_lineage import LATENTS
from medgen.verify import verify
from models.training.config import configured
from tasks.operations.takedown import take_down
from tasks.training.job_folder import materialize_job
from tasks.training.mixture import is_mixture, mixed_release, read_mixture, weights_of
from tasks.training.released import released_clips
from tasks.training.webdataset import export_webdataset
from tests.made_release import made_release


def test_shares_add_up_and_the_order_does_not_matter() -> None:
    assert read_mixture("b=1, a=3") == read_mixture("a=6,b=2") == {"a": 0.75, "b": 0.25}
    assert read_mixture("a,b") == {"a": 0.5, "b": 0.5}
    assert is_mixture("a,b") and is_mixture("a=1") and not is_mixture("a")


@pytest.mark.parametrize(
    "text", ["a=0", "a=-1", "a=nan", "a=inf", "a=x", "=1", "a,,b", "a,a", ",".join(map(str, range(65)))]
)
def test_what_is_no_mixture_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"RELEASE=WEIGHT|twice|at most"):
        read_mixture(text)


def test_releases_are_mixed_and_a_takedown_reaches_the_mixture(home, tmp_path) -> None:
    ledger = open_ledger()
    made_release(ledger, tmp_path / "a", {"c1": "v1", "c2": "v2"}, "ours-1")
    made_release(ledger, tmp_path / "a", {"c1": "v1"}, "theirs-1")
    with pytest.raises(ItemFailed, match="unknown_release"):
        mixed_release(ledger, "ours-1,nobody-1")
    assert mixed_release(ledger, "ours-1=2") == "ours-1"
    name = mixed_release(ledger, "theirs-1=1,ours-1=3")
    assert name.startswith("mixture-") and mixed_release(ledger, "ours-1=6,theirs-1=2") == name
    clips, release = released_clips(ledger, name)
    assert {clip.clip_id: clip.parts for clip in clips} == {"c1": ("ours-1", "theirs-1"), "c2": ("ours-1",)}
    assert weights_of(release.policy) == {"ours-1": 0.75, "theirs-1": 0.25} and release.clips == 2
    inputs = {LATENTS + clip.clip_id: clip.sha256 for clip in clips} | {"empty": clips[0].sha256}
    job = materialize_job(
        ledger.store, tmp_path / "job", Work(name, inputs, access={"base": ""}), clips, configured("nano"), "",
        weights_of(release.policy),
    )  # fmt: skip
    assert job.weights == {"ours-1": 0.75, "theirs-1": 0.25} and job.samples[0].parts == ("ours-1", "theirs-1")
    assert job.facts() != job.model_copy(update={"weights": {"ours-1": 0.5, "theirs-1": 0.5}}).facts()

    with TestClient(create_site(), base_url="http://localhost") as site:
        page = site.get(f"/releases/{name}")
        assert page.status_code == 200 and "ours-1" in page.text
    assert export_webdataset(ledger, name, tmp_path / "shards", shard_bytes=10**6).clips == 2
    assert not [fault for fault in verify(ledger, home / "releases", artifacts=False) if name in fault]

    (report,) = take_down(ledger, {"v2": "https://example.org/v2"}, "asked")
    assert report.releases == {name: 1, "ours-1": 1}
    left, _ = released_clips(ledger, name)
    assert [clip.clip_id for clip in left] == ["c1"]
    again = mixed_release(ledger, "theirs-1=1,ours-1=3")
    with Session(ledger.engine) as session:
        record = ledger.load([session.get_one(Release, again).step_run_id])
    outputs = next(iter(record.values())).outputs
    assert again != name and pq.read_table(ledger.store.path(outputs["metadata"]))["clip_id"].to_pylist() == ["c1"]


def test_what_a_publisher_set_apart_is_held_out() -> None:
    clips = [("v1", "train"), ("v1", "train"), ("v2", "test"), ("v2", "train"), ("v3", "validation"), ("v4", "")]
    assert held_out_videos(clips, 0.5, 0) == held_out_videos(clips, 0.0, 7) == {"v2", "v3"}
    unsplit = [(f"v{n}", "train" if n % 2 else "") for n in range(40)]
    assert held_out_videos(unsplit, 0.2, 1) == held_out((video for video, _ in unsplit), 0.2, 1)
