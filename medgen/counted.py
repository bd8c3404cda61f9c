"""How many of a thing, as people say it."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """``1 clip``, ``2 clips``, ``0 clips``.

    Args:
        noun: of one.
        plural: of several; the noun with an s by itself.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
