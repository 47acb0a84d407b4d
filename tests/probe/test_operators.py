import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator, eigsh

from hessian_lab.errors import NonFiniteError, ResourceError
from hessian_lab.probe.operators import (
    MatrixOperator,
    ScaledOperator,
    SymmetricOperator,
    as_operator,
    require_finite,
    require_symmetric,
)
from hessian_lab.probe.vectors import gaussian
from tests.reference import assert_same

SIZE = 19
DTYPES = [torch.float32, torch.float64]
SCALES = [1e-12, 1.0, 1e12]


def symmetric(size=SIZE, *, dtype=torch.float64, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(size, size, dtype=torch.float64, generator=generator)
    return ((matrix + matrix.T) * scale).to(dtype)


def skewed(matrix):
    skewed = matrix.clone()
    skewed[0, 1] *= 2
    return skewed


class Foreign:
    """Anything with shape and @."""

    def __init__(self, matrix, **attributes):
        self.matrix = matrix
        self.shape = tuple(matrix.shape)
        self.operands = []
        vars(self).update(attributes)

    def __matmul__(self, other):
        self.operands.append(type(other))
        return self.matrix @ other


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
def test_a_matrix_is_an_operator(dtype, scale):
    matrix = symmetric(dtype=dtype, scale=scale)
    operator = MatrixOperator(matrix)
    assert operator.shape == (SIZE, SIZE)
    assert (operator.size, operator.dtype, operator.device) == (SIZE, dtype, matrix.device)
    assert torch.equal(operator.dense(), matrix @ torch.eye(SIZE, dtype=dtype))
    block = gaussian(SIZE, 3, seed=0, like=operator)
    assert_same(operator @ block, matrix @ block)
    assert_same(operator @ block[:, 0], (matrix @ block)[:, 0])


@pytest.mark.parametrize("size", [1, 15, 16, 17, 40])
def test_dense_is_the_matrix_at_every_size(size):
    assert torch.equal(MatrixOperator(symmetric(size)).dense(), symmetric(size))


def test_a_block_of_no_columns_costs_no_product():
    foreign = Foreign(symmetric(), dtype=torch.float64)
    operator = as_operator(foreign, check=False)
    assert (operator @ torch.empty(SIZE, 0, dtype=torch.float64)).shape == (SIZE, 0)
    assert not foreign.operands


def test_vectors_are_multiplied_as_blocks_of_one_column():
    class Recorder(SymmetricOperator):
        def matmat(self, block):
            shapes.append(list(block.shape))
            return block

    shapes = []
    operator = Recorder(3, torch.float32, torch.device("cpu"))
    assert (operator @ torch.ones(3)).shape == (3,)
    assert (operator @ torch.ones(3, 2)).shape == (3, 2)
    assert shapes == [[3, 1], [3, 2]]


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        (np.ones(SIZE), TypeError, r"other must be a tensor, got ndarray\. Convert it with"),
        ([1.0] * SIZE, TypeError, "other must be a tensor, got list"),
        (
            torch.ones(4, dtype=torch.float64),
            ValueError,
            r"the shape must be \[19\] or \[19, k\], got \[4",
        ),
        (torch.tensor(1.0), ValueError, r"the shape must be .* got \[\]"),
        (torch.ones(SIZE, 1, 1), ValueError, r"the shape must be .* got \[19, 1, 1\]"),
        (torch.ones(3, SIZE), ValueError, r"the shape must be .* got \[3, 19\]"),
        (torch.ones(SIZE), TypeError, r"the dtype must be torch\.float64, got torch\.float32"),
        (torch.ones(SIZE, dtype=torch.int64), TypeError, r"the dtype must be .* got torch\.int64"),
        (
            torch.ones(SIZE, dtype=torch.float64, device="meta"),
            TypeError,
            "the device must be cpu, got meta",
        ),
    ],
)
def test_refuses_operands_that_do_not_fit(other, error, message):
    with pytest.raises(error, match=rf"MatrixOperator @ (tensor|other): {message}"):
        MatrixOperator(symmetric()) @ other


