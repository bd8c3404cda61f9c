"""The training part of the demo's corpus: scrolls through real scans of six kinds, each kind from several videos."""

from functools import partial

from apps.demo.listing import Row
from apps.demo.pictures import FPS, Film
from apps.demo.scans import Scroll, VolumeName

NILEARN = "BSD-3-Clause"
VISVIS = "BSD-3-Clause"
NIBABEL = "MIT"

TRAINING_SECONDS = 7.0
_ICBM = (
    "Made of the ICBM 152 template of 2009 ((C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, Montreal "
    "Neurological Institute, McGill University: use, copying, change and distribution for any purpose and without fee, "
    "provided that this notice appears in all copies) as it comes inside nilearn (BSD-3-Clause)."
)
_EPI = "Made of example4d.nii.gz, test data of nibabel (MIT)."
_STENT = "Made of stent_vol.ssdf, sample data of visvis (BSD-3-Clause)."
_BRAIN = ("MRI", "brain", "neuroradiology", "radiology")
_VESSELS = ("CT", "aorta", "stent graft", "radiology")
# Volume → what its scans are called, provenance, licence, channel, tags.
_SCANS: dict[VolumeName, tuple[str, str, str, str, tuple[str, ...]]] = {
    "t1": ("T1-weighted MRI of the brain", _ICBM, NILEARN, "nilearn data", _BRAIN),
    "echo-planar": ("echo-planar MRI of the brain", _EPI, NIBABEL, "nibabel test data", _BRAIN),
    "tissues": ("MRI map of grey and white matter", _ICBM, NILEARN, "nilearn data", (*_BRAIN, "segmentation")),
    "grey-matter": ("MRI heat map of grey matter", _ICBM, NILEARN, "nilearn data", (*_BRAIN, "segmentation")),
    "aorta": ("CT angiography of a stent graft", _STENT, VISVIS, "visvis sample data", _VESSELS),
}
# Where the pictures are cut out: large, as the frame judge knows scans.
_AXIAL, _CORONAL, _SAGITTAL = ((98, 117), 125), ((98, 85), 110), ((117, 78), 115)
# Id → the scroll, and what it goes through. The template is symmetric, so its left half shows all there is.
_SCROLLS: dict[str, tuple[Scroll, str]] = {
    "brain-axial-low": (Scroll("t1", "axial", 42, 72, *_AXIAL), "cerebellum and temporal lobes"),
    "brain-axial-middle": (Scroll("t1", "axial", 72, 104, *_AXIAL), "basal ganglia and ventricles"),
    "brain-axial-high": (Scroll("t1", "axial", 104, 138, *_AXIAL), "the upper hemispheres"),
    "brain-axial-epi": (Scroll("echo-planar", "axial", 1, 22, (64, 48), 94), "one whole head"),
    "brain-coronal-back": (Scroll("t1", "coronal", 48, 88, *_CORONAL), "occipital lobes and cerebellum"),
    "brain-coronal-middle": (Scroll("t1", "coronal", 88, 128, *_CORONAL), "brainstem and thalamus"),
    "brain-coronal-front": (Scroll("t1", "coronal", 128, 168, *_CORONAL), "basal ganglia and frontal lobes"),
    "brain-sagittal-lateral": (Scroll("t1", "sagittal", 36, 57, *_SAGITTAL), "temporal lobe and insula"),
    "brain-sagittal-between": (Scroll("t1", "sagittal", 57, 78, *_SAGITTAL), "hippocampus and basal ganglia"),
    "brain-sagittal-midline": (Scroll("t1", "sagittal", 78, 98, *_SAGITTAL), "brainstem and corpus callosum"),
    "aorta-axial-low": (Scroll("aorta", "axial", 45, 115, (64, 64), 85), "iliac arteries"),
    "aorta-axial-high": (Scroll("aorta", "axial", 135, 215, (64, 64), 85), "aneurysm and kidneys"),
    "aorta-coronal": (Scroll("aorta", "coronal", 50, 70, (64, 128), 85), "aneurysm and stent"),
    "aorta-sagittal": (Scroll("aorta", "sagittal", 45, 85, (64, 128), 85), "spine and aorta"),
    "tissues-axial": (Scroll("tissues", "axial", 48, 130, *_AXIAL), "upwards"),
    "tissues-coronal": (Scroll("tissues", "coronal", 50, 150, (98, 85), 122), "forwards"),
    "tissues-sagittal": (Scroll("tissues", "sagittal", 44, 74, (117, 78), 128), "inwards"),
    "grey-matter-axial": (Scroll("grey-matter", "axial", 136, 58, *_AXIAL), "downwards"),
    "grey-matter-coronal": (Scroll("grey-matter", "coronal", 168, 60, *_CORONAL), "backwards"),
    "grey-matter-sagittal": (Scroll("grey-matter", "sagittal", 98, 42, *_SAGITTAL), "outwards"),
}
# The kinds of pictures in the training part: name → ids of its videos. No two videos of a kind show the same.
TRAINING_CLASSES: dict[str, tuple[str, ...]] = {
    "axial brain MRI": ("brain-axial-low", "brain-axial-middle", "brain-axial-high", "brain-axial-epi"),
    "coronal brain MRI": ("brain-coronal-back", "brain-coronal-middle", "brain-coronal-front"),
    "sagittal brain MRI": ("brain-sagittal-lateral", "brain-sagittal-between", "brain-sagittal-midline"),
    "CT angiography": ("aorta-axial-low", "aorta-axial-high", "aorta-coronal", "aorta-sagittal"),
    "tissue map": ("tissues-axial", "tissues-coronal", "tissues-sagittal"),
    "grey matter map": ("grey-matter-axial", "grey-matter-coronal", "grey-matter-sagittal"),
}


def _scrolled(name: str) -> Row:
    scroll, way = _SCROLLS[name]
    what, provenance, licence, channel, tags = _SCANS[scroll.volume]
    title = f"{scroll.plane.capitalize()} {what}: {way}"
    description = f"A scroll through the {scroll.plane} slices of a scan: {what}, {way}."
    return Row(
        name, f"{name}.mp4", title, description, provenance, (*tags, scroll.plane), licence, TRAINING_SECONDS, channel
    )


TRAINING_ROWS = tuple(_scrolled(name) for name in _SCROLLS)


def training_titles() -> dict[str, str]:
    """Video id → title of the training part."""
    return {row.id: row.title for row in TRAINING_ROWS}


def training_films() -> dict[str, Film]:
    """File name → film."""
    count = round(TRAINING_SECONDS * FPS)
    return {f"{name}.mp4": Film(partial(scroll.frames, count), count) for name, (scroll, _) in _SCROLLS.items()}
