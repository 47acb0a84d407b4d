"""What the README says runs, and runs as it says."""

import re
import shlex
from pathlib import Path

import pytest

from hessian_lab.cli import COMMANDS
from hessian_lab.cli.main import main
from tests.cli.terminal import typed

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_main_job_of_the_first_command(tmp_path):
    command = blocks("sh")[0].split(" && ")[-1].strip()
    assert command == "hessian-lab eigs --act relu_pe"
    answer = typed(tmp_path, *shlex.split(command)[1:], "--json")
    assert answer.status == 0, answer.err
    result = answer.json
    assert len(result["spectra"]) == 51
    assert result["num_parameters"] == 1393
    # Seeds and images give 11 to 31 % (design pilots); what is certain is that ReLU has zeros.
    assert 0.05 < result["pooled"]["structural_zero_share"] < 0.4
    assert result["spectra"][-1]["psnr"] > 20
    figures = Path(tmp_path, result["run"], "figures")
    assert {path.name for path in figures.iterdir()} == {"eigenvalues.png", "eigenvalues.pdf"}


def test_python_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own, large, stepping, shared = blocks("python")
    exec(own, {})
    assert (tmp_path / "eigenvalues.png").stat().st_size > 10_000
    exec(large, {})
    assert capsys.readouterr().out.count("≥") >= 2
    exec(stepping, {})
    assert "curvature_updates" in capsys.readouterr().out
    exec(shared, {})
    assert "tensor" in capsys.readouterr().out


def test_further_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for line in blocks("sh")[2].splitlines():
        # The same command, on a signal and a training that a test has time for.
        assert main([*shlex.split(line)[1:], "--size", "8", "--steps", "25", "--quiet"]) == 0
    assert "not told apart" in capsys.readouterr().out


def test_commands_of_optimizers_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    *trainings, cost = blocks("sh")[3].splitlines()
    for line in trainings:
        assert main([*shlex.split(line)[1:], "--size", "8", "--steps", "20", "--quiet"]) == 0
    assert "16 runs: 16 done" in capsys.readouterr().out
    assert main([*shlex.split(cost)[1:], "--width", "8", "--rounds", "1", "--quiet"]) == 0
    assert "kfac" in capsys.readouterr().out


def test_commands_along_a_training_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for line in blocks("sh")[4].splitlines():
        words = shlex.split(line)[1:]
        assert main([*words, "--size", "12", "--steps", "4", "--width", "8", "--quiet"]) == 0
    assert "κ" in capsys.readouterr().out
    (run, *_) = Path("runs").iterdir()
    assert main(["report", str(run)]) == 0


def test_commands_of_tiles_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for line in blocks("sh")[5].splitlines():
        words = shlex.split(line)[1:]
        assert main([*words, "--size", "48", "--tile", "16", "--width", "4", "--quiet"]) == 0
    assert "spectra of 9 fields" in capsys.readouterr().out


def test_commands_of_sounds_and_solids_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    *trainings, listing = blocks("sh")[6].splitlines()
    for line in trainings:
        words = shlex.split(line)[1:]
        assert main([*words, "--width", "4", "--steps", "2", "--quiet"]) == 0
    assert "IoU" in capsys.readouterr().out
    assert main(shlex.split(listing)[1:]) == 0
    assert "brahms" in capsys.readouterr().out


def test_commands_of_radiance_fields_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    eigs, distil = blocks("sh")[7].splitlines()
    small = ("--width", "6", "--samples", "8", "--quiet")
    assert main([*shlex.split(eigs)[1:], *small]) == 0
    assert main([*shlex.split(distil)[1:], "--width", "6", "--steps", "5", "--quiet"]) == 0
    assert "occupied cells" in capsys.readouterr().out


def test_commands_of_several_processes_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    doctor, eigs, trace, sweep = blocks("sh")[8].splitlines()
    launcher, words = eigs.split(" -m -- hessian_lab ")
    # Ranks have tests of their own; here the words that they are given.
    assert launcher == "torchrun --nproc-per-node 2"
    run = ["--size", "8", "--steps", "4", "--width", "6", "--quiet"]
    assert main([*shlex.split(words), *run, "--out", "runs/mine"]) == 0
    launcher, words = trace.split(" hessian_lab ")
    assert launcher == "torchrun --nproc-per-node 2 -m --"
    assert main(shlex.split(words)) == 0
    assert main([*shlex.split(sweep)[1:], *run]) == 0
    assert "8 runs: 4 done, 4 missing" in capsys.readouterr().out
    assert doctor == "hessian-lab doctor"


def test_commands_install_with_the_constraints_and_their_extra():
    install, test, *_ = blocks("sh")
    assert "pip install -c constraints.txt -e ." in install
    assert "pip install -c constraints.txt -e '.[test]'" in test
    assert "functorch" not in (ROOT / "pyproject.toml").read_text()


def test_constraints_pin_every_dependency():
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    project = (ROOT / "pyproject.toml").read_text()
    wanted = set(re.findall(r'^    "([a-z_-]+)>=', project, re.MULTILINE))
    wanted = {name.replace("_", "-") for name in wanted}
    assert {"torch", "pytest"} <= wanted <= pinned


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_runs(command, capsys):
    from hessian_lab.cli.main import main

    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"hessian-lab {command}" in capsys.readouterr().out


def test_the_tree_is_the_tree():
    tree = TEXT.split("```\nhessian_lab/\n")[1].split("```")[0]
    named = set(re.findall(r"^  (\w+)/", tree, re.MULTILINE))
    there = {path.parent.name for path in (ROOT / "hessian_lab").glob("*/__init__.py")}
    assert named == there
