"""Failures of single items and of whole runs. Everything else that is raised is a fault of the program."""


class ItemFailed(Exception):
    """One item can't be processed.

    Args:
        reason: short machine-readable cause, for example ``http_404`` or ``no_video_stream``.
        message: what a person needs to know: the thing and why.
        transient: True when the same work may succeed later; False quarantines the item.
        later: True when nothing is wrong but its time has not come: not tried again within the run, and no sign
            of trouble in its shard. Such a failure is transient.
    """

    def __init__(self, reason: str, message: str, *, transient: bool = False, later: bool = False) -> None:
        super().__init__(reason, message, transient, later)
        self.reason = reason
        self.message = message
        self.transient = transient or later
        self.later = later

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.reason, self.message, self.transient, self.later))


def _rebuild(cls: type[ItemFailed], reason: str, message: str, transient: bool, later: bool) -> ItemFailed:
    return cls(reason, message, transient=transient, later=later)


class SourceUnreadable(ItemFailed):
    """A source as a whole can't be read."""


class RunStopped(RuntimeError):
    """A run can't go on. The message tells people what is wrong and what to do; what was done stays done."""
