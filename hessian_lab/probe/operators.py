"""Symmetric operators: matrices known only through their products with vectors."""

from abc import ABC, abstractmethod
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from hessian_lab.errors import NonFiniteError
from hessian_lab.probe.memory import require_bytes
from hessian_lab.probe.precision import full_precision
from hessian_lab.probe.sizes import columns_at_once
from hessian_lab.probe.vectors import gaussian

# vᵀ A u and uᵀ A v of a symmetric operator differ by fewer roundings of ‖A u‖ ‖v‖ than this.
SYMMETRY_ROUNDINGS = 1e3
PRECISIONS = (torch.float32, torch.float64)
# Columns of the identity that ``dense`` multiplies at once on the CPU.
DENSE_COLUMNS = 16


@runtime_checkable
class Multiplies(Protocol):
    """Anything with ``shape`` and ``@``: a SciPy LinearOperator, an array, a curvlinops operator.

    What it multiplies must be a vector [n] or a block [n, k].
    """

    @property
    def shape(self) -> Any:
        """The pair (n, n)."""

    def __matmul__(self, other: Any, /) -> Any:
        """Return the product with a vector [n] or a block [n, k]."""


class SymmetricOperator(ABC):
    """A real symmetric matrix ``A`` [n, n], known only through ``v ↦ A v``.

    A subclass is final: it calls ``super().__init__`` and implements ``matmat``.

    Attributes:
        size: The number of rows ``n``.
        dtype: The floating-point type of vectors and products, float32 or float64.
        device: Where vectors and products live.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}.")
        require_precision(dtype)
        self.size = size
        self.dtype = dtype
        self.device = device

    @property
    def shape(self) -> tuple[int, int]:
        """The pair (n, n)."""
        return self.size, self.size

    @abstractmethod
    def matmat(self, block: Tensor) -> Tensor:
        """Return ``A V`` [n, k] for ``V`` [n, k]; callers use ``@``, which checks its operand."""

    def __matmul__(self, other: Tensor) -> Tensor:
        """Return ``A @ other`` for a vector [n] or a block of columns [n, k]."""
        name = type(self).__name__
        if not isinstance(other, Tensor):
            raise TypeError(
                f"{name} @ other: other must be a tensor, got {type(other).__name__}. "
                "Convert it with torch.as_tensor, or the operator with to_scipy()."
            )
        if other.ndim not in (1, 2) or other.shape[0] != self.size:
            raise ValueError(
                f"{name} @ tensor: the shape must be [{self.size}] or [{self.size}, k], "
                f"got {list(other.shape)}."
            )
        if other.dtype != self.dtype:
            raise TypeError(f"{name} @ tensor: the dtype must be {self.dtype}, got {other.dtype}.")
        if other.device != self.device:
            raise TypeError(
                f"{name} @ tensor: the device must be {self.device}, got {other.device}."
            )
        if not other.numel():
            return other.clone()
        with full_precision():
            if other.ndim == 1:
                return self.matmat(other.unsqueeze(1)).squeeze(1)
            return self.matmat(other)

    def known_diagonal(self) -> Tensor | None:
        """Return the exact diagonal [n] where it takes no products, else None."""
        return None

    def known_row_norms(self) -> Tensor | None:
        """Return the exact Euclidean norms [n] of the rows where they take no products, or None."""
        return None

    def dense(self) -> Tensor:
        """Return the matrix itself [n, n], at the price of ``n`` products.

        Raises:
            ResourceError: If it does not fit, before it is allocated.
        """
        require_bytes(
            self.size**2 * self.dtype.itemsize,
            f"The dense matrix of size {self.size}",
            device=self.device,
            cure="Measure it by its products.",
        )
        matrix = torch.empty(self.size, self.size, dtype=self.dtype, device=self.device)
        step = columns_at_once(
            DENSE_COLUMNS, device=self.device, size=self.size, itemsize=self.dtype.itemsize
        )
        for start in range(0, self.size, step):
            columns = slice(start, min(start + step, self.size))
            units = matrix.new_zeros(columns.stop - start, self.size)
            units[:, columns].fill_diagonal_(1)
            matrix[:, columns] = self @ units.T
        return matrix

    def to_scipy(self) -> LinearOperator:
        """Return the operator for SciPy: it takes and gives NumPy arrays of its own dtype."""

        def product(block: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
            operand = _from_numpy(block).to(dtype=self.dtype, device=self.device)
            return (self @ operand).cpu().numpy()  # type: ignore[no-any-return]

        return LinearOperator(
            self.shape,
            matvec=lambda vector: product(vector.reshape(-1)),
            matmat=product,
            rmatvec=lambda vector: product(vector.reshape(-1)),
            rmatmat=product,
            dtype=np.dtype(str(self.dtype).removeprefix("torch.")),
        )


class MatrixOperator(SymmetricOperator):
    """A dense symmetric matrix as an operator; the reference every algorithm is tested on.

    Args:
        matrix: A symmetric matrix [n, n], float32 or float64; it is not copied.
        check: Test the symmetry on two random vectors.

    Raises:
        ValueError: If it is not square, or not symmetric.
    """

    def __init__(self, matrix: Tensor, *, check: bool = True) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
            raise ValueError(f"matrix must have shape [n, n], n > 0, got {list(matrix.shape)}.")
        self.matrix = matrix.detach()
        super().__init__(matrix.shape[0], matrix.dtype, matrix.device)
        if check:
            require_symmetric(self)

    def matmat(self, block: Tensor) -> Tensor:
        """Return ``matrix @ block`` [n, k]."""
        return self.matrix @ block

    def known_diagonal(self) -> Tensor:
        """Return the matrix's diagonal [n]."""
        return self.matrix.diagonal().clone()

    def known_row_norms(self) -> Tensor:
        """Return the norms [n] of the matrix's rows."""
        norms: Tensor = torch.linalg.vector_norm(self.matrix, dim=1)
        return norms


