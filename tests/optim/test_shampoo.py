"""Shampoo against Alg. 4 written out, and each option beyond it."""

import gc
import io
import weakref

import pytest
import torch
from torch import nn

from hessian_lab.errors import DivergenceError
from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import mse
from hessian_lab.optim.kronecker import eigen
from hessian_lab.optim.shampoo import Shampoo
from tests.reference import assert_same, points, small_field


def closure_of(model, signal):
    return lambda: mse(model(signal.coords), signal.values)


def vector(tensors):
    return torch.cat([value.detach().flatten() for value in tensors])


def power(matrix, exponent):
    values, basis = torch.linalg.eigh(matrix)
    return basis @ torch.diag(values**exponent) @ basis.T


class AlgorithmFour:
    """The reference: one matrix, its two sums."""

    def __init__(self, shape, eps, beta2=1.0, root=-1 / 4):
        self.left, self.right = (eps * torch.eye(size).double() for size in shape)
        self.beta2, self.added, self.root = beta2, 1 if beta2 == 1 else 1 - beta2, root

    def __call__(self, g):
        self.left = self.beta2 * self.left + self.added * g @ g.T
        self.right = self.beta2 * self.right + self.added * g.T @ g
        return power(self.left, self.root) @ g @ power(self.right, self.root)


def gradients(shape, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(steps)]


def moves(optimizer, value, given):
    """Return what each gradient moves a parameter by."""
    found = []
    for gradient in given:
        before = value.detach().clone()
        value.grad = gradient.clone()
        optimizer.step()
        found.append(value.detach() - before)
    return found


def zeros(*shape, dtype=torch.float64):
    return nn.Parameter(torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize("beta2", [1.0, 0.9])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (1, 4), (4, 1)])
def test_it_is_algorithm_four(shape, beta2):
    value, reference = zeros(*shape), AlgorithmFour(shape, 1e-3, beta2)
    given = gradients(shape, 8)
    found = moves(Shampoo([value], 0.5, eps=1e-3, beta2=beta2), value, given)
    for move, gradient in zip(found, given, strict=True):
        assert_same(move, -0.5 * reference(gradient), roundings=1e4)


@pytest.mark.parametrize(("shape", "matrix"), [((5,), (5, 1)), ((), (1, 1)), ((2, 3, 2), (2, 6))])
def test_other_shapes_are_matrices(shape, matrix):
    value, reference = zeros(*shape), AlgorithmFour(matrix, 1e-3)
    given = gradients(shape, 6)
    for move, gradient in zip(
        moves(Shampoo([value], 0.5, eps=1e-3), value, given), given, strict=True
    ):
        assert_same(move, -0.5 * reference(gradient.view(matrix)).view(shape), roundings=1e4)


def test_exponent_is_the_order_of_the_roots():
    value, reference = zeros(4, 3), AlgorithmFour((4, 3), 1e-3, root=-1 / 2)
    given = gradients((4, 3), 6)
    found = moves(Shampoo([value], 0.5, eps=1e-3, exponent=2), value, given)
    for move, gradient in zip(found, given, strict=True):
        assert_same(move, -0.5 * reference(gradient), roundings=1e5)


def test_blocks_have_statistics_of_their_own():
    value, given = zeros(5, 3), gradients((5, 3), 6)
    cuts = [(rows, columns) for rows in ((0, 2), (2, 4), (4, 5)) for columns in ((0, 2), (2, 3))]
    references = [AlgorithmFour((b - a, d - c), 1e-3) for (a, b), (c, d) in cuts]
    found = moves(Shampoo([value], 0.5, eps=1e-3, block_size=2), value, given)
    for move, gradient in zip(found, given, strict=True):
        for ((a, b), (c, d)), reference in zip(cuts, references, strict=True):
            expected = -0.5 * reference(gradient[a:b, c:d])
            assert_same(move[a:b, c:d], expected, roundings=1e4)


def test_roots_are_kept_between_updates_and_statistics_are_not():
    value, given = zeros(4, 3), gradients((4, 3), 5)
    optimizer = Shampoo([value], 1.0, eps=1e-3, update_every=3)
    found = moves(optimizer, value, given)
    reference = AlgorithmFour((4, 3), 1e-3)
    reference(given[0])
    left, right = power(reference.left, -1 / 4), power(reference.right, -1 / 4)
    for gradient, move in zip(given[:3], found, strict=False):
        assert_same(move, -left @ gradient @ right, roundings=1e4)
    for gradient in given[1:]:
        reference(gradient)
    assert_same(optimizer.state[value]["block0.left"], reference.left)
    assert optimizer.diagnostics()["curvature_updates"] == 2


