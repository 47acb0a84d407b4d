import re
from functools import cache

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from hessian_lab.plots.eigenvalues import plot_spectrum
from hessian_lab.plots.style import save
from hessian_lab.probe.spectrum import Spectrum

EPS = 2.0**-52


def make_spectrum(seed=0, scale=0.01, zeros=0, structural=0):
    """Return 100 eigenvalues of both signs, and ``zeros`` that are exactly zero besides."""
    generator = torch.Generator().manual_seed(seed)
    values = scale * torch.randn(100, dtype=torch.float64, generator=generator)
    return exact([*values.tolist(), *[0.0] * zeros], structural)


def exact(values, structural=0):
    ascending = torch.tensor(sorted(values), dtype=torch.float64)
    return Spectrum(ascending, structural_zeros=structural)


def zero_spectrum(size=5):
    return exact([0.0] * size, structural=size)


WITH_ZEROS = [make_spectrum(0, zeros=40, structural=30), make_spectrum(1, zeros=20, structural=11)]
CASES = {
    "one": make_spectrum(zeros=30, structural=20),
    "one without zeros": make_spectrum(),
    "one of zeros only": zero_spectrum(),
    "one eigenvalue": exact([0.003]),
    "one outside the window": exact([-6.0, 5.0]),
    "a list of one": [make_spectrum()],
    "two": WITH_ZEROS,
    "two without zeros": [make_spectrum(0), make_spectrum(1)],
    "two outside the window": [exact([-6.0, 5.0]), exact([-8.0, 7.0])],
    "two of zeros only": [zero_spectrum(), zero_spectrum()],
    "three of zeros only": [zero_spectrum()] * 3,
    "one of zeros only, one of none": [zero_spectrum(100), make_spectrum()],
    "two of negative eigenvalues only": [exact([-0.002, -0.001]), exact([-0.005, -0.001])],
    "two of one magnitude": [exact([0.005] * 4), exact([0.005] * 4)],
    "many": [make_spectrum(seed, zeros=seed, structural=seed) for seed in range(12)],
    "tiny": [make_spectrum(0, scale=1e-200), make_spectrum(1, scale=1e-200)],
}
each_case = pytest.mark.parametrize("case", CASES)


def as_list(spectra):
    return [spectra] if isinstance(spectra, Spectrum) else list(spectra)


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def title(axes):
    return axes.get_title(loc="left")


def count_zeros(spectra):
    """Return how many |λ| are at most n · eps · max|λ|, one number at a time."""
    count = 0
    for one in as_list(spectra):
        magnitudes = [abs(value) for value in one.values.tolist()]
        floor = len(magnitudes) * EPS * max(magnitudes)
        count += sum(magnitude <= floor for magnitude in magnitudes)
    return count


def size(spectra):
    return sum(len(one.values) for one in as_list(spectra))


@cache
def drawn(case):
    return plot_spectrum(CASES[case])


@each_case
def test_the_picture_can_be_drawn(case):
    assert isinstance(drawn(case), Figure)
    drawn(case).draw_without_rendering()


@each_case
def test_the_legend_tells_the_shares_of_zeros(case):
    spectra = CASES[case]
    structural = sum(one.structural_zeros for one in as_list(spectra)) / size(spectra)

    assert legend(drawn(case).axes[0]) == [
        f"numerical zeros: {count_zeros(spectra) / size(spectra):.1%}",
        f"of them structural: {structural:.1%}",
        "other eigenvalues",
    ]


def test_shares_of_zeros_are_pooled_over_all_eigenvalues():
    spectra = [exact([0.001] * 90 + [0.0] * 10, 5), exact([0.001] * 20 + [0.0] * 80, 80)]
    texts = legend(plot_spectrum(spectra).axes[0])

    assert texts[:2] == ["numerical zeros: 45.0%", "of them structural: 42.5%"]


def test_a_rounding_error_is_a_numerical_but_no_structural_zero():
    texts = legend(plot_spectrum(exact([1e-20, 0.001, 0.002, 0.003])).axes[0])
    assert texts[:2] == ["numerical zeros: 25.0%", "of them structural: 0.0%"]


