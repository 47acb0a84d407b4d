import json
import logging
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from hessian_lab.errors import DivergenceError, InputError, ResourceError, UsageError
from hessian_lab.fields.mlp import make_field
from hessian_lab.losses import bce, mse
from hessian_lab.signal import Signal
from hessian_lab.training import files
from hessian_lab.training.loop import train
from hessian_lab.training.quality import quality
from hessian_lab.training.run import load_run
from hessian_lab.training.setup import Setup
from tests.reference import assert_same

TINY = Setup(size=6, width=4, depth=1, steps=4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(TINY, out=tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture
def copied(trained, tmp_path):
    shutil.copytree(trained.path, tmp_path / "copy")
    return tmp_path / "copy"


def test_first_row_is_the_initialisation(trained):
    field = make_field("relu_pe", 2, 1, width=4, depth=1, seed=0)
    expected = torch.cat([value.detach().flatten() for value in field.parameters()])
    assert np.array_equal(trained.trajectory[0], expected.numpy())
    assert trained.steps == [0, 1, 2, 3, 4]
    assert trained.trajectory.shape == (5, trained.num_parameters)


def test_metrics_are_those_of_the_whole_signal_at_each_checkpoint(trained):
    for step, row in zip(trained.steps, trained.metrics.to_dict("records"), strict=True):
        measured = quality(trained.model(step), mse, trained.signal())
        assert row["step"] == step
        assert {name: row[name] for name in measured} == measured


def test_step_length_is_the_distance_between_neighbours(trained):
    lengths = np.linalg.norm(np.diff(trained.trajectory, axis=0), axis=1)
    assert trained.metrics["step_length"][0] == 0
    np.testing.assert_allclose(trained.metrics["step_length"][1:], lengths, rtol=1e-14)


def test_steps_are_those_of_torch(tmp_path):
    run = train(Setup(size=6, width=4, depth=1, steps=5, optimizer="adam", lr=0.01), out=tmp_path)
    model, signal = run.model(0), run.signal()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(1, 6):
        optimizer.zero_grad()
        mse(model(signal.coords), signal.values).backward()
        optimizer.step()
        ours = dict(run.model(step).named_parameters())
        for name, value in model.named_parameters():
            assert_same(ours[name].detach(), value.detach(), roundings=10)


def test_last_step_is_a_checkpoint_whatever_the_interval(tmp_path):
    run = train(Setup(size=6, width=4, depth=1, steps=5, checkpoint_every=3), out=tmp_path)
    assert run.steps == [0, 3, 5]
    assert run.trajectory.shape[0] == 3


def test_checkpoints_default_to_what_fits_a_gibibyte():
    assert Setup(steps=50).with_checkpoints(1393).checkpoint_every == 1
    assert Setup(steps=10**6).with_checkpoints(1000).checkpoint_every == 8
    assert Setup(steps=10**6, dtype="float32").with_checkpoints(1000).checkpoint_every == 4


def test_learning_rate_decays_exponentially_to_its_end(tmp_path):
    setup = Setup(size=6, width=4, depth=1, steps=5, optimizer="sgd", lr=1.0, lr_final=1e-4)
    train(setup, out=tmp_path)
    state = torch.load(tmp_path / "resume.pt")
    assert state["optimizer"]["param_groups"][0]["lr"] == pytest.approx(1e-4)


def test_every_point_is_seen_once_per_epoch(tmp_path):
    seen = []

    def loss(predictions, values):
        if len(values) < 36:
            seen.append(values.flatten())
        return mse(predictions, values)

    setup = Setup(size=6, width=4, depth=1, steps=8, optimizer="sgd", batch_size=10)
    run = train(setup, out=tmp_path, loss=loss)
    values = run.signal().values.flatten().sort().values
    assert [len(batch) for batch in seen] == [10, 10, 10, 6] * 2
    assert torch.equal(torch.cat(seen[:4]).sort().values, values)
    assert torch.equal(torch.cat(seen[4:]).sort().values, values)
    assert not torch.equal(torch.cat(seen[:4]), torch.cat(seen[4:]))


def test_global_generator_is_neither_read_nor_moved(tmp_path):
    state = torch.random.get_rng_state()
    train(Setup(size=6, width=4, depth=1, steps=2, optimizer="sgd", batch_size=5), out=tmp_path)
    assert torch.equal(state, torch.random.get_rng_state())


def test_record_says_where_it_comes_from(trained):
    record = json.loads((trained.path / "run.json").read_text())
    assert record["data"]["attribution"].startswith("Cameraman")
    assert len(record["data"]["sha256"]) == 64
    assert record["provenance"]["torch"] == torch.__version__
    assert record["setup"]["octaves"] == 8
    assert record["status"] == "done"
    assert record["peak_memory_bytes"] > 2**20
    assert record["total_wall_s"] > 0


def test_a_moved_run_is_the_same_run(copied, trained):
    moved = load_run(copied)
    assert moved.setup == trained.setup
    assert np.array_equal(moved.trajectory, trained.trajectory)
    assert str(trained.path.parent) not in (copied / "run.json").read_text().split('"command"')[0]


def test_image_of_a_path_travels_with_its_run(tmp_path):
    from skimage.data import camera
    from skimage.io import imsave

    imsave(tmp_path / "photo.png", camera()[200:264, 200:264])
    run = train(
        Setup(signal=str(tmp_path / "photo.png"), size=6, width=4, steps=1), out=tmp_path / "run"
    )
    values = run.signal().values
    (tmp_path / "photo.png").unlink()
    assert torch.equal(load_run(tmp_path / "run").signal().values, values)
    assert run.record["data"]["name"] == "photo.png"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_signal_of_yours_travels_in_its_own_precision(dtype, tmp_path):
    coords = torch.linspace(-1, 1, 9, dtype=torch.float64).unsqueeze(1)
    setup = Setup(width=3, depth=1, steps=1, dtype=dtype)
    run = train(setup, out=tmp_path, signal=Signal(coords, coords / 3, bce))
    assert torch.equal(run.signal().values, (coords / 3).to(getattr(torch, dtype)))
    assert run.signal().loss is bce


def test_a_loss_inside_a_signal_is_not_lost(tmp_path):
    def cubic(predictions, values):
        return (predictions - values).abs().pow(3).mean()

    coords = torch.linspace(-1, 1, 9, dtype=torch.float64).unsqueeze(1)
    run = train(
        Setup(width=3, depth=1, steps=1), out=tmp_path, signal=Signal(coords, coords, cubic)
    )
    assert run.loss is run.signal().loss is cubic


def test_a_step_of_length_zero_does_not_go_unnoticed(tmp_path, caplog):
    coords = torch.linspace(-1, 1, 9, dtype=torch.float64).unsqueeze(1)
    setup = Setup(act="relu", width=2, depth=1, steps=3, optimizer="sgd", lr=1e-300)
    with caplog.at_level(logging.WARNING):
        run = train(setup, out=tmp_path, signal=Signal(coords, coords))
    assert caplog.text.count("step 1 had length 0: the optimizer has stalled") == 1
    assert run.metrics["step_length"].tolist() == [0, 0, 0, 0]


def test_batches_depend_on_the_seed(tmp_path):
    options = {"size": 6, "width": 3, "depth": 1, "steps": 3, "optimizer": "sgd", "batch_size": 5}
    batches = []
    for seed in (0, 1):
        seen = []

        def loss(predictions, values, seen=seen):
            seen.append(values.flatten())
            return mse(predictions, values)

        train(Setup(seed=seed, **options), out=tmp_path / str(seed), loss=loss)
        batches.append(torch.cat([values for values in seen if len(values) == 5]))
    assert not torch.equal(*batches)


def test_first_step_has_the_first_learning_rate(tmp_path):
    options = {"size": 6, "width": 3, "depth": 1, "steps": 3, "optimizer": "sgd", "lr": 0.5}
    decayed = train(Setup(lr_final=1e-3, **options), out=tmp_path / "decayed")
    constant = train(Setup(**options), out=tmp_path / "constant")
    assert np.array_equal(decayed.trajectory[1], constant.trajectory[1])
    assert not np.array_equal(decayed.trajectory[2], constant.trajectory[2])


def test_real_options_take_real_values(tmp_path):
    options = {"momentum": 0.9, "weight_decay": 1e-4, "nesterov": True}
    setup = Setup(size=6, width=3, depth=1, steps=1, optimizer="sgd", options=options)
    train(setup, out=tmp_path)
    group = torch.load(tmp_path / "resume.pt")["optimizer"]["param_groups"][0]
    assert {name: group[name] for name in options} == options


def test_own_module_loss_and_signal(tmp_path):
    coords = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(1)
    signal = Signal(coords, (coords > 0).double(), bce)
    module = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    initial = [value.detach().clone() for value in module.parameters()]

    def loss(predictions, values):
        return bce(predictions, values) + 0.0

    options = {"model": module, "loss": loss, "signal": signal}
    run = train(Setup(steps=3), out=tmp_path / "run", **options)
    assert all(map(torch.equal, initial, module.parameters()))
    assert run.metrics["loss"].iloc[-1] < run.metrics["loss"].iloc[0]
    again = load_run(tmp_path / "run", model=module, loss=loss)
    assert isinstance(again.model(3), nn.Sequential)
    assert torch.equal(again.signal().values, signal.values)
    with pytest.raises(InputError, match="trained on a module of yours, Sequential"):
        load_run(tmp_path / "run").model(3)
    with pytest.raises(InputError, match="trained with a loss of yours"):
        _ = load_run(tmp_path / "run").loss
    with torch.no_grad():
        module[0].bias += 1
    with pytest.raises(UsageError, match="differs in initial"):
        train(Setup(steps=3), out=tmp_path / "run", **options)


def test_loss_of_a_signal_is_known_by_name(tmp_path):
    coords = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(1)
    train(Setup(steps=1, width=3, depth=1), out=tmp_path, signal=Signal(coords, coords.abs(), bce))
    assert load_run(tmp_path).loss is bce


def test_float32_training_keeps_float32_rows(tmp_path):
    run = train(Setup(size=6, width=4, depth=1, steps=2, dtype="float32"), out=tmp_path)
    assert run.trajectory.dtype == np.float32
    assert run.signal().coords.dtype == torch.float32


def test_divergence_stops_says_where_and_keeps_what_it_has(tmp_path):
    setup = Setup(act="relu", size=6, optimizer="sgd", lr=1e30, steps=20)
    with pytest.raises(
        DivergenceError, match=r"must stay finite, it became \w+ at step (\d+)"
    ) as first:
        train(setup, out=tmp_path)
    run = load_run(tmp_path)
    assert f"up to step {run.steps[-1]} are kept" in str(first.value)
    assert np.isfinite(run.trajectory).all()
    assert run.record["status"] == "diverged"
    assert run.diverged == str(first.value)
    with pytest.raises(DivergenceError) as second:
        train(setup, out=tmp_path)
    assert str(second.value) == str(first.value)


def test_saving_takes_a_small_share_of_the_time(tmp_path, monkeypatch):
    spent = []
    write = files.write_atomically

    def timed(path, writer):
        import time

        start = time.perf_counter()
        write(path, writer)
        spent.append(time.perf_counter() - start)

    monkeypatch.setattr("hessian_lab.training.loop.write_atomically", timed)
    run = train(Setup(act="sine", size=30, width=32, steps=60), out=tmp_path)
    # The first and the last save are not a matter of choice.
    assert sum(spent[2:-2]) <= 0.1 * run.metrics["wall_s"].iloc[-1]


@pytest.mark.parametrize("step", [-1, 5, 100])
def test_refuses_steps_without_a_checkpoint(trained, step):
    with pytest.raises(
        ValueError, match=rf"step must be a checkpoint \(0, 1, 2, 3, 4\), got {step}"
    ):
        trained.model(step)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", None, "has no run.json"),
        ("run.json", "{", "run must be readable JSON"),
        ("run.json", "[]", "must hold a JSON object"),
        ("run.json", '{"format_version": 99}', "of format 1 or older, .* of format 99. Update"),
        ("run.json", "{}", "must state its format_version"),
        ("run.json", '{"format_version": 1}', "run must be whole"),
        ("resume.pt", None, "must have a checkpoint, .* hessian-lab train --out"),
        ("resume.pt", "x", "must have a readable resume.pt"),
        ("metrics.csv", None, "must have metrics"),
        ("metrics.csv", "step\n0\n", "must have 5 rows of metrics"),
        ("trajectory.npy", None, "must have a trajectory"),
        ("trajectory.npy", "x", "must have a readable trajectory"),
    ],
)
def test_refuses_damaged_runs(copied, name, content, message):
    if content is None:
        (copied / name).unlink()
    else:
        (copied / name).write_text(content)
    with pytest.raises(InputError, match=message):
        load_run(copied)


