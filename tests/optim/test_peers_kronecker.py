"""Agreement with other libraries, where they are installed: ``pip install -e '.[compare]'``."""

import pytest
import torch
from torch import nn

from hessian_lab.optim.gauss_newton import GaussNewton
from hessian_lab.optim.kfac import EKFAC, KFAC
from hessian_lab.optim.shampoo import Shampoo
from tests.optim.test_kfac import closure_of, layer_places, stepped, undamped
from tests.reference import assert_same, points, small_field

LOSSES = {
    "mean": nn.MSELoss(),
    "sum": nn.MSELoss(reduction="sum"),
    "bce": nn.BCEWithLogitsLoss(),
    "bce-sum": nn.BCEWithLogitsLoss(reduction="sum"),
}


@pytest.fixture(scope="module")
def curvlinops():
    return pytest.importorskip("curvlinops")


@pytest.fixture(scope="module")
def pytorch_optimizer():
    return pytest.importorskip("pytorch_optimizer")


def dense(operator, size):
    eye = torch.eye(size, dtype=torch.float64)
    return torch.as_tensor(operator @ eye)


def labelled(num_outputs, loss):
    signal = points(num_outputs=num_outputs)
    values = signal.values.round() if isinstance(loss, nn.BCEWithLogitsLoss) else signal.values
    return type(signal)(signal.coords, values)


def compare(curvlinops, kind, loss, num_outputs, *, fisher, theirs):
    model, signal = small_field(num_outputs=num_outputs), labelled(num_outputs, loss)
    ours = undamped(stepped(kind, model, signal, loss, fisher=fisher), model)
    operator = getattr(curvlinops, f"{kind.__name__}LinearOperator")(
        model,
        loss,
        list(model.parameters()),
        [(signal.coords, signal.values)],
        fisher_type=theirs,
        separate_weight_and_bias=False,
    )
    assert_same(ours, dense(operator, len(ours)), roundings=1e4)
    for places in layer_places(model):
        assert ours[places[:, None], places].any()


@pytest.mark.parametrize("num_outputs", [1, 3])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("kind", [KFAC, EKFAC])
def test_blocks_are_those_of_curvlinops(curvlinops, kind, loss, num_outputs):
    compare(curvlinops, kind, loss, num_outputs, fisher="ggn", theirs="type-2")


@pytest.mark.parametrize("loss", ["mean", "bce"])
@pytest.mark.parametrize("kind", [KFAC, EKFAC])
def test_empirical_blocks_are_those_of_curvlinops(curvlinops, kind, loss):
    """For one channel: of more, they take each for a loss of its own."""
    compare(curvlinops, kind, LOSSES[loss], 1, fisher="empirical", theirs="empirical")


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gauss_newton_matrix_is_that_of_curvlinops(curvlinops, loss):
    model, signal = small_field(num_outputs=3), labelled(3, loss)
    theirs = curvlinops.GGNLinearOperator(
        model, loss, list(model.parameters()), [(signal.coords, signal.values)]
    )
    optimizer = GaussNewton(model.parameters(), solver="dense", damping=0.1)
    root = optimizer.preconditioner(closure=closure_of(model, signal, loss)).inverse_sqrt.dense()
    size = len(root)
    expected = dense(theirs, size) + 0.1 * torch.eye(size).double()
    assert_same(torch.linalg.inv(root @ root), expected, roundings=1e5)


def test_shampoo_is_that_of_pytorch_optimizer(pytorch_optimizer):
    """Over 30 steps with gradients that vary, on matrices: its vectors have another exponent."""
    torch.manual_seed(0)
    ends = []
    for make in (
        lambda values: Shampoo(values, 0.05, eps=1e-4),
        lambda values: pytorch_optimizer.Shampoo(values, 0.05, matrix_eps=1e-4),
    ):
        model = small_field()
        signal = points()
        for layer in model.maps:
            layer.bias.requires_grad_(False)
        optimizer = make([layer.weight for layer in model.maps])
        path = []
        for _ in range(30):
            optimizer.zero_grad()
            closure_of(model, signal)()[0].backward()
            optimizer.step()
            path.append(torch.cat([layer.weight.detach().flatten() for layer in model.maps]))
        ends.append(torch.stack(path))
    assert_same(ends[0], ends[1], roundings=1e6)
    assert (ends[0][-1] - ends[0][0]).norm() > 0.1
