"""What README prints is run as it stands, after the demo that it asks for, and ends in a picture."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from demo_run import demo

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_python_blocks_run(monkeypatch):
    path, result = demo()
    assert result.exit_code == 0, result.output
    monkeypatch.chdir(path.parent)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 2
    names: dict = {}
    for block in blocks:
        exec(block, names)  # what it says is what this repository prints
    assert names["maker"].is_fitted
    assert Path("significance.png").stat().st_size > 10_000
    significance = names["maps"]["sqrt_ts"]
    position = names["source"].center
    assert significance.get_by_coord({"skycoord": position, "energy": significance.geom.axes[0].center})[0] > 8
    plt.close("all")


def test_links_lead_somewhere():
    paths = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    assert len(paths) >= 12
    assert [path for path in paths if not (ROOT / path).is_file()] == []


def test_is_short():
    assert len(README.split("\n")) < 180
