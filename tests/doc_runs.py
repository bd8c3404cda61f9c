"""Runs many medgen commands in one process, behind one Prefect server: `python -m tests.doc_runs < commands.json`.

A process each would cost seconds of imports each. First it refreshes `videos/`. Reads a list of argument lists, with
placeholders for what that made; writes {"names": placeholder → name, "runs": [[exit code, output], …]}.
"""

import json
import sys
import traceback
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.conftest import inline

CLIP_IN_README = "c148bb78"
UNKNOWN = "https://example.org/never-listed"  # what is forgotten: other commands still need the video


def main() -> None:
    """See above."""
    from apps.cli import app
    from apps.prefect_server import prefect_server
    from medgen.settings import current

    commands = json.loads(sys.stdin.read())
    runner, found = CliRunner(), []
    with prefect_server(current().home), pytest.MonkeyPatch.context() as patch:
        from medgen.catalog import open_catalog

        open_catalog()  # holds the embedded Postgres
        inline(patch)
        made = runner.invoke(app, ["refresh", "--source", "videos/", "--json"])
        if made.exit_code:
            raise SystemExit(made.output)
        release = json.loads(made.stdout)
        clips = sorted(clip.stem for clip in (Path(release["folder"]) / "clips").glob("*.mp4"))
        names = {"RELEASE": release["release"], "CLIP": clips[0], CLIP_IN_README: clips[0][:8], "URL": UNKNOWN}
        names["RELEASE.evidence.zip"] = f"{release['release']}.evidence.zip"
        for words in commands:
            words = [names.get(word, word) for word in words]
            done = runner.invoke(app, words)
            told = done.output
            if words[:2] == ["evidence", "key"]:
                names["PUBLIC_KEY"] = done.stdout.strip()
            if done.exception and not isinstance(done.exception, SystemExit):
                told += "".join(traceback.format_exception(done.exception))
            found.append([done.exit_code, told])
    sys.stdout.write("\n" + json.dumps({"names": names, "runs": found}))


if __name__ == "__main__":
    main()