@pytest.mark.parametrize("matrix_eps", [0.0, 1e-2])
def test_roots_leave_the_statistics_alone(matrix_eps):
    """Published code adds the ridge in place, at every root."""
    value, given = zeros(4, 3), gradients((4, 3), 50)
    optimizer = Shampoo([value], 1.0, eps=1e-3, matrix_eps=matrix_eps)
    moves(optimizer, value, given)
    expected = 1e-3 * torch.eye(4).double() + sum(g @ g.T for g in given)
    assert_same(optimizer.state[value]["block0.left"], expected)
    if matrix_eps:
        ridge = matrix_eps * torch.linalg.eigvalsh(expected)[-1] * torch.eye(4).double()
        root = optimizer.state[value]["block0.left_root"]
        assert_same(root, power(expected + ridge, -1 / 4))


def test_graft_has_the_norm_of_the_gradient():
    value, given = zeros(4, 3), gradients((4, 3), 6)
    found = moves(Shampoo([value], 0.5, graft="sgd"), value, given)
    bare = zeros(4, 3)
    directions = moves(Shampoo([bare], 0.5), bare, given)
    for move, direction, gradient in zip(found, directions, given, strict=True):
        assert_same(move.norm(), 0.5 * gradient.norm())
        assert_same(move / move.norm(), direction / direction.norm())


IMPULSES = {
    False: [1.0, 0.9, 0.81, 0.729],
    True: [1.9, 0.81, 0.729, 0.6561],
    "in-place": [1.9, 1.539, 1.24659, 1.0097379],
}


@pytest.mark.parametrize(("nesterov", "expected"), IMPULSES.items(), ids=str)
def test_impulse_response(nesterov, expected):
    value = zeros(3, 2)
    optimizer = Shampoo(
        [value], 1.0, graft="sgd", momentum=0.9, nesterov=nesterov, vectors="column"
    )
    given = [torch.ones(3, 2).double(), *[torch.zeros(3, 2).double()] * 3]
    found = moves(optimizer, value, given)
    torch.testing.assert_close(
        torch.stack([-move[0, 0] for move in found]), torch.tensor(expected).double()
    )
    if nesterov != "in-place":
        sgd = torch.optim.SGD([zeros(3, 2)], 1.0, momentum=0.9, nesterov=nesterov)
        theirs = moves(sgd, sgd.param_groups[0]["params"][0], given)
        torch.testing.assert_close(torch.stack(theirs), torch.stack(found))


def test_plain_vectors_take_the_gradient():
    bias, row, small = zeros(4), zeros(1, 200), zeros(4, 3)
    large = zeros(13, 11)
    optimizer = Shampoo([bias, row, small, large], 0.5, vectors="plain", block_size=128)
    given = [gradients(value.shape, 1)[0] for value in (bias, row, small, large)]
    for value, gradient in zip((bias, row, small, large), given, strict=True):
        value.grad = gradient.clone()
    optimizer.step()
    for value, gradient in zip((bias, row, small), given, strict=False):
        assert_same(value.detach(), -0.5 * gradient)
    assert_same(large.detach(), -0.5 * AlgorithmFour((13, 11), 1e-4)(given[3]), roundings=1e5)


