import pytest
import torch

from hessian_lab.optim.adahessian import AdaHessian
from hessian_lab.optim.esgd import ESGD
from tests.optim.curvature_problems import HESSIAN, diagonal_quadratic, entries, network, quadratic
from tests.reference import assert_same

DIAGONAL = torch.tensor([-0.1, 1.0, 7.0], dtype=torch.float64)


def signs(size):
    """Return all vectors of signs [2^size, size]."""
    return torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * size)


def limits(hessian):
    """Return what each estimator tends to, from all vectors of signs."""
    products = signs(len(hessian)) @ hessian
    return {
        "equilibrated": torch.linalg.vector_norm(hessian, dim=1),
        "jacobi": hessian.diagonal().abs(),
        "pn-jacobi": products.abs().mean(0).sqrt(),
    }


def scale_of(optimizer):
    return optimizer.preconditioner().scale - optimizer.param_groups[0]["eps"]


@pytest.mark.parametrize("estimator", ["equilibrated", "jacobi", "pn-jacobi"])
@pytest.mark.parametrize("every", [1, 10, 100])
def test_the_scale_of_a_constant_hessian_is_right_at_all_times(estimator, every):
    point, closure = diagonal_quadratic(DIAGONAL)
    optimizer = AdaHessian([point], lr=0.001, update_every=every, estimator=estimator)
    expected = DIAGONAL.abs().sqrt() if estimator == "pn-jacobi" else DIAGONAL.abs()
    for _ in range(250):
        optimizer.step(closure)
        assert_same(scale_of(optimizer), expected)


@pytest.mark.parametrize("estimator", ["equilibrated", "jacobi", "pn-jacobi"])
def test_estimators_tend_to_what_they_are_said_to(estimator):
    parameters, closure = quadratic()
    optimizer = AdaHessian(parameters, lr=0.0, num_probes=8, estimator=estimator)
    for _ in range(700):
        optimizer.step(closure)
    expected = limits(HESSIAN)
    # About 2 % of the row, which for the diagonal's small entry is all there is.
    torch.testing.assert_close(scale_of(optimizer), expected[estimator], rtol=0.03, atol=0.05)
    others = [value for name, value in expected.items() if name != estimator]
    assert all((scale_of(optimizer) - other).abs().max() > 0.2 for other in others)


def test_the_sign_of_the_diagonal_is_kept_until_it_is_averaged():
    point, _ = diagonal_quadratic([1.0])
    optimizer = AdaHessian([point], lr=0.0, estimator="jacobi", betas=(0.9, 0.5))
    for curvature in (1.0, -1.0):
        optimizer.step(lambda curvature=curvature: curvature * point.square().sum() / 2)
    # (1/4 − 1/2) / (3/4) = −1/3, whose magnitude is a third.
    assert_same(scale_of(optimizer), torch.tensor([1 / 3], dtype=torch.float64))


def test_the_power_is_that_of_the_scale_before_eps():
    point, closure = diagonal_quadratic(DIAGONAL)
    optimizer = AdaHessian([point], lr=0.01, hessian_power=0.5, eps=0.1)
    optimizer.step(closure)
    assert_same(optimizer.preconditioner().scale, DIAGONAL.abs().sqrt() + 0.1)


def test_corrections_differ_between_measurements_alone():
    def final(every, bias_correction):
        model, closure = network()
        optimizer = AdaHessian(
            model.parameters(), 0.01, update_every=every, bias_correction=bias_correction
        )
        for _ in range(12):
            optimizer.step(closure)
        return entries(model.parameters())

    assert torch.equal(final(1, "updates"), final(1, "steps"))
    assert not torch.equal(final(4, "updates"), final(4, "steps"))


def test_equilibrated_at_every_step_is_esgd():
    model, closure = network()
    other, other_closure = network()
    optimizer = AdaHessian(model.parameters(), 0.05)
    esgd = ESGD(other.parameters(), 0.05, update_every=1)
    for _ in range(20):
        optimizer.step(closure)
        esgd.step(other_closure)
    assert torch.equal(entries(model.parameters()), entries(other.parameters()))