class ScaledOperator(SymmetricOperator):
    """``S A S``: a matrix preconditioned from both sides.

    With ``S = D^{-1/2}`` its spectrum is that of ``D⁻¹ A``, and it stays symmetric.

    Args:
        operator: ``A`` [n, n].
        inverse_sqrt: ``S``: a positive vector [n], for a diagonal, or a symmetric operator [n, n].

    Raises:
        ValueError: If the sizes differ, or the vector is not positive and finite.
        TypeError: If the precisions of two operators differ.
    """

    def __init__(self, operator: Multiplies, inverse_sqrt: Tensor | Multiplies) -> None:
        self.operator = as_operator(operator)
        inner = self.operator
        if isinstance(inverse_sqrt, Tensor) and inverse_sqrt.ndim == 1:
            if len(inverse_sqrt) != inner.size:
                raise ValueError(
                    f"inverse_sqrt must have shape [{inner.size}], got {list(inverse_sqrt.shape)}."
                )
            scale = inverse_sqrt.to(dtype=inner.dtype, device=inner.device)
            if not ((scale > 0) & scale.isfinite()).all():
                raise ValueError(
                    f"inverse_sqrt must be positive and finite in every entry, as {inner.dtype}."
                )
            self.inverse_sqrt: Tensor | SymmetricOperator = scale
        else:
            self.inverse_sqrt = as_operator(inverse_sqrt)
            if self.inverse_sqrt.size != inner.size:
                raise ValueError(
                    f"inverse_sqrt must have size {inner.size}, got {self.inverse_sqrt.size}."
                )
            if self.inverse_sqrt.dtype != inner.dtype:
                raise TypeError(
                    f"inverse_sqrt must have the dtype of the operator, {inner.dtype}, "
                    f"got {self.inverse_sqrt.dtype}."
                )
        super().__init__(inner.size, inner.dtype, inner.device)

    def matmat(self, block: Tensor) -> Tensor:
        """Return ``S (A (S V))`` [n, k]."""
        return self._scaled(self.operator @ self._scaled(block))

    def known_diagonal(self) -> Tensor | None:
        """Return ``Sᵢ² A_ii`` [n] where ``S`` is a diagonal and that of ``A`` is known."""
        if not isinstance(self.inverse_sqrt, Tensor):
            return None
        inner = self.operator.known_diagonal()
        return None if inner is None else self.inverse_sqrt * inner * self.inverse_sqrt

    def _scaled(self, block: Tensor) -> Tensor:
        if isinstance(self.inverse_sqrt, Tensor):
            return self.inverse_sqrt.unsqueeze(1) * block
        return self.inverse_sqrt @ block


