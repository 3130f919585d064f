"""The door: one short function a verb. Heavy imports stand inside, so that `--help` answers at once."""

from __future__ import annotations

import io
import os
import re
import sys
import time
from typing import Any

import click

from weightclass import __version__, options, ranks
from weightclass.errors import UserError
from weightclass.options import Place, Seeds, Share

_STARTED = time.monotonic()
_SETTING = re.compile(r"[A-Za-z_]\w*(\.\w+)+=")


class Verbs(click.Group):
    """In the order of the journey; an unknown verb gets its near miss."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        from weightclass.config import near_miss

        if args[0] not in self.commands and not args[0].startswith("-"):
            raise UserError(f"no command is called {args[0]!r}{near_miss(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def cli() -> None:
    """The strongest image classifier under a parameter budget, proven, and shipped to a small device."""


@cli.command()
@options.recipe
@click.option(
    "--out", type=Place(), metavar="FOLDER", default="runs", show_default=True, help="where the run folders go"
)
@click.option(
    "--data", default="", metavar="PLACE", help="a folder of class folders of pictures, or a set such as cifar10"
)
@click.option("--budget", default="", metavar="SIZE", help="parameters to stay under: picks the network, such as 1M")
@click.option("--time-limit", default="", help="save and stop in time: 90s, 9m, 1.5h")
@click.option("--quiet", is_flag=True, help="print nothing but errors")
def train(words: tuple[str, ...], out: str, data: str, budget: str, time_limit: str, quiet: bool) -> int:
    """Train a recipe (default: the one for the data, or quickstart). The same command again continues a stopped run.

    RECIPE is a name or a .toml file; settings such as train.epochs=30 change it, and train.epochs=fit trains for as
    long as the time limit allows.
    """
    from weightclass import run
    from weightclass.config import parse_duration
    from weightclass.stopping import EXIT_CODES

    name, settings = _sorted(words, "")
    limit = parse_duration(time_limit) - (time.monotonic() - _STARTED) if time_limit else None
    outcome = run.train(name, *settings, data=data, budget=budget, out=out, time_limit=limit, quiet=quiet)
    return EXIT_CODES[outcome.stopped] if outcome.stopped else 0


@cli.command(short_help="Ask a recipe's teachers once, ahead of its training.")
@options.recipe
@click.option("--out", type=Place(), metavar="FOLDER", help="where their logits go  [default: distill.cache]")
@click.option("--time-limit", default="", help="save and stop in time: 90s, 9m, 1.5h")
def teach(words: tuple[str, ...], out: str | None, time_limit: str) -> int:
    """Write what distill.teachers say to all that a training will show: with distill.cache it runs no teacher then."""
    from weightclass import run
    from weightclass.config import parse_duration
    from weightclass.runlog import say
    from weightclass.stopping import EXIT_CODES

    name, settings = _sorted(words)
    limit = parse_duration(time_limit) - (time.monotonic() - _STARTED) if time_limit else None
    folder, stopped = run.teach(name, *settings, out=out or "", time_limit=limit)
    say(f"stopped ({stopped}): the same command continues" if stopped else f"{folder}: all epochs are there")
    return EXIT_CODES[stopped] if stopped else 0


@cli.command("eval", short_help="Score a trained model.")
@click.argument("model")
@click.option("--split", default="", help="test, validation or train  [default: test, where there is one]")
@click.option("--data", default="", help="other images: a folder of class folders, or cifar10, cifar100, digits")
@click.option("--data-path", default="", help="where the data lies, if not where the recipe says")
@click.option("--views", is_flag=True, help="also with test-time views (mirrored, shifted), reported apart")
@click.option("--robustness", is_flag=True, help="also on corrupted images: 15 kinds x 5 severities, CIFAR-10-C style")
@click.option("--save", type=Place(), metavar="FOLDER", help="draw confusions, calibration and mistakes there")
@options.device
@options.published
def evaluate(
    model: str,
    split: str,
    data: str,
    data_path: str,
    views: bool,
    robustness: bool,
    save: str,
    device: str,
    **said: Any,
) -> int:
    """Score MODEL: a finished run's folder, its model file, a champion, or a published CIFAR-ResNet's state dict."""
    from weightclass import judge, modelfile
    from weightclass.evaluation import metrics
    from weightclass.evaluation import robustness as robust
    from weightclass.files import check_writable
    from weightclass.runlog import console, left_out, working

    if save:
        check_writable(f"{save}/confusion.png")
    classifier = modelfile.load(model, device, **said)
    with working("decoding") as progress:
        judged = judge.labelled(classifier, split, data, data_path, progress)
    with working("judging") as progress:
        cards = judge.scorecards(classifier, judged, views, save, progress)
    for line in left_out(judged.left_out):
        print(line, file=sys.stderr)
    if judged.names_from:
        named = ", ".join(f"{i} = {name}" for i, name in enumerate(judged.images.classes[:4]))
        print(f"class names are those of {judged.names_from}, in alphabetical order: {named} ...", file=sys.stderr)
    card = cards.pop(judge.PLAIN)
    console().print(metrics.table(card, cards))
    if robustness:
        with working("images corrupted and judged") as progress:
            found = judge.robustness(classifier, judged, card, save, progress)
        console().print(robust.table(found))
    if save:
        console().print(f"\npictures in {save}", markup=False)
    return 0


@cli.command(short_help="Name what is on pictures.")
@click.argument("model")
@click.argument("images", nargs=-1, required=True)
@click.option("--top", type=click.IntRange(1), default=1, show_default=True, help="how many classes to name")
@click.option("--csv", type=Place(), metavar="FILE", help="write id,label,confidence there")
@click.option("--json", "jsonl", type=Place(), metavar="FILE", help="write one JSON object a line there")
@click.option("--fit", help="crop, pad or squash pictures into the model's shape  [default: the model's]")
@options.device
@options.published
def predict(
    model: str, images: tuple[str, ...], top: int, csv: str, jsonl: str, fit: Any, device: str, **said: Any
) -> int:
    """Name what is on IMAGES: files, folders (all pictures below), or CIFAR batches (python or binary)."""
    from weightclass import ask, modelfile
    from weightclass.files import check_writable
    from weightclass.runlog import left_out, working

    if csv and csv == jsonl:
        raise UserError(f"--csv and --json are the same file, {csv}: name two")
    for file in filter(None, (csv, jsonl)):
        check_writable(file)  # before the work, not after it
    classifier = modelfile.load(model, device, **said)
    with working("predicting") as progress:
        answers, broken = ask.predict(classifier, images, top, fit, progress)
    ask.write(answers, csv, jsonl)
    for line in left_out(broken):
        print(line, file=sys.stderr)
    ask.show(answers, csv or jsonl)
    return 0


@cli.command(short_help="Weigh a network against its budget.")
@options.recipe
@click.option("--draw", type=Place(".png"), metavar="FILE", help="save a drawing of the network as this .png")
def weigh(words: tuple[str, ...], draw: str) -> int:
    """Weigh a recipe's network against its budget: parameters, MACs, bytes, activations."""
    from weightclass import run
    from weightclass.model import budget
    from weightclass.runlog import console

    name, settings = _sorted(words)
    weights = run.weigh(name, *settings)
    out = console()
    out.print(budget.table(weights, narrow=out.width < 112))
    if draw:
        from weightclass.model.draw import draw as draw_network

        draw_network(weights, draw, " ".join([name, *settings]))
        out.print(f"drawn in {draw}", markup=False)
    return 0