def test_dense_refuses_what_does_not_fit(monkeypatch):
    monkeypatch.setattr("hessian_lab.probe.memory.available_bytes", lambda _: 100)
    with pytest.raises(ResourceError, match=r"size 19 .* \(2888 bytes\).* by its products"):
        MatrixOperator(symmetric()).dense()


@pytest.mark.parametrize("size", [0, -1])
def test_refuses_an_operator_of_no_size(size):
    class Nothing(SymmetricOperator):
        def matmat(self, block):
            return block

    with pytest.raises(ValueError, match=f"size must be at least 1, got {size}"):
        Nothing(size, torch.float64, torch.device("cpu"))


@pytest.mark.parametrize("shape", [(3,), (3, 4), (0, 0), (2, 2, 2)])
def test_refuses_matrices_that_are_not_square(shape):
    with pytest.raises(ValueError, match=r"matrix must have shape \[n, n\], n > 0, got \["):
        MatrixOperator(torch.ones(shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.complex64])
def test_refuses_other_precisions_with_the_cure(dtype):
    with pytest.raises(TypeError, match=rf"float32 or float64, got {dtype}\. .*model\.double\(\)"):
        MatrixOperator(torch.eye(3, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
def test_symmetry_is_checked_at_every_scale(dtype, scale):
    matrix = symmetric(dtype=dtype, scale=scale)
    for wrap in (MatrixOperator, as_operator, lambda it: as_operator(Foreign(it, dtype=dtype))):
        wrap(matrix)
        with pytest.raises(ValueError, match=r"must be symmetric: .* differ by .*\(A \+ Aᵀ\) / 2"):
            wrap(skewed(matrix))
    unchecked = MatrixOperator(skewed(matrix), check=False)
    assert torch.equal(unchecked.dense(), skewed(matrix))
    assert as_operator(skewed(matrix), check=False).size == SIZE


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_symmetry_is_checked_where_squares_overflow(scale):
    require_symmetric(MatrixOperator(symmetric(scale=scale), check=False))
    with pytest.raises(ValueError, match="must be symmetric"):
        require_symmetric(MatrixOperator(skewed(symmetric(scale=scale)), check=False))


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_singular_matrices_are_symmetric(rank):
    factor = gaussian(SIZE, rank, seed=0, like=torch.empty(0, dtype=torch.float32))
    require_symmetric(MatrixOperator(factor @ factor.T, check=False))


def test_the_check_of_symmetry_costs_two_products():
    class Counter(MatrixOperator):
        columns = 0

        def matmat(self, block):
            self.columns += block.shape[1]
            return super().matmat(block)

    operator = Counter(symmetric())
    assert operator.columns == 2


@pytest.mark.parametrize(
    "wrap",
    [
        torch.Tensor.numpy,
        lambda it: np.asfortranarray(it.numpy()),
        lambda it: it.numpy()[::-1, ::-1].copy()[::-1, ::-1],
        lambda it: scipy.sparse.csr_array(it.numpy()),
        lambda it: scipy.sparse.coo_matrix(it.numpy()),
        lambda it: aslinearoperator(it.numpy()),
        lambda it: LinearOperator(it.shape, matvec=lambda v: it.numpy() @ v, dtype=np.float64),
        lambda it: it.to_sparse(),
        lambda it: torch.nn.Parameter(it),
        lambda it: Foreign(it),
        lambda it: Foreign(it, dtype=torch.float64, device="cpu"),
        lambda it: Foreign(torch.nn.Parameter(it), dtype=torch.float64),
        lambda it: Foreign(it.numpy(), dtype=np.float64),
        lambda it: Foreign(it.numpy(), dtype="float64"),
        lambda it: MatrixOperator(it),
    ],
    ids=[
        *("array", "fortran", "reversed", "csr", "coo", "aslinear", "LinearOperator", "sparse"),
        *("parameter", "untyped", "torch", "parametric", "numpy", "named", "ours"),
    ],
)
def test_anything_with_shape_and_products_becomes_an_operator(wrap):
    matrix = symmetric()
    operator = as_operator(wrap(matrix))
    assert (operator.shape, operator.dtype) == ((SIZE, SIZE), torch.float64)
    block = gaussian(SIZE, 3, seed=0, like=operator)
    products = operator @ block
    assert_same(products, matrix @ block)
    assert not products.requires_grad
    assert_same(operator @ block[:, 1], matrix @ block[:, 1])


def test_a_read_only_array_becomes_an_operator():
    array = symmetric().numpy().copy()
    array.flags.writeable = False
    assert torch.equal(as_operator(array).dense(), symmetric())


def test_an_operator_stays_what_it_is():
    operator = MatrixOperator(skewed(symmetric()), check=False)
    assert as_operator(operator) is operator


@pytest.mark.parametrize(
    "wrap", [lambda it: it, aslinearoperator, lambda it: Foreign(it, dtype=it.dtype)]
)
def test_float32_is_told_from_what_is_wrapped(wrap):
    assert as_operator(wrap(symmetric(dtype=torch.float32).numpy())).dtype == torch.float32


def test_what_tells_no_type_computes_in_float64():
    assert as_operator(Foreign(symmetric())).dtype == torch.float64


def test_others_are_given_what_they_multiply():
    for foreign, kind in (
        (Foreign(symmetric().numpy(), dtype=np.dtype("float64")), np.ndarray),
        (Foreign(symmetric(), dtype=torch.float64), torch.Tensor),
        (Foreign(symmetric()), torch.Tensor),
    ):
        as_operator(foreign)
        assert set(foreign.operands) == {kind}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (None, TypeError, "operator must have shape and @ .* got NoneType"),
        ([[1.0]], TypeError, "operator must have shape and @ .* got list"),
        (np.ones((2, 3)), ValueError, r"must have shape \[n, n\], n > 0, got \[2, 3\]"),
        (np.ones((3, 3), int), TypeError, r"float32 or float64, got torch\.int64"),
        (np.ones((3, 3), np.float16), TypeError, r"float32 or float64, got torch\.float16"),
        (aslinearoperator(np.ones((2, 3))), ValueError, r"must have shape \[n, n\], got \[2, 3\]"),
        (Foreign(torch.ones(3)), ValueError, r"must have shape \[n, n\], got \[3\]"),
        (Foreign(torch.eye(3), dtype=torch.float16), TypeError, r"got torch\.float16"),
        (Foreign(np.eye(3), dtype=np.longdouble), TypeError, "float32 or float64, got"),
    ],
)
def test_refuses_to_wrap_what_is_no_operator(given, error, message):
    with pytest.raises(error, match=message):
        as_operator(given)


