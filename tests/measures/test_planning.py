import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from hessian_lab.errors import ResourceError
from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import mse
from hessian_lab.measures import planning
from hessian_lab.measures.planning import (
    Plan,
    chosen_method,
    duration,
    num_parameters,
    plan,
    require_dense,
    require_search,
    training_seconds,
)
from hessian_lab.probe import scratch
from hessian_lab.probe.closed_form import temporary_numbers
from hessian_lab.probe.curvature import HessianOperator
from hessian_lab.probe.eigenpairs import extreme_eigenpairs
from hessian_lab.probe.scratch import DiskRates
from hessian_lab.signal import Signal

# 61 parameters.
FIELD = make_field("tanh", 1, 1, width=6, depth=2)
LINE = torch.linspace(-1, 1, 40, dtype=torch.float64).unsqueeze(1)
SIGNAL = Signal(LINE, torch.sin(4 * LINE))
SIZES = {"num": 5, "num_probes": 10, "num_steps": 80}


def make_plan(method, model=FIELD, signal=SIGNAL, *, num_checkpoints=1, **sizes):
    return plan(model, signal, method=method, num_checkpoints=num_checkpoints, **(SIZES | sizes))


def limit_memory(monkeypatch, there):
    monkeypatch.setattr("hessian_lab.probe.memory.available_bytes", lambda _device: there)


# Which method.


@pytest.mark.parametrize("method", ["dense", "lanczos", "slq"])
def test_a_method_that_was_asked_for_is_taken(monkeypatch, method):
    monkeypatch.setattr(planning, "DENSE_LIMIT", 1)
    limit_memory(monkeypatch, 0)
    assert chosen_method(method, FIELD, 40) == (method, "as asked")


@pytest.mark.parametrize(("limit", "method"), [(60, "slq"), (61, "dense"), (62, "dense")])
def test_auto_is_dense_up_to_the_limit(monkeypatch, limit, method):
    monkeypatch.setattr(planning, "DENSE_LIMIT", limit)
    found, reason = chosen_method("auto", FIELD, 40)
    assert found == method
    assert "61 parameters" in reason
    assert ("too many for dense" in reason) == (method == "slq")


def test_the_limit_is_20_000_parameters():
    assert chosen_method("auto", nn.Linear(19_999, 1), 2)[0] == "dense"
    assert chosen_method("auto", nn.Linear(20_000, 1), 2) == (
        "slq",
        "20,001 parameters, more than 20,000: too many for dense",
    )


# The Hessian, and the sums of its closed form, or a copy for the eigenvalues.
NEEDED = 8 * 61**2 + max(8 * 61**2, 8 * temporary_numbers(FIELD, 40))


@pytest.mark.parametrize(("there", "method"), [(NEEDED - 1, "slq"), (NEEDED, "dense")])
def test_auto_is_dense_only_if_it_fits(monkeypatch, there, method):
    limit_memory(monkeypatch, there)
    found, reason = chosen_method("auto", FIELD, 40)
    assert found == method
    assert ("does not fit" in reason) == (method == "slq")


def test_where_nothing_tells_the_memory_auto_goes_by_size(monkeypatch):
    limit_memory(monkeypatch, None)
    assert chosen_method("auto", FIELD, 40)[0] == "dense"
    assert "None" not in str(replace(make_plan("slq"), available_bytes=None))


def test_a_dense_measurement_that_does_not_fit_is_refused_with_the_cure(monkeypatch):
    limit_memory(monkeypatch, NEEDED - 1)
    with pytest.raises(ResourceError, match=r"must fit in memory.*--method slq"):
        require_dense(FIELD, 40)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_search_is_refused_exactly_where_it_would_refuse_itself(monkeypatch, dtype):
    model = make_field("tanh", 1, 1, width=24, depth=2, dtype=dtype)
    operator = HessianOperator(model, mse, SIGNAL.to(dtype=dtype))
    # 673 parameters; 300 vectors, and 6 for a step.
    needed = 306 * 673 * dtype.itemsize
    limit_memory(monkeypatch, needed)
    require_search(model, 5)
    extreme_eigenpairs(operator, num=5, which="both", check_copies=False)
    limit_memory(monkeypatch, needed - 1)
    for refused in (
        lambda: require_search(model, 5),
        lambda: extreme_eigenpairs(operator, num=5, which="both", check_copies=False),
    ):
        with pytest.raises(ResourceError, match=rf"\[1, 301, 673\].*{needed} bytes"):
            refused()


def test_frozen_parameters_do_not_count():
    module = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
    assert num_parameters(module) == 13
    module[0].weight.requires_grad_(False)
    assert num_parameters(module) == 9


# Bytes and seconds.


@pytest.mark.parametrize("method", ["dense", "lanczos", "slq"])
def test_a_plan_says_what_it_is_of(method):
    found = make_plan(method, num_checkpoints=7)
    assert (found.method, found.reason) == (method, "as asked")
    assert (found.num_parameters, found.num_points, found.num_checkpoints) == (61, 40, 7)
    assert found.needed_bytes > 0
    assert 0 < found.seconds < math.inf


