import numpy as np
import pytest
import torch

from hessian_lab.probe.vectors import DISTRIBUTIONS, gaussian, probes, rademacher

LIKE = torch.empty(0, dtype=torch.float64)
DRAWS = [rademacher, gaussian]


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("size", [1, 7, 8, 9, 1000])
def test_a_vector_depends_on_its_seed_and_its_number_alone(draw, size):
    whole = draw(size, 20, seed=3, like=LIKE)
    assert whole.shape == (size, 20)
    pieces = [draw(size, num, seed=3, like=LIKE, first=first) for first, num in ((0, 1), (1, 19))]
    assert torch.equal(torch.cat(pieces, dim=1), whole)
    assert torch.equal(draw(size, 1, seed=3, like=LIKE, first=19)[:, 0], whole[:, 19])


@pytest.mark.parametrize("draw", DRAWS)
def test_vectors_and_seeds_differ(draw):
    drawn = torch.cat([draw(64, 8, seed=seed, like=LIKE) for seed in (0, 1, 2**64 - 1)], dim=1)
    assert len(drawn.T.unique(dim=0)) == 24


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns_are_contiguous_and_of_the_asked_type(draw, dtype):
    like = torch.empty(0, dtype=dtype)
    drawn = draw(10, 3, seed=0, like=like)
    assert drawn.dtype == dtype
    assert drawn.stride() == (1, 10)
    assert torch.equal(drawn, draw(10, 3, seed=0, like=LIKE).to(dtype))


@pytest.mark.parametrize("draw", DRAWS)
def test_nothing_is_drawn_for_nothing(draw):
    assert draw(5, 0, seed=0, like=LIKE).shape == (5, 0)


@pytest.mark.parametrize("draw", DRAWS)
def test_global_generators_are_neither_read_nor_moved(draw):
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    states = torch.get_rng_state(), np.random.get_state()[2]  # noqa: NPY002
    once = draw(50, 2, seed=1, like=LIKE)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == np.random.get_state()[2]  # noqa: NPY002
    torch.manual_seed(1)
    assert torch.equal(draw(50, 2, seed=1, like=LIKE), once)


def test_vectors_are_the_same_in_every_release():
    signs = rademacher(12, 1, seed=3, like=LIKE, first=2)[:, 0]
    assert signs.tolist() == [-1, 1, 1, -1, 1, -1, 1, -1, 1, 1, 1, -1]
    normals = gaussian(3, 1, seed=3, like=LIKE, first=2)[:, 0]
    torch.testing.assert_close(
        normals.tolist(),
        [0.210521031008447, -0.5864602550775367, -0.31688851036237137],
        rtol=0,
        atol=1e-15,
    )


def test_signs_are_signs():
    assert set(rademacher(500, 4, seed=0, like=LIKE).unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("draw", DRAWS)
def test_covariance_is_the_identity(draw):
    # 5 standard errors of a mean of 8,000 terms of variance at most 2.
    num = 8_000
    drawn = draw(6, num, seed=5, like=LIKE)
    bound = 5 * (2 / num) ** 0.5
    assert drawn.mean(dim=1).abs().max() < bound
    assert (drawn @ drawn.T / num - torch.eye(6)).abs().max() < bound


def test_probes_are_of_either_distribution():
    assert set(DISTRIBUTIONS) == {"rademacher", "gaussian"}
    for name, draw in zip(DISTRIBUTIONS, DRAWS, strict=True):
        drawn = probes(9, 3, seed=2, like=LIKE, distribution=name, first=4)
        assert torch.equal(drawn, draw(9, 3, seed=2, like=LIKE, first=4))
    assert torch.equal(probes(9, 3, seed=2, like=LIKE), rademacher(9, 3, seed=2, like=LIKE))


def test_refuses_another_distribution():
    with pytest.raises(ValueError, match="must be one of rademacher, gaussian, got 'uniform'"):
        probes(3, 1, seed=0, like=LIKE, distribution="uniform")


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("seed", [-1, 2**64])
def test_refuses_seeds_out_of_range(draw, seed):
    with pytest.raises(ValueError, match=rf"seed must be in \[0, 2\*\*64\), got {seed}\."):
        draw(3, 2, seed=seed, like=LIKE)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("seed", [1.5, None, "0"])
def test_refuses_seeds_that_are_no_integers(draw, seed):
    with pytest.raises(TypeError, match="seed must be an integer, got"):
        draw(3, 2, seed=seed, like=LIKE)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("draw", DRAWS)
def test_vectors_are_the_same_on_a_gpu(draw):
    like = torch.empty(0, dtype=torch.float64, device="cuda")
    drawn = draw(100, 3, seed=0, like=like)
    assert drawn.is_cuda
    assert torch.equal(drawn.cpu(), draw(100, 3, seed=0, like=LIKE))
