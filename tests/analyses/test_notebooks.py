import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "analyses" / "notebooks").glob("*.py"))


def test_there_are_four():
    assert [path.stem for path in NOTEBOOKS] == [
        "a_spectrum_through_training",
        "dense_against_stochastic",
        "what_a_preconditioner_does",
        "your_own_network",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(path, tmp_path):
    text = path.read_text()
    assert "format_name: percent" in text
    assert "# %% [markdown]" in text
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        cwd=tmp_path,
        env=os.environ | {"MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
