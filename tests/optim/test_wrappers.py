import pytest
import torch
import torch.distributed as dist
from torch import nn

from hessian_lab.errors import UsageError
from hessian_lab.optim import OPTIMIZERS
from hessian_lab.optim.make import make_optimizer
from hessian_lab.optim.wrappers import WRAPPERS

INPUTS = torch.linspace(-1, 1, 16).view(8, 2)
# K-FAC does not see the layers of a compiled graph.
REFUSALS = r"must not call a compiled module.*_orig_mod|closure must call every layer"
# Without a second derivative.
FIRST = {"sgd", "adam", "lbfgs", "bfgs", "nonlinear_cg", "shampoo"}


@pytest.fixture
def distributed(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def closure_of(wrapped, optimizer, *, backward=False):
    def closure():
        outputs = wrapped(INPUTS)
        loss = (outputs - 1).square().mean()
        if backward:
            loss.backward()
        return (loss, outputs) if optimizer.takes_outputs else loss

    return closure


@pytest.mark.usefixtures("distributed")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_that_ranks_would_not_share_are_refused(name):
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = make_optimizer(name, model)
    with pytest.raises(RuntimeError, match=r"must not call a DistributedDataParallel.*model\.mod"):
        optimizer.step(closure_of(wrapped, optimizer))
    if name in FIRST:
        before = float(optimizer.step(closure_of(wrapped, optimizer, backward=True)))
        assert float(optimizer.step(closure_of(wrapped, optimizer, backward=True))) < before
        make_optimizer(name, wrapped)
    else:
        with pytest.raises((UsageError, ValueError), match=r"Pass .*model\.module"):
            make_optimizer(name, wrapped)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_compiled_modules_are_refused_where_they_are_differentiated_twice(name):
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
    compiled = torch.compile(model, backend="aot_eager")
    assert type(compiled).__name__ in WRAPPERS
    optimizer = make_optimizer(name, model)
    if name in FIRST:
        optimizer.step(closure_of(compiled, optimizer))
    else:
        with pytest.raises((RuntimeError, ValueError), match=REFUSALS):
            optimizer.step(closure_of(compiled, optimizer))


def test_compiled_modules_are_compiled_once():
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    optimizer = make_optimizer("adam", model)
    for _ in range(4):
        optimizer.step(closure_of(compiled, optimizer))
    assert len(graphs) == 1


# Torch says so once per process, to whoever comes first.
@pytest.mark.filterwarnings("ignore:Using backward")
@pytest.mark.parametrize("name", ["esgd", "esgd_max", "adahessian", "psgd"])
def test_a_grad_scaler_is_refused(name):
    model = nn.Linear(2, 1)
    optimizer = make_optimizer(name, model)
    before = [value.clone() for value in model.parameters()]
    scaler = torch.amp.GradScaler("cpu")
    loss = model(INPUTS).square().mean()
    scaler.scale(loss).backward(create_graph=optimizer.should_create_graph())
    with pytest.raises(RuntimeError, match="must not be stepped by a GradScaler"):
        scaler.step(optimizer)
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    with pytest.raises(RuntimeError, match="must not be stepped by a GradScaler"):
        scaler.step(optimizer, lambda: model(INPUTS).square().mean())
