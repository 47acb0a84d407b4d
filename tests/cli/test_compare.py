import pandas as pd
import pytest

from tests.cli.terminal import assert_refused, typed

TINY = ("compare", "--size", "8", "--act", "tanh", "--width", "3", "--depth", "1", "--steps", "4")
GRID = (*TINY, "--optimizer", "adam,sgd", "--lr", "0.01:1:log3", "--seed", "1:3")


def test_optimizers_are_told_side_by_side(tmp_path):
    answer = typed(tmp_path, *GRID)
    assert answer.status == 0, answer.err
    assert answer.out.splitlines()[0].startswith("optimizer    best lr   PSNR dB")
    assert "curves in runs/compare/compare.csv" in answer.out
    assert (tmp_path / "runs/compare/compare.png").stat().st_size > 5_000
    assert answer.err.count("done, loss") == 6 + 4
    assert "10/10" in answer.err
    curves = pd.read_csv(tmp_path / "runs/compare/compare.csv")
    assert set(curves["seed"]) == {1, 2}

    again = typed(tmp_path, *GRID, "--json", "-q")
    assert again.err == ""
    assert {row["optimizer"] for row in again.json["table"]} == {"adam", "sgd"}
    assert again.json["quantity"] == "psnr"
    for row in again.json["table"]:
        assert f"{row['median']:.4g}" in answer.out


def test_rates_are_multiples_of_the_default_where_none_is_given(tmp_path):
    answer = typed(tmp_path, *TINY, "--optimizer", "adam", "--seed", "1", "--json", "-q")
    assert answer.status == 0, answer.err
    tuned = pd.read_csv(tmp_path / "runs/compare/sweep.csv")
    assert sorted(tuned["lr"]) == pytest.approx([3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tune-seed", "1"), "--seed and --tune-seed must differ, got 1 in both"),
        (("--jobs", "0"), "--jobs must be at least 1, got 0"),
        (("--optimizer", "adm"), "optimizer must be one of .* Did you mean adam?"),
    ],
)
def test_refuses_what_cannot_be_compared(tmp_path, words, message):
    assert_refused(typed(tmp_path, *GRID, *words), 2, f".*{message}.*")