def test_dense_holds_two_matrices_of_doubles_at_least():
    single = make_field("tanh", 1, 1, width=6, depth=2, dtype=torch.float32)
    assert make_plan("dense").needed_bytes == NEEDED
    rows = nn.Sequential(nn.Linear(1, 20), nn.GELU(), nn.Linear(20, 1)).double()
    assert make_plan("dense", rows).needed_bytes == 2 * 8 * 61**2
    assert make_plan("dense", single).needed_bytes == make_plan("dense").needed_bytes


@pytest.mark.parametrize("num_points", [40, 4000])
def test_the_bytes_of_a_dense_plan_are_those_that_the_measurement_asks_for(monkeypatch, num_points):
    coords = torch.linspace(-1, 1, num_points, dtype=torch.float64).unsqueeze(1)
    needed = make_plan("dense", signal=Signal(coords, coords)).needed_bytes
    limit_memory(monkeypatch, needed)
    require_dense(FIELD, num_points)
    limit_memory(monkeypatch, needed - 1)
    with pytest.raises(ResourceError, match=f"{needed} bytes"):
        require_dense(FIELD, num_points)


@pytest.mark.parametrize(
    ("method", "sizes", "columns"),
    [
        ("slq", {}, 10 * 61),
        ("slq", {"num_steps": 20}, 10 * 20),
        ("slq", {"num_probes": 2, "num_steps": 5}, 61),
        ("lanczos", {}, 61),
    ],
)
def test_products_hold_at_least_the_lanczos_vectors(method, sizes, columns):
    assert make_plan(method, **sizes).needed_bytes >= columns * 61 * 8


def test_memory_holds_the_stored_activations():
    coords = torch.rand(20_000, 2, dtype=torch.float64)
    model = make_field("sine", 2, 1, width=16, depth=4)
    found = make_plan("lanczos", model, Signal(coords, coords[:, :1]))
    assert found.needed_bytes >= 4 * 16 * 20_000 * 8


def test_time_grows_with_checkpoints(monkeypatch):
    monkeypatch.setattr(planning, "_timed", lambda _work, _device: 1e-3)
    for method in ("dense", "lanczos", "slq"):
        one, ten = (make_plan(method, num_checkpoints=count).seconds for count in (1, 10))
        assert ten == pytest.approx(10 * one)


def test_time_counts_the_products(monkeypatch):
    monkeypatch.setattr(planning, "_timed", lambda _work, _device: 1e-3)
    density = make_plan("slq", num_probes=10, num_steps=50).seconds
    search = make_plan("lanczos").seconds
    # A block of four vectors was timed.
    assert density - search == pytest.approx(500 * 1e-3 / 4)


def test_time_counts_the_layers(monkeypatch):
    monkeypatch.setattr(planning, "_timed", lambda _work, _device: 1e-3)
    assert planning.layer_sizes(FIELD) == [12, 42, 7]
    # Two steps end in no layer, and a search takes at most as many products as a layer has rows.
    few = {"num_probes": 10, "num_steps": 2}
    for method, density in (("lanczos", 0), ("slq", 20)):
        whole, all_of_them = (
            make_plan(method, layers=layers, **few).seconds for layers in (False, True)
        )
        assert all_of_them - whole == pytest.approx((3 * density + 12 + 42 + 7) * 1e-3 / 4)
    dense, layered = (make_plan("dense", layers=layers).seconds for layers in (False, True))
    assert dense < layered < 2 * dense


def test_dense_time_grows_with_points_and_the_cube_of_the_size(monkeypatch):
    monkeypatch.setattr(planning, "_timed", lambda _work, _device: 1e-3)
    small, large = (
        make_plan("dense", make_field("tanh", 1, 1, width=width)).seconds for width in (10, 40)
    )
    assert large > 10 * small
    more = Signal(LINE.repeat(100, 1), SIGNAL.values.repeat(100, 1))
    assert make_plan("dense", signal=more).seconds > make_plan("dense").seconds


def test_training_takes_gradients(monkeypatch):
    monkeypatch.setattr(planning, "_timed", lambda _work, _device: 1e-3)
    short, long = (training_seconds(FIELD, SIGNAL, steps) for steps in ([0, 100], [0, 1000]))
    assert short >= 0.1
    assert long == pytest.approx(10 * short, rel=0.1)


def test_a_time_is_the_shortest_of_some_runs(monkeypatch):
    clock = iter([0.0, 5.0, 5.0, 7.0, 7.0, 10.0])
    monkeypatch.setattr(planning.time, "perf_counter", lambda: next(clock))
    runs = []
    assert planning._timed(lambda: runs.append(1), torch.device("cpu")) == 2
    assert len(runs) == 3


def test_planning_leaves_the_model_alone():
    before = [value.clone() for value in FIELD.parameters()]
    make_plan("slq")
    training_seconds(FIELD, SIGNAL, [0, 1])
    assert all(
        torch.equal(*pair) and pair[0].grad is None
        for pair in zip(FIELD.parameters(), before, strict=True)
    )


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_modules_of_a_users_own_can_be_planned(matrix):
    module = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    for method in ("dense", "slq"):
        assert make_plan(method, module, matrix=matrix).num_parameters == 13


