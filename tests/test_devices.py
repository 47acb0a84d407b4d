import json
import warnings

import pytest
import torch

from hessian_lab import HessianOperator, dense_hessian, mse
from hessian_lab.probe.lanczos import tridiagonalize
from hessian_lab.probe.vectors import gaussian
from tests.benchmarks import gpu
from tests.device_cases import CASES, OPTIMIZED, Case, operator
from tests.pretended import OnCuda, pretended_cuda
from tests.reference import assert_same, points, small_field

CUDA = "cuda:0"


@pytest.fixture
def device():
    with pretended_cuda() as mode:
        yield mode


def compared(case, device):
    """Return what a case gives on the device and on the CPU, and what the host waited for."""
    with warnings.catch_warnings():
        # Optimizers warn of mini-batches.
        warnings.simplefilter("ignore", UserWarning)
        expected = case.work(case.make("cpu"))
        made = case.make(CUDA)
        with device.waiting() as waits:
            found = case.work(made)
    return found, expected, waits


@pytest.mark.parametrize("name", CASES)
def test_every_path_runs_on_a_gpu(name, device):
    case: Case = CASES[name]
    found, expected, waits = compared(case, device)
    if isinstance(found, torch.Tensor):
        assert isinstance(found, OnCuda) == case.stays
        assert_same(found.detach().cpu(), expected.detach(), roundings=case.roundings)
    else:
        assert found == pytest.approx(expected, rel=case.roundings * 2.3e-16)
    assert len(waits) <= case.waits, waits


def test_what_the_host_may_wait_for_is_not_far_above_what_it_does(device):
    for name in ("step adam", "step esgd"):
        *_, waits = compared(OPTIMIZED[name], device)
        assert len(waits) > OPTIMIZED[name].waits - 5


def test_products_are_recorded_once_and_replayed(device, caplog):
    made = operator(CUDA)
    blocks = [gaussian(made.size, 3, seed=seed, like=made) for seed in range(5)]
    products = [made @ block for block in blocks]
    assert device.recorded == 1
    expected = dense_hessian(small_field(), mse, points())
    for block, found in zip(blocks, products, strict=True):
        assert_same(found.inner, expected @ block.inner)
    made @ gaussian(made.size, 2, seed=0, like=made)
    assert device.recorded == 1
    assert not caplog.records


@pytest.mark.parametrize(("num_steps", "looks"), [(1, 1), (7, 3), (24, 6)])
def test_a_lanczos_run_is_looked_at_now_and_then(num_steps, looks, device):
    made = operator(CUDA)
    starts = gaussian(made.size, 2, seed=0, like=made)
    with device.waiting() as waits:
        tridiagonalize(made, starts, num_steps=num_steps)
    # The norms of the starts; lengths, alphas and betas.
    assert len(waits) == looks + 1 + 3


def test_data_may_stay_on_the_cpu(device):
    model, signal = small_field().to(CUDA), points()
    made = HessianOperator(model, mse, [(signal.coords, signal.values)])
    block = gaussian(made.size, 3, seed=0, like=made)
    with device.waiting() as waits:
        found = made @ block
    assert not waits
    assert_same(found.cpu(), dense_hessian(small_field(), mse, signal) @ block.cpu())


def test_the_benchmark_of_a_gpu_says_that_there_is_none(tmp_path, capsys):
    assert gpu.main(["--record", str(tmp_path / "record.json")]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("device")
def test_the_benchmark_of_a_gpu_writes_its_record(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("empty_cache", "reset_peak_memory_stats", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)
    sizes = gpu.Sizes(
        side=6,
        rounds=1,
        closed=3,
        largest=(3, 4),
        products=(3,),
        vectors=(1, 2),
        density=3,
        probes=4,
        steps=6,
    )
    path = tmp_path / "record.json"
    parts = ["closed", "products", "largest", "density"]
    assert gpu.main(["--record", str(path), "--only", *parts], sizes) == 0
    record = json.loads(path.read_text())
    assert record["closed"]["difference_from_products"] < 1e-12
    assert [row["num_vectors"] for row in record["products"]] == [1, 2]
    assert max(row["difference"] for row in record["products"]) < 1e-5
    assert [row["num_parameters"] for row in record["largest"]] == [49, 77]
    assert max(row["norm_difference"] for row in record["largest"]) < 1e-12
    assert record["density"]["deviations"]["ours"] <= record["density"]["tolerance"]
    assert record["density"]["seconds"].keys() >= {"ours", "ours, call by call"}
    assert '"failed"' not in capsys.readouterr().out

    monkeypatch.setitem(gpu.PARTS, "closed", lambda _: 1 / 0)
    assert gpu.main(["--record", str(path), "--only", *parts], sizes) == 1
    record = json.loads(path.read_text())
    assert record["closed"] == {"failed": "ZeroDivisionError: division by zero"}
    assert len(record["largest"]) == 2


WAITING = {
    "item": lambda x: x[0, 0].item(),
    "float": lambda x: float(x.sum()),
    "bool": lambda x: bool((x > 0).all()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "written mask": lambda x: x.index_put_((x > 0,), torch.zeros_like(x).flatten()),
    "host index": lambda x: x[torch.tensor([0, 1])],
    "to the device": lambda x: torch.ones(3).to(x.device),
    "tensor": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "new tensor": lambda x: x.new_tensor([1.0]),
    "host number": lambda x: torch.where(x > 0, x, torch.tensor(0.0)),
    "copied": lambda x: x.copy_(torch.ones(3, 3)),
    "equal": lambda x: torch.equal(x, x),
}
BESIDE = {
    "zeros": lambda x: torch.zeros(3, device=x.device) + x,
    "like": lambda x: torch.zeros_like(x).fill_diagonal_(2) @ x,
    "number": lambda x: torch.where(x > 0, x, 0) * 2.5 + torch.tensor(1.0),
    "filled": lambda x: x.masked_fill_(x > 0, 1),
    "index": lambda x: x[torch.arange(2, device=x.device)],
    "pinned": lambda x: torch.ones(3).pin_memory().to(x.device, non_blocking=True) + x,
}


@pytest.mark.parametrize("name", WAITING)
def test_the_pretended_device_notes_what_the_host_waits_for(name, device):
    numbers = torch.ones(3, 3).to(CUDA)
    with device.waiting() as waits:
        WAITING[name](numbers)
    assert len(waits) == 1


@pytest.mark.parametrize("name", BESIDE)
def test_the_pretended_device_computes_beside_the_host(name, device):
    numbers = torch.arange(9.0).view(3, 3) - 4
    moved = numbers.to(CUDA)
    with device.waiting() as waits:
        found = BESIDE[name](moved)
    assert not waits
    assert isinstance(found, OnCuda)
    torch.testing.assert_close(found.cpu(), BESIDE[name](numbers))


@pytest.mark.usefixtures("device")
def test_tensors_of_two_places_do_not_mix():
    moved = torch.ones(3).to(CUDA)
    with pytest.raises(RuntimeError, match="on cuda:0 and on the cpu"):
        moved + torch.ones(3)
    with pytest.raises(RuntimeError, match="on cuda:0 and on the cpu"):
        torch.ones(2, 3) @ moved


@pytest.mark.usefixtures("device")
def test_the_pretended_device_differentiates_twice():
    numbers = torch.linspace(-1, 1, 5, dtype=torch.float64)
    moved = numbers.to(CUDA).requires_grad_()
    (slope,) = torch.autograd.grad((moved.sin() * moved).sum(), moved, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), moved)
    assert bend.device == torch.device(CUDA)
    assert_same(bend.cpu(), 2 * numbers.cos() - numbers * numbers.sin())
