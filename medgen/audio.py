"""Audio of video files: decodes a stretch of it. Bad files raise `ItemFailed` with a readable reason."""

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer

from medgen.errors import ItemFailed
from medgen.video.limits import FORMATS, Limits

# Those of videos, and those in which a site may keep its audio apart.
AUDIO_FORMATS = f"{FORMATS},aac,mp3,wav,flac"
# Decoding begins so much earlier: the first packets after a jump give damaged audio (AAC, MP3 and Opus overlap them).
PREROLL_S = 0.3
# Hz. The least that telephones send is 8000; a single sample of far fewer would become thousands.
MIN_RATE = 1000


def decode_audio(path: Path, start_s: float, end_s: float, *, rate: int) -> np.ndarray | None:
    """The audio between two times; None when the file has no audio stream.

    Args:
        start_s, end_s: seconds by the file's own clock, see `medgen.video.report.clock_shift`.
        rate: samples per second of the result.

    Returns:
        float32 (round((end_s - start_s) * rate),), mono, -1..1; 0 where the stream has gaps.

    Raises:
        ItemFailed: empty_file, not_a_video, undecodable.
        ValueError: no stretch of time.
    """
    samples = round((end_s - start_s) * rate)
    if not samples > 0:
        raise ValueError(f"not a stretch of time: {start_s} to {end_s} s")
    if path.stat().st_size == 0:
        raise ItemFailed("empty_file", "the file has 0 bytes")
    for seek in (True, False):
        try:
            options = {"format_whitelist": AUDIO_FORMATS, **Limits().decoder_options}
            with av.open(str(path), options=options, timeout=(20.0, 20.0)) as container:
                if not container.streams.audio:
                    return None
                stream = container.streams.audio[0]
                if stream.codec_context is None:
                    raise ItemFailed("undecodable", "no decoder is known for the sound")
                if seek:
                    with suppress(av.error.FFmpegError):
                        container.seek(_ticks(start_s - PREROLL_S, stream), stream=stream, backward=True)
                decoded, begins_s = _stretch(container, stream, start_s, end_s, rate)
        except (av.error.FFmpegError, ValueError) as error:
            raise ItemFailed(
                "not_a_video", f"no readable sound: {getattr(error, 'strerror', None) or error}"
            ) from error
        # Where a file's index misleads, it is decoded from the beginning.
        if begins_s is not None and begins_s <= start_s:
            break
    if begins_s is None:
        return np.zeros(samples, np.float32)
    late = round((begins_s - start_s) * rate)
    audio = np.concatenate([np.zeros(max(0, late), np.float32), decoded[max(0, -late) :]])[:samples]
    return np.pad(audio, (0, samples - len(audio)))


def _ticks(time_s: float, stream: AudioStream) -> int:
    return max(math.floor(time_s / stream.time_base), stream.start_time or 0) if stream.time_base else 0


def _stretch(
    container: InputContainer, stream: AudioStream, start_s: float, end_s: float, rate: int
) -> tuple[np.ndarray, float | None]:
    """float32 samples that begin at or before start_s where the file has them, and the time of the first, seconds."""
    pieces: list[np.ndarray] = []
    begins_s: float | None = None
    wanted = decoded = 0
    resampler, layout = None, None
    for frame in _decoded(container, stream):
        if frame.sample_rate < MIN_RATE:
            raise ItemFailed("undecodable", f"sound of {frame.sample_rate} samples a second")
        if frame.time is None or frame.time + frame.samples / frame.sample_rate <= start_s:
            continue
        if begins_s is None:
            begins_s = frame.time
            wanted = round((end_s - begins_s) * rate)
        # A file whose times stand still must not be decoded for ever.
        if frame.time >= end_s or decoded >= wanted:
            break
        if layout != (layout := (frame.format.name, frame.layout.name, frame.sample_rate)):
            resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        frame.pts = None  # frames are joined: nothing is known of a gap between two
        assert resampler is not None
        for piece in resampler.resample(frame):
            pieces.append(piece.to_ndarray().reshape(-1))
            decoded += len(pieces[-1])
    if resampler is not None:
        pieces += [piece.to_ndarray().reshape(-1) for piece in resampler.resample(None)]
    samples = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    return np.clip(np.nan_to_num(samples), -1.0, 1.0).astype(np.float32), begins_s


def _decoded(container: InputContainer, stream: AudioStream) -> Iterator[AudioFrame]:
    """Frames of audio; broken packets are left out. Raises ItemFailed when all are broken."""
    good = broken = 0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.EOFError:
            break
        except av.error.FFmpegError:
            broken += 1
            continue
        good += len(frames)
        yield from frames
    if broken and not good:
        raise ItemFailed("undecodable", f"{broken} packets of sound, all broken")