@cli.command(short_help="List networks that fill a budget, to train.")
@options.recipe
@options.limits
@click.option("--image-size", type=click.IntRange(1, 4096), help="of images that no RECIPE names  [default: 32]")
@click.option("--channels", type=click.IntRange(1, 64), help="the same  [default: 3]")
@click.option("--classes", type=click.IntRange(2, 1_000_000), help="the same  [default: 10]")
@click.option("--top", type=click.IntRange(1, 99), default=15, show_default=True, help="how many to list at most")
@click.option("--save", type=Place(), metavar="FOLDER", help="write each as a recipe there")
@click.option("--draw", type=Place(".png"), metavar="FILE", help="draw all that fit, score against MACs")
def design(words: tuple[str, ...], latency_ms: float | None, top: int, save: str, draw: str, **said: Any) -> int:
    """List residual networks that stay under a budget and fill it, ranked by a criterion that needs no training.

    For RECIPE and its images, or for images of a size and number of classes.
    """
    from weightclass.config import joined
    from weightclass.runlog import console
    from weightclass.search import listing

    name, settings = _sorted(words, "")
    limits = {"params": said["budget"], "macs": said["macs"], "bytes_fp32": said["size"]}
    settings = joined(settings, [f"budget.{key}={limit}" for key, limit in limits.items() if limit])
    images = [said["channels"], said["image_size"], said["classes"]]
    if name and any(images):
        raise UserError("--image-size, --channels and --classes are those of the recipe's images: leave them out")
    channels, side, classes = (given or usual for given, usual in zip(images, (3, 32, 10), strict=True))
    told = listing.listing(name, settings, (channels, side, side), classes, top, latency_ms)
    if save:
        listing.save(told, save)
    if draw:
        listing.draw(told, draw)
    command = " ".join(["weightclass train", told.base, *told.settings, "SETTINGS"])
    console().print(listing.table(told), f"\nTrain one: {command}", markup=False, soft_wrap=True)
    return 0


