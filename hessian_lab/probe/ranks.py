"""The processes of one job: what they tell each other, and how they end together."""

import datetime
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from hessian_lab.errors import RankError, UsageError
from hessian_lab.probe.watch import COMING, Watch

Value = TypeVar("Value")
# What a launcher such as torchrun tells every process.
RANK, COUNT = "RANK", "WORLD_SIZE"
ENVIRONMENT = (RANK, COUNT, "MASTER_ADDR", "MASTER_PORT")
# How long a rank waits for the others to come.
JOINING = datetime.timedelta(seconds=COMING)
# A rank may compute for long while the others wait: whether it lives is for the watch to tell.
WORKING = datetime.timedelta(days=30)
# What the first rank asks the others for, at the head of a message.
RELEASE, PRODUCT, DIAGONAL = range(3)


@dataclass(frozen=True, eq=False)
class Ranks:
    """The ranks of a job as one of them sees them; alone by default.

    All methods but the properties are collective: every rank calls them, in the same order.

    Attributes:
        rank: The number of this one.
        count: How many there are.
        watch: Ends this rank when another has failed or fallen silent.
    """

    rank: int = 0
    count: int = 1
    watch: Watch | None = None

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and prints."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other rank."""
        return self.count == 1

    def told(self, value: Value) -> Value:
        """Return the value of the first rank, whatever those of the others are."""
        if self.alone:
            return value
        values = [value]
        with self._translated():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def collected(self, value: Value) -> list[Value]:
        """Return the values of all ranks, in order, on the first; nothing on the others."""
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.count
        with self._translated():
            dist.gather_object(value, values if self.first else None, dst=0)
        return values if self.first else []

    def total(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all ranks, in place, and return it; the same bits on every rank."""
        if not self.alone:
            with self._translated():
                dist.all_reduce(tensor)
        return tensor

    def header(self, kind: int, width: int) -> tuple[int, int]:
        """Return what the first rank asks for, and how wide its block is."""
        head = torch.tensor([kind, width])
        with self._translated():
            dist.broadcast(head, src=0)
        asked, columns = head.tolist()
        return asked, columns

    def spread(self, tensor: Tensor) -> Tensor:
        """Return the first rank's tensor; those of the others are overwritten with it."""
        if not self.alone:
            with self._translated():
                dist.broadcast(tensor, src=0)
        return tensor

    def send(self, tensor: Tensor) -> None:
        """Send a contiguous tensor to the first rank, which must ``receive`` it."""
        with self._translated():
            dist.send(tensor, dst=0)

    def receive(self, tensor: Tensor, source: int) -> Any:
        """Return a handle: after its ``wait`` the tensor is what rank ``source`` sent."""
        with self._translated():
            return dist.irecv(tensor, src=source)

    def arrived(self, handle: Any) -> None:
        """Wait for what is being received."""
        with self._translated():
            handle.wait()

    def require_agreement(self, asked: Mapping[str, Any]) -> None:
        """Check that every rank was asked for the same.

        Raises:
            UsageError: On every rank, naming the first difference.
        """
        texts = {name: repr(value) for name, value in asked.items()}
        all_texts = self.collected(texts)
        found = self.told(_difference(all_texts) if self.first else None)
        if found:
            raise UsageError(f"every rank must be asked for the same: {found}.")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn a lost connection into why it was lost.

        Raises:
            RankError: In its place.
        """
        try:
            yield
        except RuntimeError as error:
            reason = self.watch.reason_now() if self.watch else None
            said = str(error).splitlines()[0]
            raise RankError(reason or f"another rank is lost: {said}") from error


ALONE = Ranks()


def num_ranks() -> int:
    """Return how many processes the launcher says that this job has.

    Raises:
        UsageError: If what it says makes no sense.
    """
    text = os.environ.get(COUNT, "1")
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise UsageError(f"{COUNT} must be a positive number, got {text!r} from the environment.")
    return int(text)


@contextmanager
def join(*, device: str = "cpu") -> Iterator[Ranks]:
    """Join the job that a launcher such as ``torchrun`` has started, and leave it at the end.

    Alone where none has. An exception ends all other ranks with its text within a minute, and so
    does a rank that falls silent; see ``Watch``::

        with join() as ranks:
            hessian = HessianOperator(model, loss, signal, ranks=ranks)

    Args:
        device: ``cuda`` where tensors on GPUs are to be exchanged too, by NCCL; others by gloo.

    Raises:
        UsageError: If the launcher's environment is incomplete, or a backend is missing.
        RankError: If the others do not come, or one of them fails.
    """
    ranks = _joined(device)
    if ranks.watch is None:
        yield ranks
        return
    try:
        yield ranks
        # Nobody leaves before all are done.
        ranks.total(torch.zeros(1))
    except RankError:
        ranks.watch.stop()
        raise
    except BaseException as error:
        ranks.watch.fail(str(error) or type(error).__name__)
        raise
    ranks.watch.stop()
    dist.destroy_process_group()


def _joined(device: str) -> Ranks:
    if num_ranks() == 1:
        return ALONE
    missing = [name for name in ENVIRONMENT if name not in os.environ]
    if missing:
        raise UsageError(
            f"{COUNT} is {os.environ[COUNT]}, but {', '.join(missing)} missing from the "
            "environment. Start the ranks with torchrun --nproc-per-node K -m -- hessian_lab …"
        )
    backend = _backend(device)
    watch: Watch | None = None
    try:
        store, rank, count = next(rendezvous("env://", timeout=JOINING))
        own = PrefixStore("hessian-lab", store)
        # Before the group is made: a rank that is lost there would be waited for.
        watch = Watch(store.clone(), rank, count)
        watch.start()
        # The store's own patience is for coming together alone.
        dist.init_process_group(backend, store=own, rank=rank, world_size=count, timeout=WORKING)
    except (RuntimeError, ValueError) as error:
        said = str(error).splitlines()[0]
        if watch is not None:
            watch.fail(said)
        raise RankError(f"the {num_ranks()} ranks must come together: {said}") from error
    return Ranks(rank, count, watch)


def _backend(device: str) -> str:
    if not (dist.is_available() and dist.is_gloo_available()):
        raise UsageError(
            "several ranks need torch.distributed with gloo, which this torch was built without. "
            "Install another build, or run one process."
        )
    if dist.is_nccl_available() and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        return "cpu:gloo,cuda:nccl"
    if device.startswith("cuda"):
        raise UsageError(
            "several ranks on GPUs need NCCL and a CUDA device, which this torch does not have. "
            "Install a CUDA build of torch for Linux, or use --device cpu."
        )
    return "gloo"


def _difference(texts: list[dict[str, str]]) -> str | None:
    """Return where a rank was asked for something else than the first, or None."""
    for rank, other in enumerate(texts):
        for name in sorted(texts[0] | other):
            ours, its = texts[0].get(name, "nothing"), other.get(name, "nothing")
            if ours != its:
                return f"rank {rank} has {name} {its}, rank 0 has {ours}"
    return None