def test_the_floor_of_single_precision_is_that_of_its_eps():
    values = torch.tensor([1e-9, 0.001, 0.002, 0.003], dtype=torch.float64)
    single = plot_spectrum(Spectrum(values, dtype="float32"))

    assert legend(single.axes[0])[0] == "numerical zeros: 25.0%"
    assert legend(plot_spectrum(Spectrum(values)).axes[0])[0] == "numerical zeros: 0.0%"


@pytest.mark.parametrize("window", [0.01, 0.02, 5.0])
def test_the_title_tells_the_share_inside_the_window(window):
    values = np.concatenate([one.values.numpy() for one in WITH_ZEROS])
    share = sum(-window <= value <= window for value in values) / len(values)
    axes = plot_spectrum(WITH_ZEROS, window=window).axes[0]

    assert title(axes) == f"{share:.0%} of λ lie in [-{window:g}, {window:g}]"
    assert axes.get_xlim() == (-window, window)


def test_heights_of_all_bars_are_the_share_inside_the_window_in_percent():
    values = np.concatenate([one.values.numpy() for one in WITH_ZEROS])
    bars = plot_spectrum(WITH_ZEROS).axes[0].patches

    total = sum(bar.get_height() for bar in bars)
    assert total == pytest.approx(100 * (np.abs(values) <= 0.01).mean(), rel=1e-12)


def test_zeros_stand_in_one_bar_that_is_centred_on_zero():
    zeros, others = plot_spectrum(WITH_ZEROS).axes[0].containers
    filled = [bar for bar in zeros if bar.get_height() > 0]

    assert len(filled) == 1
    assert filled[0].get_height() == pytest.approx(100 * 60 / 260, rel=1e-12)
    assert filled[0].get_x() + filled[0].get_width() / 2 == pytest.approx(0, abs=1e-12)
    assert zeros[0].get_facecolor() != others[0].get_facecolor()


def test_one_spectrum_is_drawn_by_rank():
    one = make_spectrum(zeros=20)
    axes = plot_spectrum(one).axes[1]
    positive, negative, floor = axes.lines

    descending = np.sort(np.abs(one.values.numpy()))[::-1]
    ranks = np.concatenate([positive.get_xdata(), negative.get_xdata()]).astype(int)
    heights = np.concatenate([positive.get_ydata(), negative.get_ydata()])
    assert len(positive.get_xdata()) == int((one.values > 0).sum())
    assert len(negative.get_xdata()) == int((one.values < 0).sum())
    assert (heights == descending[ranks - 1]).all()
    assert floor.get_ydata()[0] == pytest.approx(120 * EPS * descending[0], rel=1e-12)
    assert title(axes) == "120 eigenvalues"
    assert legend(axes) == ["positive", "negative", "rounding floor"]


def test_a_list_of_one_is_drawn_as_the_one():
    alone, listed = plot_spectrum(make_spectrum()), plot_spectrum([make_spectrum()])
    assert [title(axes) for axes in listed.axes] == [title(axes) for axes in alone.axes]


@pytest.mark.parametrize("count", [2, 12])
def test_every_checkpoint_shares_out_all_its_eigenvalues(count):
    spectra = [make_spectrum(seed, zeros=seed + 1) for seed in range(count)]
    (mesh,) = plot_spectrum(spectra).axes[1].collections
    table = mesh.get_array().filled(0)

    assert table.shape[1] == count
    assert table.sum(axis=0) == pytest.approx(np.full(count, 100), rel=1e-12)
    expected = [100 * (seed + 1) / (101 + seed) for seed in range(count)]
    assert table[0] == pytest.approx(expected, rel=1e-12)


def test_magnitudes_stand_in_their_decades():
    spectra = [exact([-1e-3 / 2, 0.02, 0.05, 3.0]), exact([0.02, 0.05, -3.0, 4.0])]
    (mesh,) = plot_spectrum(spectra).axes[1].collections
    heights = mesh.get_coordinates()[:, 0, 1]
    table = mesh.get_array().filled(0)

    for column, one in enumerate(spectra):
        for share, low, high in zip(table[:, column], heights[:-1], heights[1:], strict=True):
            inside = sum(low <= abs(value) < high for value in one.values.tolist())
            assert share == pytest.approx(100 * inside / 4)


