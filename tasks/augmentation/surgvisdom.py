"""SurgVisDom as its organisers lay it out: short videos of three surgical tasks, on a pig and in virtual reality.

Zia et al., "Surgical visual domain adaptation: results from the MICCAI 2020 SurgVisDom challenge", arXiv 2102.13644.
The training set is ``train_1/DOMAIN/TASK/FILE``, such as ``train_1/Porcine/Dissection/DS_0001.mp4``. The test set is
full videos with a label for each frame (``test/NAME.mp4``, ``test/testing_set_video_metadata.csv``), none for a video.
"""

from collections.abc import Sequence
from pathlib import Path

from medgen.errors import SourceUnreadable
from tasks.augmentation.labelled_folder import videos_in
from tasks.augmentation.labelled_videos import Labelled, LabelledVideo, LeftOut, shown, take

DOMAINS = ("Porcine", "VR")
TASKS = ("Dissection", "Knot_Tying", "Needle_Driving")
TEST_LIST = "testing_set_video_metadata.csv"
OWN_SOURCES = "SurgVisDom does not say which videos are of one session: each counts as a source of its own"


def domain_folders(folder: Path) -> list[Path]:
    """The folders of domains in the set's folder or in its folders ``train…``, by name."""
    places = [folder, *sorted(path for path in folder.glob("train*") if path.is_dir())]
    return [
        place / domain
        for place in places
        for domain in DOMAINS
        if any((place / domain / task).is_dir() for task in TASKS)
    ]


def read_surgvisdom(folder: Path, synthetic: bool, parts: Sequence[str]) -> Labelled:
    """The training videos of the set, labelled by task.

    Args:
        parts: of Porcine, VR; both when empty.

    Raises:
        SourceUnreadable: not_surgvisdom where files lie elsewhere than the set's do; unknown_part, no_videos.
    """
    domains = domain_folders(folder)
    names = sorted({domain.name for domain in domains})
    if not domains:
        raise SourceUnreadable(
            "not_surgvisdom",
            f"{folder} has no DOMAIN/TASK, of {', '.join(DOMAINS)} and {', '.join(TASKS)}, nor a train_1 with it",
        )
    if unknown := set(parts) - set(names):
        raise SourceUnreadable("unknown_part", f"{folder} has {' and '.join(names)}, not {', '.join(sorted(unknown))}")
    videos: list[LabelledVideo] = []
    left_out: list[LeftOut] = []
    for domain in (domain for domain in domains if not parts or domain.name in parts):
        for path, inside in videos_in(domain, left_out):
            name = shown(path.relative_to(folder).as_posix())
            if len(inside) != 2 or inside[0] not in TASKS:
                raise SourceUnreadable(
                    "not_surgvisdom",
                    f"{name} lies where SurgVisDom has none: its videos are DOMAIN/TASK/FILE with the tasks "
                    f"{', '.join(TASKS)}. Folders of your own are read with layout=labels",
                )
            videos += take(path, inside[0], name, synthetic, name, left_out)
    if not videos and not left_out:
        raise SourceUnreadable("no_videos", f"the domains of {folder} hold no video")
    taken = parts or names
    notes = [f"read as SurgVisDom: the label is the task; domains: {', '.join(sorted(taken))}", OWN_SOURCES]
    if any(folder.glob(f"test*/{TEST_LIST}")):
        notes.append("its test set has a label for each frame and none for a video: it takes no part")
    return Labelled(tuple(videos), tuple(left_out), tuple(notes))
