"""Whatever is wrong, the user gets one line that says so, exit code 2, and nothing half-written."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

import weightclass as wc
from weightclass import ask, modelfile, recipe
from weightclass.cli import main
from weightclass.errors import UserError
from weightclass.model import networks
from weightclass.modelfile import Classifier

TINY = "model.blocks=1,1 model.channels=4,8 data.subset=130 train.epochs=1 machine.threads=1 machine.precision=float32"
FOLDER = "train folder model.blocks=1,1 model.channels=4,8 machine.threads=1 augment.ops=flip data.path"
USUAL = "--mean 0.5,0.5,0.5 --std 0.5,0.5,0.5"


class Pickled:
    """Somebody's code, which nobody may run."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("it-was-run",)


def picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def classifier(shape: tuple[int, int, int] = (3, 12, 12)) -> Classifier:
    settings = recipe.load("quickstart", "model.blocks=1,1", "model.channels=4,8").recipe
    network = networks.build(settings.model, shape, 2, seed=3).eval()
    return Classifier(network, settings, "made up", ("a", "b"), shape, (0.3,) * 3, (0.2,) * 3, {})


def cifar(folder: Path, **broken: bytes) -> None:
    """A small CIFAR-10 of four images a file, some of its files as given."""
    folder.mkdir(parents=True)
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        records = b"".join(bytes([label]) + bytes(3072) for label in range(4))
        if (content := broken.get(name, records)) != b"":
            (folder / f"{name}.bin").write_bytes(content)


def recipes(root: Path) -> None:
    texts = {
        "syntax": "[train\nepochs = 3",
        "unknown-table": "[trian]\nepochs = 3",
        "deep": 'base = "based.toml"',
        "based": 'base = "quickstart"',
        "baseless": 'base = "nowhere"',
        "base-number": "base = 7",
        "list": "train = 3",
        "nan": "[optimizer]\nname = 'sgd'\nlr = nan",
        "nul": 'base = "a\\u0000.toml"',
    }
    for name, text in texts.items():
        (root / f"{name}.toml").write_text(text, encoding="utf-8")
    (root / "latin.toml").write_bytes(b'name = "gr\xf6\xdfe"')


def archives(root: Path) -> None:
    cifar(root / "cut", data_batch_3=bytes(3073 * 3 + 100))
    cifar(root / "shorter", data_batch_3=bytes(3073 * 3))
    cifar(root / "lacking", data_batch_4=b"")
    cifar(root / "label", data_batch_2=bytes([11]) + bytes(3072) + bytes(3073 * 3))
    cifar(root / "no-test", test_batch=b"")
    folder = root / "pickled"
    folder.mkdir()
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        (folder / name).write_bytes(pickle.dumps(Pickled()))
    hundred = root / "cifar-100-binary"
    hundred.mkdir()
    for name in ("train.bin", "test.bin"):
        (hundred / name).write_bytes(bytes(3074 * 4))
    with tarfile.open(root / "foreign.tar.gz", "w:gz") as tar:
        tar.add(root / "syntax.toml", "syntax.toml")


def folders(root: Path) -> None:
    for label in ("cat", "dog"):
        for i in range(4):
            picture(root / "good" / label / f"{i}.png", i)
            picture(root / "splits" / "train" / label / f"{i}.png", i)
            picture(root / "splits" / "val" / label / f"{i}.png", i)
            picture(root / "strange" / "train" / label / f"{i}.png", i)
    picture(root / "strange" / "test" / "dogs" / "0.png")
    picture(root / "one" / "cat" / "0.png")
    picture(root / "flat" / "0.png")
    picture(root / "single" / "cat" / "0.png")
    picture(root / "single" / "dog" / "0.png")
    picture(root / "only-test" / "test" / "cat" / "0.png")
    picture(root / "hollow" / "cat" / "0.png")
    (root / "hollow" / "dog").mkdir()
    picture(root / "broken" / "cat" / "0.png")
    (root / "broken" / "dog").mkdir()
    (root / "broken" / "dog" / "0.jpg").write_bytes(b"\xff\xd8\xff")
    (root / "nothing").mkdir()
    (root / "notes.txt").write_text("no picture", encoding="utf-8")
    (root / "empty.png").write_bytes(b"")


