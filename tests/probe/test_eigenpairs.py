import math

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

from hessian_lab import Setup, dense_hessian, train
from hessian_lab.errors import NonFiniteError, ResourceError
from hessian_lab.probe import memory
from hessian_lab.probe.eigenpairs import extreme_eigenpairs
from hessian_lab.probe.lanczos import tridiagonalize
from hessian_lab.probe.operators import MatrixOperator, SymmetricOperator
from hessian_lab.probe.thick_restart import RitzPairs, Search, growth
from hessian_lab.probe.vectors import gaussian
from tests.probe.test_lanczos import DTYPES, SCALES, Diagonal, assert_near, operator_with

ENDS = ["largest", "smallest", "both", "magnitude"]
BULK = torch.linspace(-2, 2, 120)
SPECTRA = {
    "zero": torch.zeros(40),
    "identity": torch.ones(40),
    "rank 3": torch.cat([torch.zeros(57), torch.tensor([1.0, 2.0, 3.0])]),
    "outliers": torch.cat([BULK, torch.tensor([-9.0, -4.0, 3.0, 8.0, 30.0])]),
    "multiple": torch.cat([torch.tensor([5.0] * 4 + [4.0] * 3 + [-5.0] * 2), BULK]),
    "clustered": torch.cat([5 + 1e-4 * torch.arange(6), BULK, -5 + 1e-5 * torch.arange(3)]),
    "all but one": torch.tensor([1.0] * 30 + [0.5]),
    "pair": torch.tensor([-3.0, 1.0]),
    "equal pair": torch.tensor([2.0, 2.0]),
    "single": torch.tensor([-3.0]),
}


class Counting(SymmetricOperator):
    """A matrix that counts the columns it has multiplied."""

    def __init__(self, matrix):
        super().__init__(len(matrix), matrix.dtype, matrix.device)
        self.matrix = matrix
        self.count = 0

    def matmat(self, block):
        self.count += block.shape[1]
        return self.matrix @ block


def expected(values, which, num):
    """Return the extreme ones of all eigenvalues, in the order that is promised."""
    up = values.sort().values
    if which == "largest":
        return up.flip(0)[:num]
    if which == "smallest":
        return up[:num]
    if which == "magnitude":
        return up[up.abs().argsort(descending=True, stable=True)][:num]
    return torch.cat([up[num:][-num:], up[:num]]).sort(descending=True).values


def assert_pairs(found, operator, which, num, dtype):
    """Assert that pairs are what they say: values, order, residuals, orthonormal vectors."""
    matrix = operator.matrix.double()
    exact = expected(torch.linalg.eigvalsh(matrix), which, num)
    values, vectors = found.values, found.vectors.double()
    if which == "magnitude":
        values, exact = values.abs(), exact.abs()
    assert values.dtype == torch.float64
    assert found.vectors.dtype == dtype
    assert found.converged.all()
    assert found.complete
    assert bool(((values - exact).abs() <= found.tolerance).all())
    residuals = (matrix @ vectors - vectors * found.values).norm(dim=0)
    norm = float(torch.linalg.matrix_norm(matrix, 2)) or 1.0
    assert_near(found.residuals / norm, residuals / norm, dtype)
    assert_near(vectors.T @ vectors, torch.eye(len(values)), dtype, roundings=20)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", ENDS)