def test_refuses_products_of_another_shape():
    class Short(Foreign):
        def __matmul__(self, other):
            return (self.matrix @ other)[:3]

    with pytest.raises(ValueError, match=r"Short @ \[19, 2\] must have the same shape, got \[3, 2"):
        as_operator(Short(symmetric(), dtype=torch.float64))


@pytest.mark.parametrize("place", [0, 1, 4])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_products_that_are_not_finite_are_named_by_their_number(place, value):
    products = torch.ones(7, 5)
    require_finite(products, first=11)
    products[2:4, place] = value
    products[1, 4] = float("nan")
    nans, infinities = (2, 0) if value != value else (0, 2)
    nans += place == 4
    message = rf"product {11 + place} .*: {nans} of its 7 entries are NaN and {infinities} infinite"
    with pytest.raises(NonFiniteError, match=message):
        require_finite(products, first=11)


def test_an_operator_that_is_not_finite_is_refused():
    matrix = symmetric()
    matrix[3, 3] = float("nan")
    with pytest.raises(NonFiniteError, match="product 1 of the operator must be finite: 1 of its"):
        as_operator(matrix)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_vector_scales_from_both_sides(dtype):
    matrix = symmetric(dtype=dtype)
    scale = torch.linspace(0.5, 2, SIZE, dtype=dtype)
    expected = scale.unsqueeze(1) * matrix * scale
    for given in (scale, scale.double(), torch.diag(scale), MatrixOperator(torch.diag(scale))):
        operator = ScaledOperator(MatrixOperator(matrix), given)
        assert (operator.dtype, operator.shape) == (dtype, (SIZE, SIZE))
        assert_same(operator.dense(), expected)
        assert_same(operator @ torch.eye(SIZE, dtype=dtype), expected)


