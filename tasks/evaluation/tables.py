"""Figures of an evaluation as people read them: values, intervals, p-values, and tables of these."""

from collections.abc import Sequence

from tasks.evaluation.leaderboard import Interval, LeaderboardRow, PairedTest, metric_family


def leaderboard_rows(leaderboard: Sequence[LeaderboardRow]) -> list[dict[str, str]]:
    """The leaderboard as a table of texts: one row for each system."""
    metrics = sorted({metric for row in leaderboard for metric in row["values"]}, key=lambda m: (m[:4] != "mean", m))
    return [
        {"system": row["system"], "videos": str(row["videos"]), "failed": str(row["failed"])}
        | {
            metric: f"{shown_value(metric, value['mean'])} ({shown_range(metric, value)})"
            if (value := row["values"].get(metric))
            else "–"
            for metric in metrics
        }
        for row in leaderboard
    ]


def paired_rows(tests: Sequence[PairedTest]) -> list[dict[str, str]]:
    """Paired tests as a table of texts."""
    return [
        {
            "system": test["system"],
            "baseline": test["baseline"],
            "metric": test["metric"],
            "difference": shown_value(test["metric"], test["difference"]["mean"]),
            "interval": shown_range(test["metric"], test["difference"]),
            "prompts": str(test["difference"]["n"]),
            "p": shown_p(test["p"]),
            "adjusted p": shown_p(test["adjusted_p"]),
        }
        for test in tests
    ]


def shown_value(metric: str, value: float | None) -> str:
    """A value as people read it: parts of one as 0 to 100, like the paper; others as they are."""
    if value is None:
        return "–"
    return f"{value:.3f}" if is_raw(metric) else f"{100 * value:.2f}"


def shown_range(metric: str, estimate: Interval) -> str:
    """An interval, or why there is none."""
    if estimate["low"] is None:
        return "one prompt"
    return f"{shown_value(metric, estimate['low'])} to {shown_value(metric, estimate['high'])}"


def shown_p(p: float | None) -> str:
    """A p-value."""
    return "–" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def is_raw(metric: str) -> bool:
    """Whether a metric's values are no parts of one, and are shown as they are."""
    return metric_family(metric).startswith(("videoscore", "motion_speed", "medical_error_level", "text_alignment"))
