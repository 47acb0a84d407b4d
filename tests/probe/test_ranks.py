"""Ranks of one job: equal to one process, and ending together."""

import ctypes
import os
import signal
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from hessian_lab.errors import RankError, UsageError
from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import bce, mse
from hessian_lab.probe import watch
from hessian_lab.probe.curvature import GGNOperator, HessianOperator
from hessian_lab.probe.density import spectral_measure
from hessian_lab.probe.eigenpairs import extreme_eigenpairs
from hessian_lab.probe.hessian import dense_ggn, dense_hessian
from hessian_lab.probe.layers import layer_blocks
from hessian_lab.probe.operators import MatrixOperator
from hessian_lab.probe.ranks import ALONE, Ranks, join, num_ranks
from hessian_lab.probe.sharding import dealt, own_points, shared_hessian
from hessian_lab.signal import Signal
from tests.ranks import Job, results_of

EPS = torch.finfo(torch.float64).eps


def signal_of(num_points=101, loss=mse):
    coords = torch.linspace(-1, 1, num_points, dtype=torch.float64).unsqueeze(1)
    return Signal(coords, (torch.sin(5 * coords) + 1) / 2, loss)


def fields():
    generic = nn.Sequential(nn.Linear(1, 7), nn.GELU(), nn.Linear(7, 1)).double()
    with torch.no_grad():
        for number, value in enumerate(generic.parameters()):
            value.copy_(torch.linspace(-1, 1, value.numel()).view_as(value) + 0.1 * number)
    return {
        "sine": make_field("sine", 1, 1, width=9, depth=3),
        "relu_pe": make_field("relu_pe", 1, 1, width=8, depth=2),
        "generic": generic,
    }


def near(found, expected, roundings=100):
    found, expected = (torch.as_tensor(one) for one in (found, expected))
    return float((found - expected).abs().max()) <= roundings * EPS * float(expected.abs().max())


def _everything():
    """Return what all ranks find together, in pieces that can be sent."""
    with join() as ranks:
        return _found(ranks)


def _found(ranks):
    signal, found = signal_of(), {}
    for name, field in fields().items():
        for kind, matrix in ((HessianOperator, "hessian"), (GGNOperator, "ggn")):
            operator = kind(field, mse, signal, ranks=ranks)
            block = torch.randn(
                operator.size, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
            )
            found[name, matrix, "products"] = (operator @ block).numpy()
            vector = block[:, 0].clone() + ranks.rank
            found[name, matrix, "one"] = (operator @ vector).numpy()
            # The first rank's vector counts, and nobody else's is touched.
            assert torch.equal(vector, block[:, 0] + ranks.rank)
            chunked = kind(field, mse, signal, ranks=ranks, chunk_size=13)
            found[name, matrix, "chunks"] = (chunked @ block).numpy()
            diagonal = operator.known_diagonal()
            found[name, matrix, "diagonal"] = None if diagonal is None else diagonal.numpy()
            assert operator.known_row_norms() is None
            dense = shared_hessian(field, mse, signal, ranks=ranks, matrix=matrix)
            assert (dense is not None) == ranks.first
            found[name, matrix, "dense"] = None if dense is None else dense.numpy()
    batches = [(signal.coords[:40], signal.values[:40]), (signal.coords[40:], signal.values[40:])]
    loader = HessianOperator(fields()["sine"], mse, batches, ranks=ranks)
    found["batches"] = (loader @ torch.ones(loader.size, dtype=torch.float64)).numpy()
    pairs = None
    operator = HessianOperator(fields()["sine"], bce, signal_of(loss=bce), ranks=ranks)
    if ranks.first:
        with operator.leading():
            pairs = extreme_eigenpairs(operator, num=2, which="both").values.numpy()
            block = layer_blocks(operator)["layers.1"]
            found["layer"] = (block @ torch.ones(block.size, dtype=torch.float64)).numpy()
            found["led diagonal"] = operator.known_diagonal().numpy()
    else:
        operator.serve()
    found["pairs"] = pairs
    whole = HessianOperator(fields()["sine"], mse, signal)
    measure = spectral_measure(whole, num_probes=5, num_steps=20, ranks=ranks)
    found["nodes"], found["weights"] = measure.nodes.numpy(), measure.weights.numpy()
    return found


