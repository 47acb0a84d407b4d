"""Files of weights for LPIPS, random ones: of torchvision's AlexNet, and of the heads for it."""

import torch

from hessian_lab.measures.lpips import STAGES


def network_weights(seed=0):
    """Return weights as torchvision names them, as large as He's initialisation has them."""
    generator, weights = torch.Generator().manual_seed(seed), {}
    for name, (inner, outer, side, *_) in STAGES.items():
        shape, scale = (outer, inner, side, side), (2 / (inner * side**2)) ** 0.5
        weights[f"{name}.weight"] = scale * torch.randn(shape, generator=generator)
        weights[f"{name}.bias"] = 0.1 * torch.randn(outer, generator=generator)
    # A part of the network that LPIPS does not use.
    return weights | {"classifier.6.bias": torch.zeros(1000)}


def head_weights(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"lin{place}.model.1.weight": torch.rand((1, outer, 1, 1), generator=generator)
        for place, (_, outer, *_) in enumerate(STAGES.values())
    }


def write_weights(directory):
    """Write both files, and return their paths."""
    paths = directory / "alexnet.pth", directory / "heads.pth"
    for path, weights in zip(paths, (network_weights(), head_weights()), strict=True):
        torch.save(weights, path)
    return paths
