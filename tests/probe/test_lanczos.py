import pytest
import torch

from hessian_lab.errors import NonFiniteError, ResourceError
from hessian_lab.probe import memory
from hessian_lab.probe.lanczos import Recurrence, tridiagonalize
from hessian_lab.probe.operators import MatrixOperator, SymmetricOperator
from hessian_lab.probe.vectors import gaussian, rademacher
from tests.reference import assert_same

DTYPES = [torch.float32, torch.float64]
SCALES = [1e-12, 1.0, 1e12]
OUTLIERS = torch.cat([torch.linspace(-0.1, 1, 116), torch.tensor([7.0, 20.0, 50.0, 55.0, 300.0])])


def operator_with(values, dtype=torch.float64, seed=0):
    values = torch.as_tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(values), len(values), dtype=torch.float64, generator=generator)
    basis = torch.linalg.qr(noise).Q
    matrix = basis @ torch.diag(values) @ basis.T
    return MatrixOperator(((matrix + matrix.T) / 2).to(dtype))


class Diagonal(SymmetricOperator):
    """A diagonal matrix that notes the widths of the blocks it multiplies."""

    def __init__(self, values, spoilt=None, spoil=torch.nan):
        super().__init__(len(values), values.dtype, values.device)
        self.values = values
        self.widths = []
        self.spoilt, self.spoil = spoilt, spoil

    def matmat(self, block):
        self.widths.append(block.shape[1])
        product = self.values.unsqueeze(1) * block
        if self.spoilt == len(self.widths):
            product[3:5, -1] = self.spoil
        return product


class Same(SymmetricOperator):
    """The identity, that returns what it is given, not a copy of it."""

    def matmat(self, block):
        return block


def assert_near(actual, expected, dtype, *, scale=1.0, roundings=20):
    """Assert equality in float64 up to roundings of another precision."""
    ratio = torch.finfo(dtype).eps / torch.finfo(torch.float64).eps
    assert_same(actual.double(), expected.double(), scale=scale, roundings=roundings * ratio)


