"""The doctor finds what is broken: each defect fails the checks that concern it and no other."""

import contextlib
import random
from dataclasses import replace

import pytest
import torch

from hessian_lab.measures import doctor, doctor_case, doctor_curvature, doctor_machine
from hessian_lab.measures.doctor_case import Case, within
from hessian_lab.probe.curvature import HessianOperator
from hessian_lab.signals import registry

EPS = torch.finfo(torch.float64).eps
NAMES = [
    *("device", "versions", "memory", "precision", "rounding", "exact products", "eigensolver"),
    *("symmetry", "finite differences", "double backward", "closed form", "torch.func.hessian"),
    *("Lanczos", "trace", "SLQ band", "repeated product", "repeated training", "data", "clock"),
]


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.delenv(registry.VARIABLE, raising=False)


# What sees no Hessian and takes half of the time.
APART = ("repeated training", "clock")


def failing(dtype="float64", *, apart=False):
    """Return what the checks say that fail, without two slow ones unless they are asked for."""
    checks = {name: check for name, check in doctor._checks().items() if apart or name not in APART}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "_checks", lambda: checks)
        found = list(doctor.examine("cpu", dtype))
    assert [one.name for one in found] == [name for name in NAMES if name in checks]
    return {one.name: one.told for one in found if one.failed}


def changed(monkeypatch, function):
    """Change every product with a Hessian."""
    real = HessianOperator.matmat
    monkeypatch.setattr(HessianOperator, "matmat", lambda self, block: function(real(self, block)))


def with_product(monkeypatch, function):
    real = HessianOperator.matmat
    monkeypatch.setattr(
        HessianOperator, "matmat", lambda self, block: real(self, block) + function(block)
    )


def scaled(monkeypatch, place, name, factor):
    """Let a function of a module answer with so many times what it should."""
    real = getattr(place, name)
    monkeypatch.setattr(place, name, lambda *words, **more: factor * real(*words, **more))


def on_another(monkeypatch, name, factor):
    """Let an estimator see a matrix with so many times the eigenvalues."""
    real = getattr(doctor_curvature, name)

    def other(operator, **more):
        return real(doctor_curvature.MatrixOperator(factor * operator.matrix), **more)

    monkeypatch.setattr(doctor_curvature, name, other)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_nothing_fails_where_nothing_is_broken(dtype):
    before = torch.get_rng_state(), torch.backends.mkldnn.matmul.fp32_precision
    assert failing(dtype, apart=True) == {}
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.backends.mkldnn.matmul.fp32_precision == before[1]


# Defects of products.


def test_products_that_are_not_symmetric(monkeypatch):
    with_product(monkeypatch, lambda block: 1e-10 * (block.roll(1, 0) - block.roll(-1, 0)))
    assert failing().keys() == {"symmetry", "double backward", "closed form"}


def test_products_that_are_wrong_by_a_millionth(monkeypatch):
    changed(monkeypatch, lambda product: product * (1 + 1e-6))
    told = failing()
    assert told.keys() == {"finite differences", "double backward", "closed form"}
    # Each says how wrong.
    for text in told.values():
        assert 0.2e-6 < float(text.split()[0]) <= 1.01e-6


def test_products_that_are_not_the_same_again(monkeypatch):
    noise = torch.Generator().manual_seed(0)

    def noisy(product):
        flips = torch.randint(0, 2, product.shape, generator=noise, dtype=torch.float64)
        return product * (1 + EPS * flips)

    changed(monkeypatch, noisy)
    told = failing()
    assert told.keys() == {"repeated product"}
    assert "a product differs by" in told["repeated product"]
    assert "the loss" not in told["repeated product"]


def test_products_that_are_not_finite(monkeypatch):
    changed(monkeypatch, lambda product: product * torch.nan)
    names = {"symmetry", "finite differences", "double backward", "closed form"}
    assert failing().keys() == {*names, "repeated product"}


def test_products_in_single_precision_that_are_wrong_by_a_thousandth(monkeypatch):
    changed(monkeypatch, lambda product: product * 1.001)
    names = {"finite differences", "double backward", "closed form"}
    assert failing("float32").keys() == names


