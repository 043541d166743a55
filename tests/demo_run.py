"""README's first command, run once in a session of tests."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from shared import made_once

from gammapy_accmaker.analysis.cli import cli


def demo():
    """Folder that the demo has made, and what it printed: a name space with `exit_code` and `output`."""

    def run(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            result = CliRunner().invoke(cli, ["demo"])
        return folder / "gammapy-accmaker-demo", SimpleNamespace(exit_code=result.exit_code, output=result.output)

    path, result = made_once("demo", run)
    return Path(path), result
