import re

import pytest
import torch

from hessian_lab.errors import NonFiniteError
from hessian_lab.probe import lanczos
from hessian_lab.probe.density import spectral_measure
from hessian_lab.probe.eigenpairs import extreme_eigenpairs
from hessian_lab.probe.lanczos import Recurrence, tridiagonalize
from hessian_lab.probe.operators import MatrixOperator, SymmetricOperator
from hessian_lab.probe.vectors import gaussian
from tests.reference import assert_same


@pytest.fixture
def seldom(monkeypatch):
    """Look at what Lanczos steps come to as seldom as on a GPU."""
    monkeypatch.setitem(lanczos.LOOK_EVERY, "cpu", 8)


def both(monkeypatch, work):
    """Return what a function gives with a look at every step, and with few."""
    found = []
    for every in (1, 8):
        monkeypatch.setitem(lanczos.LOOK_EVERY, "cpu", every)
        found.append(work())
    return found


def matrix_with(values, seed=7):
    values = torch.as_tensor(values, dtype=torch.float64)
    noise = gaussian(len(values), len(values), seed=seed, like=values)
    basis = torch.linalg.qr(noise).Q
    return MatrixOperator(basis @ torch.diag(values) @ basis.T)


class Spoilt(SymmetricOperator):
    """A diagonal matrix, some entries of whose products of one call are not finite."""

    def __init__(self, size, call, column, value):
        super().__init__(size, torch.float64, torch.device("cpu"))
        self.values = torch.linspace(-1, 3, size, dtype=torch.float64)
        self.call, self.column, self.value = call, column, value
        self.calls = 0

    def matmat(self, block):
        self.calls += 1
        product = self.values.unsqueeze(1) * block
        if self.calls == self.call:
            product[3:5, self.column] = self.value
        return product


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 8, 9, 16, 30])
def test_few_looks_see_the_same(num_steps, monkeypatch):
    operator = matrix_with(torch.linspace(-1, 3, 40))
    starts = gaussian(40, 3, seed=1, like=operator)

    def run():
        return tridiagonalize(operator, starts, num_steps=num_steps, keep_basis=True)

    often, seldom = both(monkeypatch, run)
    assert often.num_products == seldom.num_products == 3 * num_steps
    for name in ("alphas", "betas", "basis"):
        assert_same(getattr(seldom, name), getattr(often, name), scale=3, roundings=1e4)
    assert torch.equal(seldom.lengths, often.lengths)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_starts_that_end_at_different_steps_end_there(scale, monkeypatch):
    values = torch.arange(1, 21, dtype=torch.float64)
    operator = MatrixOperator(torch.diag(scale * values))
    starts = torch.zeros(20, 4, dtype=torch.float64)
    lengths = [1, 5, 12, 20]
    for column, length in enumerate(lengths):
        starts[:length, column] = torch.linspace(1, 2, length)

    def run():
        return tridiagonalize(operator, starts, num_steps=20, keep_basis=True)

    often, seldom = both(monkeypatch, run)
    assert seldom.lengths.tolist() == often.lengths.tolist() == lengths
    assert not seldom.betas[range(4), [length - 1 for length in lengths]].any()
    for column, length in enumerate(lengths):
        found = seldom.ritz().values[column, :length] / scale
        assert_same(found, values[:length], roundings=1e3)
        assert not seldom.basis[column, length:].any()


@pytest.mark.usefixtures("seldom")
@pytest.mark.parametrize("num_looks", [2, 3, 5])
def test_a_run_that_ends_between_two_looks_is_cut_where_it_ended(num_looks):
    operator = MatrixOperator(torch.diag(torch.arange(1.0, 41, dtype=torch.float64)))
    length = {2: 2, 3: 4, 5: 17}[num_looks]
    start = torch.zeros(40, dtype=torch.float64)
    start[:length] = 1
    run = Recurrence(operator, num_rows=35)
    run.start(start.unsqueeze(0))
    while run.step():
        pass
    assert not run.look()
    assert run.position == length == int(run.lengths)
    assert run.num_products == {2: 3, 3: 7, 5: 23}[num_looks]
    assert not run.look()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e200])
@pytest.mark.parametrize(("call", "column"), [(1, 0), (2, 2), (6, 1), (20, 2), (30, 0)])
def test_the_first_product_that_is_not_finite_is_named(call, column, value, monkeypatch):
    starts = gaussian(50, 3, seed=0, like=torch.empty(0, dtype=torch.float64))

    def message():
        with pytest.raises(NonFiniteError) as caught:
            tridiagonalize(Spoilt(50, call, column, value), starts, num_steps=30)
        return str(caught.value)

    often, seldom = both(monkeypatch, message)
    assert seldom == often
    number = 3 * (call - 1) + 1 + (column if value != 1e200 else 0)
    assert re.match(rf"product {number} of the operator must be finite", seldom)


SPECTRA = {
    "line": torch.linspace(-1, 4, 60),
    "outliers": torch.cat([torch.linspace(-0.1, 1, 56), torch.tensor([7.0, 20.0, 50.0, 55.0])]),
    "rank 3": torch.cat([torch.zeros(57), torch.tensor([1.0, 2.0, 3.0])]),
    "multiple": torch.cat([torch.linspace(0, 1, 56), torch.full((4,), 5.0)]),
    "zero": torch.zeros(20),
}


@pytest.mark.usefixtures("seldom")
@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
@pytest.mark.parametrize("name", SPECTRA)
def test_extreme_pairs_are_those_of_the_matrix(name, which):
    values = SPECTRA[name].double().sort(descending=True).values
    found = extreme_eigenpairs(matrix_with(values), num=4, which=which)
    order = values.abs().argsort(descending=True)[:4]
    expected = {
        "largest": values[:4],
        "smallest": values[-4:],
        "both": torch.cat([values[:4], values[-4:]]),
        "magnitude": values[order],
    }[which]
    assert bool(found.converged.all())
    gap = (found.values.sort().values - expected.sort().values).abs().max()
    assert float(gap) <= 1e-5 * float(values.abs().max())


@pytest.mark.parametrize("name", SPECTRA)
def test_spectral_measures_agree(name, monkeypatch):
    operator = matrix_with(SPECTRA[name])
    grid = torch.linspace(-2, 60, 40, dtype=torch.float64)

    def cumulative():
        measure = spectral_measure(operator, num_steps=12, num_probes=6)
        return measure.cumulative_band(grid).estimate

    often, seldom = both(monkeypatch, cumulative)
    assert_same(seldom, often, scale=1.0, roundings=1e6)
