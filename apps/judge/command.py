"""`medgen judge` and `medgen sample`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from apps.console import Json, err, out, parse_settings, print_json, report_expected_errors
from apps.judge.labels import BadManifest, read_labels


def judge(
    folder: Annotated[Path, typer.Argument(help="Folder of videos with a MANIFEST.csv of labels.")],
    as_json: Json = False,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report with pictures of the mistakes.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Set any parameter of the refresh; see `medgen parameters`."),
    ] = None,
) -> None:
    """Hold the verdicts of all judgements against hand-made labels. Writes nothing to the catalog.

    Columns of MANIFEST.csv: file; and, as far as known, is_medical, kind, has_black_border,
    has_subtitles_or_heavy_text, n_hard_cuts, cut_times_s, quality_note, source, correct. Others are ignored.
    """
    from apps.judge.folder import measure_all
    from apps.judge.measure import JudgeParameters
    from apps.judge.report import write_report
    from apps.judge.score import agreement, score

    with report_expected_errors(BadManifest):
        labels = read_labels(folder)
        parameters = JudgeParameters(**parse_settings(settings or []))
        with Progress(console=err, disable=as_json, transient=True) as bars:
            bar = bars.add_task("judging", total=len(labels))
            verdicts, notes = measure_all(folder, labels, parameters, lambda: bars.advance(bar))
        answers, agreements = score(labels, verdicts), agreement(labels)
        if report is not None:
            write_report(report, folder, answers, agreements, verdicts, notes)
        if as_json:
            facts = {
                "questions": [answer.facts() for answer in answers],
                "sampled": [vars(group) for group in agreements],
                "notes": notes,
                "files": {name: verdict.facts() for name, verdict in verdicts.items()},
            }
            print_json(facts)
            return
        _print(answers, agreements, notes)
        if report is not None:
            out.print(f"report: {escape(str(report))}", soft_wrap=True)


def sample(
    step: Annotated[str, typer.Argument(metavar="STEP", help="The step whose verdicts are to be checked.")],
    count: Annotated[int, typer.Option("--n", min=1, help="Videos and clips, half kept and half rejected.")] = 200,
    target: Annotated[
        Path | None, typer.Option("--out", help="Folder to make; by default named after the step.")
    ] = None,
    release: Annotated[str | None, typer.Option(help="Name of the release; the newest by default.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random choice.")] = 0,
    as_json: Json = False,
) -> None:
    """Lay out kept and rejected clips of a release to be labelled; `medgen judge` then scores the labels."""
    from apps.judge.sample import NothingToSample
    from apps.judge.sample import sample as draw_sample
    from medgen.ledger import open_ledger

    with report_expected_errors(NothingToSample, FileExistsError):
        folder = target or Path(f"sample-{step}")
        counts = draw_sample(open_ledger(), step, count, folder, release, seed)
        if as_json:
            sys.stdout.write(json.dumps({"folder": str(folder), "counts": counts}) + "\n")
            return
        numbers = ", ".join(f"{number} {verdict}" for verdict, number in sorted(counts.items()))
        out.print(f"{escape(str(folder))}: {numbers}", soft_wrap=True)
        out.print("Fill in the column `correct` (yes or no) of MANIFEST.csv, then run", soft_wrap=True)
        out.print(f"  medgen judge {escape(str(folder))}", soft_wrap=True)


def _print(answers: Any, agreements: Any, notes: list[str]) -> None:
    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    if answers:
        table = Table(title="Verdicts beside labels", title_justify="left")
        names = ("question", "of", "right", "wrongly found", "missed", "precision", "recall", "F1", "balanced")
        for name in names:
            table.add_column(name, justify="left" if name in names[:2] else "right")
        for a in answers:
            counts = (str(a.true_positives), str(a.false_positives), str(a.false_negatives))
            table.add_row(
                a.question,
                a.unit,
                *counts,
                share(a.precision),
                share(a.recall),
                share(a.f1),
                share(a.balanced_accuracy),
            )
        out.print(table)
    for a in answers:
        for m in a.mistakes:
            out.print(f"  {a.question}: [bold]{escape(m.file)}[/] labelled {m.labelled}, judged {escape(m.judged)}")
    for group in agreements:
        out.print(
            f"{group.step}, {group.verdict}: {group.right} of {group.judged} called right "
            f"({group.low:.3f} to {group.high:.3f})" + (f"; wrong: {', '.join(group.wrong)}" if group.wrong else "")
        )
    for note in notes:
        out.print(escape(note))
    if not answers and not agreements:
        out.print("the manifest holds no labels yet")