OPTIONS = {
    "default": {},
    "blocks": {"block_size": 2},
    "graft": {"graft": "sgd"},
    "plain": {"vectors": "plain", "block_size": 4},
    "every": {"update_every": 2, "beta2": 0.9},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_step_is_by_the_inverse_of_the_preconditioner(options):
    model, signal = small_field(num_outputs=3), points(num_outputs=3)
    optimizer = Shampoo(model.parameters(), 0.1, **options)
    for _ in range(4):
        start = vector(model.parameters())
        optimizer.step(closure_of(model, signal))
    gradient = vector(value.grad for value in model.parameters())
    root = optimizer.preconditioner(model).inverse_sqrt
    moved = vector(model.parameters()) - start
    assert_same(moved, -0.1 * (root @ (root @ gradient)), roundings=1e5)
    assert optimizer.diagnostics()["step_length"] == pytest.approx(float(moved.norm()))
    dense = root.dense()
    assert_same(dense, dense.T)
    assert float(torch.linalg.eigvalsh(dense)[0]) > 0


def test_groups_have_options_of_their_own_and_the_models_order():
    model, signal = small_field(), points()
    first, last = list(model.parameters())[:3], list(model.parameters())[3:]
    optimizer = Shampoo([{"params": last, "lr": 0.2}, {"params": first, "eps": 1.0}], 0.1)
    start = vector(model.parameters())
    optimizer.step(closure_of(model, signal))
    gradient = vector(value.grad for value in model.parameters())
    root = optimizer.preconditioner(model).inverse_sqrt
    parts = [
        torch.full((value.numel(),), 0.1 if place < 3 else 0.2, dtype=torch.float64)
        for place, value in enumerate(model.parameters())
    ]
    rates = torch.cat(parts)
    moved = vector(model.parameters()) - start
    assert_same(moved, -rates * (root @ (root @ gradient)), roundings=1e5)
    with pytest.raises(ValueError, match=r"^eps must be .*, got 0"):
        optimizer.add_param_group({"params": [zeros(2)], "eps": 0.0})


def test_both_conventions_give_the_same_steps():
    signal = points()
    ends = []
    for familiar in (False, True):
        model = small_field()
        optimizer = Shampoo(model.parameters(), 0.1)
        for _ in range(4):
            if familiar:
                optimizer.zero_grad()
                closure_of(model, signal)().backward()
                assert optimizer.step() is None
            else:
                optimizer.step(closure_of(model, signal))
        ends.append(vector(model.parameters()))
    assert torch.equal(*ends)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_resume_is_bit_identical(options, dtype):
    signal = points().to(dtype=dtype)

    def begin():
        model = small_field().to(dtype)
        optimizer = Shampoo(model.parameters(), 0.1, momentum=0.5, **options)
        return model, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    def advance(model, optimizer, scheduler, steps):
        for _ in range(steps):
            optimizer.step(closure_of(model, signal))
            scheduler.step()

    whole, first, second = begin(), begin(), begin()
    advance(*whole, 9)
    advance(*first, 4)
    file = io.BytesIO()
    torch.save([each.state_dict() for each in first], file)
    file.seek(0)
    for each, state in zip(second, torch.load(file, weights_only=True), strict=True):
        each.load_state_dict(state)
    advance(*second, 5)
    assert torch.equal(vector(whole[0].parameters()), vector(second[0].parameters()))


def test_dropped_models_are_freed_without_the_collector():
    signal = points()
    gc.collect()
    gc.disable()
    try:
        model = small_field()
        optimizer = Shampoo(model.parameters())
        optimizer.step(closure_of(model, signal))
        kept = [weakref.ref(value) for value in model.parameters()]
        del model, optimizer
        assert not [each for each in kept if each() is not None]
    finally:
        gc.enable()


def test_it_descends_with_its_defaults():
    model, signal = make_field("sine", 2, 1), points()
    optimizer = Shampoo(model.parameters())
    losses = [float(optimizer.step(closure_of(model, signal))) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]


def test_what_is_not_finite_is_skipped_and_then_stops():
    value = zeros(3, 2)
    optimizer = Shampoo([value])
    moves(optimizer, value, gradients((3, 2), 1))
    before = {name: entry for name, entry in optimizer.state[value].items()}
    spoiled = torch.full((3, 2), float("inf")).double()
    for move in moves(optimizer, value, [spoiled] * 9):
        assert not move.any()
    after = optimizer.state[value]
    assert torch.equal(before["block0.left"], after["block0.left"])
    assert optimizer.diagnostics()["skipped"] == 9
    with pytest.raises(DivergenceError, match="not finite in 10 steps in a row"):
        moves(optimizer, value, [spoiled])


def test_there_is_no_preconditioner_before_a_step():
    with pytest.raises(ValueError, match="no preconditioner before its first step"):
        Shampoo([zeros(2)]).preconditioner()


def test_eigenvalues_are_tried_again(monkeypatch):
    matrix = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    calls = []
    real = torch.linalg.eigh

    def failing(given):
        calls.append(given)
        if len(calls) < 3:
            raise torch.linalg.LinAlgError("did not converge")
        return real(given)

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    values, basis = eigen(matrix)
    assert len(calls) == 3
    assert values.dtype == torch.float64
    torch.testing.assert_close(basis @ torch.diag(values) @ basis.T, matrix.double())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr", 0.0),
        ("eps", 0.0),
        ("exponent", 0.0),
        ("matrix_eps", -1.0),
        ("momentum", 1.0),
        ("beta2", 0.0),
        ("update_every", 0),
        ("block_size", 0),
        ("graft", "adam"),
        ("vectors", "rows"),
        ("nesterov", "inplace"),
        ("nesterov", True),
    ],
)
def test_options_are_checked(option, value):
    with pytest.raises(ValueError, match=rf"^{option} must .*, got"):
        Shampoo([zeros(2)], **{option: value})
