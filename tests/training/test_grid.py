import itertools

import pytest

from hessian_lab.errors import UsageError
from hessian_lab.training.grid import layers, setups, shard, shown, values
from hessian_lab.training.setup import Setup


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("adam", str, ["adam"]),
        ("adam,sgd", str, ["adam", "sgd"]),
        ("0:3", int, [0, 1, 2]),
        ("0:2, 7", int, [0, 1, 7]),
        ("0.5", float, [0.5]),
        ("1e-4:1e1:log6", float, [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]),
        ("1:2:lin3", float, [1.0, 1.5, 2.0]),
        ("a:b", str, ["a:b"]),
        ("30", layers, [30.0]),
        ("30,3000/3e3/30/30, 7", layers, [30.0, (3000.0, 3000.0, 30.0, 30.0), 7.0]),
        ("1:100:log3", layers, [1.0, 10.0, 100.0]),
    ],
)
def test_values_are_lists_and_ranges(text, kind, expected):
    assert values(text, kind) == expected


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("3:1", int, "the end of '3:1' is not in it"),
        ("1.5", int, "over numbers such as 1,2 or 0:3, got '1.5'"),
        ("1:2:log", float, "1e-4:1e1:log7, got '1:2:log'"),
        ("0:2:log3", float, "two ends, above 0 for log"),
        ("1:2:lin1", float, "two ends"),
        ("1,2,1.0", float, "each value once, got 1.0 twice"),
        ("", float, "got ''"),
        ("3000,3000,30,30", layers, "got 3000.0 twice .* layers: 3000/3000/30/30"),
        ("3/x", layers, "over numbers such as 1,2 or 1e-4:1e1:log7, got '3/x'"),
        ("3/", layers, "got '3/'"),
        ("1/2,1/2", layers, "got 1/2 twice"),
    ],
)
def test_refuses_other_texts(text, kind, message):
    with pytest.raises(UsageError, match=message):
        values(text, kind)


def test_all_combinations_are_made_once():
    made = setups(
        Setup(steps=3), {"act": ["sine", "relu"], "lr": [0.1, 1.0], "omega": [30.0, 60.0]}
    )
    assert len(made) == 6  # A ReLU has no ω.
    assert len({(one.act, one.lr, one.omega) for one in made}) == 6
    assert all(one.steps == 3 and one.optimizer == "lbfgs" for one in made)


def test_a_value_is_shown_as_it_is_typed():
    assert [shown(value) for value in (30.0, None, "adam")] == [30.0, None, "adam"]
    assert shown((3000.0, 0.5)) == "3000/0.5"
    assert layers(shown((3000.0, 0.5))) == (3000.0, 0.5)


def test_shares_are_all_of_it():
    items = list(range(11))
    shares = [shard(items, f"{place}/4") for place in range(1, 5)]
    assert sorted(itertools.chain.from_iterable(shares)) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert shard(items, None) == items


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/4"])
def test_refuses_shares_that_there_are_not(text):
    with pytest.raises(UsageError, match="shard must be i/k with 1 <= i <= k"):
        shard([1], text)


def test_refuses_a_range_that_was_mistyped():
    with pytest.raises(UsageError, match="at most 100,000 runs, got 1,000,000"):
        setups(Setup(), {"seed": list(range(1_000_000))})


def test_options_of_one_optimizer_are_its_own():
    base = Setup(options={"foreach": False})
    made = setups(base, {"optimizer": ["adam", "sgd"]}, own={"sgd": {"momentum": 0.9}})
    assert [dict(one.options) for one in made] == [
        {"foreach": False},
        {"foreach": False, "momentum": 0.9},
    ]
    with pytest.raises(UsageError, match=r"in the sweep, adam, got one of 'sgd'"):
        setups(Setup(), {"optimizer": ["adam"]}, own={"sgd": {"momentum": 0.9}})