@pytest.mark.parametrize("name", SPECTRA)
def test_pairs_are_those_of_the_matrix_with_all_copies(name, which, dtype):
    operator = operator_with(SPECTRA[name], dtype)
    for num in {min(2, operator.size), min(8, operator.size)}:
        found = extreme_eigenpairs(operator, num=num, which=which)
        assert_pairs(found, operator, which, num, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", ENDS)
@pytest.mark.parametrize("name", ["rank 3", "multiple", "zero", "single"])
def test_all_pairs_of_a_matrix_are_exact(name, which, dtype):
    operator = operator_with(SPECTRA[name], dtype)
    found = extreme_eigenpairs(operator, num=operator.size, which=which)
    assert_pairs(found, operator, which, operator.size, dtype)
    assert found.num_products == found.num_check_products == operator.size


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("which", ENDS)
def test_rescaling_changes_nothing_but_the_scale(which, scale, dtype):
    operator = operator_with(scale * SPECTRA["multiple"], dtype)
    found = extreme_eigenpairs(operator, num=5, which=which)
    assert_pairs(found, operator, which, 5, dtype)
    assert found.tolerance == pytest.approx(5 * scale * max(1e-6, 20 * torch.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", ENDS)
def test_restarts_lose_nothing(which, dtype):
    operator = operator_with(SPECTRA["multiple"], dtype)
    found = extreme_eigenpairs(operator, num=6, which=which, basis_size=60)
    assert_pairs(found, operator, which, 6, dtype)
    dense = operator_with(torch.linspace(0, 1, 150) ** 2, dtype)
    found = extreme_eigenpairs(dense, num=4, which=which, basis_size=44)
    assert_pairs(found, dense, which, 4, dtype)
    assert found.num_products > 44


def test_a_search_longer_than_its_basis_converges():
    matrix = torch.diag(torch.full((700,), 2.0).double())
    matrix.diagonal(1).fill_(-1)
    matrix.diagonal(-1).fill_(-1)
    operator = MatrixOperator(matrix)
    found = extreme_eigenpairs(operator, num=3, which="smallest")
    assert_pairs(found, operator, "smallest", 3, torch.float64)
    exact = 2 - 2 * torch.cos(torch.pi * torch.arange(1, 4).double() / 701)
    assert_same_to(found.values, exact, found.tolerance)
    assert found.num_products > 300


def assert_same_to(actual, exact, tolerance):
    assert bool(((actual - exact).abs() <= tolerance).all())


@pytest.mark.parametrize("seed", range(5))
def test_copies_that_the_search_misses_are_found(seed):
    values = torch.cat([torch.tensor([5.0, 5.0, 5.0, 4.0, 4.0]), BULK]).double()
    options = {"num": 5, "rtol": 1e-3, "seed": seed}
    missed = extreme_eigenpairs(Diagonal(values), check_copies=False, **options)
    assert missed.converged.all()
    assert not missed.complete
    assert missed.num_check_products == 5
    assert float(missed.values[2]) < 4.5
    found = extreme_eigenpairs(Diagonal(values), **options)
    assert found.complete
    assert_same_to(found.values, torch.tensor([5.0, 5.0, 5.0, 4.0, 4.0]), found.tolerance)
    assert found.num_products == missed.num_products


@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
def test_no_hidden_copy_is_ever_missed(which):
    values = torch.cat([torch.tensor([2.4, 2.4, -2.4, -2.4]), BULK]).double()
    num = {"largest": 2, "smallest": 2, "both": 2, "magnitude": 4}[which]
    for seed in range(10):
        found = extreme_eigenpairs(Diagonal(values), num=num, which=which, rtol=1e-2, seed=seed)
        assert found.complete
        assert_same_to(found.values.abs(), 2.4 * torch.ones(len(found.values)), found.tolerance)


def test_what_is_locked_leaves_half_of_the_basis_free():
    bulk, outliers = torch.linspace(0.2, 1, 120) ** 2, 10 * 1.3 ** torch.arange(20)
    values = torch.cat([torch.zeros(3), bulk, outliers]).double()
    search = Search(Diagonal(values), ((-1,),), num=3, rtol=1e-5, seed=0, basis_size=32)
    assert search.find(1000)
    assert 14 < len(search.locked) <= 16
    assert search.find_copies(2000)
    assert 3 <= len(search.locked) <= 16
    assert_same_to(torch.from_numpy(np.sort(search.locked)[:3]), torch.zeros(3), search.tolerance)
    assert_near(search.vectors().T @ search.vectors(), torch.eye(3), torch.float64)


def test_the_largest_of_what_converged_are_locked_too():
    values = torch.linspace(-2, 3, 40, dtype=torch.float64)
    search = Search(Diagonal(values), ((-1,),), num=3, rtol=0, seed=0, basis_size=40)
    ritz = search._grow(40, lambda _: False)
    search._lock(ritz, np.arange(3))
    others = values[3:][values[3:].abs().argsort(descending=True)][:17]
    expected_values = torch.cat([values[:3], others])
    assert_near(torch.from_numpy(search.locked), expected_values, torch.float64, scale=3)


def test_the_lanczos_polynomial_tells_how_much_of_an_eigenvector_a_start_has():
    operator = operator_with(SPECTRA["outliers"])
    values, vectors = torch.linalg.eigh(operator.matrix)
    start = gaussian(operator.size, 1, seed=0, like=operator)
    start -= vectors[:, -1:] * (vectors[:, -1:].T @ start) * (1 - 1e-9)
    for num_steps in (1, 2, 5, 9):
        run = tridiagonalize(operator, start, num_steps=num_steps + 1, keep_basis=True)
        shares = (run.basis[0] @ vectors[:, -1]).abs()
        alphas, betas = run.alphas[0, :-1].numpy(), run.betas[0, :-1].numpy()
        grown = growth(alphas, betas, float(values[-1]))
        assert grown == pytest.approx(float((shares[-1] / shares[0]).log()), abs=1e-4)
        assert growth(alphas, betas, float(alphas.max())) == -math.inf
    assert growth(np.array([1.0]), np.array([0.0]), 2.0) == math.inf


@pytest.mark.parametrize("tridiagonal", [True, False])
def test_nothing_is_excluded_by_a_space_that_was_restarted(tridiagonal):
    search = Search(Diagonal(BULK), ((1,),), num=1, rtol=0, seed=0, basis_size=30)
    one, zero = np.ones(1), np.zeros(1)
    ritz = RitzPairs(one, np.eye(1), zero, one, zero, tridiagonal=tridiagonal)
    assert search._excluded(ritz, 1, 2.0) is tridiagonal


def test_products_are_counted_and_named_apart():
    operator = Counting(operator_with(SPECTRA["outliers"]).matrix)
    found = extreme_eigenpairs(operator, num=4, which="both")
    assert operator.count == found.num_products + found.num_check_products
    assert found.num_check_products > 8
    operator.count = 0
    found = extreme_eigenpairs(operator, num=4, which="both", check_copies=False)
    assert found.num_check_products == 8
    assert operator.count == found.num_products + 8


def test_what_has_not_converged_is_returned_as_it_is():
    operator = operator_with(torch.linspace(0, 1, 150) ** 2)
    found = extreme_eigenpairs(operator, num=5, which="smallest", max_products=20)
    assert found.num_products == 20
    assert found.num_check_products == 5
    assert not found.converged.all()
    assert not found.complete
    pairs = operator.matrix @ found.vectors - found.vectors * found.values
    assert_near(found.residuals, pairs.norm(dim=0), torch.float64)
    gaps = (found.values.unsqueeze(1) - torch.linspace(0, 1, 150).double() ** 2).abs()
    assert bool((gaps.min(dim=1).values <= found.residuals + 1e-12).all())
    assert "not converged" in str(found)
    assert str(found).endswith("20 + 5 products; copies were not ruled out")


def test_a_check_that_runs_out_of_products_says_so():
    operator = Diagonal(torch.cat([torch.linspace(0, 1, 200) ** 2, torch.tensor([2.0])]).double())
    found = extreme_eigenpairs(operator, num=2)
    enough = max(found.num_products, found.num_check_products)
    assert extreme_eigenpairs(operator, num=2, max_products=enough).complete
    search = Search(operator, ((1,),), num=2, rtol=1e-6, seed=0, basis_size=100)
    assert search.find(1000)
    assert not search.find_copies(search.num_products + 5)
    assert search.num_products == found.num_products + 5


def test_prints_values_with_their_errors():
    found = extreme_eigenpairs(operator_with([1.0, 2.0, 4.0]), num=2)
    lines = str(found).splitlines()
    assert [line.split(" ± ")[0].strip() for line in lines[:2]] == ["4.000000e+00", "2.000000e+00"]
    assert lines[2] == f"{found.num_products} + {found.num_check_products} products"


def test_the_same_seed_gives_the_same_bits_and_another_one_others():
    operator = operator_with(SPECTRA["outliers"], torch.float32)
    one, same, other = (extreme_eigenpairs(operator, num=3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.vectors, same.vectors)
    assert torch.equal(one.values, same.values)
    assert not torch.equal(one.vectors, other.vectors)


def test_takes_what_scipy_takes():
    matrix = operator_with(SPECTRA["outliers"]).matrix.numpy()
    expected_values = torch.tensor([30.0, 8.0], dtype=torch.float64)
    for operator in (
        matrix,
        LinearOperator(matrix.shape, matvec=lambda v: matrix @ v, dtype=float),
    ):
        found = extreme_eigenpairs(operator, num=2)
        assert_near(found.values, expected_values, torch.float64, scale=30, roundings=1e3)


@pytest.fixture(scope="module", params=[("sine", torch.float64), ("gaussian", torch.float32)])
def trained(request, tmp_path_factory):
    act, dtype = request.param
    run = train(Setup(act=act, steps=50), out=tmp_path_factory.mktemp("trained"))
    return dense_hessian(run.model(50), run.loss, run.signal()).to(dtype)


@pytest.mark.parametrize(
    ("which", "scipy_which", "share"),
    [
        ("largest", "LA", 1.1),
        ("magnitude", "LM", 1.1),
        ("smallest", "SA", 0.3),
        ("both", "BE", 0.3),
    ],
)
def test_needs_fewer_products_than_arpack_on_a_trained_field(trained, which, scipy_which, share):
    operator = Counting(trained)
    found = extreme_eigenpairs(operator, num=5, which=which)
    assert_pairs(found, operator, which, 5, operator.dtype)
    operator.count = 0
    start = np.random.default_rng(0).standard_normal(operator.size)
    num = len(found.values)
    eigsh(operator.to_scipy(), k=num, which=scipy_which, tol=1e-6, v0=start)
    assert found.num_products <= share * operator.count


def test_refuses_an_unknown_end():
    message = "which must be one of largest, smallest, both, magnitude, got 'LA'"
    with pytest.raises(ValueError, match=message):
        extreme_eigenpairs(torch.eye(5), num=1, which="LA")


@pytest.mark.parametrize("num", [0, 6])
def test_refuses_a_number_of_pairs_out_of_range(num):
    with pytest.raises(ValueError, match=rf"num must be in \[1, 5\], got {num}\."):
        extreme_eigenpairs(torch.eye(5), num=num)


@pytest.mark.parametrize("rtol", [-1e-3, 1.0, float("nan")])
def test_refuses_a_tolerance_out_of_range(rtol):
    with pytest.raises(ValueError, match=r"rtol must be in \[0, 1\), got "):
        extreme_eigenpairs(torch.eye(5), num=1, rtol=rtol)


def test_refuses_fewer_products_than_pairs():
    message = r"max_products must be at least 4, one for each pair, got 3\."
    with pytest.raises(ValueError, match=message):
        extreme_eigenpairs(torch.eye(5), num=2, which="both", max_products=3)


def test_names_the_product_that_is_not_finite():
    operator = Diagonal(torch.linspace(0, 1, 50), spoilt=7)
    with pytest.raises(NonFiniteError, match=r"product 7 of the operator must be finite"):
        extreme_eigenpairs(operator, num=3)


def test_names_the_product_of_the_residuals_that_is_not_finite():
    values = torch.linspace(0, 1, 50)
    found = extreme_eigenpairs(Diagonal(values), num=3, check_copies=False)
    operator = Diagonal(values, spoilt=found.num_products + 1)
    message = rf"product {found.num_products + 3} of the operator must be finite"
    with pytest.raises(NonFiniteError, match=message):
        extreme_eigenpairs(operator, num=3, check_copies=False)


def test_refuses_a_basis_that_does_not_fit(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda _: 1000)
    message = r"The Lanczos basis \[1, 51, 50\] must fit in memory.*Take a smaller basis_size"
    with pytest.raises(ResourceError, match=message):
        extreme_eigenpairs(Diagonal(torch.ones(50)), num=2)


@pytest.mark.parametrize("basis_size", [31, 51])
def test_refuses_a_basis_size_out_of_range(basis_size):
    message = rf"basis_size must be in \[32, 50\] for 4 pairs, got {basis_size}\."
    with pytest.raises(ValueError, match=message):
        extreme_eigenpairs(Diagonal(torch.ones(50)), num=2, which="both", basis_size=basis_size)