def projected(run, row):
    betas = run.betas[row, :-1]
    return torch.diag(run.alphas[row]) + torch.diag(betas, 1) + torch.diag(betas, -1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("num_steps", [1, 2, 15, 40])
def test_the_recurrence_holds(dtype, scale, num_steps):
    operator = operator_with(scale * torch.linspace(-1, 3, 40), dtype)
    starts = gaussian(40, 3, seed=1, like=operator)
    run = tridiagonalize(operator, starts, num_steps=num_steps, keep_basis=True)
    assert run.num_steps == num_steps
    assert run.alphas.dtype == run.betas.dtype == torch.float64
    for row in range(3):
        basis = run.basis[row].double().T
        rest = operator.matrix.double() / scale @ basis - basis @ projected(run, row) / scale
        expected = torch.zeros_like(rest)
        expected[:, -1] = rest[:, -1] - basis @ (basis.T @ rest[:, -1])
        assert_near(rest, expected, dtype)
        assert_near(run.betas[row, -1] / scale, expected[:, -1].norm(), dtype)
        assert_near(basis.T @ basis, torch.eye(num_steps), dtype)
        assert_near(basis[:, 0], starts[:, row] / starts[:, row].norm(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
def test_at_full_depth_nodes_and_weights_are_exact(dtype, scale):
    values = scale * torch.linspace(-1, 3, 30)
    operator = operator_with(values, dtype)
    starts = rademacher(30, 2, seed=0, like=operator)
    ritz = tridiagonalize(operator, starts, num_steps=30).ritz()
    exact, vectors = torch.linalg.eigh(operator.matrix.double())
    weights = (starts.double().T @ vectors).square() / 30
    for row in range(2):
        assert_near(ritz.values[row], exact, dtype, scale=3 * scale)
        assert_near(ritz.weights[row], weights[row], dtype, roundings=200)
    assert not ritz.residuals.any()


@pytest.mark.parametrize("order", range(10))
def test_moments_are_exact_up_to_twice_the_steps(order):
    operator = operator_with(torch.cat([torch.zeros(20), torch.linspace(-1, 4, 20)]))
    starts = rademacher(40, 3, seed=0, like=operator)
    ritz = tridiagonalize(operator, starts, num_steps=5).ritz()
    power = torch.linalg.matrix_power(operator.matrix, order)
    expected = torch.einsum("np,nm,mp->p", starts, power, starts) / 40
    assert_same((ritz.weights * ritz.values**order).sum(dim=1), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_starts_in_lock_step_go_their_own_ways(dtype):
    operator = operator_with(OUTLIERS, dtype)
    starts = gaussian(121, 4, seed=0, like=operator)
    together = tridiagonalize(operator, starts, num_steps=25)
    for row in range(4):
        alone = tridiagonalize(operator, starts[:, row], num_steps=25)
        assert_near(together.ritz().values[row], alone.ritz().values[0], dtype, scale=300)


def test_residuals_are_those_of_the_ritz_pairs():
    operator = operator_with(OUTLIERS)
    start = gaussian(121, 1, seed=0, like=operator)
    run = tridiagonalize(operator, start, num_steps=12, keep_basis=True)
    values, vectors = torch.linalg.eigh(projected(run, 0))
    pairs = run.basis[0].T @ vectors
    expected = (operator.matrix @ pairs - pairs * values).norm(dim=0)
    assert_same(run.ritz().residuals[0], expected, scale=300)


def test_a_step_is_one_product_with_a_block():
    operator = Diagonal(torch.linspace(-1, 2, 50).double())
    run = tridiagonalize(operator, gaussian(50, 4, seed=0, like=operator), num_steps=9)
    assert operator.widths == 9 * [4]
    assert run.num_products == 36


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_eigenvalue_is_seen_twice_at_any_number_of_steps(dtype):
    operator = operator_with(OUTLIERS, dtype)
    start = gaussian(121, 1, seed=0, like=operator)
    for num_steps in range(10, 122, 5):
        values = tridiagonalize(operator, start, num_steps=num_steps).ritz().values
        counts = [int(((values - place).abs() < 1).sum()) for place in OUTLIERS[-5:]]
        assert all(count <= 1 for count in counts)
        assert counts == [1, 1, 1, 1, 1] or num_steps < 25
        assert int((values > 1.01).sum()) <= 5
        assert int((values < -0.101).sum()) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_stay_orthonormal_long_after_convergence(dtype):
    operator = operator_with(OUTLIERS, dtype)
    start = gaussian(121, 1, seed=0, like=operator)
    basis = tridiagonalize(operator, start, num_steps=121, keep_basis=True).basis[0].double()
    assert_near(basis @ basis.T, torch.eye(len(basis)), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
def test_an_exhausted_krylov_space_ends_its_start_alone(dtype, scale):
    operator = Diagonal(torch.tensor([0.0, 1, 2, 5, 9, 11], dtype=dtype) * scale)
    starts = torch.tensor(
        [[1, 0, 1], [1, 0, 0], [0, 0, 1], [0, 3, 0], [1, 0, 1], [0, 0, 1.0]], dtype=dtype
    )
    run = tridiagonalize(operator, starts, num_steps=6, keep_basis=True)
    assert run.lengths.tolist() == [3, 1, 4]
    assert (run.num_steps, run.num_products) == (4, 12)
    assert run.betas[[0, 1, 2], [2, 0, 3]].tolist() == [0, 0, 0]
    assert run.basis[0, 3:].abs().sum() == run.basis[1, 1:].abs().sum() == 0
    ritz = run.ritz()
    nodes = torch.tensor([[0, 1, 9, 9], [5, 5, 5, 5], [0, 2, 9, 11.0]])
    weights = torch.tensor([[4, 4, 4, 0], [12, 0, 0, 0], [3, 3, 3, 3]]).double() / 12
    assert_near(ritz.values / scale, nodes, dtype, scale=11)
    assert_near(ritz.weights, weights, dtype)
    assert not ritz.residuals.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("values", [[0.0] * 3, [1.0, 2.0, 3.0], [-4.0, 4.0, 4.0]])
def test_low_rank_gives_no_spurious_ritz_values(dtype, scale, values):
    spectrum = scale * torch.tensor([0.0] * 47 + values)
    operator = operator_with(spectrum, dtype)
    run = tridiagonalize(operator, gaussian(50, 4, seed=2, like=operator), num_steps=20)
    assert run.num_steps <= 5
    ritz = run.ritz()
    distances = (ritz.values.flatten().unsqueeze(1) - spectrum.double()).abs().min(dim=1).values
    assert_near(distances / scale, torch.zeros(len(distances)), dtype, scale=4)


def test_an_operator_may_return_its_operand():
    operator = Same(20, torch.float64, torch.device("cpu"))
    run = tridiagonalize(operator, gaussian(20, 2, seed=0, like=operator), num_steps=5)
    assert run.lengths.tolist() == [1, 1]
    assert_same(run.alphas, torch.ones(2, 1).double())


def test_what_cancels_is_orthogonalized_again():
    operator = operator_with(torch.linspace(-1, 1, 30))
    basis = torch.linalg.qr(gaussian(30, 12, seed=0, like=operator)).Q
    matrix = basis @ gaussian(12, 12, seed=1, like=operator) @ basis.T
    small = 1e-9 * operator.matrix
    run = Recurrence(MatrixOperator(matrix + matrix.T + small), num_rows=13)
    run.basis[0, :12] = basis.T
    run.position = 11
    assert run.step(run.betas[:, :0])
    overlaps = run.basis[0, 12] @ basis
    assert_same(overlaps, torch.zeros(12).double(), scale=1.0, roundings=10)


def test_a_start_is_put_into_the_complement():
    operator = operator_with(torch.linspace(-1, 1, 30), torch.float32)
    run = Recurrence(operator, num_rows=30)
    run.basis[0, :29] = torch.linalg.qr(gaussian(30, 29, seed=0, like=operator)).Q.T
    run.position = 29
    run.start(1e6 * run.basis[:, 5] + gaussian(30, 1, seed=1, like=operator).T)
    rows = run.basis[0, :30]
    assert_near(rows @ rows.T, torch.eye(30), torch.float32)


def test_the_same_start_gives_the_same_bits():
    operator = operator_with(OUTLIERS, torch.float32)
    start = gaussian(121, 2, seed=0, like=operator)
    one, other = (tridiagonalize(operator, start, num_steps=30) for _ in range(2))
    assert torch.equal(one.alphas, other.alphas)
    assert torch.equal(one.betas, other.betas)
    assert one.basis is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_recurrence_holds_on_a_gpu(dtype):
    operator = MatrixOperator(operator_with(OUTLIERS, dtype).matrix.cuda())
    starts = gaussian(121, 3, seed=1, like=operator)
    run = tridiagonalize(operator, starts, num_steps=40, keep_basis=True)
    assert run.basis.device == starts.device
    for row in range(3):
        basis = run.basis[row].double().T.cpu()
        rest = operator.matrix.double().cpu() @ basis - basis @ projected(run, row)
        assert_near(rest[:, :-1], torch.zeros_like(rest[:, :-1]), dtype, scale=300)
        assert_near(basis.T @ basis, torch.eye(40), dtype)


@pytest.mark.parametrize("num_steps", [0, 51])
def test_refuses_a_number_of_steps_out_of_range(num_steps):
    operator = Diagonal(torch.ones(50))
    with pytest.raises(ValueError, match=rf"num_steps must be in \[1, 50\], got {num_steps}\."):
        tridiagonalize(operator, torch.ones(50), num_steps=num_steps)


@pytest.mark.parametrize("shape", [(49,), (50, 0), (50, 2, 1), ()])
def test_refuses_starts_of_another_shape(shape):
    message = r"starts must have shape \[50\] or \[50, m\], m > 0, got \["
    with pytest.raises(ValueError, match=message):
        tridiagonalize(Diagonal(torch.ones(50)), torch.ones(shape), num_steps=3)


def test_refuses_starts_of_another_dtype():
    message = r"starts must be torch.float32 on cpu, got torch.float64 on cpu\."
    with pytest.raises(TypeError, match=message):
        tridiagonalize(Diagonal(torch.ones(50)), torch.ones(50).double(), num_steps=3)


@pytest.mark.parametrize("bad", [0.0, torch.inf, torch.nan])
def test_refuses_a_start_that_is_zero_or_not_finite(bad):
    starts = torch.ones(50, 2)
    starts[:, 1] = bad
    with pytest.raises(ValueError, match="starts must be non-zero and finite, got norms"):
        tridiagonalize(Diagonal(torch.ones(50)), starts, num_steps=3)


def test_names_the_product_that_is_not_finite():
    operator = Diagonal(torch.linspace(0, 1, 50), spoilt=5)
    with pytest.raises(NonFiniteError, match=r"product 15 of the operator .*: 2 of its 50 entries"):
        tridiagonalize(operator, gaussian(50, 3, seed=0, like=operator), num_steps=9)


def test_names_the_product_whose_norm_overflows():
    operator = Diagonal(torch.full((50,), 2e38), spoilt=1, spoil=-3.3e38)
    with pytest.raises(NonFiniteError, match="product 1 of the operator must be finite: its norm"):
        tridiagonalize(operator, torch.ones(50), num_steps=9)


def test_refuses_a_basis_that_does_not_fit(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda _: 1000)
    message = r"The Lanczos basis \[1, 6, 50\] must fit in memory: it needs .*Take fewer steps"
    with pytest.raises(ResourceError, match=message):
        tridiagonalize(Diagonal(torch.ones(50)), torch.ones(50), num_steps=5)
