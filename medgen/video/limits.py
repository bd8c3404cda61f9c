"""What is too much to decode, and what is a video at all."""

from dataclasses import dataclass

from medgen.errors import ItemFailed

# Containers that hold their own pictures. Playlists (HLS, DASH, concat) name other files, which FFmpeg would open.
FORMATS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,mpeg1video,mpeg2video,m4v,h264,hevc,flv,asf,ogg,gif,dv,mxf,ivf"


@dataclass(frozen=True)
class Limits:
    """What is too much to decode.

    Args:
        max_pixels: width × height of a picture, of every one, as stored and as shown.
        max_duration_s: playing time.
        max_fps: frames per second, so that a lying header can't promise millions of frames.
        max_side: width and height of a picture as stored and as shown, pixels; the most that x264 encodes.
        max_pixel_aspect: width over height of a pixel, or height over width. The widest that H.264 lists by number is
            2 (ITU-T H.264, table E-1).
    """

    max_pixels: int = 4096 * 2304
    max_duration_s: float = 4 * 3600.0
    max_fps: float = 240.0
    max_side: int = 16384
    max_pixel_aspect: int = 10

    def check_size(self, width: int, height: int) -> None:
        """Raises ItemFailed: resolution_above_limit."""
        if width * height > self.max_pixels:
            raise ItemFailed("resolution_above_limit", f"{width}x{height} pixels, allowed {self.max_pixels} in all")
        if max(width, height) > self.max_side:
            raise ItemFailed("resolution_above_limit", f"{width}x{height} pixels, allowed {self.max_side} a side")

    def check_progress(self, frames: int, time_s: float) -> None:
        """Checks how far a video has come. Raises ItemFailed: duration_above_limit, frame_rate_above_limit."""
        if time_s > self.max_duration_s:
            raise ItemFailed("duration_above_limit", f"plays on past {self.max_duration_s:.0f} s")
        if frames > self.max_fps * self.max_duration_s:
            raise ItemFailed("frame_rate_above_limit", f"more than {self.max_fps:.0f} frames a second")

    @property
    def decoder_options(self) -> dict[str, str]:
        """Options by which FFmpeg's decoders refuse a picture before they take memory for it.

        They count whole blocks of up to 128 pixels a side, hence the margin.
        """
        return {"max_pixels": str(min(self.max_pixels + 256 * self.max_side, 2**31 - 1))}
