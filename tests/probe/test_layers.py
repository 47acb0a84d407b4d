import pytest
import torch
from torch import nn

from hessian_lab.losses import mse
from hessian_lab.probe.curvature import GGNOperator, HessianOperator
from hessian_lab.probe.layers import LayerBlock, layer_blocks
from hessian_lab.probe.operators import MatrixOperator, SymmetricOperator
from hessian_lab.probe.parameters import Layout, selected_names
from hessian_lab.probe.vectors import gaussian
from tests.reference import assert_same, points, small_field

OPERATORS = [HessianOperator, GGNOperator]
SIZES = {"layers.0": 15, "layers.1": 30, "layers.2": 30, "layers.3": 12}


@pytest.fixture(params=OPERATORS)
def operator(request):
    return request.param(small_field("sine", 2, depth=3), mse, points(num_outputs=2))


def counted(operator, monkeypatch):
    columns = []
    product = type(operator).matmat
    monkeypatch.setattr(
        type(operator), "matmat", lambda self, it: columns.append(it.shape[1]) or product(self, it)
    )
    return columns


def test_every_layer_is_a_diagonal_block(operator):
    dense, blocks = operator.dense(), layer_blocks(operator)
    assert {name: block.size for name, block in blocks.items()} == SIZES
    start = 0
    for name, size in SIZES.items():
        place = slice(start, start + size)
        assert isinstance(blocks[name], SymmetricOperator)
        assert_same(blocks[name].dense(), dense[place, place], scale=float(dense.abs().max()))
        start += size


@pytest.mark.parametrize("num", [1, 2, 5, 17])
def test_all_layers_are_the_block_diagonal_matrix(operator, num):
    dense, blocks = operator.dense(), layer_blocks(operator)
    expected = torch.block_diag(*[block.dense() for block in blocks.values()])
    assert_same(blocks.dense(), expected)
    block = gaussian(len(dense), num, seed=0, like=operator)
    assert_same(blocks @ block, expected @ block)
    assert_same(blocks @ block.T.contiguous().T, expected @ block)
    assert_same(blocks @ block[:, 0], expected @ block[:, 0])


def test_all_layers_share_one_block_product(operator, monkeypatch):
    blocks = layer_blocks(operator)
    columns = counted(operator, monkeypatch)
    blocks @ torch.ones(87, dtype=torch.float64)
    blocks @ torch.ones(87, 3, dtype=torch.float64)
    assert columns == [4, 12]
    blocks["layers.2"] @ torch.ones(30, 5, dtype=torch.float64)
    assert columns == [4, 12, 5]


def test_layers_are_a_mapping_in_the_models_order(operator):
    blocks = layer_blocks(operator)
    assert list(blocks) == list(SIZES)
    assert len(blocks) == 4
    assert "layers.1" in blocks
    assert (blocks.shape, blocks.dtype) == ((87, 87), torch.float64)
    assert blocks in {blocks}
    with pytest.raises(KeyError, match=r"layers\.9"):
        blocks["layers.9"]


def test_layers_of_a_subset_are_its_own():
    subset = HessianOperator(small_field(), mse, points(), parameters=["*.bias", "layers.1.*"])
    blocks = layer_blocks(subset)
    assert {name: block.size for name, block in blocks.items()} == {
        "layers.0": 5,
        "layers.1": 30,
        "layers.2": 1,
    }
    expected = torch.block_diag(*[block.dense() for block in blocks.values()])
    assert_same(blocks.dense(), expected)


class Interleaved(nn.Module):
    """Parameters of its own around those of its parts."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.inner = nn.Linear(2, 3)
        self.outer = nn.Linear(3, 1)
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, coords):
        return self.outer(torch.tanh(self.inner(self.scale * coords))) + self.shift.sin()


def test_the_parameters_of_one_module_are_one_layer():
    layers = Layout(Interleaved(), [name for name, _ in Interleaved().named_parameters()]).layers()
    assert [len(places) for places in layers.values()] == [2, 2, 2]
    lone = nn.Linear(2, 1)
    assert len(Layout(lone, ["weight", "bias"]).layers()) == 1


def test_a_layer_may_lie_in_pieces():
    operator = HessianOperator(Interleaved().double(), mse, points())
    dense = operator.dense()
    block = LayerBlock(operator, [slice(0, 2), slice(13, 16)])
    kept = [0, 1, 13, 14, 15]
    assert_same(block.dense(), dense[kept][:, kept])
    whole = layer_blocks(operator)
    expected = torch.zeros_like(dense)
    for each in whole.values():
        kept = [place for places in each.places for place in range(places.start, places.stop)]
        expected[torch.tensor(kept).unsqueeze(1), torch.tensor(kept)] = each.dense()
    assert_same(whole.dense(), expected)


def test_refuses_operators_without_layers():
    with pytest.raises(TypeError, match="a HessianOperator or a GGNOperator, got MatrixOperator"):
        layer_blocks(MatrixOperator(torch.eye(3)))


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (None, "0w 0b 1w 1b 2w 2b"),
        ("layers.1.*", "1w 1b"),
        (["layers.2.*", "layers.0.bias"], "0b 2w 2b"),
        (("*.bias", "layers.?.bias"), "0b 1b 2b"),
        ("layers.[02].weight", "0w 2w"),
        ("*", "0w 0b 1w 1b 2w 2b"),
    ],
)
def test_patterns_select_in_the_models_order(patterns, expected):
    names = selected_names(small_field(), patterns)
    assert " ".join(name.split(".")[1] + name.split(".")[2][0] for name in names) == expected


@pytest.mark.parametrize("patterns", ["layers.1.*", ["layers.2.weight", "*.bias"], "layers.0.bias"])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("generic", [False, True])
def test_a_subset_is_a_block_of_the_whole(operator, patterns, generic):
    def loss(predictions, values):
        coupling = (predictions - values).mean().square() if generic else 0.0
        return mse(predictions, values) + coupling

    model, signal = small_field(), points()
    places = Layout(model, [name for name, _ in model.named_parameters()]).slices
    names = selected_names(model, patterns)
    kept = torch.cat([torch.arange(51)[places[name]] for name in names])
    whole = operator(model, loss, signal).dense()
    subset = operator(model, loss, signal, parameters=patterns)
    assert subset.layout.slices.keys() == set(names)
    assert_same(subset.dense(), whole[kept][:, kept], scale=float(whole.abs().max()))


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            "layer.0.weight",
            r"got 'layer\.0\.weight'\. Did you mean layers\.0\.weight\? There are l",
        ),
        (["layers.0.*", "heads.*"], r"parameters must match names of trainable .* got 'heads\.\*'"),
        ("layers.2.*", r"got 'layers\.2\.\*'"),
        ([], "parameters must name at least one parameter, got none"),
    ],
)
def test_refuses_patterns_that_match_nothing(patterns, message):
    model = small_field()
    model.layers[2].requires_grad_(False)
    with pytest.raises(ValueError, match=message):
        selected_names(model, patterns)


def test_long_lists_of_names_are_cut():
    with pytest.raises(ValueError, match=r"layers\.5\.bias, … \(14 in all\)"):
        selected_names(small_field(depth=6), "x")


def test_refuses_patterns_that_are_no_names():
    with pytest.raises(TypeError, match="parameters must be names or patterns, got"):
        selected_names(small_field(), list(small_field().parameters()))