@cli.command(short_help="Draw what a recipe's network would see.")
@options.recipe
@click.option(
    "--save", type=Place(".png"), metavar="FILE", default="samples.png", show_default=True, help="the picture"
)
@click.option("--images", type=click.IntRange(1, 16), default=8, show_default=True, help="rows: one image each")
@click.option("--draws", type=click.IntRange(0, 16), default=7, show_default=True, help="columns: one epoch each")
def samples(words: tuple[str, ...], save: str, images: int, draws: int) -> int:
    """Draw training images as they are and as a recipe's network would see them. Trains nothing."""
    from weightclass import run
    from weightclass.runlog import console

    name, settings = _sorted(words)
    run.samples(name, *settings, path=save, images=images, draws=draws)
    console().print(f"drawn in {save}", markup=False)
    return 0


@cli.command(short_help="Train a table of the paper, or a grid of one's own.")
@click.argument("words", nargs=-1, metavar="STUDY... [table.key=value]...")
@click.option("--list", "listed", is_flag=True, help="say what would run, and what was published for it; run nothing")
@click.option("--seeds", type=Seeds(), default=(), help="how many, such as 3, or which: 0,4,7  [default: the study's]")
@click.option("--epochs", type=click.IntRange(0), default=0, help="a pilot: of this length")
@click.option("--subset", type=click.IntRange(0), default=0, help="a pilot: on this many training images")
@click.option("--width", type=Share(), default=1.0, help="a pilot: this share of all channels, such as 1/8")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="processes that share the cores")
@options.ray
@click.option("--out", type=Place(), metavar="FOLDER", default="runs", show_default=True, help="where all runs go")
@click.option("--time-limit", default="", help="save and stop in time: 90s, 9m, 1.5h")
@click.option("--quiet", is_flag=True, help="one line a run")
def study(
    words: tuple[str, ...],
    listed: bool,
    seeds: tuple[int, ...],
    epochs: int,
    subset: int,
    width: float,
    jobs: int,
    ray: str | None,
    out: str,
    time_limit: str,
    quiet: bool,
) -> int:
    """Train what STUDY (a name or a .toml file; none: list them) still lacks; then its tables, figures and page.

    The same command again goes on; several processes or machines may share one --out, and no run is done twice.
    """
    from weightclass.config import parse_duration
    from weightclass.report import write_report
    from weightclass.runlog import console
    from weightclass.stopping import EXIT_CODES
    from weightclass.study import grid, plan, table

    names = [word for word in words if not _SETTING.match(word)]
    settings = [word for word in words if _SETTING.match(word)]
    short, out_ = plan.Short(epochs, subset, width), console()
    if listed or not names:
        out_.print(*plan.listings(names, seeds, short, settings), sep="\n\n")
        return 0
    limit = parse_duration(time_limit) - (time.monotonic() - _STARTED) if time_limit else None
    how = {"out": out, "seeds": seeds, "short": short, "jobs": jobs, "ray": ray, "time_limit": limit, "quiet": quiet}
    sheets, stopped = grid.run_studies(names, *settings, **how)
    for sheet, folder in sheets:
        out_.print(table.terminal(sheet, narrow=out_.width < 112), f"\n{write_report(folder)}\n")
    if stopped:
        out_.print(f"stopped ({stopped}): the same command continues", markup=False)
        return EXIT_CODES[stopped]
    return int(any(run.failure for sheet, _ in sheets for line in sheet.lines for run in line.runs))


