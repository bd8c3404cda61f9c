"""Why a clip or video was kept or not, and the comparisons and facts behind each decision."""

from collections.abc import Mapping, Sequence
from typing import Any

from apps.audit import charts
from apps.audit.reasons import in_words
from apps.audit.shown_text import number
from apps.pictures_in_words import pictures_in_words
from medgen.notes import NOTE
from medgen.takedown import IMPORT


def explanation_of(history: Mapping[str, Any]) -> dict[str, Any]:
    """Why the clip or video was kept or not: a verdict, a sentence, and the check behind it.

    Returns:
        status, words; and of a rejection the step, the reason and the comparison that decided.
    """
    if takedown := history["forgotten"]:
        words = (
            f"Its video was taken down on {takedown['forgotten_at'][:10]}. Bytes and words are gone; the numbers stay."
        )
        return {"status": "forgotten", "words": words, "check": None, "reason": "forgotten", "step": "forget"}
    current = [s for s in history["steps"] if not s["superseded"] and s["step"] not in ("recheck", "forget", NOTE)]
    if [s["step"] for s in current] in ([], ["discover"]):
        words = "It is listed; nothing was done with it yet."
        return {"status": "kept", "words": words, "check": None, "reason": None, "step": "discover"}
    # The ancestry also holds what was decided about the whole video: only words on this very subject count.
    own = [s for s in current if s["subject"] == history["id"]] or current
    last = own[-1]
    answer: dict[str, Any] = {"status": last["status"], "step": last["step"], "reason": last["reason"], "check": None}
    if last["status"] == "failed":
        return answer | {"words": f"The step {last['step']} failed on it: {in_words(last['reason'])}."}
    if last["status"] == "rejected":
        compared = charts.comparisons(last)
        check = next((c for c in compared if not c["passed"]), None)
        words = f"The step {last['step']} rejected it because {in_words(last['reason'])}"
        if check:
            side = "no more than" if check["passes_when"] == "at most" else check["passes_when"]
            words += f": {check['metric'].replace('_', ' ')} is {number(check['score'])}"
            words += f" where {side} {number(check['threshold'])} is wanted"
        return answer | {"words": words + ".", "check": check}
    if last["step"] == IMPORT:
        names = ", ".join(r["name"] for r in history.get("releases", ())[:3]) or "no release"
        words = (
            f"It was imported as it was published; no step of this installation judged it. It was released in {names}."
        )
        return answer | {"words": words}
    if releases := history.get("releases"):
        names = ", ".join(r["name"] for r in releases[:3]) + (f" and {len(releases) - 3} more" if releases[3:] else "")
        passed = sum(len(charts.comparisons(s)) for s in own)
        return answer | {"words": f"It passed all {passed} comparisons on record and was released in {names}."}
    if clips := history.get("clips"):
        return answer | {"words": f"It was taken, and {len(clips)} clip{'s' if len(clips) > 1 else ''} cut from it."}
    return answer | {"words": f"It was kept by {last['step']}, the last step that has seen it. No release holds it."}


def describe_steps(steps: Sequence[dict[str, Any]], faults: Mapping[int, str | None]) -> None:
    """Adds to every step what its card shows: comparisons with their bars, other scores, facts, state of its record."""
    for step in steps:
        step["compared"] = charts.comparisons(step)
        shown = {check["metric"] for check in step["compared"]}
        step["other_scores"] = [s for s in step["scores"] if s["metric"] not in shown]
        skipped = {
            "checks",
            "metric",
            "score",
            "threshold",
            "fingerprint",
            "clips",
            "encoder",
            "metadata",
            "all_reasons",
            "imported",
            "given",
            "caption_columns",
        }
        step["facts"] = {
            k: v for k, v in sorted(step["detail"].items()) if k not in skipped and v not in (None, "", [])
        }
        step["pictures"] = pictures_in_words(step["detail"]) if step["step"] == "segment" else []
        step["fault"] = faults.get(step["id"])
