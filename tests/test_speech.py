"""Transcripts from sound: the right stretch of it reaches a real, tiny, random Whisper, and the record tells so.

The model answers gibberish, but never the same to two different sounds.
"""

import hashlib
import json
import shutil
import struct
import threading
import wave
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from flows.refresh import RefreshFailed, RefreshParameters, check_models
from medgen.audio import decode_audio
from medgen.errors import ItemFailed
from medgen.ledger import Outcome, Work, open_ledger
from medgen.shard import Item
from medgen.store import open_store
from medgen.video.limits import Limits
from medgen.video.pictures import pictures
from models import ModelUnavailable
from models.captioning import packaged_whisper, speech
from models.captioning.speech import RATE, Whisper, speech_digest
from tasks.curation import caption as caption_step
from tasks.curation.caption import CaptionParams
from tasks.curation.download import STEP as DOWNLOAD_STEP
from tasks.curation.download_policy import DownloadParams
from tasks.operations.health import Finding, findings
from tests.conftest import discover_source, forget_installation, numbered_video
from tests.recorded import Recorder
from tests.test_bad_input import Answer, Server
from tests.test_captioner import EVIDENCE

pytestmark = pytest.mark.usefixtures("models_here")
SECONDS = 12


def tone(second: int) -> int:
    """Hertz of the tone that sounds in this second of a test video."""
    return 300 + 50 * second


