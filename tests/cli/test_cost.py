import pytest

from tests.cli.terminal import assert_refused, typed

TINY = ("cost", "--width", "4", "--depth", "1", "--batch-size", "8", "--rounds", "1")


def test_a_table_and_a_picture_tell_what_steps_cost(tmp_path):
    answer = typed(tmp_path, *TINY, "--optimizer", "adam,esgd")
    assert answer.status == 0, answer.err
    assert "a step on gaussian 1×4, batch 8, float32 on cpu" in answer.out
    assert "update_every 100" in answer.out
    assert (tmp_path / "runs/cost.png").stat().st_size > 5_000


def test_json_holds_every_number(tmp_path):
    answer = typed(tmp_path, *TINY, "--optimizer", "sgd", "--json", "-q")
    (one,) = answer.json["costs"]
    assert one["optimizer"] == "sgd"
    assert one["ratio"] > 0
    assert answer.json["problem"]["batch_size"] == 8
    assert answer.err == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--optimizer", "adm"), "optimizer must be one of .* Did you mean adam?"),
        (("--rounds", "0"), "--rounds must be at least 1"),
        (("--act", "sin"), "must be one of .* Did you mean sine?"),
    ],
)
def test_refuses_what_there_is_not(tmp_path, words, message):
    assert_refused(typed(tmp_path, *TINY, *words), 2, f".*{message}.*")
