import warnings

import pytest
import torch

from hessian_lab import HessianOperator, make_field, mse
from hessian_lab.probe import graphs, lanczos
from hessian_lab.probe.lanczos import tridiagonalize
from hessian_lab.probe.spectrum import spectrum
from hessian_lab.probe.vectors import gaussian
from tests.device_cases import CASES, DENSE, PRODUCTS, Case, operator, rays
from tests.reference import assert_same, points, small_field

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = "cuda:0"
# Sums in another order differ more than those of the same order.
MORE_ROUNDINGS = 100
# cuSOLVER's checks and solvers wait inside; what the package asks for itself does not.
SILENT = [name for name, case in (PRODUCTS | DENSE).items() if case.waits == 0]


@pytest.fixture
def strict():
    """Raise where the host waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", CASES)
def test_a_gpu_gives_what_the_cpu_gives(name):
    case: Case = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        expected = case.work(case.make("cpu"))
        found = case.work(case.make(CUDA))
    roundings = MORE_ROUNDINGS * case.roundings
    if isinstance(found, torch.Tensor):
        assert found.is_cuda == case.stays
        assert_same(found.detach().cpu(), expected.detach(), roundings=roundings)
    else:
        assert found == pytest.approx(expected, rel=roundings * 2.3e-16)


@pytest.mark.parametrize("name", SILENT)
def test_the_host_does_not_wait(name, strict):  # noqa: ARG001
    case = CASES[name]
    torch.cuda.set_sync_debug_mode("default")
    made = case.make(CUDA)
    # What is set up once, graphs among it, may wait.
    for _ in range(3):
        case.work(made)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    case.work(made)


def test_lanczos_steps_do_not_wait_between_two_looks(monkeypatch, strict):  # noqa: ARG001
    torch.cuda.set_sync_debug_mode("default")
    made = operator(CUDA)
    starts = gaussian(made.size, 3, seed=0, like=made)
    tridiagonalize(made, starts, num_steps=10)
    monkeypatch.setitem(lanczos.LOOK_EVERY, "cuda", 64)
    run = lanczos.Recurrence(made, num_rows=30, num_starts=3)
    run.start(starts.T)
    run.step()
    run._unseen.due = 64
    torch.cuda.set_sync_debug_mode("error")
    for _ in range(28):
        assert run.step()
    torch.cuda.set_sync_debug_mode("default")
    assert run.look()
    assert run.lengths.tolist() == [29] * 3


@pytest.mark.parametrize("num", [1, 5])
@pytest.mark.parametrize("kind", ["field", "rays"])
def test_replayed_products_equal_those_made_one_by_one(kind, num, caplog, monkeypatch):
    if kind == "field":
        model, signal = small_field().to(CUDA), points().to(device=CUDA)
    else:
        from hessian_lab import make_radiance_field

        model = make_radiance_field("relu_pe", width=8, depth=2, samples=5).to(CUDA)
        signal = rays(CUDA)
    recorded = HessianOperator(model, mse, signal)
    blocks = [gaussian(recorded.size, num, seed=seed, like=recorded) for seed in range(6)]
    products = [recorded @ block for block in blocks]
    (run,) = recorded._kept[0]._bound.values()
    assert isinstance(run.graph, torch.cuda.CUDAGraph)
    assert not caplog.records
    monkeypatch.setattr(graphs, "RECORDED_RUN", 10**9)
    eager = HessianOperator(model, mse, signal)
    for block, found in zip(blocks, products, strict=True):
        assert_same(found, eager @ block, roundings=10)


def test_what_waits_while_it_is_recorded_is_made_one_by_one(caplog):
    total = torch.zeros(1, device=CUDA)
    run = graphs.Replayed([lambda: total.fill_(float(total.sum()) + 1)], torch.device(CUDA))
    graphs._tell.cache_clear()
    for _ in range(4):
        run()
    # The second run is made once more after its recording failed.
    assert float(total) == 5
    assert run.graph is None
    assert "not replayed" in caplog.text
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    # The device goes on.
    assert_same((total @ total).cpu(), torch.tensor(25.0))


def test_graphs_of_two_widths_take_turns():
    made = operator(CUDA)
    plain = operator("cpu").dense()
    for width in (1, 2, 1, 2, 1, 2, 1, 2):
        block = gaussian(made.size, width, seed=width, like=made)
        assert_same((made @ block).cpu(), plain @ block.cpu())
    runs = list(made._kept[0]._bound.values())
    assert len(runs) == 2
    assert all(run.graph is not None for run in runs)


@pytest.mark.parametrize("allow", ["high", "highest"])
def test_shortened_products_are_off_inside(allow):
    model = small_field(dtype=torch.float32).to(CUDA)
    signal = points().to(dtype=torch.float32, device=CUDA)
    exact = HessianOperator(small_field(), mse, points()).dense()
    torch.set_float32_matmul_precision(allow)
    try:
        found = HessianOperator(model, mse, signal).dense()
    finally:
        torch.set_float32_matmul_precision("highest")
    # TF32 would leave three digits.
    gap = (found.double().cpu() - exact).abs().max() / exact.abs().max()
    assert float(gap) < 1e-5


def test_a_larger_spectrum_agrees():
    signal = points(400)
    model = make_field("sine", 2, 1, width=24, depth=3)
    expected = spectrum(HessianOperator(model, mse, signal).dense())
    found = spectrum(HessianOperator(model.to(CUDA), mse, signal.to(device=CUDA)).dense())
    assert_same(found.values, expected.values, roundings=1e5)
