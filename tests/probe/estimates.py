"""What the tests of the estimators share: matrices, an operator that counts, naive references."""

import torch

from hessian_lab.probe.operators import MatrixOperator, SymmetricOperator
from hessian_lab.probe.vectors import gaussian, probes

SIZE = 60
DISTRIBUTIONS = ["rademacher", "gaussian"]
PRECISIONS = [torch.float64, torch.float32]
SCALES = [1e-12, 1.0, 1e12]


class Counting(SymmetricOperator):
    """A matrix that counts its products and remembers its widest block."""

    def __init__(self, matrix):
        super().__init__(len(matrix), matrix.dtype, matrix.device)
        self.matrix = matrix
        self.num_products = 0
        self.widest = 0

    def matmat(self, block):
        self.num_products += block.shape[1]
        self.widest = max(self.widest, block.shape[1])
        return self.matrix @ block


class Broken(Counting):
    """A matrix whose ``broken``-th product is not finite."""

    def __init__(self, matrix, broken):
        super().__init__(matrix)
        self.broken = broken

    def matmat(self, block):
        first = self.num_products + 1
        products = super().matmat(block)
        if first <= self.broken <= self.num_products:
            products[3, self.broken - first] = torch.nan
        return products


def with_spectrum(values, *, seed=2**63):
    """Return a dense symmetric matrix with these eigenvalues and random eigenvectors.

    The seed is none of those that tests give to estimators: their vectors would span eigenspaces.
    """
    like = torch.empty(0, dtype=torch.float64)
    vectors = torch.linalg.qr(gaussian(len(values), len(values), seed=seed, like=like))[0]
    matrix = (vectors * values) @ vectors.T
    return (matrix + matrix.T) / 2


def field_like(size=SIZE):
    """Return 60 % zeros, a few large eigenvalues, and a tail of both signs over four decades."""
    num = 2 * size // 5
    tail = 10 ** torch.linspace(0, -4, num, dtype=torch.float64)
    tail[5::3] *= -1
    return with_spectrum(torch.cat([tail, tail.new_zeros(size - num)]))


def low_rank(rank, size=SIZE):
    """Return a matrix of this rank, with eigenvalues of both signs."""
    values = torch.zeros(size, dtype=torch.float64)
    values[:rank] = torch.linspace(0.5, 2, rank, dtype=torch.float64)
    values[1:rank:2] *= -1
    return with_spectrum(values)


def drawn(size, num, *, seed=0, distribution="rademacher", first=0):
    """Return the random vectors that an estimator draws, in float64."""
    like = torch.empty(0, dtype=torch.float64)
    return probes(size, num, seed=seed, like=like, distribution=distribution, first=first)


def basis_without(products, *left_out):
    """Return an orthonormal basis of all columns but some."""
    kept = [j for j in range(products.shape[1]) if j not in left_out]
    return torch.linalg.qr(products[:, kept])[0]


def leave_one_out(matrix, vectors, value):
    """Return all values [k, …] without one column, and without two [k, k, …], by ``value``.

    Straight from the definition: a basis of its own for every choice of columns.
    """
    products = matrix @ vectors
    num = vectors.shape[1]
    single = torch.stack(
        [value(vectors[:, i], products[:, i], basis_without(products, i)) for i in range(num)]
    )
    double = torch.stack(
        [
            torch.stack(
                [value(vectors[:, i], products[:, i], basis_without(products, i, j))
                 for j in range(num)]
            )
            for i in range(num)
        ]
    )  # fmt: skip
    return single, double


def variance_of_mean(single, double):
    """Return the own and the whole variance of the mean of exchangeable values."""
    num = len(single)
    own = single.var(dim=0) / num
    apart = single.unsqueeze(1) - double
    pairs = [apart[i, j] * apart[j, i] for i in range(num) for j in range(num) if i != j]
    return own, own + sum(pairs) / len(pairs)


def covered(estimate, truth):
    """Return the share of entries whose 95 % interval holds the truth."""
    low, high = (torch.as_tensor(end, dtype=torch.float64) for end in estimate.interval())
    truth = torch.as_tensor(truth, dtype=torch.float64)
    return float(((low <= truth) & (truth <= high)).double().mean())


def coverage(find, matrix, truth, *, num_seeds, **options):
    """Return the share of seeds, and of entries, whose 95 % interval holds the truth."""
    operator = MatrixOperator(matrix)
    shares = [covered(find(operator, seed=s, **options), truth) for s in range(num_seeds)]
    return sum(shares) / num_seeds


def of_all(estimate):
    """Return mean, standard error and interval as float64 tensors."""
    parts = (estimate.mean, estimate.standard_error, *estimate.interval())
    return [torch.as_tensor(part, dtype=torch.float64) for part in parts]


def assert_exact(estimate, truth, *, scale, dtype=torch.float64, roundings=50):
    """Assert an estimate, its error and its interval to be exact up to rounding."""
    rounding = roundings * torch.finfo(dtype).eps * float(scale)
    mean, error, low, high = of_all(estimate)
    truth = torch.as_tensor(truth, dtype=torch.float64)
    assert (mean - truth).abs().max() <= rounding
    assert error.max() <= rounding
    assert (low <= truth).all()
    assert (truth <= high).all()
    assert (high - low).max() <= 4 * rounding