@cli.command(short_help="Find the best recipe under a budget, on your images.")
@options.recipe
@options.limits
@click.option("--trials", type=click.IntRange(1, 100_000), default=20, show_default=True, help="recipes to try")
@click.option("--epochs", type=click.IntRange(0), default=0, help="of a trial  [default: a tenth of the recipe's]")
@click.option(
    "--finalists", type=click.IntRange(0), default=3, show_default=True, help="of them, trained in full to choose"
)
@click.option("--over", default="model,optimizer,schedule,augment", show_default=True, help="what may be chosen")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="of the proposals")
@click.option("--final/--no-final", default=True, help="train the best in full  [default: final]")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="processes that share the cores")
@options.ray
@click.option("--storage", default="", metavar="URL", help="a database of several machines  [default: a file]")
@click.option("--out", type=Place(), metavar="FOLDER", default="runs", show_default=True, help="where all runs go")
@click.option("--time-limit", default="", help="save and stop in time: 90s, 9m, 1.5h")
@click.option("--quiet", is_flag=True, help="one line a trial")
def search(
    words: tuple[str, ...],
    budget: str,
    macs: str,
    size: str,
    latency_ms: float | None,
    trials: int,
    epochs: int,
    finalists: int,
    over: str,
    seed: int,
    final: bool,
    jobs: int,
    ray: str | None,
    storage: str,
    out: str,
    time_limit: str,
    quiet: bool,
) -> int:
    """Try variants of RECIPE that stay under a budget, each trained briefly and the poor ones stopped early.

    Ends with a table and a figure of accuracy against cost, the best recipe as a file, and its training in full. The
    same command again goes on; several processes may share one --out, several machines one --storage.
    """
    from weightclass import run
    from weightclass.config import joined, parse_duration
    from weightclass.runlog import console
    from weightclass.search import front
    from weightclass.search.search import run_search
    from weightclass.stopping import EXIT_CODES

    name, settings = _sorted(words)
    limits = {"params": budget, "macs": macs, "bytes_fp32": size}
    settings = joined(settings, [f"budget.{key}={limit}" for key, limit in limits.items() if limit])
    limit = parse_duration(time_limit) - (time.monotonic() - _STARTED) if time_limit else None
    how = {"count": trials, "epochs": epochs, "finalists": finalists, "over": over.split(",")}
    how |= {
        "latency_ms": latency_ms or 0.0,
        "seed": seed,
        "final": final,
        "jobs": jobs,
        "ray": ray,
        "storage": storage,
        "out": out,
    }
    how |= {"time_limit": limit, "quiet": quiet}
    sheet, folder, stopped = run_search(name, *settings, **how)
    out_ = console()
    out_.print(front.table(sheet, narrow=out_.width < 112), f"\n{folder}\n")
    if sheet.final:
        run.report(folder.parents[1] / sheet.final_folder, sheet.final, "the best, trained in full")
    if stopped:
        out_.print(f"stopped ({stopped}): the same command continues", markup=False)
        return EXIT_CODES[stopped]
    return 0


