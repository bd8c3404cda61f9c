"""The dataset card: what is in a release, by which policy, under which licences, and what its scores mean."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from medgen import __version__
from medgen.markdown import render
from tasks.curation.funnel import markdown


def dataset_card(content: Mapping[str, Any]) -> str:
    """Markdown of what `tasks.curation.release_content.release_content` says."""
    rows = content["clips"]
    licences = Counter(row["licence"] or "not stated by the source" for row in rows)
    return render(
        "tasks.curation",
        "dataset_card.md.jinja",
        clips=len(rows),
        seconds=sum(row["duration"] for row in rows),
        videos=len({row["video_id"] for row in rows}),
        version=__version__,
        licences=[(_cell(name), count) for name, count in sorted(licences.items())],
        categories=sorted(Counter(row["category"] for row in rows).items()),
        technical=sorted({row["technical_model"] for row in rows}),
        aesthetic=sorted({row["aesthetic_model"] for row in rows}),
        captioners=sorted({row["captioner"] for row in rows}),
        funnel=markdown(content["funnel"]),
        policy=json.dumps(content["policy"], indent=1, sort_keys=True, ensure_ascii=False),
    )


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())
