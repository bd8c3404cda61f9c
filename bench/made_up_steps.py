"""Steps whose work on pictures and on the network is made up, for rehearsals: all else of them is the product's own.

Each function takes the place of its step's function and says what that might have found: by the item and a seed alone,
so that a run that was killed or repeated finds the same. The shares follow the paper's funnel: of 140,000 videos some
110,000 clips, of which about half are released. What the steps look at, their keys, where they run and what follows
are the product's.
"""

import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np

from medgen.canonical import canonical_json, digest_of, rounded
from medgen.catalog import Clip
from medgen.errors import ItemFailed
from medgen.ledger import Outcome, Work
from medgen.parameters import Parameters
from medgen.shard import Step
from medgen.store import Artifact, Store
from medgen.video.colour import Colour
from medgen.video.probe import Probe
from models.duplicates.fingerprint import CELLS, HASH_SIDE, PART_BITS, PARTS, Fingerprint
from tasks.curation import privacy as privacy_step
from tasks.curation.caption import CaptionDetail, CaptionParams
from tasks.curation.classify import ClassifiedClip, ClassifyParams
from tasks.curation.curation_step import steps
from tasks.curation.cut import CutDetail, CutParams, EncodedClip
from tasks.curation.download import METADATA
from tasks.curation.download_policy import DownloadParams, duration_rejection, early_rejection, height_rejection
from tasks.curation.quality import QualityParams
from tasks.curation.segment import SegmentDetail, SegmentParams

STEPS = ("download", "segment", "classify", "cut", "quality", "privacy", "caption")

FPS = 25
WIDTH, HEIGHT = 854, 480
COLOUR = asdict(Colour("bt709", "bt709", "bt709", "limited", (), "none")) | {"assumed": []}
SHARED_BLOBS = 64  # what no later step reads is made of so many pieces: what a store costs, objects of clips show
BLOB_BYTES = 2000
CLIPS_OF_VIDEO = (0.435, 0.36, 0.135, 0.07)  # shares of the videos with no clip, one, two and three
BORDERED, CROPPABLE = 0.3, 0.63  # shares of clips with black borders, and of these that are cropped: 0.11 are not
COPIES = 0.08  # of the clips show what others show too, one of so many scenes for each video
SCENES_SHARED = 0.024
NAMES_PATIENT = 0.03
REJECTED_CAPTIONS, REPEATED_CAPTIONS = 0.01, 0.004
# What ails a clip in decide's order, how often, and the scores that show it.
DEFECTS: tuple[tuple[float, dict[str, float]], ...] = (
    (0.010, {"short_side": 400.0}),
    (0.100, {"overlay_words": 31.0, "words": 33.0}),
    (0.010, {"overlay_share": 0.4}),
    (0.010, {"imaging_words": 140.0}),
    (0.120, {"aesthetic": 2.4}),
    (0.025, {"technical": 97.0}),
    (0.090, {"aesthetic": 3.6, "technical": 71.0}),
    (0.008, {"motion_moving_fraction": 0.001}),
    (0.006, {"unexplained_change": 0.05, "speed_change": 0.2}),
    (0.012, {"sharpness": 31.0}),
    (0.006, {"freeze_share": 0.8}),
    (0.003, {"black_share": 0.7}),
    (0.004, {"flashes_per_s": 5.0}),
    (0.004, {"combing": 0.2}),
    (0.006, {"blockiness": 2.3}),
    (0.005, {"noise": 22.0}),
)
GOOD: Mapping[str, float] = {
    "words": 2, "overlay_words": 0, "imaging_words": 0, "scene_words": 1, "overlay_share": 0.01, "motion_change": 9.2,
    "motion_moving_fraction": 0.31, "short_side": HEIGHT, "identifiers": 0, "sharpness": 81,
    "freeze_share": 0, "black_share": 0, "flashes_per_s": 0, "combing": 0, "blockiness": 1.05, "noise": 1.5,
    "technical": 44, "aesthetic": 4.9, "faces": 0, "face_frames": 0,
}  # fmt: skip
WORDS = (
    "the", "view", "shows", "surgeon", "instrument", "tissue", "probe", "moves", "slowly", "towards", "upper", "left",
    "edge", "of", "picture", "while", "light", "falls", "on", "wall", "and", "a", "second", "hand", "holds", "vessel",
    "aside", "screen", "behind", "them", "grey", "image", "changes", "with", "beat", "needle", "enters", "at", "an",
    "angle", "then", "leaves", "gauze", "is", "laid", "down",
)  # fmt: skip
CALL = np.dtype([("step", "u1"), ("made_up_s", "<f4"), ("store_s", "<f4"), ("store_cpu_s", "<f4")])