@cli.command("export", short_help="Write files for devices, proven to agree.")
@click.argument("model")
@click.argument("more", nargs=-1, metavar="[FORMAT]...")
@click.option("--to", "formats", multiple=True, metavar="FORMAT", help="one or more, or all  [default: onnx onnx-int8]")
@click.option(
    "--out", type=Place(), metavar="FOLDER", help="for the files  [default: export in the run's, or in runs/CHAMPION]"
)
@click.option(
    "--data", default="", help="other images to calibrate and judge on: a folder, or cifar10, cifar100, digits"
)
@click.option("--data-path", default="", help="where the data lies, if not where the recipe says")
@click.option("--agreement", type=click.FloatRange(0, 1, min_open=True), help="least share of equal top-1 classes")
@click.option("--per-tensor", is_flag=True, help="begin int8 with one scale a weight, not one a channel")
@options.published
def export(
    model: str,
    more: tuple[str, ...],
    formats: tuple[str, ...],
    out: str,
    data: str,
    data_path: str,
    agreement: float | None,
    per_tensor: bool,
    **said: Any,
) -> int:
    """Write MODEL as files for devices: onnx, onnx-fp16, onnx-int8, openvino, executorch, litert and their int8.

    Each is compared with the model on real images, and only handed over where it agrees; a model card lies beside it.
    """
    from weightclass import modelfile
    from weightclass.edge import export as edge
    from weightclass.edge.rungs import Rung
    from weightclass.runlog import console, working

    names = [*formats, *more] or ["onnx", "onnx-int8"]
    classifier, out_ = modelfile.load(model, "cpu", **said), console()
    say = lambda line: out_.print(line, markup=False)  # noqa: E731
    if "all" in names:
        names = edge.writable()
        if lacking := ", ".join(name for name in edge.FORMATS if name not in names):
            say(f"left out: {lacking} (--to FORMAT says what it needs)")
    with working("images judged") as progress:
        first = Rung(per_channel=not per_tensor)
        handed = edge.export(classifier, names, out, data, data_path, agreement or 0, first, say, progress)
    out_.print(edge.table(handed, narrow=out_.width < 112))
    out_.print(f"in {handed[0].path.parent}, a model card beside each", markup=False)
    return 0


@cli.command(short_help="Size, accuracy and speed of every file of a model.")
@click.argument("model")
@click.argument("files", nargs=-1)
@click.option("--split", default="", help="test, validation or train  [default: test, where there is one]")
@click.option("--data", default="", help="other images: a folder of class folders, or cifar10, cifar100, digits")
@click.option("--data-path", default="", help="where the data lies, if not where the recipe says")
@click.option("--images", type=click.IntRange(1), help="judge on so many of them, drawn  [default: on all]")
@click.option("--seconds", type=click.FloatRange(0.1), default=30.0, show_default=True, help="time spent on timing")
@click.option("--json", "as_json", type=Place(), metavar="FILE", help="write the rows there")
@click.option("--markdown", type=Place(), metavar="FILE", help="write the table there")
@options.published
def bench(
    model: str,
    files: tuple[str, ...],
    split: str,
    data: str,
    data_path: str,
    images: int | None,
    seconds: float,
    as_json: str,
    markdown: str,
    **said: Any,
) -> int:
    """Compare MODEL with its exported files (or FILES): bytes, accuracy, agreement, milliseconds, memory.

    MODEL may be an exported file, or anybody's .onnx, too.
    """
    from weightclass import judge, modelfile
    from weightclass.edge import bench as edge
    from weightclass.edge.latency import cpu
    from weightclass.files import atomic_write, check_writable
    from weightclass.runlog import console, working

    for file in filter(None, (as_json, markdown)):
        check_writable(file)
    classifier, out_ = modelfile.load(model, "cpu", **said), console()
    compared, judged = edge.found(classifier, files), judge.labelled(classifier, split, data, data_path)
    judge.count(classifier, judged, "bench")
    with working("measuring") as progress:
        rows = edge.bench(classifier, compared, edge.drawn(judged.images, images), seconds, progress)
    out_.print(edge.table(rows, narrow=out_.width < 116))
    out_.print(*(f"- {note}" for note in edge.notes(rows, cpu())), sep="\n", markup=False)
    if as_json:
        atomic_write(as_json, edge.to_json(rows, cpu()))
    if markdown:
        atomic_write(markdown, edge.markdown(rows, cpu()))
    return 0


