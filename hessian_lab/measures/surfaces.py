"""How far two surfaces lie apart, and of how many pieces one is."""

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from hessian_lab.signals.meshes import Mesh
from hessian_lab.signals.occupancy import on_surface

NUM_POINTS = 50_000


def chamfer(one: Mesh, other: Mesh, *, num_points: int = NUM_POINTS, seed: int = 0) -> float:
    """Return how far two surfaces lie apart on average: their symmetric Chamfer distance.

    Half the sum of two means: of the distances from points of the one to the nearest of the other,
    and back, with as many points on each, uniform by area. Two samples of one surface of area A lie
    ½√(A/num_points) apart: what is less cannot be told from nothing. Takes num_points·log
    num_points operations.

    Args:
        one: A mesh.
        other: Another, in the same units.
        num_points: On each of them.
        seed: Of the points.

    Raises:
        ValueError: If ``num_points`` is below 1.

    References:
        H. Fan, H. Su & L. Guibas, A point set generation network, 2017, without their squares.
    """
    if num_points < 1:
        raise ValueError(f"num_points must be at least 1, got {num_points}.")
    generator = torch.Generator().manual_seed(seed)
    points = [on_surface(mesh, num_points, generator).numpy() for mesh in (one, other)]
    there = np.mean(cKDTree(points[1]).query(points[0])[0])
    back = np.mean(cKDTree(points[0]).query(points[1])[0])
    return float(there + back) / 2


def num_components(mesh: Mesh) -> int:
    """Return of how many pieces a surface is: faces that share a vertex are of one."""
    ends = mesh.faces[:, [0, 1, 1, 2]].reshape(-1, 2)
    size = len(mesh.vertices)
    links = coo_array((np.ones(len(ends)), tuple(ends.T)), shape=(size, size))
    labels = connected_components(links, directed=False)[1]
    return len(set(labels[mesh.faces[:, 0]].tolist()))
