"""Typed, frozen settings: from TOML text and `table.key=value` overrides to checked structs, and back.

Every part of weightclass defines its own `Table` beside the code that reads it; `recipe.Recipe` gathers
them. This module knows only how any such struct is merged, overridden, checked, written and hashed.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec
import tomli_w
from msgspec import inspect

from weightclass.errors import UserError

T = TypeVar("T", bound=msgspec.Struct)
Tree = dict[str, Any]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every recipe table. Keys in `cosmetic` cannot change the trained weights."""

    cosmetic: ClassVar[frozenset[str]] = frozenset()


# --- text to tree ------------------------------------------------------------------------------------------


def parse_toml(text: str, where: str) -> Tree:
    """Parse TOML `text`; a syntax error names `where` (a file) and the line."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where}: not valid TOML: {error}") from None


def read_toml(path: Path, where: str) -> Tree:
    """The TOML file at `path`, called `where` in a UserError."""
    try:
        return parse_toml(path.read_text(encoding="utf-8"), where)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{where}: cannot be read: {reason}") from None


def parse_override(text: str, struct: type[msgspec.Struct]) -> tuple[list[str], Any]:
    """Split `table.key=value` and read the value as the key's type asks.

    Lists need no quotes or brackets: `model.channels=128,100,164,200`, `augment.ops=crop(4),flip`.
    """
    key, equals, raw = text.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise UserError(f"override {text!r}: expected table.key=value, for example train.epochs=30")
    return path, _read_value(raw.strip(), _kinds(struct, *path))


def _read_value(raw: str, kinds: Sequence[inspect.Type]) -> Any:
    plain = {type(kind) for kind in kinds}
    items = [kind.item_type for kind in kinds if isinstance(kind, inspect.CollectionType)]
    value = _read_scalar(raw)
    alone = isinstance(value, int) and inspect.IntType in plain  # `int | list[int]`: one number stays one number
    if items and not alone and not isinstance(value, list):
        return [_read_value(part, items) for part in _split_list(raw)]
    if plain <= {inspect.StrType, inspect.LiteralType}:
        return value if isinstance(value, str) else raw  # a text may look like a number, a date, a truth
    if inspect.FloatType in plain and re.fullmatch(r"[+-]?(\d+\.|\.\d+)", raw):
        return float(raw)  # `.5`, which is not TOML but common on a command line
    return value


def _read_scalar(raw: str) -> Any:
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def _split_list(raw: str) -> list[str]:
    """Split at the commas that stand outside brackets of any kind; brackets around the whole list are dropped."""
    if raw.startswith("[") and raw.endswith("]"):
        raw = raw[1:-1]
    parts, depth = [""], 0
    for letter in raw:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


@functools.cache
def _described(struct: type[msgspec.Struct]) -> inspect.Type:
    return inspect.type_info(struct)


def _kinds(struct: type[msgspec.Struct], *path: str) -> list[inspect.Type]:
    """What the key at `path` may hold, the members of a union one by one; nothing where there is no such key."""
    kinds = [_described(struct)]
    for key in path:
        tables = [kind for kind in kinds if isinstance(kind, inspect.StructType)]
        found = [field.type for table in tables for field in table.fields if field.name == key]
        found += [kind.item_type for kind in kinds if isinstance(kind, inspect.CollectionType) and key.isdigit()]
        kinds = [kind for each in found for kind in (each.types if isinstance(each, inspect.UnionType) else (each,))]
    return kinds


# --- merging -----------------------------------------------------------------------------------------------


def merge(base: Tree, over: Tree, struct: type[msgspec.Struct]) -> Tree:
    """`base` with `over` on top, table by table. Where `over` names another kind of a tagged table, the base's keys
    there go: they were the other kind's (momentum means nothing to AdamW)."""
    merged = base | over
    for key in base.keys() & over.keys():
        old, new = base[key], over[key]
        if isinstance(old, dict) and isinstance(new, dict):
            tags = {kind.tag_field for kind in _kinds(struct, key) if isinstance(kind, inspect.StructType)}
            same = all(new.get(tag, old.get(tag)) == old.get(tag) for tag in tags)
            merged[key] = old | new if same else new
    return merged


def apply_overrides(tree: Tree, overrides: Iterable[str], struct: type[msgspec.Struct]) -> Tree:
    """`tree` with `table.key=value` overrides on top; the same key twice is a mistake."""
    over: Tree = {}
    for text in overrides:
        path, value = parse_override(text, struct)
        table = over
        for part in path[:-1]:
            table = table.setdefault(part, {}) if isinstance(table, dict) else table
        if not isinstance(table, dict) or path[-1] in table:
            raise UserError(f"override {text!r}: {'.'.join(path)} is set twice; keep one")
        table[path[-1]] = value
    return merge(tree, over, struct)


def joined(*groups: Iterable[str]) -> list[str]:
    """Settings of which a later group's replace an earlier one's of the same key."""
    kept: list[str] = []
    for group in groups:
        keys = set(map(key_of, group := list(group)))
        kept = [text for text in kept if key_of(text) not in keys] + group
    return kept


def key_of(setting: str) -> str:
    """`train.epochs` of `train.epochs=30`."""
    return setting.partition("=")[0].strip()


def to_setting(key: str, value: Any) -> str:
    """`model.blocks=2,2` of a key and what it holds."""
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return f"{key}={text.lower() if isinstance(value, bool) else text}"


