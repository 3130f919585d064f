"""The door: exit codes, mistakes told in one line, settings anywhere, signals that save before they obey."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from weightclass import results
from weightclass.cli import main

ROOT = Path(__file__).parents[1]
TINY = (
    *("model.blocks=1,1", "model.channels=4,8", "data.subset=130", "train.batch_size=50", "train.epochs=2"),
    *("machine.threads=1", "machine.precision=float32"),
)


def code_of(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(words))
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("runs")
    assert code_of("train", "quickstart", *TINY, "--out", str(out), "--quiet") == 0
    [folder] = out.iterdir()
    return folder


# --- verbs that work ---------------------------------------------------------------------------------------


def test_training_again_says_finished(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("train", "quickstart", *TINY, "--out", str(folder.parent)) == 0
    out = capsys.readouterr().out
    assert "finished already" in out
    assert "test accuracy" in out


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--out", "OUT", "--quiet", "quickstart", *TINY],
        ["train", *TINY, "quickstart", "--quiet", "--out", "OUT"],
        ["train", *TINY[:3], "--out", "OUT", *TINY[3:], "--quiet"],
        ["train", "--quiet", *TINY, "--out", "OUT"],
        ["train", "--out=OUT", "quickstart", "--quiet", *TINY],
    ],
)
def test_settings_stand_anywhere_and_the_recipe_may_be_left_out(folder: Path, words: list[str]) -> None:
    """All of them are the run that is there already."""
    before = sorted(folder.parent.iterdir())
    assert code_of(*[word.replace("OUT", str(folder.parent)) for word in words]) == 0
    assert sorted(folder.parent.iterdir()) == before


def test_eval_prints_the_accuracy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("eval", str(folder), "--split", "train") == 0
    out = capsys.readouterr().out
    assert "% accuracy" in out
    assert "of 130 images right" in out


@pytest.mark.slow
def test_eval_on_corrupted_images(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readings = results.readings(folder)
    assert code_of("eval", str(folder), "--robustness", "--save", str(tmp_path)) == 0
    out = capsys.readouterr().out
    assert "% accuracy" in out and "glass blur" in out and "corrupted, 360 test images" in out
    assert results.readings(folder) == readings + 1
    assert {"robustness.json", "robustness.png", "confusion.png"} <= {path.name for path in tmp_path.iterdir()}


def test_weigh_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("weigh", "small-cpu") == 0
    assert "701,466" in capsys.readouterr().out


def test_weigh_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "net.png"
    assert code_of("weigh", "--draw", str(picture), "model.channels=8,16,32") == 0
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert "net.png" in capsys.readouterr().out


def test_samples_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("samples", "augment.ops=crop(2)", "--images", "2", "--draws", "1", "--save", str(tmp_path / "seen.png"))
    assert code_of(*words) == 0
    assert [path.read_bytes()[:8] for path in tmp_path.iterdir()] == [b"\x89PNG\r\n\x1a\n"]
    assert "seen.png" in capsys.readouterr().out


def test_models_lists_every_class(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("models") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("100k", "300k", "700k", "1m", "5m", "sprint-94", "sprint-96", "sprint-97"))


@pytest.mark.parametrize("verb", [[], ["train"], ["eval"], ["weigh"], ["samples"]])
def test_help(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(*verb, "--help") == 0
    out = capsys.readouterr().out
    assert "Usage: weightclass" in out
    assert all(word in out for word in {(): ("train", "eval", "weigh", "samples")}.get(tuple(verb), ("--help",)))


# --- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train quikstart", "no recipe is called 'quikstart': did you mean quickstart?"),
        ("weigh nowhere.toml", "recipe nowhere.toml: cannot be read"),
        ("train quickstart train.epoch=3", "unknown key train.epoch: did you mean epochs?"),
        ("train quickstart trian.epochs=3", "unknown key trian: did you mean train?"),
        ("train quickstart train.epochs=many", "train.epochs = 'many': choose from a whole number, fit"),
        ("train quickstart train.epochs=0", "train.epochs = 0: expected int >= 1"),
        ("train quickstart train.epochs=1 train.epochs=2", "train.epochs is set twice"),
        ("train paper-97 schedule.warmup=300", "schedule.warmup = 300 epochs leaves nothing of train.epochs = 300"),
        ("train quickstart schedule.warmup=1", "[schedule] warmup goes with the other schedules"),
        ("train small-cpu data.path=nowhere", "data.path = nowhere: there is no data_batch_1"),
        ("train quickstart --time-limit soon", "time 'soon': write seconds"),
        ("train quickstart --time-limit 0", "time '0': write seconds"),
        ("eval nowhere", "nowhere: no model.safetensors there"),
        ("eval .", "no model.safetensors there"),
        ("eval broken.safetensors", "broken.safetensors: not a readable safetensors file"),
    ],
)
def test_a_mistake_is_one_line(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.safetensors").write_bytes(b"garbage")
    assert code_of(*words.split()) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["broken.safetensors"]


def test_over_budget_shows_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("weigh", "quickstart", "budget.params=50k") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: params 77,754 is not under the budget of 50,000 (budget.params)")
    assert "linear" in err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("tarin quickstart", "tarin"),
        ("train quickstart --fast", "--fast"),
        ("eval", "Missing argument 'MODEL'"),
        ("study table1 --list --seeds 00", "'00': write how many"),
        ("study table1 --list --seeds \N{SUPERSCRIPT TWO}", "write how many"),
        ("study table1 --list --seeds 2024", "'2024': write how many (1 to 999)"),
        ("study table1 --list --seeds 1,1", "one stands there twice"),
        ("", "train"),
    ],
)
def test_words_that_the_line_does_not_know(words: str, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(*words.split()) == 2
    out, err = capsys.readouterr()
    assert named in out + err
    assert "Traceback" not in out + err


def test_no_traceback_from_the_real_program(tmp_path: Path) -> None:
    done = weightclass(tmp_path, "train", "quickstart", "train.epochs=-1")
    assert done.wait(60) == 2
    assert done.communicate()[1].startswith("error: recipe quickstart: train.epochs = -1")


# --- signals -----------------------------------------------------------------------------------------------


def weightclass(where: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "weightclass", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=where, env=environment, stdout=pipe, stderr=pipe, text=True, encoding="utf-8")


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
@pytest.mark.parametrize(
    ("number", "name", "code"),
    [(signal.SIGINT, "Ctrl-C", 130), pytest.param(signal.SIGTERM, "SIGTERM", 143, marks=pytest.mark.slow)],
)
def test_a_signal_saves_and_the_same_command_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str, code: int
) -> None:
    longer = [word.replace("train.epochs=2", "train.epochs=60") for word in TINY]
    words = ["train", "quickstart", *longer, "train.checkpoint_seconds=0.05"]
    running = weightclass(tmp_path, *words)
    while running.poll() is None and not list(tmp_path.glob("runs/*/checkpoint/*.safetensors")):
        time.sleep(0.01)
    running.send_signal(number)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (code, "")
    assert f"stopped ({name}) at step" in out
    assert "the same command continues" in " ".join(out.split())
    assert list(tmp_path.glob("runs/*/checkpoint/*.safetensors"))
    assert not list(tmp_path.glob("runs/*/result.json"))

    monkeypatch.setattr("weightclass.run.draw", lambda *_: None)
    for out in ("runs", "undisturbed"):
        assert code_of(*words, "--out", str(tmp_path / out), "--quiet") == 0
    [one], [two] = (list(tmp_path.glob(f"{out}/*/model.safetensors")) for out in ("runs", "undisturbed"))
    weights, expected = load_file(one), load_file(two)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_ctrl_c_before_training_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("weightclass.run.weigh", interrupted)
    assert code_of("weigh", "quickstart") == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_time_limit_is_a_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("train", "quickstart", *TINY, "--out", str(tmp_path), "--time-limit", "0.001s") == 0
    assert "stopped (time limit) at step 1 of 6" in capsys.readouterr().out


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, weightclass, weightclass.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