def test_an_operator_scales_from_both_sides():
    matrix, scale = symmetric(), symmetric(seed=1)
    operator = ScaledOperator(aslinearoperator(matrix.numpy()), scale)
    block = gaussian(SIZE, 17, seed=0, like=operator)
    assert_same(operator @ block, scale @ (matrix @ (scale @ block)))
    require_symmetric(operator)


def test_the_spectrum_of_a_scaled_operator_is_the_preconditioned_one():
    matrix = symmetric()
    diagonal = torch.linspace(1, 9, SIZE, dtype=torch.float64)
    expected = torch.linalg.eigvals(matrix / diagonal.unsqueeze(1)).real.sort().values
    scaled = ScaledOperator(matrix, diagonal.rsqrt()).dense()
    assert_same(torch.linalg.eigvalsh(scaled), expected)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_scales_that_are_not_positive(bad):
    scale = torch.ones(SIZE)
    scale[3] = bad
    with pytest.raises(ValueError, match="inverse_sqrt must be positive and finite"):
        ScaledOperator(symmetric(), scale)


def test_refuses_a_scale_that_its_precision_cannot_hold():
    with pytest.raises(ValueError, match="inverse_sqrt must be positive and finite"):
        ScaledOperator(
            symmetric(dtype=torch.float32), torch.full((SIZE,), 1e-60, dtype=torch.float64)
        )


def test_refuses_scales_of_another_size_or_type():
    with pytest.raises(ValueError, match=r"inverse_sqrt must have shape \[19\], got \[3\]"):
        ScaledOperator(symmetric(), torch.ones(3))
    with pytest.raises(ValueError, match="inverse_sqrt must have size 19, got 3"):
        ScaledOperator(symmetric(), torch.eye(3, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"inverse_sqrt must have .*float64, got torch\.float32"):
        ScaledOperator(symmetric(), torch.eye(SIZE))


@pytest.mark.parametrize("dtype", DTYPES)
def test_scipy_multiplies_by_our_operators(dtype):
    matrix = symmetric(dtype=dtype)
    theirs = MatrixOperator(matrix).to_scipy()
    assert theirs.shape == (SIZE, SIZE)
    assert theirs.dtype == matrix.numpy().dtype
    block = gaussian(SIZE, 4, seed=0, like=matrix)
    for operand in (block, block[:, :1], block[:, 0]):
        expected = matrix @ operand
        for product in (theirs @ operand.numpy(), theirs.T @ operand.numpy()):
            assert product.shape == tuple(operand.shape)
            assert product.dtype == theirs.dtype
            assert_same(torch.as_tensor(product), expected)


@pytest.mark.parametrize("operand", [np.arange(SIZE), np.arange(SIZE * 1.0)[::-1]])
def test_scipy_hands_in_any_array(operand):
    matrix = symmetric()
    product = MatrixOperator(matrix).to_scipy() @ operand
    assert_same(torch.as_tensor(product), matrix @ torch.as_tensor(operand.copy()).double())


def test_scipy_hands_in_read_only_arrays():
    product = MatrixOperator(symmetric()).to_scipy() @ np.broadcast_to(1.0, SIZE)
    assert_same(torch.as_tensor(product), symmetric().sum(dim=1))


@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
def test_scipy_finds_eigenvalues_through_our_operators(which):
    matrix = symmetric(60)
    values = torch.linalg.eigvalsh(matrix)
    key = {"LA": -values, "SA": values, "LM": -values.abs()}[which]
    expected = values[key.argsort()[:4]].sort().values
    found = eigsh(MatrixOperator(matrix).to_scipy(), k=4, which=which, return_eigenvectors=False)
    assert_same(torch.as_tensor(found).sort().values, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_operators_stay_on_a_gpu():
    matrix = symmetric()
    operator = ScaledOperator(matrix.cuda(), torch.full((SIZE,), 2.0, dtype=torch.float64))
    assert operator.device.type == "cuda"
    assert operator.dense().is_cuda
    assert_same(operator.dense().cpu(), 4 * matrix)
    assert_same(torch.as_tensor(operator.to_scipy() @ np.ones(SIZE)), 4 * matrix.sum(dim=1))
    with pytest.raises(TypeError, match="the device must be cuda:0, got cpu"):
        operator @ torch.ones(SIZE, dtype=torch.float64)
