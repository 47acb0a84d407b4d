"""Against other people's optimizers, fed the same probes; see the extra ``compare``."""

import math

import pytest
import torch

from hessian_lab.optim.adahessian import AdaHessian
from hessian_lab.optim.esgd import ESGD
from tests.optim.curvature_problems import entries, network
from tests.reference import assert_same

STEPS = 30


@pytest.fixture
def peer():
    return network()


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
@pytest.mark.parametrize("power", [1.0, 0.5])
def test_adahessian_is_that_of_pytorch_optimizer(monkeypatch, peer, power):
    theirs = pytest.importorskip("pytorch_optimizer")
    model, closure = network()
    options = {"lr": 0.05, "betas": (0.9, 0.99), "hessian_power": power, "eps": 1e-4}
    ours = AdaHessian(model.parameters(), weight_decay=0.1, **options)
    other, other_closure = peer
    adahessian = theirs.AdaHessian(
        other.parameters(), weight_decay=0.1, hessian_distribution="rademacher", **options
    )
    for step in range(STEPS):
        rest = iter(ours._vectors(step))
        monkeypatch.setattr(torch, "randint_like", lambda *_, rest=rest: (next(rest) + 1) / 2)
        ours.step(closure)
        adahessian.zero_grad()
        other_closure().backward(create_graph=True)
        adahessian.step()
        assert_same(entries(model.parameters()), entries(other.parameters()), scale=1.0)
    adahessian.zero_grad()


def test_mean_esgd_is_that_of_torchzero_but_for_its_second_division(monkeypatch, peer):
    torchzero = pytest.importorskip("torchzero")
    model, closure = network()
    damping = 1e-3
    ours = ESGD(
        model.parameters(), accumulate="mean", betas=(0.0, 0.0), update_every=3, warmup_steps=0
    )
    other, other_closure = peer
    theirs = torchzero.Optimizer(
        other.parameters(),
        torchzero.m.ESGD(damping=damping, update_freq=3, distribution="rademacher"),
        torchzero.m.LR(0.01),
    )

    def sample(_self, *_args, **_options):
        return torchzero.utils.TensorList(ours._vectors(ours.counters["curvature_updates"] - 1))

    monkeypatch.setattr(torchzero.utils.TensorList, "sample_like", sample)

    def familiar(backward=True):
        loss = other_closure()
        if backward:
            theirs.zero_grad()
            loss.backward()
        return loss

    for step in range(STEPS):
        # theirs = √(Σ/k²) + damping, which is (√(Σ/k) + √k damping) / √k.
        root = math.sqrt(step // 3 + 1)
        ours.param_groups[0].update(lr=0.01 * root, eps=damping * root)
        ours.step(closure)
        theirs.step(familiar)
        assert_same(entries(model.parameters()), entries(other.parameters()), scale=1.0)
