import os
import zipfile

import numpy as np
import pytest
import torch

from hessian_lab.errors import InputError
from hessian_lab.measures import lpips as ours
from hessian_lab.measures.lpips import LPIPS, load_lpips
from tests.measures.lpips_files import head_weights, network_weights, write_weights


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def loaded(files):
    return load_lpips(*files)


def pictures(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((2, rows, columns, 3), dtype=torch.float64, generator=generator)


def convolved(signal, weight, bias, stride, padding):
    """Return a convolution [rows, columns, out] of [rows, columns, in], window by window."""
    wide = np.pad(signal, ((padding, padding), (padding, padding), (0, 0)))
    side = weight.shape[-1]
    rows, columns = ((length - side) // stride + 1 for length in wide.shape[:2])
    found = np.empty((rows, columns, len(weight)))
    for row in range(rows):
        for column in range(columns):
            top, left = row * stride, column * stride
            window = wide[top : top + side, left : left + side]
            found[row, column] = np.einsum("ijc,ocij->o", window, weight) + bias
    return found


def pooled(signal):
    """Return the largest of every 3×3 window, two pixels apart."""
    rows, columns = ((length - 3) // 2 + 1 for length in signal.shape[:2])
    found = np.empty((rows, columns, signal.shape[2]))
    for row in range(rows):
        for column in range(columns):
            window = signal[2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            found[row, column] = window.max(axis=(0, 1))
    return found


def distance(one, other):
    """Return LPIPS by its definition, with loops over pixels."""
    weights = {name: each.double().numpy() for name, each in network_weights().items()}
    heads = [each.double().numpy().ravel() for each in head_weights().values()]
    mean, deviation = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    signals = [(2 * each.numpy() - 1 - mean) / deviation for each in (one, other)]
    total = 0.0
    for place, (name, stride, padding) in enumerate(
        [(0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)]
    ):
        weight, bias = (weights[f"features.{name}.{part}"] for part in ("weight", "bias"))
        if place in (1, 2):
            signals = [pooled(each) for each in signals]
        signals = [
            np.maximum(convolved(each, weight, bias, stride, padding), 0) for each in signals
        ]
        lengths = [np.linalg.norm(each, axis=2, keepdims=True) + 1e-10 for each in signals]
        first, second = (each / length for each, length in zip(signals, lengths, strict=True))
        total += (((first - second) ** 2) @ heads[place]).mean()
    return total


def test_it_is_what_its_definition_says(loaded):
    one, other = pictures(31, 36)
    assert loaded(one, other) == pytest.approx(distance(one, other), rel=1e-12)


def test_it_is_a_distance(loaded):
    one, other = pictures(40, 33)
    assert loaded(one, one) == 0
    assert loaded(one, other) == loaded(other, one) > 0
    assert loaded(one, 0.9 * one + 0.1 * other) < loaded(one, other)


def test_features_without_a_direction_do_not_differ(loaded):
    blind = [(0 * weight, bias - 100) for weight, bias in loaded.convolutions]
    assert LPIPS(blind, loaded.heads)(*pictures(31, 31)) == 0


@pytest.mark.filterwarnings("ignore:The parameter 'pretrained':UserWarning")
@pytest.mark.filterwarnings("ignore:Arguments other than a weight enum:UserWarning")
def test_it_is_that_of_its_authors(tmp_path):
    theirs = pytest.importorskip("lpips", reason="needs lpips and torchvision")
    peer = theirs.LPIPS(net="alex", pnet_rand=True, verbose=False, model_path=None).double()
    weights = {}
    for stage in ("slice1", "slice2", "slice3", "slice4", "slice5"):
        for name, value in getattr(peer.net, stage).state_dict().items():
            weights[f"features.{name}"] = value
    torch.save(weights, tmp_path / "alexnet.pth")
    # Trained heads: those that their package brings.
    heads = {name: each for name, each in peer.state_dict().items() if name.startswith("lin")}
    torch.save(heads, tmp_path / "heads.pth")
    loaded = load_lpips(tmp_path / "alexnet.pth", tmp_path / "heads.pth")
    for rows, columns in ((31, 31), (64, 45), (100, 131)):
        one, other = pictures(rows, columns, seed=rows)
        pair = (each.movedim(2, 0)[None] for each in (one, other))
        with torch.no_grad():
            expected = float(peer(*pair, normalize=True))
        # Their constants are in single precision.
        assert loaded(one, other) == pytest.approx(expected, rel=1e-6)


def test_pictures_must_fit(loaded):
    one, other = pictures(31, 30)
    with pytest.raises(ValueError, match=r"at least 31 pixels a side, got \[31, 30\]"):
        loaded(one, other)
    with pytest.raises(ValueError, match="must have one shape"):
        loaded(pictures(31, 31)[0], pictures(31, 32)[0])


class Code:
    """Runs something when it is unpickled."""

    ran = False

    def __reduce__(self):
        return run, ()


def run():
    Code.ran = True


def refused(files, backbone, heads, reason):
    with pytest.raises(InputError, match=reason) as error:
        load_lpips(backbone or files[0], heads or files[1])
    assert "\n" not in str(error.value)


def test_bad_files_are_told_in_a_sentence(files, tmp_path):
    bad = tmp_path / "bad.pth"
    refused(files, bad, None, "must be two files, .*bad.pth: No such file")
    refused(files, None, tmp_path, "must be two files, .* is none")
    os.mkfifo(tmp_path / "pipe")
    refused(files, tmp_path / "pipe", None, "must be two files, .*pipe is none")
    refused(files, "~nobody-of-this-name/x", None, "must be two files")
    for data in (b"", b"weights", files[0].read_bytes()[:5000]):
        bad.write_bytes(data)
        refused(files, bad, None, "cannot be read as one without running code")
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("notes.txt", "no tensors")
    refused(files, bad, None, "cannot be read as one")
    torch.save(torch.zeros(3), bad)
    refused(files, bad, None, "must hold tensors by name, .* holds a Tensor")
    # The two in the other order.
    refused(files, *files[::-1], r"has no tensor features\.0\.weight")
    torch.save({"code": Code()}, bad)
    refused(files, bad, None, "without running code")
    assert not Code.ran


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("features.3.weight", torch.zeros(192, 64, 3, 3), r"of shape \[192, 64, 5, 5\], got"),
        ("features.3.bias", torch.zeros(192, dtype=torch.int64), r"real numbers .* torch\.int64"),
        ("features.3.bias", torch.full((192,), torch.nan), "must be finite, features.3.bias"),
        ("features.3.bias", torch.zeros(192).to_sparse(), "must be real numbers"),
        ("features.3.bias", torch.zeros(192, device="meta"), "must be real numbers"),
        ("features.3.bias", [0.0] * 192, "has no tensor features.3.bias"),
    ],
)
def test_bad_weights_are_told_in_a_sentence(files, tmp_path, name, value, reason):
    torch.save(network_weights() | {name: value}, tmp_path / "bad.pth")
    refused(files, tmp_path / "bad.pth", None, reason)


def test_what_would_fill_memory_is_not_read(files, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 22))
    assert (tmp_path / "bomb.pth").stat().st_size < 1 << 15
    monkeypatch.setattr(ours, "MOST_BYTES", 1 << 21)
    monkeypatch.setattr(torch, "load", None)
    refused(files, tmp_path / "bomb.pth", None, "must have at most 2097152 bytes")
