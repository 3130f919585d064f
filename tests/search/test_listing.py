from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from weightclass import recipe, run
from weightclass.cli import main
from weightclass.errors import UserError
from weightclass.model import networks
from weightclass.search import listing as module
from weightclass.search.listing import draw, listing, save, table

DIGITS = (1, 8, 8)


def said(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main(words.split())
    out, err = capsys.readouterr()
    assert (end.value.code, err) == (0, "")
    return out


def test_5m_is_filled_without_building_a_network(monkeypatch, capsys):
    monkeypatch.setattr(networks, "build", None)
    out = said("design --budget 5M", capsys)
    shares = [float(share) for share in re.findall(r"([\d.]+)%", out)]
    assert len(shares) >= 10
    assert min(shares) >= 99.5
    assert "Score: log2(MACs x parameters)" in out
    assert "Train one: weightclass train small-cpu budget.params=5M model.pool=global SETTINGS" in out
    assert max(map(len, out.splitlines())) <= 120


def test_each_line_is_a_recipe(tmp_path, capsys):
    out = said(f"design --budget 300k --macs 4M --image-size 8 --channels 1 --top 4 --save {tmp_path}", capsys)
    command = re.search(r"weightclass train (.*) SETTINGS", out)
    lines = re.findall(r"model\.blocks=\S+ model\.channels=\S+", out)
    files = sorted(tmp_path.iterdir())
    assert command
    assert [file.name for file in files] == [f"design-{rank:02}.toml" for rank in range(1, len(lines) + 1)]
    for line, file in zip(lines, files, strict=True):
        typed = recipe.load(*command[1].split(), *line.split()).recipe
        saved = recipe.load(str(file)).recipe
        assert typed == saved
        assert saved.budget.params == "300k"
        assert run.weigh(str(file)).macs < 4_000_000  # and no limit of it is exceeded


@pytest.mark.slow
def test_a_design_trains(tmp_path):
    save(listing("", ["budget.params=3k", "train.epochs=1", "machine.threads=1"], DIGITS, 10, 1, None), tmp_path)
    assert run.train(str(tmp_path / "design-01.toml"), out=tmp_path / "runs", quiet=True).result


def test_a_recipe_brings_its_images_its_limits_and_its_training(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text(
        'base = "small-cpu"\n[model]\nse = "blocks"\nstem_channels = 24\n[train]\nepochs = 3', encoding="utf-8"
    )
    told = listing(str(mine), ["budget.bytes_int8=300kB"], DIGITS, 2, 3, None)
    save(told, tmp_path / "out")
    saved = recipe.load(str(tmp_path / "out" / "design-01.toml")).recipe
    assert saved.model == told.shown[0].config
    assert (saved.model.se, saved.model.stem, saved.train.epochs) == ("blocks", saved.model.channels[0], 3)
    assert (saved.budget.params, saved.budget.bytes_int8) == ("1M", "300kB")
    assert all(each.counts.params < 1e6 and each.counts.bytes_int8 < 300_000 for each in told.found)
    heads = [str(column.header) for column in table(told).columns]
    assert {"of params", "of bytes_int8"} < set(heads)


def test_the_usual_recipes_do_not_limit():
    told = listing("", ["budget.bytes_fp32=20MB"], (3, 12, 12), 5, 2, None)
    assert told.base == "folder"
    assert "data.size=12" in told.settings
    assert max(each.counts.params for each in told.found) > 4.9e6
    assert recipe.load(told.base, *told.settings).recipe.budget == told.limits


def test_too_slow_ones_are_dropped(monkeypatch):
    monkeypatch.setattr(module, "milliseconds", lambda configs, _: [float(place) for place in range(len(configs))])
    every = listing("", ["budget.params=100k"], DIGITS, 10, 6, None)
    told = listing("", ["budget.params=100k"], DIGITS, 10, 6, 2.0)
    assert told.shown == every.shown[:2]
    assert list(table(told).columns[-1].cells) == ["0.00", "1.00"]
    with pytest.raises(UserError, match=r"the fastest takes 7\.00 ms here: bound --macs too"):
        monkeypatch.setattr(module, "milliseconds", lambda configs, _: [7.0] * len(configs))
        listing("", ["budget.params=100k"], DIGITS, 10, 6, 2.0)


def test_the_picture(tmp_path: Path):
    draw(listing("", ["budget.params=100k"], DIGITS, 10, 6, None), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert (image.width, image.format) == (1650, "PNG")
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert (pixels == (0, 0x72, 0xB2)).all(1).sum() > 6 * 100  # a disc for each