@dataclass(frozen=True)
class World:
    """What a rehearsal is made of.

    Args:
        seed: of all that is made up.
        videos: about how many there are.
        calls: file that each call of a function adds a row of `CALL` to.
        frame_model: stands for the frame model: another one sets clips a few frames later.
    """

    seed: int
    videos: int
    calls: Path
    frame_model: int = 1

    def chance(self, of: str, subject: str) -> random.Random:
        """Numbers for one thing about one subject, the same each time."""
        return random.Random(f"{self.seed} {of} {subject}")


def install(world: World) -> None:
    """Makes the pipeline of this process one of made-up steps. To be called before a flow is imported."""
    assert not steps.cache_info().currsize
    for name in STEPS:
        module: Any = import_module(f"tasks.curation.{name}")
        module.STEP = replace(module.STEP, step=partial(_made_up, real=module.STEP.step, name=name, world=world))


def calls(world: World) -> np.ndarray:
    """Rows of `CALL`, one for each call so far. `step` is a place in `STEPS`."""
    return np.fromfile(world.calls, CALL) if world.calls.exists() else np.zeros(0, CALL)


def _made_up(params: Parameters, *, real: Any, name: str, world: World) -> Step:
    step: Step = real(params)
    identity = step.identity
    if name == "classify":
        identity = replace(identity, models={"frames": _frame_model(world)})
    return replace(step, identity=identity, function=partial(FUNCTIONS[name], params=params, world=world))


def _frame_model(world: World) -> str:
    return digest_of({"name": "made-up frame model", "version": world.frame_model})


class _Call:
    """One call of a function: what it puts into the store is told apart from what it makes up."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.store_s = self.store_cpu_s = 0.0

    def put(self, data: bytes, media_type: str) -> Artifact:
        """An artifact of these bytes."""
        began, cpu = time.perf_counter(), time.thread_time()
        artifact = self.store.put_bytes(data, media_type)
        self.store_s += time.perf_counter() - began
        self.store_cpu_s += time.thread_time() - cpu
        return artifact

    def shared(self, kind: str, chance: random.Random) -> Artifact:
        """One of a few artifacts of a kind."""
        return self.put(_blob(kind, chance.randrange(SHARED_BLOBS)), "application/octet-stream")


@contextmanager
def _call(step: str, store: Store, world: World) -> Iterator[_Call]:
    call, cpu = _Call(store), time.thread_time()
    try:
        yield call
    finally:
        spent = time.thread_time() - cpu - call.store_cpu_s
        row = np.array([(STEPS.index(step), spent, call.store_s, call.store_cpu_s)], CALL)
        os.write(_opened(world.calls), row.tobytes())


@cache
def _opened(path: Path) -> int:
    """A handle by which whole rows are added, whoever else adds some."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


@cache
def _blob(kind: str, number: int) -> bytes:
    return kind.encode() + random.Random(f"{kind} {number}").randbytes(BLOB_BYTES)


_asked: set[str] = set()  # videos whose first request this process has answered with an error that passes