def video(path: Path, codec: str | None = "aac", *, picture: bool = True, rate: int = 48_000) -> Path:
    """A video of 12 s, in each second of which another tone sounds; without sound, or without picture."""
    times = np.arange(SECONDS * rate) / rate
    wave = (0.5 * np.sin(2 * np.pi * tone(np.floor(times)) * times)).astype(np.float32)
    with av.open(str(path), "w") as out:
        if picture:
            shown = out.add_stream("mpeg4" if path.suffix == ".avi" else "libx264", rate=10)
            shown.width, shown.height, shown.pix_fmt = 160, 128, "yuv420p"
        if codec:
            heard = out.add_stream(codec, rate=rate, layout="mono")
            whole = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
            whole.sample_rate, whole.pts, whole.time_base = rate, 0, Fraction(1, rate)
            size = heard.codec_context.frame_size or 1024
            for frame in av.AudioResampler(heard.format, "mono", rate, frame_size=size).resample(whole):
                out.mux(heard.encode(frame))
            out.mux(heard.encode(None))
        if picture:
            for index in range(10 * SECONDS):
                grey = np.full((128, 160, 3), index, np.uint8)
                out.mux(shown.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
            out.mux(shown.encode(None))
    return path


def heard_tone(samples: np.ndarray) -> float:
    """Hertz of the loudest tone."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * RATE / len(samples))


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "aac"), ("b.webm", "libopus"), ("c.ts", "aac"), ("d.avi", "mp3"), ("e.mkv", "flac")]
)
def test_a_stretch_of_sound_is_that_of_the_pictures(tmp_path: Path, name: str, codec: str) -> None:
    if name.endswith("webm"):  # whose pictures would be VP9: the sound is what matters here
        path = video(tmp_path / name, codec, picture=False)
        zero = 0.0
    else:
        path = video(tmp_path / name, codec)
        zero = next(iter(pictures(path, Limits()))).time_s
    for start in (0.0, 2.0, 7.5):
        found = decode_audio(path, zero + start, zero + start + 2, rate=RATE)
        assert found is not None and found.dtype == np.float32 and found.shape == (2 * RATE,)
        quarter = RATE // 4
        for at in range(0, 2 * RATE, quarter):
            second = int(start + (at + quarter / 2) / RATE)
            assert heard_tone(found[at : at + quarter]) == pytest.approx(tone(second), abs=6)
    beyond = decode_audio(path, zero + SECONDS - 1, zero + SECONDS + 1, rate=RATE)
    assert beyond is not None and len(beyond) == 2 * RATE and not beyond[-RATE // 2 :].any()


def test_no_sound_and_broken_sound_are_told_apart(tmp_path: Path) -> None:
    assert decode_audio(video(tmp_path / "silent.mp4", None), 0, 2, rate=RATE) is None
    late = decode_audio(video(tmp_path / "short.mp4"), 100.0, 101.0, rate=RATE)
    assert late is not None and late.shape == (RATE,) and not late.any()
    (tmp_path / "text.mp4").write_bytes(b"by no means a video" * 99)
    (tmp_path / "empty.mp4").write_bytes(b"")
    whole = video(tmp_path / "whole.ts").read_bytes()
    noise = np.random.default_rng(0).bytes(len(whole))
    # Every packet keeps its head, so that the file is still a transport stream.
    garbled = b"".join(whole[at : at + 20] + noise[at + 20 : at + 188] for at in range(0, len(whole), 188))
    (tmp_path / "garbled.ts").write_bytes(garbled)
    for name in ("text.mp4", "empty.mp4"):
        with pytest.raises(ItemFailed, match=r"not_a_video|empty_file"):
            decode_audio(tmp_path / name, 0, 2, rate=RATE)
    try:
        found = decode_audio(tmp_path / "garbled.ts", 0, 2, rate=RATE)
        assert found is None or (found.shape == (2 * RATE,) and np.abs(found).max() <= 1)
    except ItemFailed as failure:
        assert failure.reason in ("undecodable", "not_a_video")
    with wave.open(str(tmp_path / "slow.wav"), "wb") as slow:
        slow.setparams((1, 2, 10, 0, "NONE", ""))  # 10 samples a second: each would become 1600
        slow.writeframes(noise[:60_000])
    with pytest.raises(ItemFailed, match="undecodable"):
        decode_audio(tmp_path / "slow.wav", 0, 2, rate=RATE)
    for window in ((2, 2), (3, 2), (0, float("nan"))):
        with pytest.raises(ValueError, match=r"stretch of time|NaN"):
            decode_audio(tmp_path / "whole.ts", *window, rate=RATE)


@pytest.fixture(scope="module")
def tiny_whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whisper with two layers each way, two languages and the letters of the alphabet; 0.4 MB."""
    import torch
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    folder = tmp_path_factory.mktemp("speech") / "tiny-whisper"
    end, begin, plain = "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"
    special = [begin, "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>"]
    tokenizer = WhisperTokenizer(
        vocab={letter: place for place, letter in enumerate("abcdefghijklmnopqrstuvwxyzĠ")},
        merges=[], unk_token=end, bos_token=end, eos_token=end, pad_token=end,
        additional_special_tokens=[*special, "<|nospeech|>", plain],
    )  # fmt: skip
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (end, *special, plain)}
    ends = {"eos_token_id": ids[end], "pad_token_id": ids[end], "bos_token_id": ids[end]}
    torch.manual_seed(1)
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(tokenizer), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_target_positions=48,
            init_std=1.0, decoder_start_token_id=ids[begin], **ends,
        )
    )  # fmt: skip
    model.generation_config = GenerationConfig(
        **ends, decoder_start_token_id=ids[begin], no_timestamps_token_id=ids[plain], max_length=48,
        is_multilingual=True, lang_to_id={token: ids[token] for token in ("<|en|>", "<|de|>")},
        task_to_id={task: ids[f"<|{task}|>"] for task in ("translate", "transcribe")},
        suppress_tokens=[], begin_suppress_tokens=[],
    )  # fmt: skip
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=80), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random words are unlikely words: the rules that drop made-up words must not."""
    monkeypatch.setattr(speech, "NO_SPEECH", 1.1)
    monkeypatch.setattr(speech, "MAX_COMPRESSION", 100.0)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.3, 0.3, round(seconds * RATE)).astype(np.float32)


def test_words_follow_the_sound_alone_and_in_batches(tiny_whisper: Path, trusting: None) -> None:
    whisper = Whisper(str(tiny_whisper), batch=3)
    assert whisper.name == "tiny-whisper"
    whisper.ensure_available()
    sounds = [noise(seconds, seed) for seed, seconds in enumerate((2, 6, 8, 10, 30, 6))]
    alone = [whisper.transcript(one) for one in sounds]
    assert len(set(alone)) == len(alone) and all(alone)
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(whisper.transcript, sounds)) == alone
    # The same words as by transformers' own way, which encodes three times.
    loaded = speech.LoadedWhisper(tiny_whisper, "tiny-whisper", "cpu")
    assert loaded.hear(sounds) == alone  # in one pass
    processor, model = loaded.processor, loaded.model
    heard = processor(sounds[:3], sampling_rate=RATE, return_tensors="pt").input_features
    made = model.generate(input_features=heard, do_sample=False, num_beams=1, task="transcribe")
    assert processor.batch_decode(made, skip_special_tokens=True) == alone[:3]
    # Longer than a window: one window after the other.
    assert whisper.transcript(np.concatenate([sounds[4], sounds[1]])) == f"{alone[4]} {alone[1]}"
    for wrong in (sounds[0].astype(np.float64), sounds[0][None]):
        with pytest.raises(ValueError, match="float32"):
            whisper.transcript(wrong)


def test_what_nobody_said_is_no_transcript(tiny_whisper: Path, trusting: None, monkeypatch: pytest.MonkeyPatch) -> None:
    whisper = Whisper(str(tiny_whisper))
    assert whisper.transcript(np.zeros(8 * RATE, np.float32)) == ""
    assert whisper.transcript(np.zeros(0, np.float32)) == ""
    assert whisper.transcript(noise(8)) != ""
    monkeypatch.setattr(speech, "NO_SPEECH", 0.0)  # any probability that nobody speaks is above that
    monkeypatch.setattr(speech, "LIKELY_WORDS", 1.0)  # no logarithm of a probability is
    assert whisper.transcript(noise(8)) == ""
    assert speech.spoken_words("Now grasp\n the needle holder.") == "Now grasp the needle holder."
    monkeypatch.undo()
    assert speech.spoken_words("Thank you for watching. " * 12) == ""


def test_digest_follows_the_files_and_missing_models_are_named(
    tiny_whisper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_whisper, copy)
    assert speech_digest(str(copy)) == speech_digest(str(tiny_whisper)) == Whisper(str(copy)).digest
    config = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps(config | {"max_length": 40}))
    assert speech_digest(str(copy)) != speech_digest(str(tiny_whisper))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    parameters = RefreshParameters(speech_model="no-such-owner/no-such-whisper", with_audio=True)
    with pytest.raises(
        ModelUnavailable, match=r"no-such-owner/no-such-whisper is no local folder.*hub.*leave it empty"
    ):
        check_models(parameters)
    with pytest.raises(RefreshFailed, match="with_audio=true"):
        check_models(parameters.model_copy(update={"with_audio": False}))
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(ModelUnavailable, match="safetensors"):
        Whisper(str(other))
    (other / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelUnavailable, match=r"speech model other in .*cannot be loaded.*leave it empty"):
        Whisper(str(other)).ensure_available()


def test_the_step_says_where_the_words_came_from(
    tiny_whisper: Path, trusting: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDGEN_HOME", str(tmp_path / "home"))
    forget_installation()
    store = open_store()
    subtitles = b"WEBVTT\n\n00:01.000 --> 00:05.000\nNow the needle.\n"
    made = {
        "clip": store.put_file(numbered_video(tmp_path / "clip.mp4", 25), "video/mp4"),
        "subtitles": store.put_bytes(subtitles, "text/vtt"),
        "video": store.put_file(video(tmp_path / "video.mp4"), "video/mp4"),
        "sound": store.put_file(video(tmp_path / "sound.m4a", picture=False), "audio/x-any"),
        "dumb": store.put_file(video(tmp_path / "dumb.mp4", None), "video/mp4"),
        "text": store.put_bytes(b"no video", "video/mp4"),
    }
    names = ("title", "description", "category", "category_probability", "motion_type", "width", "height", "fps")
    facts = {name: getattr(EVIDENCE, name) for name in names}
    facts |= {"tags": [], "start_s": 2.0, "end_s": 10.0, "frames": 25, "shown_text": []}
    facts |= {"spoken_s": [2.0, 10.0], "subtitles": "subtitles", "language": None}

    def run(params: CaptionParams, **roles: str) -> tuple[str, str, str | None]:
        inputs = {"clip": made["clip"].sha256} | {role: made[name].sha256 for role, name in roles.items()}
        found = caption_step.step(params).function(Work("c1", inputs=inputs, context=facts), store)
        assert found.status == "kept"
        return found.detail["transcript_source"], found.detail["transcript"], found.detail["note"]

    listening = CaptionParams(speech_model=str(tiny_whisper))
    step = caption_step.step(listening)
    assert step.identity.models["speech"] == speech_digest(str(tiny_whisper)) and step.runs_in == "threads"
    assert run(listening, subtitles="subtitles") == ("subtitles", "Now the needle.", None)
    source, words, note = run(listening, video="video")
    assert (source, bool(words), note) == ("speech_model", True, None)
    assert words == Whisper(str(tiny_whisper)).transcript(
        decode_audio(store.path(made["video"].sha256), 2, 10, rate=RATE)
    )
    assert run(listening, sound="sound")[0] == "speech_model"
    assert run(listening, video="dumb") == ("none", "", "the video has no sound")
    assert run(listening) == ("none", "", "the video has no sound")
    source, words, note = run(listening, video="text")
    assert (source, words) == ("none", "") and note is not None and note.startswith("sound unreadable")
    # Without the option nothing is new: neither the key nor what is read.
    plain = caption_step.step(CaptionParams())
    assert not {"speech_model", "speech_batch", "speech"} & (set(plain.identity.params) | set(plain.identity.models))
    assert plain.runs_in == "inline" and run(CaptionParams()) == ("none", "", None)
    assert "with_audio" not in DownloadParams().model_dump(mode="json")
    caption_step._whisper.cache_clear()
    forget_installation()


def test_sound_is_fetched_apart_and_given_to_the_step_only_when_asked_for(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site with picture and sound in separate streams (HLS), one with both in a file, one with subtitles."""
    monkeypatch.setenv("MEDGEN_WORKERS", "1")
    picture, heard = video(tmp_path / "p.ts", None).read_bytes(), video(tmp_path / "s.ts", picture=False).read_bytes()
    both = video(tmp_path / "both.mp4").read_bytes()
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:{SECONDS}\n#EXTINF:{SECONDS},\n%s\n#EXT-X-ENDLIST\n"
        master = (
            '#EXTM3U\n#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="en",DEFAULT=YES,URI="sound.m3u8"\n'
            '#EXT-X-STREAM-INF:BANDWIDTH=90000,RESOLUTION=160x128,CODECS="avc1.64001f,mp4a.40.2",AUDIO="a"\n'
            "picture.m3u8\n"
        )
        for name, text in (("apart", master), ("picture", playlist % "p.ts"), ("sound", playlist % "s.ts")):
            server.answers[f"/{name}.m3u8"] = Answer(text.encode(), type="application/vnd.apple.mpegurl")
        server.answers |= {"/p.ts": Answer(picture, type="video/mp2t"), "/s.ts": Answer(heard, type="video/mp2t")}
        server.answers |= {f"/{name}.mp4": Answer(both) for name in ("both", "told")}
        server.answers["/told.vtt"] = Answer(b"WEBVTT\n\n00:01.000 --> 00:05.000\nNow.\n", type="text/vtt")
        at = f"http://127.0.0.1:{server.port}"
        rows = [{"url": f"{at}/{name}", "title": "Laparoscopy"} for name in ("apart.m3u8", "both.mp4")]
        rows.append({"url": f"{at}/told.mp4", "title": "Laparoscopy", "subtitles_url": f"{at}/told.vtt"})
        listing = tmp_path / "listing.jsonl"
        listing.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        found = discover_source(str(listing))
        fetched = {}
        for wanted in (False, True):
            params = DownloadParams(allowed_hosts=("127.0.0.1",), with_audio=wanted, min_height=0)
            result = DOWNLOAD_STEP.run(found, params)
            assert len(result.kept) == 3
            records = open_ledger().load({item.lineage["download"] for item in result.kept})
            fetched[wanted] = {Path(r.detail["metadata"]["url"]).stem: r for r in records.values()}
        server.shutdown()
    assert set(fetched[False]["apart"].outputs) == {"video"}
    assert set(fetched[True]["apart"].outputs) == {"video", "sound"}
    store = open_store()
    assert fetched[True]["apart"].outputs["video"] == fetched[False]["apart"].outputs["video"]
    apart = decode_audio(store.path(fetched[True]["apart"].outputs["sound"]), 3.0, 4.0, rate=RATE)
    assert apart is not None and tone(2) - 6 <= heard_tone(apart[: RATE // 4]) <= tone(3) + 6
    inputs = {
        (name, listen): set(_inputs(record, listen)) - {"clip"}
        for name, record in fetched[True].items()
        for listen in (False, True)
    }
    assert inputs == {
        ("apart", False): set(), ("apart", True): {"sound"}, ("both", False): set(), ("both", True): {"video"},
        ("told", False): {"subtitles"}, ("told", True): {"subtitles"},
    }  # fmt: skip


def _inputs(downloaded, listen: bool) -> dict[str, str]:
    """What caption would read of a clip of this video."""
    from types import SimpleNamespace as Record

    clip = {"digest": "d", "start_frame": 0, "end_frame": 10, "start_s": 0, "end_s": 8, "width": 1, "height": 1}
    known = {"start_frame": 0, "end_frame": 10, "category": "x", "category_probability": 1.0}
    past = {
        "download": downloaded,
        "segment": Record(
            step="segment",
            outputs={},
            detail={"video": {"clock": [[0.0, 0.0]], "file_start_s": 0.0}, "subtitles": None},
        ),
        "privacy": Record(step="privacy", detail={"clip": clip | {"fps": 10.0}}),
        "classify": Record(step="classify", detail={"clips": [known]}),
        "decide": Record(step="decide", detail={"motion_type": "still"}),
        "quality": Record(step="quality", detail={"text": []}),
    }
    return dict(caption_step.work_of(Item("c1"), past, listen=listen).inputs)


# --- the packaged one


def as_ctranslate2(model: Any) -> bytes:
    """A Whisper of transformers as CTranslate2 writes it."""
    state = {name.removeprefix("model."): value.detach().numpy() for name, value in model.state_dict().items()}
    arrays: dict[str, np.ndarray] = {"decoder/scale_embeddings": np.zeros((), np.int8)}
    for side in ("encoder", "decoder"):
        for name in [name for name in state if name.startswith(f"{side}.") and ".layers." not in name]:
            last = {"layer_norm.weight": "layer_norm/gamma", "layer_norm.bias": "layer_norm/beta",
                    "embed_tokens.weight": "embeddings/weight",
                    "embed_positions.weight": "position_encodings/encodings"}.get(name.partition(".")[2])  # fmt: skip
            arrays[f"{side}/{last or name.partition('.')[2].replace('.', '/')}"] = state[name]
        for number in range(2):
            for part, pieces in packaged_whisper.PARTS.items():
                own = f"{side}.layers.{number}"
                if f"{own}.{pieces[0]}.weight" not in state:
                    continue
                for ours, theirs in (("weight", "gamma" if "norm" in part else "weight"),
                                     ("bias", "beta" if "norm" in part else "bias")):  # fmt: skip
                    width = len(state[f"{own}.{pieces[0]}.weight"])
                    values = [state.get(f"{own}.{piece}.{ours}", np.zeros(width, np.float32)) for piece in pieces]
                    arrays[f"{side}/layer_{number}/{part}/{theirs}"] = np.concatenate(values)

    def word(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    parts = [struct.pack("<I", 6), word("WhisperSpec"), struct.pack("<II", 3, len(arrays))]
    for name, array in arrays.items():
        kind = 1 if array.dtype == np.int8 else 0
        shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        parts += [word(name), shape, struct.pack("<BI", kind, array.nbytes), array.tobytes()]
    return b"".join(parts)


def test_the_packaged_whisper_is_laid_out_as_transformers_has_it(
    tiny_whisper: Path, trusting: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import WhisperForConditionalGeneration

    content = as_ctranslate2(WhisperForConditionalGeneration.from_pretrained(tiny_whisper))
    config = json.loads((tiny_whisper / "generation_config.json").read_text())
    tokenizer = json.loads((tiny_whisper / "tokenizer.json").read_text())
    tokens = tokenizer["model"]["vocab"] | {row["content"]: row["id"] for row in tokenizer["added_tokens"]}
    folders = []
    for number, part in enumerate((content[:1000], content[1000:]), 1):
        folders.append(tmp_path / f"part{number}" / "data")
        folders[-1].mkdir(parents=True)
        (folders[-1] / f"model.bin.part{number}").write_bytes(part)
    (folders[1] / "vocabulary.json").write_text(json.dumps(sorted(tokens, key=tokens.__getitem__)))
    facts = {"suppress_ids": [], "suppress_ids_begin": [], "lang_ids": list(config["lang_to_id"].values())}
    (folders[1] / "config.json").write_text(json.dumps(facts))
    (folders[1] / "tokenizer.json").write_text(json.dumps(tokenizer))
    monkeypatch.setattr(packaged_whisper, "user_cache_path", lambda name: tmp_path / "cache")
    monkeypatch.setattr(packaged_whisper, "HEAD_WIDTH", 16)
    monkeypatch.setattr(packaged_whisper, "_package", lambda name: folders[int(name[-1]) - 1].parent)
    with pytest.raises(ModelUnavailable, match="other weights"):
        packaged_whisper.packaged_whisper()
    monkeypatch.setattr(packaged_whisper, "WEIGHTS_SHA256", hashlib.sha256(content).hexdigest())
    laid_out = packaged_whisper.packaged_whisper()
    assert laid_out == packaged_whisper.packaged_whisper() and speech.speech_digest("whisper_base")
    sound = [noise(3.0)]
    heard = speech.LoadedWhisper(laid_out, "packaged", "cpu").hear(sound)
    assert heard == speech.LoadedWhisper(tiny_whisper, "tiny", "cpu").hear(sound) and heard[0]
    with pytest.raises(ModelUnavailable, match="no weights of CTranslate2"):
        dict(packaged_whisper.variables_of(content[:-7]))
    monkeypatch.undo()
    if find_spec(packaged_whisper.PACKAGES[0]) is None:
        with pytest.raises(ModelUnavailable, match="extra `speech`"):
            packaged_whisper.packaged_whisper()


def test_the_doctor_says_when_videos_have_no_transcript(home: Path) -> None:
    def found() -> Finding:
        return next(finding for finding in findings() if finding.name == "transcripts")

    assert found().found == "no clip is captioned yet"
    recorder = Recorder(open_ledger())
    for number, source in enumerate(("subtitles", "none", "subtitles", "none", "none")):
        recorder.step("caption", f"clip{number}", Outcome("kept", detail={"transcript_source": source}))
        if number == 2:
            assert found().verdict == "ok"
    assert (found().verdict, found().found) == ("weak", "of the 5 clips captioned last 3 have no transcript")
    assert "whisper_base" in found().advice