@pytest.fixture(scope="module", params=[2, 3])
def together(request):
    return results_of(_everything, request.param)


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
@pytest.mark.parametrize("name", list(fields()))
def test_shared_products_and_matrices_are_those_of_one_process(together, name, matrix):
    dense = (dense_hessian if matrix == "hessian" else dense_ggn)(fields()[name], mse, signal_of())
    block = torch.randn(
        len(dense), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    for rank, found in enumerate(together):
        for key in ("products", "chunks"):
            assert near(found[name, matrix, key], dense @ block)
        assert near(found[name, matrix, "one"], dense @ block[:, 0])
        # The same bits everywhere.
        assert np.array_equal(
            found[name, matrix, "products"], together[0][name, matrix, "products"]
        )
        diagonal = found[name, matrix, "diagonal"]
        assert (diagonal is None) == (name == "generic")
        assert diagonal is None or near(diagonal, dense.diagonal())
        assert (found[name, matrix, "dense"] is None) == (rank > 0)
    found = torch.from_numpy(together[0][name, matrix, "dense"])
    assert near(found, dense)
    assert torch.equal(found, found.T)


def test_batches_are_shared_by_their_points(together):
    dense = dense_hessian(fields()["sine"], mse, signal_of())
    for found in together:
        assert near(found["batches"], dense.sum(dim=1))


def test_the_first_rank_leads_an_algorithm(together):
    signal = signal_of(loss=bce)
    field = fields()["sine"]
    dense = dense_hessian(field, bce, signal)
    values = torch.linalg.eigvalsh(dense)
    expected = torch.cat([values[-2:].flip(0), values[:2].flip(0)])
    assert near(torch.from_numpy(together[0]["pairs"]).sort().values, expected.sort().values, 1e4)
    place = slice(18, 18 + 90)
    assert near(together[0]["layer"], dense[place, place].sum(dim=1))
    assert near(together[0]["led diagonal"], dense.diagonal())
    assert together[1]["pairs"] is None


def test_probes_are_shared_and_every_rank_is_told(together):
    whole = HessianOperator(fields()["sine"], mse, signal_of())
    alone = spectral_measure(whole, num_probes=5, num_steps=20)
    for found in together:
        assert near(found["nodes"], alone.nodes, 1e4)
        assert np.allclose(found["weights"], alone.weights.numpy(), atol=1e-8)


def test_slabs_are_dealt_to_all_and_the_first_that_writes_has_fewest():
    for count in range(2, 9):
        slabs = [[number] for number in range(4 * count)]
        shares = dealt(slabs, count)
        assert sorted(slab for share in shares for slab in share) == slabs
        assert len(shares) == count
        assert len(shares[0]) <= min(map(len, shares[1:]))
        assert max(map(len, shares[1:])) - min(map(len, shares[1:])) <= 1


def _not_finite():
    field = fields()["sine"]
    operator = HessianOperator(field, mse, signal_of())
    with join() as ranks:
        if ranks.rank == 1:
            operator = MatrixOperator(operator.dense().mul_(torch.nan), check=False)
        try:
            spectral_measure(operator, num_probes=4, num_steps=5, ranks=ranks)
        except ArithmeticError as error:
            return str(error)


def test_a_product_that_is_not_finite_on_one_rank_is_told_on_all():
    one, other = results_of(_not_finite, 2)
    assert one == other
    assert "must be finite" in one


def _fewer_points_than_ranks(loss_of):
    with join() as ranks:
        try:
            loss_of(ranks)
        except ValueError as error:
            return str(error)


def _few_for_products(ranks):
    HessianOperator(fields()["sine"], mse, signal_of(2), ranks=ranks)


def _few_for_a_matrix(ranks):
    shared_hessian(fields()["sine"], mse, signal_of(2), ranks=ranks)


@pytest.mark.parametrize("make", [_few_for_products, _few_for_a_matrix])
def test_fewer_points_than_ranks_are_refused_on_every_rank(make):
    for message in results_of(_fewer_points_than_ranks, 3, make):
        assert "a point for every rank, got 2 for 3 ranks" in message


def test_there_is_no_share_of_fewer_points_than_ranks():
    with pytest.raises(UsageError, match="a point for every rank, got 2 for 3 ranks"):
        own_points(signal_of(2), Ranks(0, 3))


def _different_blocks():
    with join() as ranks:
        operator = HessianOperator(fields()["sine"], mse, signal_of(), ranks=ranks)
        operator @ torch.ones(operator.size, 2 + ranks.rank, dtype=torch.float64)


def test_ranks_that_ask_for_different_products_are_told_so():
    job = Job(_different_blocks, 2)
    job.end()
    assert "rank 1 asks for one of 3 columns" in job.text("err", 1)
    assert "rank 1: every rank must ask for the same product" in job.text("err", 0)


def _disagree():
    with join() as ranks:
        try:
            ranks.require_agreement({"steps": 10 + ranks.rank, "act": "sine"})
        except UsageError as error:
            return str(error)


def test_ranks_that_were_asked_for_different_things_are_told_so():
    for message in results_of(_disagree, 2):
        assert message == (
            "every rank must be asked for the same: rank 1 has steps 11, rank 0 has 10."
        )


def _ends(how):
    watch.SILENCE, watch.BEAT, watch.GRACE = 3.0, 0.2, 1.0
    try:
        with join() as ranks:
            if ranks.rank == 1:
                _end(how)
            if how == "failed while computing":
                time.sleep(60)
            ranks.total(torch.ones(3))
    except RankError as error:
        return str(error)


def _end(how):
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    raise ValueError("out of memory")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("killed", "lost|no sign of life"),
        ("stopped", "rank 1 has given no sign of life for 3 s"),
        ("failed", "rank 1: out of memory"),
        ("failed while computing", "rank 1: out of memory"),
    ],
)
def test_a_rank_that_ends_ends_the_others_with_its_reason(how, message):
    start = time.monotonic()
    job = Job(_ends, 2, how)
    if how == "stopped":
        job.ranks[0].join(30)
        job.ranks[1].kill()
    results, statuses = job.end(timeout=30)
    assert time.monotonic() - start < 30
    told = job.text("err", 0) + (results[0] or "")
    assert any(one in told for one in message.split("|")), told
    assert results[0] is not None or statuses[0] == 1


