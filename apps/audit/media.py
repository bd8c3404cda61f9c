"""Files out of the store: clips to play (with byte ranges) and pictures of them."""

import io
import re
from functools import lru_cache
from typing import Annotated

import pyarrow.parquet as pq
from fastapi import APIRouter, Header, Path, Request
from PIL import Image
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import FileResponse, Response

from apps.audit.site import Site, site_of
from apps.history import Unknown
from medgen.catalog import Artifact, Clip, StepOutput, StepRun, Tombstone
from medgen.errors import ItemFailed
from medgen.store import Store
from medgen.video.limits import Limits
from medgen.video.pictures import pictures

router = APIRouter()

POSTER_PIXELS = 360  # long side
KEPT = "private, max-age=3600"
ONE_RANGE = re.compile(r"bytes=(\d{0,15}-\d{0,15})")

Id = Annotated[str, Path(max_length=200)]


@router.api_route("/media/clips/{clip_id}.mp4", methods=["GET", "HEAD"])
def clip_file(request: Request, clip_id: Id, range_: Annotated[str | None, Header(alias="range")] = None) -> Response:
    """A clip's file. One byte range at a time; of several asked for at once the whole file is given."""
    return _file(request, site_of(request), _clip(site_of(request), clip_id).digest, "video/mp4", range_)


@router.api_route("/media/outputs/{step_run_id}/video.mp4", methods=["GET", "HEAD"])
def made_video(
    request: Request,
    step_run_id: Annotated[int, Path(ge=1, lt=2**62)],
    range_: Annotated[str | None, Header(alias="range")] = None,
) -> Response:
    """A video that a step made, such as a generated one."""
    with Session(site_of(request).engine) as session:
        digest = session.scalar(
            select(StepOutput.artifact_sha256)
            .join(Artifact, Artifact.sha256 == StepOutput.artifact_sha256)
            .where(StepOutput.step_run_id == step_run_id, StepOutput.role == "video")
            .where(Artifact.media_type == "video/mp4")
        )
    if digest is None:
        raise Unknown(f"step run {step_run_id} made no video")
    return _file(request, site_of(request), digest, "video/mp4", range_)


@router.get("/posters/clips/{clip_id}.jpg")
def clip_poster(request: Request, clip_id: Id) -> Response:
    """A picture from the middle of a clip."""
    site = site_of(request)
    return _picture(request, _clip_jpeg(site.store, _clip(site, clip_id).digest))


@router.get("/posters/videos/{video_id}.jpg")
def video_poster(request: Request, video_id: Id) -> Response:
    """The first picture that segment kept of a video."""
    site = site_of(request)
    with Session(site.engine) as session:
        if session.get(Tombstone, video_id):
            raise Unknown(f"video {video_id} was taken down")
        digest = session.scalar(
            select(StepOutput.artifact_sha256)
            .join(StepRun, StepRun.id == StepOutput.step_run_id)
            .where(StepRun.step == "segment", StepRun.subject == video_id, StepOutput.role == "samples")
            .order_by(StepRun.id.desc())
            .limit(1)
        )
    if digest is None:
        raise Unknown(f"no picture of video {video_id} is on record")
    return _picture(request, _sample_jpeg(site.store, digest))


def _clip(site: Site, clip_id: str) -> Clip:
    with Session(site.engine) as session:
        clip = session.get(Clip, clip_id)
        if clip is None:
            raise Unknown(f"there is no clip {clip_id[:80]}")
        if session.get(Tombstone, clip.video_id):
            raise Unknown(f"clip {clip_id} was taken down")
        return clip


def _file(request: Request, site: Site, digest: str, media_type: str, asked: str | None) -> Response:
    path = site.store.path(digest)
    if not asked or not ONE_RANGE.fullmatch(asked.strip()) or asked.strip() == "bytes=-":
        # RFC 9110, 14.2: a server may ignore a range that it doesn't like.
        request.scope["headers"] = [(k, v) for k, v in request.scope["headers"] if k != b"range"]
    return FileResponse(
        path,
        media_type=media_type,
        headers={"ETag": f'"{digest}"', "Cache-Control": KEPT, "Content-Disposition": "inline"},
    )


def _picture(request: Request, jpeg: bytes) -> Response:
    return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": KEPT})


@lru_cache(maxsize=1024)
def _clip_jpeg(store: Store, digest: str) -> bytes:
    """Raises ItemFailed when the clip can't be decoded."""
    shown = None
    for picture in pictures(store.path(digest), Limits(max_duration_s=60)):
        if picture.index in (0, 24):
            shown = picture.rgb(POSTER_PIXELS)
        if picture.index >= 24:
            break
    if shown is None:
        raise ItemFailed("undecodable", f"there is no picture in artifact {digest}")
    buffer = io.BytesIO()
    Image.fromarray(shown).save(buffer, "JPEG", quality=78)
    return buffer.getvalue()


@lru_cache(maxsize=256)
def _sample_jpeg(store: Store, digest: str) -> bytes:
    table = pq.ParquetFile(store.path(digest))
    for batch in table.iter_batches(batch_size=1, columns=["jpeg"]):
        with Image.open(io.BytesIO(batch["jpeg"][0].as_py()), formats=("JPEG",)) as picture:
            picture.thumbnail((POSTER_PIXELS, POSTER_PIXELS))
            buffer = io.BytesIO()
            picture.convert("RGB").save(buffer, "JPEG", quality=78)
            return buffer.getvalue()
    raise ItemFailed("undecodable", f"there is no picture in artifact {digest}")