def test_refuses_a_truncated_trajectory(copied):
    data = (copied / "trajectory.npy").read_bytes()
    (copied / "trajectory.npy").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="must have a readable trajectory"):
        load_run(copied)


def test_refuses_data_that_are_no_longer_the_same(copied):
    record = json.loads((copied / "run.json").read_text())
    record["data"]["sha256_points"] = "0" * 64
    (copied / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="signal must be the one that was fitted, camera is not"):
        load_run(copied).signal()


def test_refuses_a_missing_directory(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_run(tmp_path / "none")


def test_refuses_to_write_into_foreign_directories(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(
            UsageError, match=r"out must be a run or an empty directory, .* thesis\.tex"
        ):
            train(TINY, out=tmp_path, overwrite=overwrite)


def test_refuses_a_trajectory_that_does_not_fit_the_disk(tmp_path, monkeypatch):
    class Usage:
        free = 10

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with pytest.raises(
        ResourceError, match=r"it needs .* bytes\), and 10 B are free .* --checkpoint"
    ):
        train(TINY, out=tmp_path / "run")


def test_a_disk_that_fills_up_leaves_what_was_saved(tmp_path, monkeypatch):
    import errno

    written = []

    def full(state, stream):
        written.append(state["count"])
        if len(written) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, stream)

    save = torch.save
    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr("hessian_lab.training.loop.SAVING_SHARE", float("inf"))
    with pytest.raises(ResourceError, match=r"resume\.pt must fit on the disk: No space left"):
        train(TINY, out=tmp_path / "run")
    assert load_run(tmp_path / "run").steps == [0]
    assert not list((tmp_path / "run").glob(".*.tmp"))
    monkeypatch.setattr(torch, "save", save)
    assert train(TINY, out=tmp_path / "run").complete


def test_a_batch_of_all_points_is_the_full_batch(tmp_path):
    setup = {"signal": "camera", "size": 6, "act": "tanh", "width": 3, "depth": 1, "steps": 6}
    whole = train(Setup(**setup), out=tmp_path / "whole")
    large = train(Setup(**setup, batch_size=36), out=tmp_path / "large")
    assert np.array_equal(whole.trajectory, large.trajectory)
    assert list(whole.metrics["evaluations"]) == list(large.metrics["evaluations"])
