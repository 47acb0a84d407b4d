import pandas as pd

from analyses import kilo_radiance, patches

STEPS = 40


def stack(method, seconds, curve, **more):
    """Return the row of a stack of one field that takes 40 steps."""
    return {"method": method, "steps": STEPS, "wall": seconds, "psnr": [curve], **more}


CURVE, SLOW = [5, 20, 30, 31, 32, 33, 34, 35, 40], [5, 10, 15, 18, 20, 22, 23, 24, 25]


def answer_of(study, rows, claim):
    (found,) = [one for one in study.verdicts(pd.DataFrame(rows)) if one.claim == claim]
    return found.answer


def cuts(whole, tiles):
    """Return rows in which L-BFGS needs so many seconds on each cut, and Adam 4."""
    rows = []
    for image in ("a", "b"):
        for cut, seconds in (("whole", whole), ("tiles", tiles)):
            more = {"image": image, "seed": 0, "cut": cut, "shape": "4×64", "fields": 1}
            rows += [stack("lbfgs", seconds, CURVE, **more), stack("adam 1e-3", 4.0, CURVE, **more)]
    return rows


def test_patches_restore_an_advantage_if_the_ratio_is_larger_there():
    assert answer_of(patches, cuts(whole=4.0, tiles=1.0), "C112") == "holds"
    assert answer_of(patches, cuts(whole=1.0, tiles=4.0), "C112") == "does not hold"


def distilled(seconds, ends, *, late=4.0):
    """Return rows of one scene: L-BFGS's seconds, and the views' decibels of both at the end."""
    rows = []
    for seed in (0, 1):
        more = {"scene": "s", "seed": seed, "fields": 9}
        for method, wall, curve, end in (
            ("lbfgs", seconds, CURVE, ends[0]),
            ("adam 1e-3", 4.0, CURVE, ends[1]),
            ("adam 1e-4", late, SLOW, ends[1]),
        ):
            shown = {"times": [0.0, wall], "held_out": [10.0, end]}
            rows.append(stack(method, wall, curve, **more, **shown))
    return rows


def test_kilonerf_is_judged_by_seconds_and_by_views_held_out():
    printed = distilled(4 / 6, (30.0, 20.0))
    assert answer_of(kilo_radiance, printed, "C109") == "holds"
    assert answer_of(kilo_radiance, distilled(8.0, (20.0, 20.0)), "C109") == "does not hold"
    # After 2 s L-BFGS is at 23.36 dB, Adam half-way to 30.
    assert answer_of(kilo_radiance, distilled(2.0, (23.36, 30.0)), "C110") == "holds"
    assert answer_of(kilo_radiance, distilled(4.0, (20.0, 30.0)), "C110") == "does not hold"


def test_a_scene_that_is_not_here_is_left_out():
    rows = [*distilled(4 / 6, (30.0, 20.0)), {"method": "none", "missing": True, "scene": "x"}]
    assert answer_of(kilo_radiance, rows, "C109") == "holds"
