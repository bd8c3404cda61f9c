"""Reads labelled videos, however they are laid out: a folder, a CSV, one of three published sets, or a release.

- Folders and CSV: `tasks.augmentation.labelled_folder`.
- MedVidCL, HyperKvasir, SurgVisDom as their authors lay them out: the modules of these names. They are known by files
  and folders that only they have, and a note says what they were taken for.
- Release: its clips, the source video as source; the label is the category, or the one of some words in the title.
"""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field

from medgen.errors import ItemFailed, SourceUnreadable
from medgen.ledger import Ledger
from medgen.parameters import Parameters
from tasks.augmentation.hyperkvasir import Level, read_hyperkvasir, videos_folder
from tasks.augmentation.labelled_folder import read_csv, read_folder
from tasks.augmentation.labelled_videos import Labelled, LabelledVideo, LeftOut
from tasks.augmentation.medvidcl import is_medvidcl, read_medvidcl
from tasks.augmentation.surgvisdom import domain_folders, read_surgvisdom
from tasks.training.released import released_clips

Layout = Literal["auto", "labels", "medvidcl", "hyperkvasir", "surgvisdom"]


class LabelParams(Parameters):
    """What is a video's label."""

    layout: Layout = Field(
        "auto",
        description="How the real videos lie: labels: sub-folders are labels; or as the authors of a set lay it out; "
        "auto: by what is there.",
    )
    label_depth: int | None = Field(
        None, ge=1, le=8, description="Levels of folders that make a label; the levels below them make the source."
    )
    label_level: Level = Field("finding", description="HyperKvasir: the level of its tree that labels are taken from.")
    parts: tuple[str, ...] = Field(
        (),
        description="Parts of a set to take, all by default. MedVidCL: train, val, test; HyperKvasir: lower-gi-tract, "
        "upper-gi-tract; SurgVisDom: Porcine, VR.",
    )
    video_folder: str = Field(
        "",
        description="MedVidCL: folder of its videos, VIDEO_ID.mp4; by default the set's data/videos/medvidcl.",
    )
    label_from: Literal["category", "title"] = Field(
        "category", description="Label of a release's clips: their category, or the one of title_words in their title."
    )
    title_words: tuple[str, ...] = Field((), description="Words that titles are looked through for, as labels.")


def read_labelled(
    ledger: Ledger, place: str, params: LabelParams | None = None, *, synthetic: bool = False
) -> Labelled:
    """The labelled videos of a folder, a CSV, a published set or, when there is no such path, a release.

    Args:
        synthetic: take all for synthetic; a release never is.

    Raises:
        SourceUnreadable: no such place, or nothing in it can be used.
        ItemFailed: as `released_clips`.
    """
    params = params or LabelParams()
    path = Path(place)
    if path.exists():
        return _read_path(path, synthetic, params)
    if synthetic:
        raise SourceUnreadable("unknown_place", f"{place!r} is no folder and no CSV file of synthetic videos")
    name = place.removeprefix("release:")
    try:
        return _release(ledger, name, params)
    except ItemFailed as error:
        if error.reason != "unknown_release" or place != name:
            raise
        raise SourceUnreadable(
            "unknown_place", f"{place!r} is no folder, no CSV file and no release; see `medgen release list`"
        ) from error


def _read_path(path: Path, synthetic: bool, params: LabelParams) -> Labelled:
    layout = "auto" if synthetic else params.layout  # synthetic videos may, and need not, lie as the real ones do
    if layout == "auto":
        layout = _layout(path, params)
    match layout:
        case "medvidcl":
            return read_medvidcl(path, synthetic, params.parts, params.video_folder)
        case "hyperkvasir":
            return read_hyperkvasir(path, synthetic, params.parts, params.label_level)
        case "surgvisdom":
            return read_surgvisdom(path, synthetic, params.parts)
    return read_folder(path, synthetic, params.label_depth) if path.is_dir() else read_csv(path, synthetic)


def _layout(path: Path, params: LabelParams) -> Layout:
    """What the place shows itself to be. Who says `label_depth` has said how to read it."""
    if params.label_depth is not None:
        return "labels"
    if path.is_file():
        return "medvidcl" if path.suffix.lower() == ".json" else "labels"
    if videos_folder(path):
        return "hyperkvasir"
    if domain_folders(path):
        return "surgvisdom"
    return "medvidcl" if is_medvidcl(path) else "labels"


def _release(ledger: Ledger, name: str, params: LabelParams) -> Labelled:
    words = [word.strip() for word in params.title_words if word.strip()]
    by_title = params.label_from == "title"
    if by_title and len(words) < 2:
        raise SourceUnreadable("no_title_words", "labels from titles need at least two title words")
    clips, _ = released_clips(ledger, name)
    videos: list[LabelledVideo] = []
    left_out: list[LeftOut] = []
    for clip in clips:
        label = clip.category
        if by_title:
            named = [word for word in words if re.search(rf"\b{re.escape(word)}", clip.title, re.IGNORECASE)]
            if len(named) != 1:
                message = f"its title names {len(named)} of the words: {', '.join(words)}"
                left_out.append(LeftOut(clip.clip_id, "no_title_class", message))
                continue
            label = named[0]
        if not label:
            left_out.append(LeftOut(clip.clip_id, "no_label", "the clip has no category"))
            continue
        parents = {"clip": clip.step_run_id}
        videos.append(
            LabelledVideo(clip.clip_id, clip.sha256, label, clip.video_id, False, clip.clip_id, parents=parents)
        )
    return Labelled(tuple(videos), tuple(left_out))
