"""What verbs share on the command line: kinds of values, each with its message, and options of several verbs."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import click


class Numbers(click.ParamType):
    """`0.5,0.5,0.5`"""

    name = "numbers"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        try:
            parts = re.split(r"[,\s]+", value.strip("()[], ")) if isinstance(value, str) else value
            return tuple(map(float, parts))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 0.5,0.5,0.5", param, ctx)


class Seeds(click.ParamType):
    """`3` is the seeds 0, 1 and 2; `0,4,7` are those."""

    name = "seeds"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        if not isinstance(value, str):  # the default
            return value
        if not re.fullmatch(r"[1-9][0-9]{0,2}|[0-9]+(, *[0-9]+)+", value):
            self.fail(f"{value!r}: write how many (1 to 999), such as 3, or which, such as 0,4,7", param, ctx)
        return tuple(map(int, value.split(","))) if "," in value else tuple(range(int(value)))


class Share(click.ParamType):
    """`1/8` or `0.125`, above 0 and at most 1."""

    name = "share"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        try:
            share = float(Fraction(value))
        except (ValueError, ZeroDivisionError):
            share = 0.0
        return share if 0 < share <= 1 else self.fail(f"{value!r} is not a share such as 1/8", param, ctx)


class Place(click.ParamType):
    """A file (with this suffix) or folder to write; an empty name (an unset variable, most likely) is a mistake."""

    name = "place"

    def __init__(self, suffix: str = "") -> None:
        self.suffix = suffix

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        if not value.endswith(self.suffix):
            self.fail(f"{value!r}: name a {self.suffix} file", param, ctx)
        return value or self.fail("an empty name", param, ctx)


class Cluster(click.ParamType):
    """`local`, `auto` or an address of Ray's, such as `10.0.0.1:6379`; what follows a bare --ray may be none."""

    name = "cluster"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        if value in ("local", "auto") or re.fullmatch(r"\S+:[0-9]+", value):
            return value
        return self.fail(f"{value!r}: write HOST:PORT, auto or local (a bare --ray goes last)", param, ctx)


def _several(*options: Any) -> Any:
    """Options that several verbs share, as one decorator."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


device = click.option("--device", default="auto", show_default=True, help="auto, cuda, mps or cpu")
published = _several(
    click.option("--mean", type=Numbers(), default=(), help="of a published checkpoint's images, as 0.5,0.5,0.5"),
    click.option("--std", type=Numbers(), default=(), help="the same"),
    click.option("--pool", default="", help="its pool, such as avg(4), where its weights leave that open"),
    click.option("--size", type=click.IntRange(1, 4096), help="height and width of its images  [default: 32]"),
)
ray = click.option(
    "--ray", type=Cluster(), is_flag=False, flag_value="local", help="as workers of this Ray cluster, or of a local one"
)
limits = _several(
    click.option("--budget", default="", help="parameters to stay under, such as 5M"),
    click.option("--macs", default="", help="multiply-accumulates of one image to stay under, such as 1.2G"),
    click.option("--bytes", "size", default="", help="bytes of the float32 weights to stay under, such as 2MB"),
    click.option(
        "--latency-ms", type=click.FloatRange(0, min_open=True), help="of one image, one thread, measured here"
    ),
)
recipe = click.argument("words", nargs=-1, metavar="[RECIPE] [table.key=value]...")