def models(root: Path) -> None:
    modelfile.save(root / "ours.safetensors", classifier())
    (root / "garbage.safetensors").write_bytes(b"garbage")
    (root / "cut.safetensors").write_bytes((root / "ours.safetensors").read_bytes()[:-9])
    tensors = networks.build(recipe.load("small-cpu").recipe.model, (3, 32, 32), 10, seed=0).state_dict()
    torch.save(tensors, root / "published.pth")
    (root / "cut.pth").write_bytes((root / "published.pth").read_bytes()[:5000])
    torch.save({"net": Pickled()}, root / "whole.pth")
    torch.save({"encoder.weight": torch.zeros(3, 3)}, root / "other.pth")
    torch.save(tensors | {"se.fc.weight": torch.zeros(3, 3)}, root / "se.pth")
    torch.save({name: tensor for name, tensor in tensors.items() if name != "bn1.bias"}, root / "lacks.pth")
    (root / "text.pth").write_text("weights", encoding="utf-8")
    (root / "void.pth").write_bytes(b"")
    save_file({"w": torch.zeros(2)}, root / "later.safetensors", {"format": "weightclass/9"})
    (root / "run").mkdir()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that can be wrong, each in its file."""
    root = tmp_path_factory.mktemp("mistakes")
    for make in (recipes, archives, folders, models):
        make(root)
    return root


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("WEIGHTCLASS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("WEIGHTCLASS_DATA", raising=False)


MISTAKES = {
    # recipes
    "train quikstart": "no recipe is called 'quikstart': did you mean quickstart?",
    "train good": "good is a folder: weightclass train --data good",
    "train nowhere.toml": "recipe nowhere.toml: cannot be read: No such file",
    "train syntax.toml": "syntax.toml: not valid TOML: ",
    "train latin.toml": "recipe latin.toml: cannot be read: not UTF-8",
    "train unknown-table.toml": "unknown key trian: did you mean train?",
    "train deep.toml": "its base 'based.toml' has a base itself",
    "train baseless.toml": "no recipe is called 'nowhere'",
    "train base-number.toml": "no recipe is called '7'",
    "train nul.toml": "cannot be read",
    "train list.toml": "train = 3: expected table",
    "train nan.toml": "optimizer.lr = nan: expected a finite number",
    "train quickstart small-cpu": "two recipes, 'quickstart' and 'small-cpu'",
    "train quickstart train.epoch=3": "unknown key train.epoch: did you mean epochs?",
    "train quickstart train.epochs=many": "train.epochs = 'many': choose from a whole number, fit",
    "train quickstart train.epochs=2.5": "train.epochs = 2.5: expected int",
    f"train quickstart {TINY.replace('=1 machine', '=fit machine', 1)}": 'epochs = "fit" needs a time to fit to: add',
    "study table4 train.epochs=fit": 'train.epochs = "fit": the runs of a study are to be of one length',
    "train quickstart train.epochs=0": "train.epochs = 0: expected int >= 1",
    "train quickstart train.epochs=1 train.epochs=2": "train.epochs is set twice",
    "train quickstart model.blocks=1,1": "blocks has 2 and channels 3 entries",
    "train quickstart model.kernels=4": "kernels = 4 is even",
    "train quickstart model.blocks=1,1,1,1,1 model.channels=4,4,4,4,4": "8x8 images are too small for 5 layers",
    "train quickstart augment.ops=blurr": "augment.ops: unknown operation 'blurr'",
    "train quickstart augment.ops=crop(lots)": "augment.ops: 'crop(lots)'",
    "train quickstart augment.ops=crop(9)": "crop(9) is too much for images of 8x8",
    "train quickstart augment.ops=flip(": "augment.ops: cannot read 'flip('",
    "train quickstart train.micro_batch=1": "micro_batch and bn_group must be 0 or at least 2",
    "train quickstart optimizer.name=sdg": "optimizer.name = 'sdg': did you mean sgd?",
    "train quickstart budget.params=lots": "'lots' is not a size",
    "train quickstart machine.memory=lots": "memory: 'lots' is not a size",
    "train paper-97 schedule.warmup=300": "schedule.warmup = 300 epochs leaves nothing",
    # archives
    "train small-cpu data.path=nowhere": "data.path = nowhere: ",
    "train small-cpu data.path=cut": "data_batch_3.bin: expected 30,730,000 bytes",
    "train small-cpu data.path=shorter": ".bin: expected 30,730,000 bytes",
    "train small-cpu data.path=lacking": "data_batch_4.bin: expected 30,730,000 bytes (10,000 images), found no such",
    "train small-cpu data.path=no-test": "test_batch.bin: expected",
    "train small-cpu data.path=label": "data_batch_2.bin: image 0 has label 11, expected 0 to 9",
    "train small-cpu data.path=pickled": "which was not run",
    "train small-cpu data.path=foreign.tar.gz": "foreign.tar.gz: its sha256 is ",
    "train small-cpu data.path=cifar-100-binary": "CIFAR-100",
    "train small-cpu data.size=64": 'size is for name = "folder"',
    "train quickstart data.validation=9": "data.validation = 9: of 1,437 images in 10 classes",
    "train quickstart data.validation=1.5": "validation = 1.5: write a whole number of images, or a share below 1",
    # folders
    "train folder": "data.path",
    f"{FOLDER}=nowhere": "nowhere",
    f"{FOLDER}=notes.txt": "notes.txt",
    f"{FOLDER}=nothing": "nothing",
    f"{FOLDER}=one": "one",
    f"{FOLDER}=flat": "flat",
    f"{FOLDER}=only-test": "train",
    f"{FOLDER}=hollow": "dog",
    f"{FOLDER}=broken": "dog",
    f"{FOLDER}=strange": "dogs",
    f"{FOLDER}=splits data.validation=2": "data.validation = 2: splits has splits of its own (train, validation)",
    f"{FOLDER}=splits data.test=2": "data.test = 2: splits has splits of its own",
    f"{FOLDER}=splits data.watch_test=true": "data.watch_test = True: splits has splits of its own",
    f"{FOLDER}=good data.test=8": "data.test = 8: of 8 images in 2 classes",
    f"{FOLDER}=good data.size=-1": "data.size = -1: expected int >= 0",
    f"{FOLDER}=single": "single: with one picture a class there is none to judge on",
    "train --data nowhere": "data 'nowhere': no such folder; or choose from digits, cifar10, cifar100",
    "train --data notes.txt --budget 1M": "data 'notes.txt': no such folder",
    "train --data nothing --budget 1M": "nothing: holds no class folders",
    "train --data one --budget 1M": "one: holds only one class folder, cat/",
    "train --data good data.path=splits": "override 'data.path=splits': --data is there to say that",
    "train --data good --budget 1M budget.params=2M": "override 'budget.params=2M': --budget is there to say that",
    "train --data good --budget lots": "'lots' is not a size",
    "train --data good --budget 20": "no residual network for 12x12 images and 2 classes is under params 20",
    # pictures
    "predict ours.safetensors nowhere.png": "nowhere.png: no such file or folder",
    "predict ours.safetensors empty.png": "no picture could be read; the first of 1: empty.png: empty file",
    "predict ours.safetensors notes.txt": "notes.txt",
    "predict ours.safetensors nothing": "nothing: no pictures in it",
    "predict ours.safetensors broken/dog": "0.jpg: ",
    "predict ours.safetensors good --fit stretch": "fit 'stretch': choose from crop, pad, squash",
    "predict ours.safetensors good --top 0": "--top",
    "predict ours.safetensors ''": "an empty name among the pictures",
    "predict ours.safetensors good --csv ''": "Invalid value for '--csv': an empty name",
    "predict ours.safetensors good --csv .": "could not write .: it is a folder",
    "predict ours.safetensors good --csv a --json a": "--csv and --json are the same file",
    "predict good/cat/0.png ours.safetensors": "a picture, no model: the model comes first",
    "predict ours.safetensors good --csv notes.txt/a.csv": "could not write notes.txt/a.csv",
    # models
    "eval nowhere": "nowhere: no model.safetensors there",
    "eval run": "run: no model.safetensors there",
    "eval garbage.safetensors": "garbage.safetensors: not a readable safetensors file",
    "eval cut.safetensors": "cut.safetensors: not a readable safetensors file",
    "eval later.safetensors": "later.safetensors: its format is weightclass/9",
    "eval ours.safetensors --mean 0.5,0.5,0.5": "leave out --mean",
    "eval ours.safetensors --data folder": "does not tell where its pictures lie: give --data FOLDER",
    "eval ours.safetensors --data good --data-path good": "data 'good' is a folder already: leave out --data-path",
    "eval ours.safetensors --data digits": "has 2 classes and images of [3, 12, 12], digits has 10 and [1, 8, 8]",
    "eval ours.safetensors --data splits --split test": "splits: has no test images, only",
    "eval ours.safetensors --save ''": "Invalid value for '--save': an empty name",
    "eval ours.safetensors --data good": "class 'cat' of the pictures is not one of the model's",
    "eval ours.safetensors --data cifr10": "cifr10",
    f"eval cut.pth {USUAL}": "cut.pth: ",
    f"eval whole.pth {USUAL}": 'torch.save(model.state_dict(), "net.pth")',
    f"eval other.pth {USUAL}": "other.pth: ",
    f"eval se.pth {USUAL}": "se.pth: ",
    f"eval lacks.pth {USUAL}": "lacks.pth: bn1.bias is missing",
    f"eval text.pth {USUAL}": "text.pth: ",
    f"eval void.pth {USUAL}": "void.pth: ",
    f"eval published.pth {USUAL} --pool avg(9)": "published.pth: --pool avg(9)",
    f"eval published.pth {USUAL} --data-path nowhere": "nowhere",
    "eval published.pth": "published.pth: does not say how its images were normalised",
    "eval published.pth --mean 0.5,0.5 --std 0.5,0.5": "with 3 number(s) each",
    "eval published.pth --mean 0.5,0.5,0.5 --std 0,0.5,0.5": "std",
    # flags
    "tarin quickstart": "no command is called 'tarin': did you mean train?",
    "train quickstart --fast": "No such option '--fast'",
    "train quickstart --out": "Option '--out' requires an argument",
    "train quickstart --time-limit soon": "time 'soon': write seconds",
    "train quickstart --time-limit 0": "time '0': write seconds",
    "eval": "Missing argument 'MODEL'",
    "predict ours.safetensors": "Missing argument 'IMAGES...'",
    "eval ours.safetensors --split tset": "split 'tset': did you mean test?",
    "eval ours.safetensors --device tpu": "device 'tpu': choose auto, cuda, mps or cpu",
    "eval published.pth --mean a,b,c": "'a,b,c' is not a list of numbers",
    "eval published.pth --size small": "'small' is not a valid integer",
    "weigh quickstart --draw net.jpg": "Invalid value for '--draw': 'net.jpg': name a .png file",
    # designs
    "design": "no limit to fill: give --budget 5M",
    "design --budget lots": "'lots' is not a size",
    "design --budget 100": "no residual network for 32x32 images and 10 classes is under params 100; the least has",
    "design --budget 1M --macs 2k": "is under params 1M, macs 2k; the least has",
    "design mobilenetv2": "recipe mobilenetv2: design knows residual networks only: set model.name=resnet",
    "design small-cpu --image-size 64": "those of the recipe's images: leave them out",
    "design quickstart model.kernels=3,3,5": "model.kernels and model.skip_kernels: one number each",
    "design folder --budget 1M": "data.path",
    "design --budget 1M --image-size 0": "0 is not in the range",
    "design --budget 1M --image-size 8 --save ''": "an empty name",
    "design --budget 1M --image-size 8 --save notes.txt": "could not write notes.txt/design-01.toml",
    "design --budget 1M --image-size 8 --draw net.jpg": "name a .png file",
    # contact sheets
    "samples quikstart": "no recipe is called 'quikstart': did you mean quickstart?",
    "samples quickstart --save": "Option '--save' requires an argument",
    "samples quickstart --save seen.jpg": "Invalid value for '--save': 'seen.jpg': name a .png file",
    "samples quickstart --save ''": "Invalid value for '--save': '': name a .png file",
    "samples quickstart --save notes.txt/s.png": "could not write notes.txt/s.png",
    "samples quickstart --images 0": "0 is not in the range 1<=x<=16",
    "samples quickstart --draws many": "'many' is not a valid integer",
    "samples quickstart augment.ops=crop(9)": "is too much for images of 8x8",
    "samples quickstart train.batch_size=1e6": "train.batch_size",
    "samples quickstart train.batch_size=5000 train.drop_last=true": "choose a smaller train.batch_size",
    "samples small-cpu data.path=cut": "data_batch_3.bin: expected 30,730,000 bytes",
    "samples folder model.blocks=1,1 model.channels=4,8 augment.ops=cutout(99) data.path=good": "too much for images",
    f"train quickstart {TINY} --out notes.txt": "could not write notes.txt",
}


def contents(root: Path) -> dict[str, bytes]:
    return {path.as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that `words` come to."""
    with pytest.raises(SystemExit) as end:
        main(words)
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("words", MISTAKES)
def test_one_line(words: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(place)
    assert MISTAKES[words] in refusal(shlex.split(words), capsys)
    assert contents(place) == before
    assert not (place / "it-was-run").exists()
    left = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert left <= {"images.bin", "index.json"}  # a folder that was decoded whole before the mistake was seen


def test_there_are_plenty() -> None:
    assert len(MISTAKES) >= 80


# --- a full disk -------------------------------------------------------------------------------------------


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 300 bytes: a write fails as it does on a disk that is full."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.skipif(sys.platform == "win32", reason="a limit of POSIX systems")
@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize(
    ("words", "half"),
    [
        (f"train quickstart {TINY} --out OUT --quiet", "OUT/*/[!.]*"),
        (f"{FOLDER}=good --out OUT --quiet", "cache/**/images.bin"),
        ("predict ours.safetensors good --top 2 --csv OUT/answers.csv", "OUT/*"),
        ("predict ours.safetensors good --json OUT/answers.jsonl", "OUT/*"),
        ("eval ours.safetensors --data pets --save OUT", "OUT/*.png"),
        ("weigh quickstart --draw OUT/net.png", "OUT/*"),
        ("samples quickstart --images 1 --draws 0 --save OUT/seen.png", "OUT/*"),
    ],
)
def test_a_full_disk(words: str, half: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in "ab":
        (place / "pets" / label).mkdir(parents=True, exist_ok=True)
        (place / "pets" / label / "0.ppm").write_bytes(b"P6 2 2 255 " + bytes(12))
    with pytest.raises(SystemExit) as end:
        main(shlex.split(words.replace("OUT", (tmp_path / "OUT").as_posix())))
    err = capsys.readouterr().err
    assert end.value.code == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and "free some space" in err
    assert list(tmp_path.glob(half)) == []


# --- anything at all ---------------------------------------------------------------------------------------

KEYS = [
    f"{table}.{key}"
    for table, section in json.loads(json.dumps(wc.config.to_tree(recipe.load("quickstart").recipe))).items()
    for key in section
]
VALUES = st.one_of(
    st.integers(-3, 40).map(str),
    st.floats(width=32).map(str),
    st.lists(st.integers(-1, 9), max_size=4).map(lambda numbers: ",".join(map(str, numbers))),
    st.sampled_from(
        ["true", "none", "flip", "crop(4)", "crop(2,reflect),cutout(3)", "avg(2)", "global", "adamw", "5M"]
    ),
    st.text(max_size=8),
)


def ends_well(*words: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(list(words))
    assert end.value.code in (0, 2)


@given(st.lists(st.tuples(st.sampled_from([*KEYS, "train.epoch", "x.y"]), VALUES), max_size=3))
def test_no_setting_ends_in_a_traceback(settings: list[tuple[str, str]]) -> None:
    ends_well("weigh", "quickstart", *(f"{key}={value}" for key, value in settings))


ENTRIES = st.one_of(st.integers(-9, 99), st.text(max_size=5), st.lists(st.integers(0, 9), max_size=3))
TABLE = st.dictionaries(st.sampled_from([key.split(".")[1] for key in KEYS]), ENTRIES, max_size=3)


@given(st.dictionaries(st.sampled_from([*{key.split(".")[0] for key in KEYS}, "base", "x"]), TABLE, max_size=3))
def test_no_recipe_file_ends_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, tree: dict) -> None:
    import tomli_w

    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_text(tomli_w.dumps(tree), encoding="utf-8")
    ends_well("weigh", str(file))


@given(st.text(max_size=60))
def test_no_text_as_a_recipe_ends_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "text.toml"
    file.write_text(text, encoding="utf-8", errors="replace")
    ends_well("weigh", str(file))


WHOLE = {suffix: Path(f"whole.{suffix}") for suffix in ("png", "jpg", "gif", "bmp", "webp", "tif", "bin")}


@given(st.sampled_from(sorted(WHOLE)), st.binary(max_size=40), st.integers(0, 600), st.booleans())
def test_no_image_bytes_end_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, noise: bytes, at: int, whole: bool
) -> None:
    file = tmp_path_factory.getbasetemp() / f"any.{suffix}"
    content = b""
    if whole and suffix != "bin":
        picture(file)
        content = file.read_bytes()
    file.write_bytes(content[:at] + noise + content[at + len(noise) :])
    try:
        answers, broken = ask.predict(classifier(), [file])
    except UserError as error:
        answers, broken = [], [str(error)]
    assert (len(answers), len(broken)) in ((1, 0), (0, 1))
    assert "\n" not in "".join(broken)
