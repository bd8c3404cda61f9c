"""The dataset card: what is in a release, by which policy, under which licences, and what its scores mean."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medgen import __version__
from medgen.counted import counted
from medgen.markdown import render
from tasks.curation.funnel import markdown, stages


class ClipTotals:
    """What a card says of the clips of a release, added up row by row."""

    def __init__(self) -> None:
        self.clips = 0
        self.seconds = 0.0
        self.licences: Counter[str] = Counter()
        self.categories: Counter[str] = Counter()
        self.models: dict[str, set[str]] = {"technical_model": set(), "aesthetic_model": set(), "captioner": set()}
        self.captioner_kinds: Counter[str] = Counter()
        self.imported: Counter[str] = Counter()  # set → clips that were taken from it

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds rows of the metadata."""
        for row in rows:
            self.clips += 1
            self.seconds += row["duration"]
            self.licences[row["licence"] or "not stated by the source"] += 1
            self.categories[row["category"] or "not stated"] += 1
            for column, found in self.models.items():
                if row[column]:  # of clips that came from elsewhere it may be unknown
                    found.add(row[column])
            self.captioner_kinds[row["captioner_kind"] or "unknown"] += 1
            if origin := row.get("imported_from"):
                self.imported[origin] += 1


def dataset_card(
    totals: ClipTotals, videos: int, funnel: Sequence[Mapping[str, Any]], policy: Mapping[str, Any]
) -> str:
    """Markdown of a release.

    Args:
        videos: that its clips come from.
        funnel: as `tasks.curation.funnel.funnel`.
        policy: what chose the clips.
    """
    return render(
        "tasks.curation",
        "dataset_card.md.jinja",
        counted=counted,
        clips=totals.clips,
        seconds=totals.seconds,
        videos=videos,
        version=__version__,
        licences=[(_cell(name), count) for name, count in sorted(totals.licences.items())],
        categories=sorted(totals.categories.items()),
        technical=sorted(totals.models["technical_model"]),
        aesthetic=sorted(totals.models["aesthetic_model"]),
        captioners=sorted(totals.models["captioner"]),
        imported=totals.imported.total(),
        origins=[_cell(name) for name in sorted(totals.imported)],
        unseen=totals.captioner_kinds["template"],
        funnel=markdown(funnel),
        stages=stages(funnel),
        policy=json.dumps(policy, indent=1, sort_keys=True, ensure_ascii=False),
    )


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())