def test_a_gradient_that_belongs_to_another_loss(monkeypatch):
    real = doctor_curvature._gradient
    monkeypatch.setattr(
        doctor_curvature, "_gradient", lambda case, offset: real(case, offset) + 1e-6 * offset
    )
    assert failing().keys() == {"finite differences"}


def test_differences_that_do_not_settle_show_nothing(monkeypatch):
    real, noise = doctor_curvature._gradient, torch.Generator().manual_seed(0)

    def noisy(case, offset):
        random = torch.randn(len(offset), generator=noise, dtype=torch.float64)
        return real(case, offset) + 1e-6 * random

    monkeypatch.setattr(doctor_curvature, "_gradient", noisy)
    told = failing()
    assert told["finite differences"].startswith("differences do not settle: ")


# Defects of dense matrices and of estimates.


def test_a_closed_form_that_is_wrong(monkeypatch):
    scaled(monkeypatch, doctor_case, "dense_hessian", 1 + 1e-9)
    assert failing().keys() == {"closed form", "torch.func.hessian"}


@pytest.mark.parametrize("solver", ["eigh", "eigvalsh"])
def test_an_eigensolver_that_is_wrong(monkeypatch, solver):
    real = getattr(torch.linalg, solver)

    def wrong(matrix, *words, **more):
        found = real(matrix, *words, **more)
        if solver == "eigvalsh":
            return found + 1e-11
        values, vectors = found
        return values, vectors + 1e-12 * vectors.roll(1, -1)

    monkeypatch.setattr(torch.linalg, solver, wrong)
    told = failing()
    assert told.keys() == {"eigensolver"}
    expected = "a value of eigvalsh: 1.0e-11" if solver == "eigvalsh" else " > 2.7e-14"
    assert expected in told["eigensolver"]


def test_an_eigensolver_that_answers_with_nan(monkeypatch):
    real = torch.linalg.eigh

    def wrong(matrix, *words, **more):
        values, vectors = real(matrix, *words, **more)
        return (
            (values * torch.nan, vectors)
            if len(matrix) == doctor_curvature.KNOWN_SIZE
            else (
                values,
                vectors,
            )
        )

    monkeypatch.setattr(torch.linalg, "eigh", wrong)
    assert failing() == {"eigensolver": "an eigenvalue: nan > 2.7e-14"}


@pytest.mark.parametrize(
    ("name", "check"),
    [("extreme_eigenpairs", "Lanczos"), ("trace", "trace"), ("spectral_measure", "SLQ band")],
)
@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_an_estimator_that_is_wrong(monkeypatch, name, check, factor):
    on_another(monkeypatch, name, factor)
    assert failing().keys() == {check}


def test_trainings_that_differ(monkeypatch):
    real, number = doctor_curvature.train, random.Random(0)

    def other(setup, **more):
        return real(replace(setup, seed=number.randrange(99)), **more)

    monkeypatch.setattr(doctor_curvature, "train", other)
    told = {"repeated training": "lbfgs differs from step 0; adam differs from step 0"}
    assert failing(apart=True) == told


# Defects of the machine.


def test_subnormals_that_are_flushed():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    try:
        told = failing()
    finally:
        torch.set_flush_denormal(False)
    assert told.keys() == {"rounding"}
    assert "float64 flushes subnormals to zero" in told["rounding"]


