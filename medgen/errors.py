"""Failures of single items. Everything else that is raised is a fault of the program or its surroundings."""


class ItemFailed(Exception):
    """One item can't be processed.

    Args:
        reason: short machine-readable cause, for example ``http_404`` or ``no_video_stream``.
        message: what a person needs to know: the thing and why.
        transient: True when the same work may succeed later; False quarantines the item.
    """

    def __init__(self, reason: str, message: str, *, transient: bool = False) -> None:
        super().__init__(reason, message, transient)
        self.reason = reason
        self.message = message
        self.transient = transient

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.reason, self.message, self.transient))


def _rebuild(cls: type[ItemFailed], reason: str, message: str, transient: bool) -> ItemFailed:
    return cls(reason, message, transient=transient)


class SourceUnreadable(ItemFailed):
    """A source as a whole can't be read."""
