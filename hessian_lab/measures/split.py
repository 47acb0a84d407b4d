"""What ranks divide among themselves: checkpoints, points, probes, or columns of the matrix."""

from collections.abc import Callable, Sequence

from hessian_lab.errors import ResourceError, UsageError
from hessian_lab.names import known, plural
from hessian_lab.probe.ranks import Ranks

SPLITS = ("auto", "checkpoints", "points", "probes", "columns")


def chosen_split(
    asked: str,
    *,
    ranks: Ranks,
    possible: Sequence[str],
    num_checkpoints: int,
    num_probes: int = 0,
    require: Callable[[], None] | None = None,
) -> tuple[str, str]:
    """Return what the ranks divide, and why; the same on every rank.

    ``auto`` deals out checkpoints, which takes no word between ranks, where there is one for each
    and all can be measured at a time; else what the method has beside.

    Args:
        asked: One of ``SPLITS``.
        ranks: The processes of the job.
        possible: What the method can divide, in order of preference after checkpoints.
        num_checkpoints: How many were asked for.
        num_probes: Random vectors of the method.
        require: Checks that every rank can measure a checkpoint of its own.

    Raises:
        UsageError: If the method cannot divide what is asked for.
    """
    known("split", asked, SPLITS)
    if asked != "auto" and asked not in possible:
        raise UsageError(
            f"split must be {' or '.join(possible)} for this measurement, got {asked!r}."
        )
    found = _chosen(asked, ranks, possible, num_checkpoints, num_probes, require)
    return ranks.told(found)


def _chosen(
    asked: str,
    ranks: Ranks,
    possible: Sequence[str],
    num_checkpoints: int,
    num_probes: int,
    require: Callable[[], None] | None,
) -> tuple[str, str]:
    if asked != "auto":
        return asked, "as asked"
    others = [name for name in possible if name != "checkpoints"]
    if not others:
        return "checkpoints", "the only way of this measurement"
    reason = f"{plural(num_checkpoints, 'checkpoint')} for {ranks.count} ranks"
    if num_checkpoints >= ranks.count:
        try:
            if require is not None:
                require()
        except ResourceError:
            reason = "not every rank has room for a checkpoint of its own"
        else:
            return "checkpoints", reason
    if "probes" in others and num_probes < ranks.count:
        others.remove("probes")
    return others[0], reason