def test_shortcuts_that_stay_on(monkeypatch):
    monkeypatch.setattr(doctor_machine, "full_precision", contextlib.nullcontext)
    told = failing()
    assert told.keys() == {"exact products"}
    assert "mkldnn.matmul bf16" in told["exact products"]
    assert "stays on inside curvature code" in told["exact products"]


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 12), (torch.float64, 24)])
@pytest.mark.parametrize("kept", [8, 11])
def test_products_of_shortened_numbers_are_not_exact(monkeypatch, dtype, bits, kept):
    cpu = torch.device("cpu")
    assert not list(doctor_machine._inexact(dtype, bits, cpu))
    real = torch.Tensor.__matmul__

    def short(left, right):
        """Multiply as TF32 or bfloat16 would: with ``kept`` bits of each number."""
        if not left.is_floating_point():
            return real(left, right)
        rounded = []
        for each in (left, right):
            mantissa, exponent = torch.frexp(each)
            rounded.append(torch.ldexp((mantissa * 2**kept).round() / 2**kept, exponent))
        return real(*rounded)

    monkeypatch.setattr(torch.Tensor, "__matmul__", short)
    assert list(doctor_machine._inexact(dtype, bits, cpu))


def outcome(check, dtype=torch.float64):
    return check(Case(torch.device("cpu"), dtype))


def test_the_settings_outside_are_told():
    former = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.use_deterministic_algorithms(True)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = outcome(doctor_machine.precision)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cuda.matmul.fp32_precision = former
    assert found.passed
    for text in ("cuda tf32", "autocast cpu", "default float32", "deterministic on"):
        assert text in found.told


@pytest.mark.parametrize(
    ("free", "limited", "told"),
    [
        (None, True, "nothing tells; n = 20,000 needs 5.96 GiB"),
        (10 << 30, False, "10 GiB free; n = 20,000 needs 5.96 GiB"),
        (16 * 5000**2, True, "381 MiB free; n = 20,000 needs 5.96 GiB: dense up to n = 5,000"),
    ],
)
def test_memory_is_told_and_fails_nothing(monkeypatch, free, limited, told):
    monkeypatch.setattr(doctor_machine, "available_bytes", lambda _device: free)
    found = outcome(doctor_machine.memory)
    assert (found.passed, found.limited, found.told) == (True, limited, told)


def test_packages_that_are_too_old_or_missing(monkeypatch):
    needs = ["torch>=99.1", "numpy>=1.9.1", "nothing-like-it>=2", 'ruff>=999; extra == "test"']
    monkeypatch.setattr(doctor_machine, "requires", lambda _name: needs)
    found = outcome(doctor_machine.versions)
    assert not found.passed
    assert found.told == f"torch {torch.__version__} is older than 99.1; nothing-like-it is missing"


def test_a_checkout_that_is_not_installed_knows_no_versions(monkeypatch):
    def missing(name):
        raise doctor_machine.PackageNotFoundError(name)

    monkeypatch.setattr(doctor_machine, "requires", missing)
    found = outcome(doctor_machine.versions)
    assert found.passed
    assert found.limited


def test_a_file_that_is_not_the_registered_one(monkeypatch, tmp_path):
    name, entry = next(iter(registry.entries().items()))
    (tmp_path / entry.file).write_bytes(b"another")
    monkeypatch.setenv(registry.VARIABLE, str(tmp_path))
    told = failing()
    assert told.keys() == {"data"}
    assert f"{entry.file} is not the file that was registered: it has 7 bytes" in told["data"], name


def test_clocks_that_differ(monkeypatch):
    monkeypatch.setattr(doctor_machine.time, "time", lambda: 1e9)
    found = outcome(doctor_machine.clock)
    assert not found.passed
    assert found.told.endswith("s of one clock are 0.000 s of the other")


def test_a_check_that_raises_has_failed_and_the_others_run(monkeypatch, tmp_path):
    monkeypatch.setenv(registry.VARIABLE, str(tmp_path / "nowhere"))
    told = failing()
    assert told.keys() == {"data"}
    assert told["data"].startswith(f"raised InputError: {registry.VARIABLE} must name a directory")


@pytest.mark.parametrize(
    ("value", "passed", "told"),
    [(1.0, True, "1.0e+00 ≤ 1.0e+00"), (2.0, False, "2.0e+00 > 1.0e+00")],
)
def test_a_number_is_held_against_its_tolerance(value, passed, told):
    found = within(value, 1.0)
    assert (found.passed, found.told, found.value, found.tolerance) == (passed, told, value, 1.0)
    assert not within(float("nan"), 1.0).passed