class _Adapted(SymmetricOperator):
    """Any object with ``shape`` and ``@``; ``_torch`` tells what it multiplies."""

    def __init__(self, foreign: Any) -> None:
        shape = tuple(foreign.shape)
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(f"operator must have shape [n, n], got {list(shape)}.")
        given = getattr(foreign, "dtype", None)
        self._torch = given is None or isinstance(given, torch.dtype)
        dtype = given if isinstance(given, torch.dtype) else _torch_dtype(given)
        device = torch.device(getattr(foreign, "device", "cpu") if self._torch else "cpu")
        self.foreign = foreign
        super().__init__(int(shape[0]), dtype, device)

    def matmat(self, block: Tensor) -> Tensor:
        """Return the foreign object's product, checked for its shape."""
        operand = block if self._torch else block.cpu().numpy()
        product = self.foreign @ operand
        result = torch.as_tensor(np.asarray(product) if not self._torch else product)
        if result.shape != block.shape:
            raise ValueError(
                f"{type(self.foreign).__name__} @ {list(block.shape)} must have the same shape, "
                f"got {list(result.shape)}."
            )
        return result.detach().to(dtype=self.dtype, device=self.device)


def as_operator(operator: Any, *, check: bool = True) -> SymmetricOperator:
    """Return ``operator`` itself, or a wrapper around anything with ``shape`` and ``@``.

    A tensor or an array becomes a ``MatrixOperator``. Other objects are given tensors if their
    ``dtype`` is torch's or missing (then float64), else NumPy arrays.

    Args:
        operator: What to wrap.
        check: Test the symmetry of what is wrapped on two random vectors, by two products.

    Raises:
        TypeError: If it has no ``shape`` or no ``@``, or computes in another precision.
        ValueError: If it is not square, or not symmetric.
    """
    if isinstance(operator, SymmetricOperator):
        return operator
    if isinstance(operator, np.ndarray):
        operator = _from_numpy(operator)
    if isinstance(operator, Tensor):
        return MatrixOperator(operator, check=check)
    if not isinstance(operator, Multiplies):
        raise TypeError(
            f"operator must have shape and @ (products with [n] and [n, k]), "
            f"got {type(operator).__name__}."
        )
    adapted = _Adapted(operator)
    if check:
        require_symmetric(adapted)
    return adapted


def _from_numpy(array: np.ndarray) -> Tensor:  # type: ignore[type-arg]
    """Return a tensor that shares an array's memory, or its copy where torch cannot share it."""
    shared = array.flags.writeable and all(stride >= 0 for stride in array.strides)
    return torch.from_numpy(array if shared else array.copy())


def require_precision(dtype: torch.dtype) -> None:
    """Check that a dtype is one that curvature is computed in.

    Raises:
        TypeError: If it is not.
    """
    if dtype not in PRECISIONS:
        raise TypeError(
            f"operator must compute in float32 or float64, got {dtype}. "
            "Convert the model and its data, with model.float() or model.double()."
        )


def require_symmetric(operator: SymmetricOperator, *, seed: int = 0) -> None:
    """Check ``uᵀ A v = vᵀ A u`` up to rounding for two random vectors; two products.

    Raises:
        ValueError: If they differ.
        NonFiniteError: If a product is not finite.
    """
    pair = gaussian(operator.size, 2, seed=seed, like=operator)
    products = operator @ pair
    require_finite(products, first=1)
    peak = float(products.abs().max())
    if not peak:
        return
    # Neither the squares of the entries nor their sums may overflow, or vanish.
    pair, images = pair.double(), products.double() / peak
    gap = abs(float(pair[:, 0] @ images[:, 1] - pair[:, 1] @ images[:, 0]))
    sizes = torch.linalg.vector_norm(images, dim=0)
    scale = float((sizes * torch.linalg.vector_norm(pair, dim=0).flip(0)).max())
    if gap > SYMMETRY_ROUNDINGS * torch.finfo(operator.dtype).eps * scale:
        raise ValueError(
            f"operator must be symmetric: uᵀ A v and vᵀ A u differ by {gap / scale:.1e} of their "
            "size for random u, v. Symmetrize it, (A + Aᵀ) / 2."
        )


def require_finite(products: Tensor, *, first: int) -> None:
    """Check that a block of products [n, k] is finite; ``first`` is the number of its first.

    Raises:
        NonFiniteError: If one is not, with the number of the first such product.
    """
    finite = products.isfinite().all(dim=0)
    if not bool(finite.all()):
        place = int((~finite).nonzero()[0])
        column = products[:, place]
        raise NonFiniteError(
            f"product {first + place} of the operator must be finite: "
            f"{int(column.isnan().sum())} of its {len(column)} entries are NaN and "
            f"{int(column.isinf().sum())} infinite."
        )


def _torch_dtype(given: Any) -> torch.dtype:
    name = np.dtype(given).name
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"operator must compute in float32 or float64, got {name}.")
    return dtype