@cli.command(short_help="A page that classifies in the browser, offline.")
@click.argument("model")
@click.option("--out", type=Place(), metavar="FOLDER", default="webpage", show_default=True, help="where the page goes")
@click.option("--runtime", help="onnxruntime-web's npm tarball or unpacked  [default: download it once]")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="or the next free one")
@click.option("--serve/--no-serve", default=True, help="serve it on this machine and open it  [default: serve]")
def webpage(model: str, out: str, runtime: str | None, port: int, serve: bool) -> int:
    """Write a page that classifies dropped, pasted and filmed pictures with MODEL: a run, a champion, or an .onnx file.

    Nothing leaves the browser. Of a run it takes the plainest .onnx file (float32, if there is one), or exports one.
    """
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from weightclass.edge import webpage as edge
    from weightclass.runlog import console

    with TemporaryDirectory() as spare:
        file = edge.source(model, Path(spare))
        edge.build(file, Path(out), Path(runtime) if runtime else None)
    console().print(f"{out}: {file.name} in a page that any static host can serve", markup=False)
    if serve:
        edge.serve(Path(out), port)
    return 0


@cli.command(short_help="Make one HTML page of a run, a search, a study or all studies.")
@click.argument("place", metavar="RUN|SEARCH|STUDY")
@click.option("--save", type=Place(".html"), metavar="FILE", help="the page  [default: report.html in it]")
def report(place: str, save: str | None) -> int:
    """Make one HTML page of a run's folder, a study's, a search's, or one with several studies (runs/studies).

    The page needs nothing else: it opens offline, prints, and fits a phone.
    """
    from weightclass.report import write_report
    from weightclass.runlog import console, human_bytes

    page = write_report(place, save or "")
    console().print(f"{page}: {human_bytes(page.stat().st_size)}", markup=False)
    return 0


@cli.command(short_help="List the trained networks that ship with the package.")
def models() -> int:
    """List the champions, a weight class each, that any verb takes as MODEL by name: weightclass predict 300k cat.jpg.

    Their accuracy is that of the shipped file on CIFAR-10's test images; what is published stands beside it.
    """
    from weightclass import champions
    from weightclass.runlog import console

    out = console()
    out.print(champions.table(champions.models(), narrow=out.width < 112))
    return 0


def _sorted(words: tuple[str, ...], usual: str = "quickstart") -> tuple[str, list[str]]:
    """The recipe, which may be left out, and the settings; they may stand in any order."""
    names = [word for word in words if not _SETTING.match(word)] or [usual]
    if len(names) > 1:
        raise UserError(f"two recipes, {names[0]!r} and {names[1]!r}: name one; a setting is table.key=value")
    return names[0], [word for word in words if _SETTING.match(word)]


def main(args: list[str] | None = None) -> None:
    """Parse, run, and turn a user's mistake into one line on stderr and exit code 2."""
    sys.stdout, sys.stderr = sys.stdout or io.StringIO(), sys.stderr or io.StringIO()  # closed by whoever started us
    for stream in (sys.stdout, sys.stderr):  # a Windows code page may lack the bars of a table
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        sys.exit(cli.main(sys.argv[1:] if args is None else args, "weightclass", standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        sys.exit(2)
    except (UserError, click.ClickException) as error:
        help_ = f" (see {error.ctx.command_path} --help)" if isinstance(error, click.UsageError) and error.ctx else ""
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        if ranks.here.speaks:  # of those that torchrun started
            print(f"error: {message.rstrip('.') if help_ else message}{help_}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes
        sys.exit(141)
    except OSError as error:  # whatever the parts did not foresee
        print(f"error: {error.filename or 'system'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
