"""Shows what a study found: raters, win rates and ranking, head to head, agreement."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from apps.console import out
from medgen.counted import counted

MANY_RATER_PAIRS = 6  # of more only the range is printed


def print_results(results: Mapping[str, Any]) -> None:
    """Prints the results of a study, as `apps.study.results.results` gives them."""
    table = Table(title="Raters", title_justify="left")
    for column in ("who", "answered", "checks failed", "median time", "chose A", "comments", "note"):
        table.add_column(column, justify="left" if column in ("who", "note") else "right")
    for row in results["raters"]:
        note = "withdrawn" if row["withdrawn"] else "" if row["attentive"] else "failed the attention checks"
        table.add_row(
            f"rater {row['rater']}", f"{row['answered']} of {row['of']}",
            f"{row['checks_failed']} of {row['checks_answered']}",
            "–" if row["median_seconds"] is None else f"{row['median_seconds']:.0f} s",
            "–" if row["left_share"] is None else f"{row['left_share']:.0%}", str(row["comments"]), note,
        )  # fmt: skip
    out.print(table)
    show = _print_errors if results["kind"] == "errors" else _print_over
    show(results["all_raters"], counted(len(results["all_raters"]["raters"]), "rater") + " in all")
    if results["attentive_raters"]:
        names = ", ".join(f"rater {number}" for number in results["attentive_raters"]["raters"]) or "none"
        show(results["attentive_raters"], f"those who passed the attention checks ({names})")


def _print_errors(block: Mapping[str, Any], whose: str) -> None:
    shares = _table(
        f"Wrong videos by majority, {whose} (with 95 % intervals)",
        "system",
        "videos,wrong,share wrong,from level 1,from level 3,ratings of level 0 1 2 3",
    )
    for row in block["systems"]:
        least, most = (_shown(row["share_from"][level]) for level in ("1", "3"))
        levels = " ".join(map(str, row["levels"]))
        shares.add_row(
            escape(row["system"]),
            str(row["videos"]),
            str(row["wrong"]),
            _shown(row["error_share"]),
            least,
            most,
            levels,
        )
    out.print(shares)
    differences = _table(f"Differences, {whose}", "first second", "share wrong of first minus second")
    for row in block["differences"]:
        differences.add_row(escape(row["first"]), escape(row["second"]), _shown(row["difference"], "+.1%"))
    if block["differences"]:
        out.print(differences)
    agreement = _table(f"Agreement, {whose}", "about", "Fleiss' κ,Cohen's κ of pairs of raters")
    agreement.add_row("wrong or not", _shown(block["fleiss_kappa"], ".2f"), "")
    agreement.add_row("four levels", _shown(block["fleiss_kappa_levels"], ".2f"), _cohens(block["cohen_kappa"]))
    out.print(agreement)


def _print_over(block: Mapping[str, Any], whose: str) -> None:
    ranking = _table(
        f"Win rates and ranking, {whose} (with 95 % intervals)", "axis system", "win rate,votes,rank,strength"
    )
    duels = _table(
        f"Head to head, {whose}", "axis first second", "first wins,second wins,both lose,equally good,lead of first"
    )
    agreement = _table(f"Agreement, {whose}", "axis", "Fleiss' κ,Cohen's κ of pairs of raters")
    for axis, facts in block["axes"].items():
        name = axis.replace("_", " ")
        rates = {row["system"]: row for row in facts["systems"]}
        for number, place in enumerate(facts["bradley_terry"]):
            row = rates[place["system"]]
            rank = "–" if place["rank"] is None else str(place["rank"])
            cells = (_shown(row["win_rate"]), str(row["votes"]), rank, _shown(place["log_strength"], "+.2f"))
            ranking.add_row(name if number == 0 else "", escape(place["system"]), *cells)
        both = (_shown(facts["both_lose"]), str(facts["votes"]), "", "")
        ranking.add_row("", "[dim]both lose[/]", *both)
        equal = (_shown(facts["equally_good"]), str(facts["votes"]), "", "")
        ranking.add_row("", "[dim]equally good[/]", *equal, end_section=True)
        for number, duel in enumerate(facts["head_to_head"]):
            counts = [str(count) for count in (*duel["wins"], duel["both_lose"], duel["equally_good"])]
            names = (escape(duel["first"]), escape(duel["second"]))
            duels.add_row(name if number == 0 else "", *names, *counts, _shown(duel["lead"], "+.1%"))
        agreement.add_row(name, _shown(facts["fleiss_kappa"], ".2f"), _cohens(facts["cohen_kappa"]))
    for table in (ranking, duels, agreement):
        out.print(table)


def _table(title: str, words: str, numbers: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in words.split():
        table.add_column(column, overflow="fold")
    for column in numbers.split(","):
        table.add_column(column, justify="right")
    return table


def _cohens(rows: Sequence[Mapping[str, Any]]) -> str:
    known = [row["value"] for row in rows if row["value"] is not None]
    if len(rows) > MANY_RATER_PAIRS and known:
        return f"{min(known):.2f} to {max(known):.2f}, {len(rows)} pairs"
    pairs = ("{}–{}: {}".format(*row["raters"], "–" if row["value"] is None else f"{row['value']:.2f}") for row in rows)
    return ", ".join(pairs) or "–"


def _shown(facts: Mapping[str, Any], how: str = ".1%") -> str:
    """A number with its interval."""
    if facts["value"] is None:
        return "–"
    if facts["low"] is None:
        return format(facts["value"], how)
    return f"{format(facts['value'], how)} ({format(facts['low'], how)} to {format(facts['high'], how)})"
