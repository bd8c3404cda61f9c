"""What an import can be told about a published set: which columns are what, and what its rows leave unsaid."""

import re
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from medgen.parameters import MOST_BYTES, MOST_PIXELS, MOST_SECONDS, Parameters
from medgen.published.fields import field_mapping
from tasks.curation.cut import X264Preset


class ImportParams(Parameters):
    """Parameters of the steps of an import."""

    columns: tuple[str, ...] = Field(
        (), description="FIELD=COLUMN where a set calls a field otherwise: detailed=long_caption, brief=title, file=id."
    )
    single_caption: Literal["both", "refuse"] = Field(
        "both", description="A row with one caption alone: it counts as brief and detailed, or the row is refused."
    )
    captioner: str = Field("", max_length=200, description="What wrote the captions, where rows don't say.")
    captioner_kind: Literal["unknown", "vision_language_model", "human", "template"] = Field(
        "unknown", description="What kind it is, where rows don't say; template: it saw no picture."
    )
    licence: str = Field("", max_length=500, description="Licence of the clips whose rows state none.")
    video_pattern: str = Field(
        "",
        max_length=500,
        description="Regular expression for names of files: its first group is the source video, by which clips are "
        "held out together. Empty: what rows say, else each clip is a video of its own.",
    )
    max_clip_bytes: int = Field(2**30, gt=0, le=MOST_BYTES, description="Larger files are refused, bytes.")
    max_clip_s: float = Field(600.0, gt=0, le=MOST_SECONDS, description="Longer clips are refused, seconds.")
    max_pixels: int = Field(
        4096 * 2304, gt=0, le=MOST_PIXELS, description="Clips with larger pictures are refused, pixels."
    )
    crf: int = Field(18, ge=0, le=51, description="H.264 quality of clips that are no MP4, which are encoded anew.")
    x264_preset: X264Preset = Field("veryfast", description="x264 preset of these.")
    import_limit_s: float = Field(
        600.0, gt=0, le=MOST_SECONDS, exclude=True, description="A clip that takes longer is given up, seconds."
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Values that do not go together, or say nothing."""
        yield from super().conflicts()
        try:
            field_mapping(self.columns)
        except ValueError as error:
            yield "columns", str(error)
        try:
            groups = re.compile(self.video_pattern).groups
        except (re.error, RecursionError, OverflowError) as error:
            yield "video_pattern", f"no regular expression: {error}"
        else:
            if self.video_pattern and not groups:
                yield "video_pattern", "has no group, which would be the source video"