# Where memory is too small.


@pytest.fixture
def disk(monkeypatch, tmp_path):
    """Return a directory on a disk that writes 1000 and reads 2000 bytes a second."""
    monkeypatch.setattr(scratch, "IN_MEMORY", ())
    monkeypatch.setattr(planning, "disk_rates", lambda _: DiskRates(1e3, 2e3))
    monkeypatch.setattr(planning, "_timed", lambda _work, _device: 1e-9)
    return tmp_path


def short_memory(monkeypatch, there):
    limit_memory(monkeypatch, there)
    monkeypatch.setattr(planning, "available_bytes", lambda _device: there)


@pytest.mark.parametrize("method", ["dense", "lanczos", "slq"])
def test_a_scratch_that_is_not_needed_changes_nothing(disk, method):
    plain, found = make_plan(method), make_plan(method, scratch=disk)
    assert found == replace(plain, scratch=str(disk), available_bytes=found.available_bytes)
    assert "disk" not in str(found)


def test_a_dense_matrix_in_a_file_leaves_its_problem_in_memory(disk, monkeypatch):
    short_memory(monkeypatch, 8 * 61**2)
    found = make_plan("dense", num_checkpoints=3, scratch=disk)
    assert (found.needed_bytes, found.disk_bytes) == (8 * 61**2, 8 * 61**2)
    # Written, and read once more for the copy.
    assert found.disk_seconds == pytest.approx(3 * 8 * 61**2 * (1 / 1e3 + 1 / 2e3))
    assert found.seconds == pytest.approx(found.disk_seconds, rel=1e-3)
    assert f"disk        29.1 KiB in {disk}, 2.2 min of the time" in str(found)
    assert require_dense(FIELD, 40, disk)
    assert chosen_method("auto", FIELD, 40, disk)[0] == "dense"
    assert chosen_method("auto", FIELD, 40)[0] == "slq"
    short_memory(monkeypatch, 8 * 61**2 - 1)
    with pytest.raises(ResourceError, match="The eigenvalue problem of 61 parameters must fit in"):
        require_dense(FIELD, 40, disk)
    assert chosen_method("auto", FIELD, 40, disk)[0] == "slq"
    limit_memory(monkeypatch, NEEDED)
    assert not require_dense(FIELD, 40, disk)


def test_lanczos_vectors_in_a_file_are_written_once_and_read_at_every_step(disk, monkeypatch):
    vector, stored = 61 * 8, HessianOperator(FIELD, mse, SIGNAL).stored_bytes
    # The density's 10 × 62 vectors do not fit, the others' 62 and 5 do.
    short_memory(monkeypatch, stored + 67 * vector)
    found = make_plan("slq", num_steps=61, scratch=disk)
    assert found.disk_bytes == 10 * 62 * vector
    assert found.needed_bytes == stored + 67 * vector
    seconds = 10 * 61 * vector / 1e3 + 10 * 61**2 / 2 * vector / 2e3
    # The room of 17 vectors, beside 50 of a step, does not hold the vectors of one start.
    assert found.disk_seconds == pytest.approx(seconds + 10 * 61**2 / 2 * vector / 2e3)
    assert make_plan("lanczos", scratch=disk).disk_bytes == 0
    require_search(FIELD, 5, disk)
    short_memory(monkeypatch, 66 * vector)
    require_search(FIELD, 5, disk)
    with pytest.raises(ResourceError, match="Or name a scratch directory"):
        require_search(FIELD, 5)


# What people read.


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "0.012 s"),
        (4.13, "4.1 s"),
        (99.4, "99 s"),
        (100, "1.7 min"),
        (5000, "83 min"),
        (7200, "2 h"),
        (1e6, "12 days"),
        (1e9, "12000 days"),
    ],
)
def test_times_are_told_to_two_digits(seconds, text):
    assert duration(seconds) == text


def test_a_plan_is_told_in_five_short_lines():
    one = Plan("slq", "as asked", 198_401, 2500, 5, 1 << 30, 4 << 30, 3600.0)
    assert str(one).splitlines() == [
        "method      slq (as asked)",
        "parameters  198,401",
        "points      2,500",
        "memory      1 GiB of 4 GiB free",
        "time        about 60 min for 5 checkpoints, training not counted",
    ]
    assert one.to_json() == vars(one)


def test_one_product_is_timed_in_the_precision_of_the_training(monkeypatch):
    seen = []

    def timed(work, _device):
        seen.append(work())
        return 1e-3

    monkeypatch.setattr(planning, "_timed", timed)
    model, signal = make_field("tanh", 1, 1, width=4, dtype=torch.float32), SIGNAL
    single = signal.to(dtype=torch.float32)
    make_plan("slq", model, single)
    block = torch.ones(HessianOperator(model, mse, single).size, 4)
    assert seen[0].dtype == torch.float32
    assert seen[0].shape == block.shape
