"""FFmpeg's filters, one after the other, for frames of one kind."""

import itertools
from collections.abc import Iterator, Sequence

import av
from av.video.frame import VideoFrame

from medgen.errors import ItemFailed
from medgen.video.container import message


def filter_graph(frame: VideoFrame, chain: Sequence[tuple[str, str]]) -> av.filter.Graph:
    """A graph of filters (name, arguments) for frames of this one's size, format and colours."""
    graph = av.filter.Graph()
    graph.threads = 1  # worker processes share the cores
    source = (
        f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base={frame.time_base}:"
        f"colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"
    )
    nodes = [graph.add("buffer", source), *(graph.add(name, arguments or None) for name, arguments in chain)]
    nodes.append(graph.add("buffersink"))
    for before, after in itertools.pairwise(nodes):
        before.link_to(after)
    graph.configure()
    return graph


def filtered(graph: av.filter.Graph, frame: VideoFrame | None, most: int) -> Iterator[VideoFrame]:
    """The frames that come out when one goes in, or, with None, when no more will come; at most so many.

    Raises:
        ItemFailed: undecodable.
    """
    try:
        graph.vpush(frame)
        for _ in range(most):
            yield graph.vpull()
    except (BlockingIOError, av.error.BlockingIOError, EOFError, av.error.EOFError):
        return
    except av.error.FFmpegError as error:
        raise ItemFailed("undecodable", f"a picture can't be brought into shape: {message(error)}") from error
