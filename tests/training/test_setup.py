import json
from dataclasses import fields, replace

import pytest

from hessian_lab.errors import UsageError
from hessian_lab.optim import RECIPES
from hessian_lab.training.devices import usable_device
from hessian_lab.training.loop import make_optimizer
from hessian_lab.training.run import checkpoint_steps, field_of
from hessian_lab.training.setup import Setup, digest, identity, setup_from_json


def test_defaults_are_the_main_job():
    setup = Setup().resolved()
    assert (setup.signal, setup.size, setup.act, setup.octaves) == ("camera", 50, "relu_pe", 8)
    assert (setup.depth, setup.width, setup.steps) == (4, 16, 50)
    assert (setup.optimizer, setup.lr, setup.dtype) == ("lbfgs", 1.0, "float64")


def test_resolving_twice_changes_nothing():
    setup = Setup(act="sine", omega=10.0).resolved()
    assert setup.resolved() == setup


def test_json_round_trip():
    setup = Setup(act="sine", options={"history_size": 3}).resolved()
    assert setup_from_json(setup.to_json()) == setup
    assert setup_from_json(setup.to_json() | {"of_the_future": 1}) == setup


def test_json_round_trip_of_layers_and_of_a_sound():
    setup = Setup(act="sine", omega=(30.0, 4.0), depth=2, signal="bwv1007", start=2.5).resolved()
    read = json.loads(json.dumps(setup.to_json()))
    assert setup_from_json(read) == setup
    assert read["omega"] == [30.0, 4.0]
    assert (read["start"], read["seconds"], read["rate"]) == (2.5, 1.0, 8000)


def test_an_older_run_keeps_its_setup_and_its_name():
    # As version 0.1.0 wrote it, before there were sounds.
    identity_then = {
        **{"signal": "camera", "size": 50, "act": "sine", "width": 16, "depth": 4, "omega": 30.0},
        **{"sigma": None, "octaves": None, "init": "siren", "optimizer": "lbfgs", "lr": 1.0},
        **{"lr_final": None, "options": {}, "steps": 50, "checkpoint_every": 1},
        **{"batch_size": None, "seed": 0, "dtype": "float64", "device": "cpu"},
    }
    setup = Setup(act="sine").resolved().with_checkpoints(881)
    assert identity(setup, {}) == identity_then
    assert digest(identity(setup, {"data": "x", "loss": "mse"})) == "aaf5b981"
    assert setup_from_json(identity_then) == setup


def test_an_omega_that_all_layers_share_is_one_number():
    asked = Setup(act="sine", omega=(7.0, 7.0), depth=2).resolved()
    assert asked == Setup(act="sine", omega=7.0, depth=2).resolved()
    assert Setup(act="relu", omega=(1.0, 2.0, 3.0)).resolved().omega is None


def test_options_are_those_of_the_signals_kind():
    assert Setup(signal="sines").resolved().excerpt == {"size": 256}
    assert Setup(signal="a.png", rate=3).resolved().excerpt == {"size": 50}
    sound = Setup(signal="song.WAV", size=9, seconds=2.0).resolved()
    assert sound.excerpt == {"start": 0.0, "seconds": 2.0, "rate": 8000}
    assert sound.size is None


def test_threads_do_not_define_a_trajectory_and_everything_else_does():
    setup = Setup().resolved()
    one = digest(identity(setup, {}))
    assert digest(identity(replace(setup, threads=7), {})) == one
    assert digest(identity(replace(setup, recipe="sgd-pn"), {})) == one
    changed = {
        "signal": "coffee",
        "size": 51,
        "start": 1.0,
        "seconds": 2.0,
        "rate": 100,
        "act": "relu",
        "width": 17,
        "depth": 3,
        "omega": 2.0,
        "sigma": 2.0,
        "octaves": 4,
        "init": "siren",
        "optimizer": "sgd",
        "lr": 0.5,
        "lr_final": 0.1,
        "options": {"history_size": 3},
        "steps": 51,
        "checkpoint_every": 2,
        "batch_size": 10,
        "seed": 1,
        "dtype": "float32",
        "device": "cuda",
        "points": 7,
        "views": 7,
        "samples": 7,
        "directions": 1,
    }
    assert set(changed) | {"threads", "recipe"} == {entry.name for entry in fields(Setup)}
    digests = {digest(identity(replace(setup, **{name: new}), {})) for name, new in changed.items()}
    assert len(digests | {one}) == len(changed) + 1


def test_tells_what_a_field_does_not_have():
    ignored = Setup(act="relu", omega=3.0, octaves=2).ignored()
    assert ignored == {"omega": "relu", "octaves": "relu"}
    assert Setup(act="wavelet", omega=3.0, sigma=1.0).ignored() == {}


def test_tells_what_a_signal_does_not_have():
    assert Setup(rate=3, start=0.0).ignored() == {"rate": "camera", "start": "camera"}
    assert Setup(signal="bwv1007", size=9, rate=3).ignored() == {"size": "bwv1007"}


@pytest.mark.parametrize("act", ["relu", "relu_pe"])
@pytest.mark.parametrize("depth", [0, 1, 4])
def test_parameters_are_counted_without_building_them(act, depth):
    setup = Setup(act=act, depth=depth, width=7).resolved()
    field = field_of(setup, 2, 3)
    assert setup.num_parameters(2, 3) == sum(value.numel() for value in field.parameters())


