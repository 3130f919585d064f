"""The door: one short function a verb. Heavy imports stand inside, so that `--help` answers at once."""

from __future__ import annotations

import io
import re
import sys
import time
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, arg

from weightclass.errors import UserError

_STARTED = time.monotonic()
_SETTING = re.compile(r"[A-Za-z_]\w*(\.\w+)+=")
_VALUED = {"--out", "--time-limit", "--draw"}  # of the verbs with settings: the word after them is theirs

Recipe = Annotated[Positional[str], arg(help="a recipe's name, or a .toml file", metavar="RECIPE")]
Overrides = Annotated[
    Positional[tuple[str, ...]], arg(help="settings, such as train.epochs=30", metavar="table.key=value")
]


def _train(
    recipe: Recipe = "quickstart",
    overrides: Overrides = (),
    *,
    out: Annotated[str, arg(help="where the run folders go")] = "runs",
    time_limit: Annotated[str, arg(help="save and stop in time: 90s, 9m, 1.5h")] = "",
    quiet: Annotated[bool, arg(help="print nothing but errors")] = False,
) -> int:
    """Train a recipe. The same command again continues a stopped run."""
    from weightclass import run
    from weightclass.config import parse_duration
    from weightclass.stopping import EXIT_CODES

    limit = parse_duration(time_limit) - (time.monotonic() - _STARTED) if time_limit else None
    outcome = run.train(recipe, *overrides, out=out, time_limit=limit, quiet=quiet)
    return EXIT_CODES[outcome.stopped] if outcome.stopped else 0


def _eval(
    model: Annotated[Positional[str], arg(help="a finished run's folder, or a model file")],
    *,
    split: Annotated[Literal["test", "validation", "train"], arg(help="which images to score")] = "test",
    data_path: Annotated[str, arg(help="where the data lies, if not where the recipe says")] = "",
) -> int:
    """Score a trained model: accuracy with its interval, likelihood, classes, confusions."""
    from weightclass import run
    from weightclass.evaluation import metrics
    from weightclass.runlog import console

    console().print(metrics.table(run.evaluate(model, split, data_path)))
    return 0


def _weigh(
    recipe: Recipe = "quickstart",
    overrides: Overrides = (),
    *,
    draw: Annotated[str, arg(help="save a drawing of the network as this .png")] = "",
) -> int:
    """Weigh a recipe's network against its budget: parameters, MACs, bytes, activations."""
    from weightclass import run
    from weightclass.model import budget
    from weightclass.runlog import console

    if draw and not draw.endswith(".png"):
        raise UserError(f"--draw {draw}: name a .png file")
    weights = run.weigh(recipe, *overrides)
    out = console()
    out.print(budget.table(weights, narrow=out.width < 112))
    if draw:
        from weightclass.model.draw import draw as draw_network

        draw_network(weights, draw, " ".join([recipe, *overrides]))
        out.print(f"drawn in {draw}", markup=False)
    return 0


def _in_order(args: list[str]) -> list[str]:
    """Recipe and settings may stand anywhere, the recipe be left out; in tyro's order they come before the options."""
    if args[:1] not in (["train"], ["weigh"]):
        return args
    settings = [word for word in args if _SETTING.match(word)]
    rest = [word for word in args[1:] if not _SETTING.match(word)]
    before = ["", *rest]
    bare = [i for i, word in enumerate(rest) if word[:1] != "-" and before[i] not in _VALUED]
    named = [rest.pop(bare[0])] if bare else ["quickstart"] * bool(settings)
    return [args[0], *named, *settings, *rest]


def main(args: list[str] | None = None) -> None:
    """Parse, run, and turn a user's mistake into one line on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):  # a Windows code page may lack the bars of a table
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    words = _in_order(sys.argv[1:] if args is None else args)
    verbs = {"train": _train, "eval": _eval, "weigh": _weigh}
    try:
        sys.exit(tyro.extras.subcommand_cli_from_dict(verbs, prog="weightclass", args=words))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
