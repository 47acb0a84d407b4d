import logging

import pytest
import torch

from hessian_lab.losses import mse
from hessian_lab.probe import graphs
from hessian_lab.probe.curvature import HessianOperator
from hessian_lab.probe.graphs import Replayed
from hessian_lab.probe.hessian import dense_hessian, output_derivatives
from hessian_lab.probe.linearized import LinearizedField
from hessian_lab.probe.passes import Workspace
from hessian_lab.probe.vectors import gaussian
from tests.reference import assert_same, points, small_field

CPU = torch.device("cpu")


class Recorder:
    """A recorder whose graphs say how often they were replayed."""

    def __init__(self, refuses=False):
        self.refuses = refuses
        self.warmed = 0
        self.graphs = []

    def warm(self, calls):
        self.warmed += 1
        graphs.make(calls)

    def record(self, calls):
        if self.refuses:
            # What was recorded before the failure is not known.
            calls[0]()
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        self.graphs.append(Graph(calls))
        return self.graphs[-1]


class Graph:
    def __init__(self, calls):
        self.calls = calls
        self.replays = 0

    def replay(self):
        self.replays += 1
        graphs.make(self.calls)


@pytest.fixture
def recorder(monkeypatch):
    found = Recorder()
    monkeypatch.setitem(graphs.RECORDERS, "cpu", lambda _: found)
    graphs.recorder_of.cache_clear()
    graphs._tell.cache_clear()
    yield found
    graphs.recorder_of.cache_clear()


def counted(log):
    return [lambda: log.append("a"), lambda: log.append("b")]


def test_the_second_run_is_recorded_and_all_others_are_replayed(recorder):
    log = []
    run = Replayed(counted(log), CPU)
    for number in range(1, 6):
        run()
        assert log == ["a", "b"] * number
    (graph,) = recorder.graphs
    assert (recorder.warmed, graph.replays) == (1, 3)


def test_nothing_is_recorded_on_the_cpu():
    graphs.recorder_of.cache_clear()
    log = []
    run = Replayed(counted(log), CPU)
    for _ in range(4):
        run()
    assert run.graph is None
    assert log == ["a", "b"] * 4


def test_what_cannot_be_recorded_is_run_and_logged_once(recorder, caplog):
    recorder.refuses = True
    total = torch.zeros(2)
    for _ in range(2):
        run = Replayed([total.zero_, lambda: total.add_(1)], CPU)
        for _ in range(4):
            run()
            assert total.tolist() == [1, 1]
    assert recorder.warmed == 2
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message == (
        "products are not replayed as a CUDA graph: "
        "operation not permitted when stream is capturing"
    )


@pytest.mark.parametrize("num", [1, 4])
def test_replayed_products_are_those_of_the_matrix(recorder, num):
    model, signal = small_field(), points()
    operator = HessianOperator(model, mse, signal)
    matrix = dense_hessian(model, mse, signal)
    for seed in range(5):
        block = gaussian(operator.size, num, seed=seed, like=operator)
        assert_same(operator @ block, matrix @ block)
    assert [graph.replays for graph in recorder.graphs] == [3]


def test_products_that_were_returned_are_not_overwritten_by_a_replay(recorder):
    model, signal = small_field(), points()
    operator = HessianOperator(model, mse, signal)
    block = gaussian(operator.size, 2, seed=0, like=operator)
    expected = dense_hessian(model, mse, signal) @ block
    products = [operator @ block for _ in range(4)]
    operator @ (3 * block)
    assert recorder.graphs[0].replays == 3
    for product in products:
        assert_same(product, expected)


def test_every_linearization_and_width_has_a_graph_of_its_own(recorder):
    model, signal = small_field(), points()
    derivatives = output_derivatives(model, mse, signal.coords, signal.values)
    weights = [layer.weight.detach() for layer in model.maps]
    workspace = Workspace(weights, full=True)
    halves = [
        LinearizedField(
            model,
            signal.coords[part],
            derivatives[0][part],
            derivatives[1][part],
            workspace=workspace,
        )
        for part in (slice(20), slice(20, None))
    ]
    matrix = dense_hessian(model, mse, signal)
    rows = gaussian(len(matrix), 3, seed=0, like=matrix).T.contiguous()
    for width in (3, 2):
        for _ in range(3):
            found = sum(half.products(rows[:width]) for half in halves)
            assert_same(found, rows[:width] @ matrix)
    assert len(recorder.graphs) == 4


def test_graphs_go_with_the_buffers_that_they_write_to(recorder):
    model, signal = small_field(), points()
    operator = HessianOperator(model, mse, signal)
    matrix = dense_hessian(model, mse, signal)
    (field,) = operator._kept
    for width in (1, 2, 3, 1, 1, 1):
        block = gaussian(operator.size, width, seed=width, like=operator)
        assert_same(operator @ block, matrix @ block)
        assert len(field._bound) <= 2
    # That of width 1 was evicted by widths 2 and 3: it was recorded when it came back.
    assert [graph.replays for graph in recorder.graphs] == [1]


def test_a_recording_keeps_its_operands_alive(recorder):
    total = torch.zeros(1)
    run = Replayed([torch.ones(1).clone, lambda: total.add_(1)], CPU)
    run(), run(), run()
    assert recorder.graphs[0].calls is run.calls
