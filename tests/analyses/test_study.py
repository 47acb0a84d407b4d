import json
import subprocess
import sys
from dataclasses import dataclass

import pandas as pd
import pytest

from analyses.study import Study, Verdict
from analyses.words import bootstrap_mean, spread
from figures.records import RESULTS, read
from hessian_lab.errors import InputError


@dataclass(frozen=True)
class Config:
    numbers: tuple[int, ...] = (1, 2, 3)


def cells(config):
    return [{"number": number} for number in config.numbers]


def measure(_config, cell):
    return [{"square": cell["number"] ** 2}, {"square": -float("inf")}]


def verdicts(rows):
    return [Verdict("C01", "holds", f"{int(rows['square'].max())}", "here")]


STUDY = Study("squares", "What are squares?", Config(), Config(), cells, measure, verdicts)


def test_a_record_holds_every_cell_with_its_origin(tmp_path):
    rows = STUDY.run(Config(), out=tmp_path)
    assert list(rows["number"]) == [1, 1, 2, 2, 3, 3]
    assert rows["square"].isna().sum() == 3
    record = read("squares", tmp_path)
    assert record["config"] == {"numbers": [1, 2, 3]}
    assert record["kind"] == "full"
    assert record["provenance"]["torch"]
    assert "command" not in record["provenance"]
    assert STUDY.verdicts(pd.DataFrame(record["rows"]))[0].measured == "9"
    assert not list(tmp_path.glob("*.part.jsonl"))


def test_cells_that_are_done_are_not_measured_again(tmp_path):
    calls = []

    def stopping(config, cell):
        calls.append(cell["number"])
        if cell["number"] == 3 and len(calls) == 3:
            raise KeyboardInterrupt
        return measure(config, cell)

    study = Study("squares", "?", Config(), Config(), cells, stopping, verdicts)
    with pytest.raises(KeyboardInterrupt):
        study.run(Config(), out=tmp_path)
    # A process that is killed while it writes leaves half a line.
    part = tmp_path / "squares.part.jsonl"
    part.write_text(part.read_text() + '{"config": "')
    study.run(Config(), out=tmp_path)
    assert calls == [1, 2, 3, 3]
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        study.run(Config(numbers=(1, 2, 3, 4)), out=tmp_path)
    # Another configuration begins anew.
    assert calls == [1, 2, 3]


def test_processes_measure_the_same(tmp_path):
    both = [
        STUDY.run(Config(), out=tmp_path / str(jobs), jobs=jobs).drop(columns="seconds")
        for jobs in (1, 2)
    ]
    pd.testing.assert_frame_equal(*both)


def test_a_missing_record_names_its_command(tmp_path):
    with pytest.raises(InputError, match=r"make it with python -m analyses\.squares"):
        read("squares", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "figures", "optimizer_cost", "--records", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    assert "make it with python -m analyses.optimizer_cost" in done.stderr


def test_words_are_medians_with_ranges():
    assert spread([3.0, 1.0, 2.0]) == "2 [1, 3]"
    assert spread([0.1, 0.25, 0.3], percent=True) == "25 % [10, 30]"


def test_bootstrap_intervals_cover_the_mean():
    mean, low, high = bootstrap_mean([1.0, 2.0, 3.0, 4.0], draws=2000)
    assert mean == 2.5
    assert 1.0 < low < mean < high < 4.0
    assert bootstrap_mean([1.0, 1.0]) == (1.0, 1.0, 1.0)


def test_records_are_small_and_hold_no_numbers_that_json_lacks():
    for path in RESULTS.glob("*.json"):
        assert path.stat().st_size < 1_000_000, path
        json.loads(path.read_text(), parse_constant=pytest.fail)