def download(work: Work, store: Store, params: DownloadParams, world: World) -> Outcome:
    """Some vanished, some hosts do not answer at once or not at all, some files are short, some pictures are small."""
    with _call("download", store, world) as call:
        row = work.context
        if rejection := early_rejection(row, params, web=True):
            return rejection
        chance = world.chance("download", work.subject)
        share = chance.random()
        if share < 0.012:
            raise ItemFailed("http_404", "the server answered Not Found")
        if share < 0.020:
            raise ItemFailed("unavailable", "This video is private")
        if share < 0.023:
            raise ItemFailed("truncated_file", "by its own account the file lacks its last 4096 bytes")
        if share < 0.0235:
            raise ItemFailed("network_error", "the host does not answer", transient=True)
        if share < 0.024:
            raise ItemFailed("host_busy", "the host asks to wait", later=True)
        if share < 0.026 and work.subject not in _asked:
            _asked.add(work.subject)
            raise ItemFailed("http_503", "the server answered Service Unavailable", transient=True)
        small = chance.random() < 0.02
        facts = _probe(row["duration_s"] or 60.0, 360 if small else HEIGHT)
        if rejection := duration_rejection(facts.duration_s, params) or height_rejection(facts, params):
            return replace(rejection, decodes=1)
        metadata = {name: row.get(name) for name in METADATA}
        detail = {"metadata": metadata, "probe": vars(facts)}
        return Outcome("kept", detail=detail, outputs={"video": call.shared("video", chance)})


def _probe(duration_s: float, height: int) -> Probe:
    return Probe(
        container="mov,mp4,m4a,3gp,3g2,mj2", codec="h264", width=WIDTH, height=height, fps=FPS, duration_s=duration_s,
        bit_rate=1_000_000, rotation=0, mirrored=False, pixel_aspect="1:1", interlaced=False, colour=COLOUR, stream=0,
        chosen_for="only", start_s=0.0, clock_start_s=0.0, file_start_s=0.0, has_audio=True, subtitles=[],
    )  # fmt: skip


def segment(work: Work, store: Store, params: SegmentParams, world: World) -> Outcome:
    """A shot every 20 seconds or so."""
    with _call("segment", store, world) as call:
        chance = world.chance("segment", work.subject)
        if chance.random() < 0.002:
            raise ItemFailed("undecodable", "not one frame could be decoded")
        seconds = chance.uniform(60, 600)
        frames = round(seconds * FPS)
        shots = max(1, min(12, round(seconds / 20)))
        cuts = sorted(chance.sample(range(1, frames), shots - 1))
        stored = {
            "from_frame": 0, "stored_width": WIDTH, "stored_height": HEIGHT, "width": WIDTH, "height": HEIGHT,
            "pixel_format": "yuv420p", "pixel_aspect": "1:1", "rotation": 0, "mirrored": False, "interlaced": False,
            "colour": COLOUR,
        }  # fmt: skip
        video = {
            "stream": 0, "chosen_for": "only", "decoded": frames, "repaired": 0, "dropped": 0, "fps": float(FPS),
            "duration_s": rounded(seconds), "clock": [[0.0, 0.0]], "file_start_s": 0.0, "stored_as": [stored],
        }  # fmt: skip
        detail = {
            "shots": shots,
            "frames": frames,
            "samples": round(seconds),
            "boundaries": [{"frame": n, "kind": "cut", "start": n, "end": n, "score": 0.91} for n in cuts],
            "passed_over": [],
            "breaks": [],
            "video": video,
            "subtitles": None,
        }
        outputs = {role: call.shared(role, chance) for role in ("frames", "samples")}
        return Outcome("kept", detail=cast(SegmentDetail, detail), outputs=outputs, decodes=1)