def test_the_rounding_floor_is_drawn_over_the_steps_of_the_checkpoints():
    axes = plot_spectrum(WITH_ZEROS, steps=[0, 50]).axes[1]
    (floor,) = axes.lines
    (mesh,) = axes.collections
    expected = [len(one.values) * EPS * float(one.values.abs().max()) for one in WITH_ZEROS]

    assert list(floor.get_xdata()) == [0, 50]
    assert floor.get_ydata() == pytest.approx(expected, rel=1e-12)
    assert mesh.get_coordinates()[0, :, 0].tolist() == [-25, 25, 75]
    assert [text.get_text() for text in axes.texts] == ["rounding floor n·eps·max|λ|"]


@pytest.mark.parametrize("steps", [(0, 10), range(0, 20, 10)], ids=str)
def test_steps_may_come_in_any_sequence(steps):
    (floor,) = plot_spectrum(WITH_ZEROS, steps=steps).axes[1].lines
    assert list(floor.get_xdata()) == [0, 10]


def test_axes_say_what_they_show():
    left, right, bar = plot_spectrum(WITH_ZEROS).axes

    assert (left.get_xlabel(), right.get_xlabel()) == ("eigenvalue λ", "optimizer step")
    assert (left.get_ylabel(), right.get_ylabel()) == (
        "share of all eigenvalues (%)",
        "magnitude |λ|",
    )
    assert bar.get_ylabel() == "share per cell (%)"
    assert plot_spectrum(WITH_ZEROS[0]).axes[1].get_xlabel() == "rank by magnitude"


@pytest.mark.parametrize("words", [None, "sine, 4×16"])
def test_the_title_of_the_figure_is_the_one_given(words):
    assert plot_spectrum(make_spectrum(), title=words).get_suptitle() == (words or "")


def settings():
    """Return matplotlib's settings but the backend, which looking at it would choose."""
    return {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != "backend"}


def test_global_state_of_matplotlib_is_not_touched(tmp_path):
    with matplotlib.rc_context({"font.size": 13, "savefig.dpi": 77, "lines.linewidth": 5}):
        before, numbers = settings(), plt.get_fignums()
        save(plot_spectrum(make_spectrum()), tmp_path / "picture")

        assert plt.get_fignums() == numbers
        assert settings() == before


def test_settings_of_the_user_do_not_change_the_picture():
    with matplotlib.rc_context({"font.size": 30, "axes.labelsize": 30, "axes.spines.top": True}):
        axes = plot_spectrum(make_spectrum()).axes[0]

    assert axes.xaxis.label.get_fontsize() == 9
    assert not axes.spines["top"].get_visible()


def test_saving_writes_a_png_and_a_pdf_and_nothing_else(tmp_path):
    paths = save(plot_spectrum(WITH_ZEROS), tmp_path / "new" / "picture")

    assert paths == [tmp_path / "new" / "picture.png", tmp_path / "new" / "picture.pdf"]
    assert sorted((tmp_path / "new").iterdir()) == sorted(paths)
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert paths[1].read_bytes().startswith(b"%PDF")
    assert min(path.stat().st_size for path in paths) > 1000


def test_saving_again_replaces_the_files(tmp_path):
    figure = Figure(figsize=(1, 1))
    (tmp_path / "picture.png").write_bytes(b"old")
    save(figure, tmp_path / "picture")

    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_dot_in_the_name_of_a_picture_is_kept(tmp_path):
    paths = save(Figure(figsize=(1, 1)), tmp_path / "sigma0.05")
    assert [path.name for path in paths] == ["sigma0.05.png", "sigma0.05.pdf"]


def test_refuses_no_spectrum():
    with pytest.raises(ValueError, match=re.escape("spectra must hold at least one spectrum, got")):
        plot_spectrum([])