def _lost_while_joining():
    watch.COMING, watch.BEAT, watch.GRACE = 3.0, 0.2, 1.0
    if os.environ["RANK"] == "1":
        torch.distributed.init_process_group = lambda *_, **__: os._exit(1)
        watch.Watch.start = lambda _: None
    with join():
        pass


def test_a_rank_that_is_lost_while_joining_ends_the_others():
    job = Job(_lost_while_joining, 2)
    _, statuses = job.end(timeout=30)
    assert statuses == [1, 1]
    assert "rank 1 has given no sign of life for 3 s" in job.text("err", 0)


def _silent(excused):
    watch.SILENCE, watch.BEAT, watch.GRACE = 2.0, 0.1, 1.0
    with join() as ranks:
        if ranks.rank == 1:
            with watch.unheard() if excused else nullcontext():
                # Keeps Python's lock: no thread of this rank can beat.
                ctypes.PyDLL(None).usleep(4_000_000)
        return ranks.told("done")


@pytest.mark.parametrize("excused", [True, False])
def test_a_rank_that_keeps_its_lock_must_say_so(excused):
    job = Job(_silent, 2, excused)
    results, _ = job.end(timeout=30)
    assert (results[0] == "done") == excused
    assert ("no sign of life" in job.text("err", 0)) != excused


def _working():
    watch.SILENCE, watch.BEAT, watch.GRACE = 3.0, 0.1, 1.0
    with join() as ranks:
        for _ in range(80):
            time.sleep(0.1)
        return ranks.told("done")


def test_a_job_that_is_suspended_as_a_whole_goes_on():
    job = Job(_working, 2)
    time.sleep(3)
    for sign, pause in ((signal.SIGSTOP, 0), (signal.SIGCONT, 0.5)):
        for rank in job.ranks:
            os.kill(rank.pid, sign)
            time.sleep(pause)
        time.sleep(5)
    assert job.end(timeout=60) == (["done", "done"], [0, 0]), job.text("err")


def test_alone_there_is_nothing_to_tell(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join() as ranks:
        assert ranks is ALONE
    assert ALONE.first
    assert ALONE.told(3) == 3
    assert ALONE.collected("a") == ["a"]
    tensor = torch.ones(2)
    assert ALONE.total(tensor) is tensor
    ALONE.require_agreement({"a": 1})


@pytest.mark.parametrize("text", ["0", "two", "-1", "", "²"])
def test_a_number_of_ranks_that_makes_no_sense_is_refused(monkeypatch, text):
    monkeypatch.setenv("WORLD_SIZE", text)
    with pytest.raises(UsageError, match="WORLD_SIZE must be a positive number"):
        num_ranks()


def test_a_launcher_that_tells_only_half_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    message = r"RANK, MASTER_ADDR, MASTER_PORT missing .*torchrun"
    with pytest.raises(UsageError, match=message), join():
        pass


@pytest.mark.parametrize(
    ("missing", "device", "message"),
    [
        ("is_nccl_available", "cuda", "need NCCL.*--device cpu"),
        ("is_gloo_available", "cpu", "torch.distributed with gloo"),
    ],
)
def test_a_missing_backend_is_named(monkeypatch, missing, device, message):
    monkeypatch.setattr(torch.distributed, missing, lambda: False)
    for name, value in {"WORLD_SIZE": 2, "RANK": 0, "MASTER_ADDR": "x", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UsageError, match=message), join(device=device):
        pass