def classify(work: Work, store: Store, params: ClassifyParams, world: World) -> Outcome:
    """No clip, or one to three."""
    with _call("classify", store, world) as call:
        chance = world.chance("classify", work.subject)
        count = chance.choices(range(len(CLIPS_OF_VIDEO)), CLIPS_OF_VIDEO)[0]
        late = 3 * world.frame_model % FPS
        clips = [_clip(start * 11 * FPS + late, chance) for start in sorted(chance.sample(range(5), count))]
        medical = count > 0 or chance.random() < 0.4
        scores = {
            "medical_mean": 0.9 if count else 0.2,
            "medical_max": 0.99 if medical else 0.31,
            "longest_medical_stretch_s": 10.0 if count else 3.0 * medical,
        }
        judged = call.put(canonical_json(_classification(clips, medical, chance)), "application/json")
        found: dict[str, Any] = {
            "scores": scores,
            "score_models": dict.fromkeys(scores, _frame_model(world)),
            "outputs": {"classification": judged},
        }
        if clips:
            return Outcome("kept", detail={"clips": clips}, **found)
        reason, metric, threshold = (
            ("no_medical_stretch", "longest_medical_stretch_s", params.min_clip_s)
            if medical
            else ("not_medical", "medical_max", params.medical_threshold)
        )
        detail = {"metric": metric, "score": scores[metric], "threshold": threshold}
        return Outcome("rejected", reason, detail, **found)


def _classification(clips: Sequence[ClassifiedClip], medical: bool, chance: random.Random) -> dict[str, Any]:
    """What auditors read, of a few samples."""
    samples = [
        {
            "frame": 5 * FPS * number,
            "time_s": 5.0 * number,
            "shot": number // 4,
            "medical": rounded(chance.uniform(0.5, 1) if medical else chance.uniform(0, 0.3)),
            "probabilities": [0.9, 0.1],
            "similarity_to_next": 0.8,
        }
        for number in range(12)
    ]
    return {"classes": ["medical", "other"], "samples": samples, "stretches": [], "clips": list(clips)}


def _clip(start: int, chance: random.Random) -> ClassifiedClip:
    end = start + chance.randrange(6 * FPS, 10 * FPS + 1)
    category = chance.choices(("teaching", "clinical_practice", "imaging", "animation"), (6, 3, 1, 1))[0]
    return {
        "start_frame": start,
        "end_frame": end,
        "start_s": start / FPS,
        "end_s": end / FPS,
        "medical": rounded(chance.uniform(0.7, 1)),
        "bridged_samples": 0,
        "category": category,
        "category_by": "picture",
        "category_words": [],
        "category_of_picture": category,
        "category_probability": rounded(chance.uniform(0.5, 1)),
    }


def cut(work: Work, store: Store, params: CutParams, world: World) -> Outcome:
    """A clip is a line of text, different for each; some have black borders that can't be cropped away."""
    with _call("cut", store, world) as call:
        chance = world.chance("cut", work.subject)
        if chance.random() < 0.001:
            raise ItemFailed("size_changes", "the pictures of the stretch are of several sizes")
        bordered = chance.random() < BORDERED
        cropped = bordered and chance.random() < CROPPABLE
        crop = (0, 0, WIDTH, HEIGHT) if cropped else None
        names = ("start_frame", "end_frame", "start_s", "end_s")
        encoding = {
            "video_id": work.subject.partition("/")[0],
            **{name: work.context[name] for name in names},
            "crop": crop,
            "crf": params.crf,
            "preset": params.x264_preset,
            "max_pixels": params.max_pixels,
        }
        clip, made = _encoded(call, encoding, "clip")
        borders = {
            "kind": "letterbox" if bordered else "none",
            "content_mask": "none",
            "cropped": cropped,
            "crop": crop,
        }
        detail = {**made, "borders": borders, "encoding": encoding}
        return Outcome(
            "kept", detail=cast(CutDetail, detail), outputs={"clip": clip}, rows=[Clip(**made["clip"])], decodes=1
        )


def _encoded(call: _Call, encoding: Mapping[str, Any], what: str) -> tuple[Artifact, EncodedClip]:
    """As `tasks.curation.cut.encode_clip`."""
    video, start, end = encoding["video_id"], encoding["start_frame"], encoding["end_frame"]
    clip = call.put(f"{what} {video} {start} {end}".encode(), "video/mp4")
    identity = hashlib.sha256(canonical_json([video, start, end, clip.sha256])).hexdigest()[:16]
    facts: dict[str, Any] = {
        "id": f"c{identity}",
        "video_id": video,
        "start_frame": start,
        "end_frame": end,
        "start_s": encoding["start_s"],
        "end_s": encoding["end_s"],
        "width": WIDTH,
        "height": HEIGHT,
        "fps": float(FPS),
        "digest": clip.sha256,
    }
    return clip, cast(EncodedClip, {"clip": facts, "bytes": clip.bytes, "bit_rate": 900_000 + start})


