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
        (("--optimizer", "sgd,sgd"), "must name each once, got sgd twice"),
        (("--device", "cuda:foo"), "device must be"),
    ],
)
def test_refuses_what_there_is_not(tmp_path, words, message):
    assert_refused(typed(tmp_path, *TINY, *words), 2, f".*{message}.*")


def test_what_cannot_be_written_is_told_before_anything_is_timed(tmp_path):
    (tmp_path / "file").write_text("")
    answer = typed(tmp_path, *TINY, "--optimizer", "sgd", "--out", "file/cost")
    assert answer.status in (1, 2)
    assert "timing" not in answer.err
    assert answer.out == ""


def test_a_field_that_does_not_fit_is_refused(tmp_path):
    answer = typed(tmp_path, *TINY, "--optimizer", "sgd", "--width", "1000000", "--depth", "3")
    assert answer.status == 1
    assert "A step on a field of" in answer.err


def test_the_ending_of_a_picture_may_be_given(tmp_path):
    answer = typed(tmp_path, *TINY, "--optimizer", "sgd", "--out", "here.png", "-q")
    assert answer.status == 0, answer.err
    assert sorted(path.name for path in tmp_path.glob("here*")) == ["here.pdf", "here.png"]