# --- tree to struct, and back ------------------------------------------------------------------------------


def build(tree: Tree, struct: type[T], where: str) -> T:
    """Check `tree` against `struct`. The first mistake is a `UserError` with key, reason and near miss."""
    _check(tree, struct, where)
    try:
        return msgspec.convert(tree, struct)
    except msgspec.ValidationError as error:
        raise UserError(f"{where}: {_explain(str(error), tree, struct)}") from None


def _check(value: Any, struct: type[msgspec.Struct], where: str, *path: str) -> None:
    """Refuse, with a near miss, keys and kinds of table that there are not; and numbers that are not finite."""
    key = ".".join(path)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}: {key} = {value}: expected a finite number")
    for index, inner in enumerate(value if isinstance(value, list) else ()):
        _check(inner, struct, where, *path, str(index))
    tables = {str(kind.tag): kind for kind in _kinds(struct, *path) if isinstance(kind, inspect.StructType)}
    if not tables or not isinstance(value, Mapping):
        return
    name, table = next(iter(tables.items()))
    if tag := table.tag_field:
        if tag not in value:
            raise UserError(f"{where}: {key}.{tag} is missing: choose from {', '.join(sorted(tables))}")
        name = str(value[tag])
        if name not in tables:
            raise UserError(f"{where}: {key}.{tag} = {value[tag]!r}{near_miss(name, sorted(tables))}")
    known = [field.name for field in tables[name].fields] + ([tag] if tag else [])
    for part, inner in value.items():
        if part not in known:
            of = f" of {name}" if tag else ""
            raise UserError(f"{where}: unknown key {'.'.join([*path, part])}{of}{near_miss(part, known)}")
        _check(inner, struct, where, *path, part)


def near_miss(word: str, known: Iterable[str]) -> str:
    """`: did you mean x?`, or the choices where nothing is near."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    return f": did you mean {near[0]}?" if near else f": choose from {', '.join(known)}"


def _explain(message: str, tree: Tree, struct: type[msgspec.Struct]) -> str:
    """msgspec's message with the key in front and TOML's words: `train.epochs = -3: expected int >= 1`."""
    reason, _, path = message.partition(" - at `$")
    path = path.rstrip("`").lstrip(".")
    keys = re.findall(r"[^.\[\]]+", path)
    value: Any = tree
    for key in keys:
        value = value[key] if isinstance(value, Mapping) else value[int(key)]
    if reason.startswith("Expected"):
        for theirs, ours in _WORDS.items():
            reason = reason.replace(theirs, ours)
    if isinstance(value, Mapping):
        return f"[{path}] {reason}" if path else reason
    if reason.startswith("Invalid enum value"):
        choices = [getattr(kind, "values", _OTHERS.get(type(kind), ())) for kind in _kinds(struct, *keys)]
        return f"{path} = {value!r}{near_miss(str(value), map(str, sum(choices, ())))}"
    return f"{path} = {value!r}: {reason}"


_OTHERS = {inspect.BoolType: ("true", "false"), inspect.IntType: ("a whole number",)}
# msgspec's words to TOML's
_WORDS = {"Expected": "expected", "array": "list", "object": "table", "bool": "true or false", "`": ""}


def to_tree(struct: msgspec.Struct) -> Tree:
    """Plain dicts, lists and scalars; `build(to_tree(x), type(x))` is `x`."""
    return msgspec.to_builtins(struct)


def to_toml(struct: msgspec.Struct) -> str:
    """TOML text of every key, defaults included; reads back to an equal struct. TOML has no null, so no key has."""
    return tomli_w.dumps(to_tree(struct))


def fingerprint(table: Table, *more: str) -> str:
    """16 hex digits over every key that can change the weights, and over `more` (the data's hash)."""
    payload = msgspec.json.encode([_weighty(table), list(more)], order="sorted")
    return hashlib.sha256(payload).hexdigest()[:16]


def _weighty(table: Table) -> Tree:
    tree = {key: value for key, value in to_tree(table).items() if key not in table.cosmetic}
    inner = {key: getattr(table, key, None) for key in tree}  # None: a tag, which is a key but no attribute
    return tree | {key: _weighty(value) for key, value in inner.items() if isinstance(value, Table)}


# --- quantities --------------------------------------------------------------------------------------------

_SUFFIX = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_quantity(text: str | int) -> int:
    """`5_000_000`, `"5M"`, `"0.83 MB"`, `"512KiB"` to an integer. Raises ValueError."""
    match = re.fullmatch(r"([\d_]*\.?\d+(?:e\d+)?)\s*(|[kmg]i?)b?", str(text).strip().lower())
    value = float(match[1].replace("_", "")) * _SUFFIX[match[2]] if match else math.nan
    if not math.isfinite(value) or value < 1:
        raise ValueError(f"{text!r} is not a size: write a number such as 5000000, 5M, 1.2G or 512KiB")
    return round(value)


_UNITS = {"s": 1, "": 1, "m": 60, "min": 60, "h": 3600}


def parse_duration(text: str | float) -> float:
    """`90`, `"90s"`, `"9m"`, `"1.5h"` to seconds. Raises UserError."""
    match = re.fullmatch(r"(\d*\.?\d+)\s*(s|m|min|h|)", str(text).strip().lower())
    if not match or float(match[1]) <= 0:
        raise UserError(f"time {text!r}: write seconds, or a number with s, m or h, for example 9m")
    return float(match[1]) * _UNITS[match[2]]
