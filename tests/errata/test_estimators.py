"""Errors of the papers in estimators of curvature, and in what they are called."""

import torch
from torch.func import functional_call, jacrev

from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import mse
from hessian_lab.optim.first_order import Adam
from hessian_lab.probe.closed_diagonal import exact_diagonal
from hessian_lab.probe.closed_rows import exact_row_norms
from hessian_lab.probe.hessian import dense_ggn, dense_hessian
from hessian_lab.probe.norms import row_norms
from hessian_lab.probe.operators import MatrixOperator
from hessian_lab.probe.vectors import rademacher
from hessian_lab.signal import Signal
from tests.errata.states import camera, hessian_of, relative, trained
from tests.reference import assert_same, points


def jacobian(model, coords):
    """Return the derivatives of all outputs [p c, n]."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    parts = jacrev(lambda each: functional_call(model, each, (coords,)).flatten())(parameters)
    return torch.cat([part.flatten(1) for part in parts.values()], dim=1)


def gradient(model, signal):
    """Return the gradient of the mean squared error [n]."""
    loss = mse(model(signal.coords), signal.values)
    parts = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([part.flatten() for part in parts])


def far_from(model, signal, distance):
    """Return a signal from which a field is so many residuals away."""
    with torch.no_grad():
        outputs = model(signal.coords)
    return Signal(signal.coords, outputs + distance * (signal.values - outputs))


def test_e59_the_mean_of_squares_is_the_square_of_the_row_norm():
    signal = camera()
    for act, ratio in (("sine", 5.2), ("relu", 0.023)):
        model, matrix = trained(act), hessian_of(act)
        norms = exact_row_norms(model, mse, signal)
        assert_same(norms, torch.linalg.vector_norm(matrix, dim=1))
        squares = torch.zeros_like(norms)
        for first in range(0, 4000, 2000):
            vectors = rademacher(len(matrix), 2000, seed=0, like=matrix, first=first)
            squares += (matrix @ vectors).square().sum(dim=1) / 4000
        live = norms > 0
        right = squares[live] / norms[live].square()
        assert abs(float(right.median()) - 1) < 0.01
        assert float(((right - 1).abs() < 0.05).double().mean()) > 0.9
        printed = squares[live] / norms[live]
        assert 0.5 * ratio < float(printed.median()) < 2 * ratio
        # What they estimate is equilibration, not Jacobi.
        diagonal = matrix.diagonal().abs()
        assert relative(squares.sqrt(), diagonal) > 0.5
        found = row_norms(MatrixOperator(matrix), method="hutchinson", num_products=400)
        assert relative(found.mean, norms) < 0.1


def test_e55_outer_products_of_gradients_are_no_gauss_newton_matrix():
    signal, model = points(400), make_field("sine", 2, 1, width=8, depth=2, seed=1)
    ggn = dense_ggn(model, mse, signal)
    whole = gradient(model, signal)
    outer = torch.outer(whole, whole)
    assert int(torch.linalg.matrix_rank(outer)) == 1
    assert int(torch.linalg.matrix_rank(ggn)) == 105
    rows = jacobian(model, signal.coords)
    assert_same(rows.T @ rows / len(rows), ggn)

    # Near the optimum their mean over points vanishes, and the Hessian does not.
    fishers, hessians = [], []
    for distance in (1.0, 1e-3):
        near = far_from(model, signal, distance)
        residuals = (model(near.coords) - near.values).detach()
        fishers.append((rows * residuals).T @ (rows * residuals) / len(rows))
        hessians.append(dense_hessian(model, mse, near))
    assert_same(fishers[1], 1e-6 * fishers[0], roundings=1e6)
    assert relative(hessians[1], ggn) < 0.01
    assert relative(fishers[1], ggn) > 0.999


def test_e66_the_gradient_makes_the_gauss_newton_matrix_of_one_residual_only():
    signal, model = points(400), make_field("sine", 2, 1, width=8, depth=2, seed=1)
    rows = jacobian(model, signal.coords)
    residuals = (model(signal.coords) - signal.values).detach()[:, 0]
    for count in (1, 400):
        part, residual = rows[:count], residuals[:count]
        loss = residual.square().sum()
        slope = 2 * part.T @ residual
        printed = torch.outer(slope, slope) / (2 * loss)
        right = 2 * part.T @ part
        if count == 1:
            assert_same(printed, right)
        else:
            assert int(torch.linalg.matrix_rank(printed)) == 1
            assert int(torch.linalg.matrix_rank(right)) == 105
            assert 0.4 < relative(printed, right) < 1


def test_e67_adam_averages_squared_gradients_and_not_the_gauss_newton_diagonal():
    signal, model = points(100), make_field("sine", 2, 1, width=8, depth=2, seed=1)
    squares, diagonals = [], []
    for distance in (1.0, 0.1):
        near = far_from(model, signal, distance)
        optimizer = Adam(model.parameters(), 0.0, betas=(0.9, 0.999))
        optimizer.step(lambda near=near: mse(model(near.coords), near.values))
        kept = [optimizer.state[value]["exp_avg_sq"].flatten() for value in model.parameters()]
        squares.append(torch.cat(kept) / (1 - 0.999))
        diagonals.append(exact_diagonal(model, mse, near, matrix="ggn"))
    assert_same(squares[0], gradient(model, signal).square(), roundings=1e5)
    assert_same(squares[1], 0.01 * squares[0], roundings=1e6)
    assert_same(diagonals[1], diagonals[0])
    best = (squares[0] @ diagonals[0]) / squares[0].square().sum()
    assert relative(best * squares[0], diagonals[0]) > 0.2


def test_e68_without_curvature_of_its_own_relu_has_the_gauss_newton_diagonal():
    signal = camera()
    for act, octaves in (("relu", None), ("relu_pe", 4)):
        model = trained(act, octaves=octaves)
        diagonal = exact_diagonal(model, mse, signal)
        assert_same(diagonal, exact_diagonal(model, mse, signal, matrix="ggn"), roundings=10)
        assert_same(diagonal, hessian_of(act, octaves=octaves).diagonal(), roundings=100)
    model = trained("sine")
    ggn = exact_diagonal(model, mse, signal, matrix="ggn")
    assert relative(exact_diagonal(model, mse, signal), ggn) > 0.05