def quality(work: Work, store: Store, params: QualityParams, world: World) -> Outcome:
    """Scores of a good clip, or of one that decide will find one fault with; its fingerprint."""
    with _call("quality", store, world):
        chance = world.chance("quality", work.subject)
        if chance.random() < 0.0005:
            raise ItemFailed("undecodable", "not one frame of the clip could be decoded")
        found = dict(GOOD)
        found["aesthetic"], found["technical"] = chance.uniform(4.1, 6), chance.uniform(20, 59)
        found["overlay_words"] = float(chance.choices((0, 3, 9, 17), (60, 22, 13, 5))[0])
        motion = {
            "mean_change": 9.2, "max_change": 14.1, "moving_fraction": 0.31,
            "unexplained_change": 0.9, "speed_change": 0.6,
        }  # fmt: skip
        fault = _fault(chance)
        motion |= {name: fault[name] for name in motion.keys() & fault.keys()}
        found |= {name: value for name, value in fault.items() if name not in motion}
        motion["moving_fraction"] = found["motion_moving_fraction"]
        identified = chance.random() < NAMES_PATIENT
        named = [{"kind": "name", "x": 12, "y": 8, "width": 180, "height": 22}] if identified else []
        found["identifiers"] = len(named)
        faces = chance.choices((0, 1, 2), (8, 2, 1))[0]
        found["faces"] = faces
        found["face_frames"] = 5 if faces else 0
        scores = {name: rounded(value) for name, value in found.items()} | {"detail": rounded(chance.random())}
        face = {"x": 100, "y": 80, "width": 60, "height": 70, "score": 0.97}
        detail = {
            "motion": motion,
            "camera": {"pan": 0.001, "tilt": 0.0, "zoom": 0.0, "roll": 0.0, "shake": 0.002, "following": 0.0},
            "text": [{"text": "LV 24 fps", "kind": "imaging", "box": (10, 10, 90, 22), "frames": 5}],
            "identifiers": named,
            "faces": [[face] * faces for _ in range(5)],
            "fingerprint": _fingerprint(work, world).text(),
            "technical_model": params.technical_model,
            "technical_lower_is_better": True,
            "aesthetic_model": params.aesthetic_model,
            "aesthetic_lower_is_better": False,
        }
        models = dict.fromkeys(scores, digest_of("made-up measures"))
        return Outcome("kept", detail=detail, scores=scores, score_models=models, clip_id=work.subject, decodes=1)


def _fault(chance: random.Random) -> Mapping[str, float]:
    """What is wrong with a clip; mostly nothing."""
    share = chance.random()
    for often, scores in DEFECTS:
        share -= often
        if share < 0:
            return scores
    return {}


