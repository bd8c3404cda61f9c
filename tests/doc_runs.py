"""Runs many medgen commands in one process, behind one Prefect server: `python -m tests.doc_runs < commands.json`.

A process each would cost seconds of imports each. Reads a list of argument lists; writes a list of [exit code, output].
"""

import json
import sys
import traceback

import pytest
from typer.testing import CliRunner

from tests.conftest import inline


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
        for words in commands:
            done = runner.invoke(app, words)
            told = done.output
            if done.exception and not isinstance(done.exception, SystemExit):
                told += "".join(traceback.format_exception(done.exception))
            found.append([done.exit_code, told])
    sys.stdout.write("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
