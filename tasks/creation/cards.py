"""What is drawn of a storyboard: the opening and closing cards, the shots' titles, and the marks on every picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from medgen.errors import ItemFailed
from medgen.video.lettering import draw, overlay
from models.storyboards.storyboard import Storyboard
from tasks.creation.subtitles import reading_s

GROUND = (24, 32, 44, 255)
BEHIND = (0, 0, 0, 150)


@dataclass(frozen=True)
class Segment:
    """A stretch of the video: a card, or a shot with words over it.

    Args:
        text: of its subtitles.
        over: RGBA picture of the video's size; a card is nothing but that.
        shot: the shot's file; None for a card.
        least_s: how long it lasts at least, seconds.
    """

    text: str
    over: Image.Image
    shot: Path | None
    least_s: float


class Cards:
    """Draws the words of a storyboard, with the marks on every picture.

    Args:
        size: width and height of the video, pixels.
    """

    def __init__(self, board: Storyboard, size: tuple[int, int], marks: Sequence[str]) -> None:
        self.board = board
        self.width, self.height = size
        self.unit = max(8, round(min(self.height, self.width * 0.6) / 18))  # size of ordinary words, pixels
        self.marks = marks
        self.unwritten: list[str] = []

    def opening(self) -> Segment:
        """The card with topic and goal."""
        card = overlay(self.width, self.height, GROUND)
        self._draw(card, self.board.topic, 0.2, 0.52, 1.7, "center")
        self._draw(card, self.board.goal, 0.56, 0.82, 1.0, "center")
        return self._segment(self.board.goal, card, None, self.board.topic)

    def shot(self, place: int, path: Path) -> Segment:
        """A shot with its title."""
        shot = self.board.shots[place - 1]
        over = overlay(self.width, self.height)
        self._draw(over, shot.title, 0.15, 0.32, 1.1, "left", behind=True)
        return self._segment(shot.narration, over, path)

    def closing(self) -> Segment:
        """The last card."""
        card = overlay(self.width, self.height, GROUND)
        self._draw(card, self.board.closing_title, 0.16, 0.32, 1.4, "center")
        self._draw(card, self.board.closing, 0.34, 0.9, 1.0, "center")
        return self._segment(self.board.closing, card, None)

    def _draw(
        self, on: Image.Image, text: str, top: float, bottom: float, size: float, align: str, *, behind: bool = False
    ) -> None:
        """Draws words between two heights, both as shares of the picture's."""
        edge = round(self.width * 0.04)
        box = (edge, round(top * self.height), self.width - edge, round(bottom * self.height))
        ground = BEHIND if behind else None
        if not draw(
            on, text, box, round(size * self.unit), align="center" if align == "center" else "left", ground=ground
        ):
            self.unwritten.append(text)

    def _segment(self, text: str, over: Image.Image, shot: Path | None, also: str = "") -> Segment:
        size = max(8, round(0.75 * self.unit))
        # At the top: below, a player shows its controls and the subtitles.
        for number, mark in enumerate(self.marks):
            top = round(0.3 * size + number * 1.4 * size)
            line = (0, top, self.width - size, top + round(1.4 * size))
            if not draw(over, mark, line, size, align="right", ground=(0, 0, 0, 200)):
                raise ItemFailed(
                    "no_font", f"no font has the letters of the mark {mark!r}, without which nothing leaves"
                )
        return Segment(text, over, shot, reading_s(also + text, self.board.language))
