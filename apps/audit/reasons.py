"""What the machine-readable reasons mean, in words that need no code beside them."""

WORDS = {
    "not_medical": "no frame of it looks medical",
    "no_medical_stretch": "it has no stretch of one shot that looks medical for long enough",
    "resolution_too_low": "its picture is too small",
    "border_not_croppable": "it has borders that can't be cropped away",
    "overlay_text": "too much text lies over the picture",
    "poor_aesthetic": "its aesthetic score is too poor",
    "poor_technical_quality": "its technical quality is too poor",
    "mediocre": "it is mediocre in aesthetics and in technical quality",
    "still_picture": "it is a still picture",
    "panned_photograph": "it is a pan or zoom over one photograph",
    "blurred": "it is blurred",
    "frozen": "its picture freezes for too long",
    "black": "its picture is black for too long",
    "flicker": "it flashes too often",
    "interlaced": "it is combed by interlacing",
    "blocky": "it is blocky from compression",
    "noisy": "it is too noisy",
    "duplicate": "a better copy of it is known",
    "faces_found": "it shows faces, which the policy refuses",
    "identifiers_found": "a patient's name, number or birth date stands on the picture, as read there or by its "
    "source's own word, which the policy refuses",
    "licence_unknown": "its source states no licence",
    "licence_not_allowed": "its licence is not among those allowed",
    "too_short": "the video is too short",
    "too_long": "the video is too long",
    "forgotten": "its video was taken down",
    "copy_of_forgotten": "the same file was taken down before",
    "semantic_duplicate": "a better clip shows the same kind of thing",
    "near_duplicate_of_forgotten": "it shows the same as a video that was taken down",
    "source_vanished": "its source no longer has it",
    "caption_repeated": "the same caption stands under several videos",
    "empty_file": "the file is empty",
    "not_a_video": "the file is no video",
    "no_video_stream": "the file has no picture",
    "no_moving_picture": "the file is no moving picture",
    "dicom_unreadable": "the file is no sound DICOM file",
    "dicom_undecodable": "the pictures of the DICOM file can't be decoded",
    "dicom_without_frame_time": "the DICOM file does not say when its pictures are shown",
    "dicom_support_missing": "the package that reads DICOM is not installed",
    "undecodable": "the file can't be decoded",
    "corrupt_stream": "too many of its pictures are broken",
    "truncated_file": "the file ends too early",
    "time_limit": "the work took longer than allowed",
    "memory_limit": "the work needed more memory than allowed",
    "resolution_above_limit": "its pictures are too large to decode",
    "pixel_aspect_above_limit": "its pixels are far from square",
    "colour_unsupported": "its colours can't be converted",
    "size_changes": "its picture changes its size",
    "worker_died": "the decoder crashed on it",
    "caption_unavailable": "the captioner gave no answer",
    "speech_unavailable": "the speech model gave no answer",
    "network_error": "the network failed",
    "too_many_requests": "its host asked us to slow down",
    "no_usable_format": "its source offers no format that can be used",
    "geo_restricted": "its source shows it only in other countries",
    "live_stream": "it is a live stream",
    "height_too_low": "its picture is too small",
    "caption_missing": "its row has no caption",
    "file_not_found": "its file is not there",
    "outside_folder": "its file lies outside of its folder",
    "digest_mismatch": "its file is another than its row says",
    "source_changed": "its file was changed while it was read",
    "file_too_large": "its file is too large",
    "brief_length": "its brief caption is too long or too short",
    "detailed_length": "its detailed caption is too long or too short",
    "unsupported_terms": "its caption names what no evidence supports",
}


def in_words(reason: str | None) -> str:
    """The reason as part of a sentence."""
    if not reason:
        return "no reason is on record"
    if reason in WORDS:
        return WORDS[reason]
    if reason.startswith("http_") and reason[5:].isdigit():
        return f"its source answered with error {reason[5:]}"
    return reason.replace("_", " ")