@pytest.mark.parametrize("every", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("steps", [0, 1, 6, 7])
def test_checkpoints_are_counted_without_listing_them(steps, every):
    setup = Setup(steps=steps, checkpoint_every=every)
    assert setup.num_checkpoints == len(checkpoint_steps(setup))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("act", "sin", "act must be one of .* got 'sin'. Did you mean sine?"),
        ("signal", "camrea", "Did you mean camera?"),
        ("optimizer", "lbgfs", "Did you mean lbfgs?"),
        ("init", "kaimin", "Did you mean kaiming?"),
        ("dtype", "float16", "dtype must be one of float64, float32"),
        ("size", 1, "size must be at least 2, got 1"),
        ("width", 0, "width must be at least 1, got 0"),
        ("depth", -1, "depth must be at least 0, got -1"),
        ("steps", -1, "steps must be at least 0, got -1"),
        ("octaves", -1, "octaves must be at least 0, got -1"),
        ("seed", -1, "seed must be at least 0, got -1"),
        ("seed", 1 << 63, "seed must be at most 9223372036854775807"),
        ("octaves", 53, "octaves must be at most 52, got 53"),
        ("threads", 10**6, "threads must be at most 1024"),
        ("omega", 1e-31, r"omega must be in \[1e-30, 1e\+30\], got 1e-31"),
        ("omega", (1.0, 0.0), "omega must be positive and finite, got 0"),
        ("start", -0.1, "start must be at least 0, got -0.1"),
        ("start", float("inf"), "start must be finite, got inf"),
        ("seconds", 0.0, "seconds must be positive, got 0"),
        ("seconds", float("nan"), "seconds must be finite, got nan"),
        ("rate", 0, "rate must be at least 1, got 0"),
        ("rate", 10**7, r"rate must be at most 1e\+06, got 1e\+07"),
        ("batch_size", 0, "batch_size must be at least 1"),
        ("checkpoint_every", 0, "checkpoint_every must be at least 1"),
        ("threads", 0, "threads must be at least 1"),
        ("lr", 0.0, "lr must be positive and finite, got 0"),
        ("lr", float("nan"), "lr must be positive and finite, got nan"),
        ("lr_final", -1.0, "lr_final must be positive and finite, got -1"),
    ],
)
def test_refuses_values_out_of_range(field, value, message):
    with pytest.raises(UsageError, match=message):
        replace(Setup(), **{field: value}).resolved()


@pytest.mark.parametrize("omega", [(30.0,) * 3, [30.0] * 5, (30.0,)])
def test_refuses_another_number_of_omegas_than_layers(omega):
    message = f"one for each of 4, got {len(omega)}"
    with pytest.raises(UsageError, match=message):
        Setup(act="sine", omega=omega).resolved()


@pytest.mark.parametrize("name", ["nonsense", "meta", "cuda:99"])
def test_refuses_devices_that_are_not_there(name):
    with pytest.raises(UsageError, match="device must be"):
        usable_device(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"histroy_size": 3}, "option of lbfgs must be one of .* Did you mean history_size?"),
        ({"history_size": 0}, "history_size must be at least 1, got 0"),
        ({"line_search_fn": "goldstein"}, "line_search_fn must be .*strong_wolfe.*None"),
    ],
)
def test_refuses_options_that_an_optimizer_does_not_have(options, message):
    setup = Setup(options=options, width=3, depth=1).resolved()
    with pytest.raises(UsageError, match=message):
        make_optimizer(setup, field_of(setup, 2, 1), 9)


def test_a_recipe_is_an_optimizer_with_its_rate_and_options():
    recipe = RECIPES["sgd-pn"]
    setup = Setup(recipe="sgd-pn").resolved()
    assert (setup.optimizer, setup.lr) == (recipe.optimizer, recipe.lr)
    assert identity(setup, {}) == identity(Setup(optimizer="sgd", lr=1.0).resolved(), {})
    assert Setup(recipe="sgd-pn", lr=0.5).resolved().lr == 0.5


def test_the_rate_of_a_recipe_decays_as_its_paper_says():
    assert Setup(recipe="esgd-nerf-pn").resolved().lr_final == 0.01
    assert Setup(recipe="esgd-nerf-pn", lr_final=0.1).resolved().lr_final == 0.1
    assert Setup(recipe="sgd-pn").resolved().lr_final is None
    # The shape of the schedule stays when its height is another.
    assert Setup(recipe="esgd-nerf-pn", lr=0.1).resolved().lr_final == pytest.approx(1e-3)


def test_a_given_option_goes_before_that_of_a_recipe():
    recipe = RECIPES["esgd-cvpr2025"]
    setup = Setup(recipe="esgd-cvpr2025", options={"update_every": 7}).resolved()
    assert setup.options == {**recipe.options, "update_every": 7}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"recipe": "sgd-pm"}, "recipe must be one of .* Did you mean sgd-pn?"),
        ({"recipe": "sgd-pn", "optimizer": "adam"}, "recipe sgd-pn is one of sgd, not of adam"),
    ],
)
def test_refuses_recipes_that_there_are_not(given, message):
    with pytest.raises(UsageError, match=message):
        Setup(**given).resolved()
