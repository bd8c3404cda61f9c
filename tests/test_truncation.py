"""What a container says of its own size is believed only as far as reading it costs little."""

from pathlib import Path

import pytest

from medgen.truncation import missing_bytes


def test_an_endless_row_of_boxes_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medgen.truncation.MOST_BOXES", 100, raising=False)
    path = tmp_path / "row.mp4"
    cut_off = (1000).to_bytes(4) + b"mdat"
    for boxes, missing in ((50, 992), (200, 0)):
        path.write_bytes(b"\0\0\0\x08free" * boxes + cut_off)
        assert missing_bytes(path) == missing