def _fingerprint(work: Work, world: World) -> Fingerprint:
    """Of what a clip shows, with the noise of an encoding: copies of a scene are alike, not equal."""
    chance = world.chance("scene", work.subject)
    scene = work.subject
    if chance.random() < COPIES:
        scene = f"shown again {chance.randrange(max(1, round(SCENES_SHARED * world.videos)))}"
    shown, seen = (np.random.default_rng(world.chance("pictures", of).getrandbits(64)) for of in (scene, work.subject))
    seconds = 8
    frames, course = 2 * seconds, 4 * seconds
    bits = _flipped(shown.integers(0, 256, (1, HASH_SIDE**2 // 8), np.uint8), frames, 0.02, shown)
    parts = _flipped(shown.integers(0, 256, (1, len(PARTS), PART_BITS // 8), np.uint8), (frames + 1) // 2, 0.02, shown)
    walk = shown.normal(0, 4, (course, CELLS**2)).cumsum(axis=0) + shown.integers(40, 216, CELLS**2)
    return Fingerprint(
        1 / 4,
        _flipped(bits, frames, 0.01, seen),
        _flipped(parts, len(parts), 0.01, seen),
        np.zeros(frames, bool),
        (walk + seen.normal(0, 1, walk.shape)).clip(0, 255).round().astype(np.uint8),
    )


def _flipped(hashes: np.ndarray, count: int, share: float, chance: np.random.Generator) -> np.ndarray:
    """uint8 (count, …): the hashes, or the one there is `count` times, with a share of their bits turned."""
    hashes = np.broadcast_to(hashes, (count, *hashes.shape[1:]))
    turned = chance.random((*hashes.shape[:-1], 8 * hashes.shape[-1]), np.float32) < share
    return hashes ^ np.packbits(turned, axis=-1)


def privacy(work: Work, store: Store, params: privacy_step.PrivacyParams, world: World) -> Outcome:
    """The product's own function, but for clips that are blurred, which means encoding."""
    with _call("privacy", store, world) as call:
        if "encoding" not in work.context:
            return privacy_step.privacy(work, store, params)
        clip, made = _encoded(call, work.context["encoding"], "blurred clip")
        kinds = sorted({box["kind"] for box in work.context["identifiers"]})
        detail = {
            **made,
            "found": {"faces": bool(work.context["faces"]), "identifiers": kinds},
            "blurred": ["identifiers"],
            "replaces": work.subject,
        }
        return Outcome("kept", detail=detail, outputs={"clip": clip}, rows=[Clip(**made["clip"])], decodes=1)


def caption(work: Work, store: Store, params: CaptionParams, world: World) -> Outcome:
    """Captions as long as the paper's. Some are too short, some say the same of every clip."""
    with _call("caption", store, world) as call:
        chance = world.chance("caption", work.subject)
        share = chance.random()
        short, repeats = share < REJECTED_CAPTIONS, share > 1 - REPEATED_CAPTIONS
        words = chance.choices(WORDS, k=4 if short else 170)
        texts = {"brief": f"{work.context['title']}: {' '.join(words[:20])}.", "detailed": f"{' '.join(words)}."}
        if repeats:
            texts = dict.fromkeys(texts, "A person speaks to the camera.")
        counted = {f"{kind}_words": float(len(text.split(" "))) for kind, text in texts.items()}
        scores = counted | {f"{kind}_unsupported_terms": 0.0 for kind in texts}
        made_by = {"model": "made-up", "model_digest": digest_of("made-up captions"), "prompt_version": "v1"}
        checks = [
            {"reason": "caption_length", "metric": metric, "score": score, "threshold": 5.0, "passes_when": "at least",
             "message": "", "passed": score >= 5.0}
            for metric, score in counted.items()
        ]  # fmt: skip
        detail: CaptionDetail = {
            "captioner": "made-up", "transcript": "", "transcript_source": "none", "transcript_language": None,
            "note": None, "checks": checks, "questions": 1, "tokens_in": 1200, "tokens_out": 230, "cost": 0.0,
        }  # fmt: skip
        common: dict[str, Any] = {
            "scores": scores,
            "score_models": dict.fromkeys(scores, made_by["model_digest"]),
            "clip_id": work.subject,
            "decodes": 1,
        }
        if short:
            detail |= {"metric": "detailed_words", "score": scores["detailed_words"], "threshold": 5.0}
            return Outcome("rejected", "caption_length", detail, **common)
        return Outcome(
            "kept",
            detail=detail,
            outputs={"captions": call.put(canonical_json(texts | made_by), "application/json")},
            captions={kind: {"text": text, **made_by} for kind, text in texts.items()},
            **common,
        )


FUNCTIONS: dict[str, Callable[..., Outcome]] = {
    "download": download,
    "segment": segment,
    "classify": classify,
    "cut": cut,
    "quality": quality,
    "privacy": privacy,
    "caption": caption,
}
