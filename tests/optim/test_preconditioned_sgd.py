import pytest
import torch

from hessian_lab.errors import ResourceError
from hessian_lab.optim.preconditioned_sgd import PreconditionedSGD
from tests.optim.curvature_problems import HESSIAN, entries, network, quadratic
from tests.reference import assert_same


def scales(hessian):
    return {
        "equilibrated": torch.linalg.vector_norm(hessian, dim=1),
        "jacobi": hessian.diagonal().abs(),
        "identity": torch.ones(len(hessian), dtype=hessian.dtype),
    }


def magnitude(hessian, power, eps=0.01):
    values, vectors = torch.linalg.eigh(hessian)
    return vectors @ torch.diag((values.abs() + eps) ** power) @ vectors.T


@pytest.mark.parametrize("kind", ["equilibrated", "jacobi"])
@pytest.mark.parametrize("exponent", [1.0, 0.5])
def test_exact_steps_divide_by_the_rows_at_hand(kind, exponent):
    parameters, closure = quadratic()
    optimizer = PreconditionedSGD(
        parameters, 0.1, preconditioner=kind, mode="exact", exponent=exponent, eps=0.01
    )
    before = entries(parameters)
    optimizer.step(closure)
    expected = (scales(HESSIAN)[kind] + 0.01) ** exponent
    assert_same(optimizer.preconditioner().scale, expected)
    assert_same(before - entries(parameters), 0.1 * (HESSIAN @ before) / expected)
    assert optimizer.diagnostics()["products"] == len(HESSIAN)


@pytest.mark.parametrize("exponent", [1.0, 0.5])
def test_abs_hessian_steps_through_the_dense_magnitude(exponent):
    parameters, closure = quadratic()
    optimizer = PreconditionedSGD(
        parameters, 0.1, preconditioner="abs-hessian", mode="exact", exponent=exponent, eps=0.01
    )
    before = entries(parameters)
    optimizer.step(closure)
    step = magnitude(HESSIAN, -exponent) @ HESSIAN @ before
    assert_same(before - entries(parameters), 0.1 * step)
    preconditioner = optimizer.preconditioner()
    assert preconditioner.scale is None
    root = preconditioner.inverse_sqrt.matmat(torch.eye(4, dtype=torch.float64))
    assert_same(root, magnitude(HESSIAN, -exponent / 2))


def test_a_full_step_with_the_magnitude_is_newtons_on_a_positive_definite_quadratic():
    positive = HESSIAN @ HESSIAN + torch.eye(4, dtype=torch.float64)
    parameters, closure = quadratic(positive)
    PreconditionedSGD(parameters, 1.0, preconditioner="abs-hessian", mode="exact", eps=1e-12).step(
        closure
    )
    assert_same(entries(parameters), torch.zeros(4, dtype=torch.float64), scale=1.0, roundings=1e5)


def test_the_transformed_hessian_is_that_of_the_change_of_variables():
    parameters, closure = quadratic()
    optimizer = PreconditionedSGD(parameters, 0.1, mode="exact", eps=1e-12)
    optimizer.step(closure)
    root = scales(HESSIAN)["equilibrated"].rsqrt()
    transformed = optimizer.preconditioner().precondition(HESSIAN)
    product = transformed.matmat(torch.eye(4, dtype=torch.float64))
    assert_same(product, root.unsqueeze(1) * HESSIAN * root, roundings=1e5)


def test_identity_is_gradient_descent_without_a_graph():
    model, closure = network()
    other, other_closure = network()
    optimizer = PreconditionedSGD(model.parameters(), 0.1, preconditioner="identity")
    descent = torch.optim.SGD(other.parameters(), 0.1)
    for _ in range(5):
        assert not optimizer.should_create_graph()
        optimizer.step(closure)
        descent.zero_grad()
        other_closure().backward()
        descent.step()
    assert_same(entries(model.parameters()), entries(other.parameters()))
    assert optimizer.diagnostics()["products"] == 0
    assert optimizer.preconditioner(model).scale.tolist() == [1.0] * 17


@pytest.mark.parametrize("kind", ["equilibrated", "jacobi"])
def test_many_probes_come_near_the_exact_scale(kind):
    parameters, closure = quadratic()
    optimizer = PreconditionedSGD(parameters, 0.0, preconditioner=kind, num_probes=4000)
    optimizer.step(closure)
    measured = optimizer.preconditioner().scale - 1e-4
    torch.testing.assert_close(measured, scales(HESSIAN)[kind], rtol=0.04, atol=0.05)


def test_the_scale_is_measured_anew_and_not_averaged():
    parameters, _ = quadratic()
    optimizer = PreconditionedSGD(parameters, 0.0, mode="exact", update_every=2)
    seen = []
    for factor in (1.0, 2.0, 3.0, 4.0, 5.0):
        optimizer.step(
            lambda factor=factor: factor * (torch.cat(parameters) @ HESSIAN @ torch.cat(parameters))
        )
        seen.append(float(optimizer.preconditioner().scale[0] - 1e-4))
    first = seen[0]
    assert seen == pytest.approx([first, first, 3 * first, 3 * first, 5 * first])


@pytest.mark.parametrize(
    ("kind", "size"), [("equilibrated", r"46\.9 KiB"), ("abs-hessian", r"824 MiB \(864288024 byt")]
)
def test_refuses_more_parameters_than_it_can_take(kind, size):
    point = torch.nn.Parameter(torch.ones(6001))
    with pytest.raises(ResourceError, match=f"at most 5000 in exact mode, got 6001: .*{size}"):
        PreconditionedSGD([point], preconditioner=kind, mode="exact")
    PreconditionedSGD([point], preconditioner=kind, mode="exact", max_parameters=6001)


def test_refuses_groups_that_together_are_too_large():
    first, second = (torch.nn.Parameter(torch.ones(30)) for _ in range(2))
    optimizer = PreconditionedSGD([first], mode="exact", max_parameters=50)
    with pytest.raises(ResourceError, match="got 60"):
        optimizer.add_param_group({"params": [second]})
    with pytest.raises(ValueError, match=r"eps must be the same in all groups, 0\.0001, got 0\.1"):
        optimizer.add_param_group({"params": [second], "eps": 0.1})


def test_parameters_may_be_transposed_views_in_memory():
    plain = torch.nn.Parameter(torch.arange(6.0, dtype=torch.float64).view(2, 3) + 1)
    turned = torch.nn.Parameter(plain.detach().t().contiguous().t())
    assert not turned.is_contiguous()
    for point in (plain, turned):
        PreconditionedSGD([point]).step(lambda point=point: (point**4).sum())
    assert torch.equal(plain, turned)


def test_a_matrix_that_cannot_be_decomposed_is_skipped():
    point = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    optimizer = PreconditionedSGD([point], preconditioner="abs-hessian")
    optimizer.step(lambda: 1e308 * (point[0] * point[1]) ** 2 / 4)
    assert optimizer.diagnostics()["skipped"] == 1
    assert point.tolist() == [1.0, 2.0]
