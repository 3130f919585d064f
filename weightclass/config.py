"""Typed, frozen settings: from TOML text and `table.key=value` overrides to checked structs, and back.

Every part of weightclass defines its own `Table` beside the code that reads it; `recipe.Recipe` gathers
them. This module knows only how any such struct is merged, overridden, checked, written and hashed.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import re
import tomllib
import types
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
import tomli_w

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


def parse_override(text: str, struct: type[msgspec.Struct]) -> tuple[list[str], Any]:
    """Split `table.key=value` and read the value as the key's type asks.

    Lists need no quotes or brackets: `model.channels=128,100,164,200`, `augment.ops=crop(4),flip`; `none` empties a
    key that may be empty.
    """
    key, equals, raw = text.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise UserError(f"override {text!r}: expected table.key=value, for example train.epochs=30")
    return path, _read_value(raw.strip(), _leaf_type(struct, path))


def _read_value(raw: str, leaf: Any) -> Any:
    kinds = _options(leaf)
    scalar = _read_scalar(raw)
    if raw == "none" and types.NoneType in kinds:
        return None
    if list in kinds and not isinstance(scalar, list):
        parts = _split_list(raw)
        if len(parts) == 1 and kinds & {int, float} and isinstance(scalar, int | float):
            return scalar  # `int | list[int]`: one number stays one number
        if str not in kinds:
            return [_read_value(part, _element(leaf)) for part in parts]
    if str in kinds and not isinstance(scalar, str | list | dict):
        return scalar if kinds & {int, float, bool} else raw  # a text may look like a number, a date, a truth
    if float in kinds and re.fullmatch(r"[+-]?(\d+\.|\.\d+)", raw):
        return float(raw)  # `.5`, which is not TOML but common on a command line
    return scalar


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


# --- the shape of a struct ---------------------------------------------------------------------------------


def _options(annotation: Any) -> set[Any]:
    """The plain kinds an annotation admits: a union's members, `list` for any sequence."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return set().union(*(_options(option) for option in get_args(annotation)))
    if hasattr(annotation, "__metadata__"):
        return _options(annotation.__origin__)
    if origin is Literal:
        return {type(choice) for choice in get_args(annotation)}
    if origin is not None:
        return {list if origin is tuple else origin}
    return {annotation}


def _element(annotation: Any) -> Any:
    """What a list holds: `int` of `list[int]`, `tuple[int, ...]`, `int | list[int]`."""
    if get_origin(annotation) in (list, tuple):
        return get_args(annotation)[0]
    inner = [_element(part) for part in get_args(annotation) if list in _options(part)]
    return inner[0] if inner else str


def _structs(annotation: Any) -> list[type[msgspec.Struct]]:
    return [kind for kind in _options(annotation) if isinstance(kind, type) and issubclass(kind, msgspec.Struct)]


def _tag(struct: type[msgspec.Struct]) -> tuple[str, str] | None:
    config = struct.__struct_config__
    return (config.tag_field, config.tag) if config.tag_field else None  # type: ignore[return-value]


def _pick(annotation: Any, value: Any) -> type[msgspec.Struct] | None:
    """The struct that `value` is meant for; in a tagged union its tag decides, else the first stands in."""
    structs = sorted(_structs(annotation), key=lambda kind: kind.__name__)
    for struct in structs:
        tag = _tag(struct)
        if tag and isinstance(value, Mapping) and value.get(tag[0]) == tag[1]:
            return struct
    return structs[0] if structs else None


def _leaf_type(struct: type[msgspec.Struct], path: list[str]) -> Any:
    """The annotation at `path`, or `str` where there is none (the unknown key is reported later, by name)."""
    hints = get_type_hints(struct, include_extras=True)
    annotation = hints.get(path[0], str)
    if len(path) == 1:
        return annotation
    found = [_leaf_type(kind, path[1:]) for kind in _structs(annotation) if path[1] in kind.__struct_fields__]
    return Union[tuple(found)] if found else str  # noqa: UP007 (a union made of values)


# --- merging -----------------------------------------------------------------------------------------------


def merge(base: Tree, over: Tree, struct: type[msgspec.Struct]) -> Tree:
    """`base` with `over` on top. Where `over` names another kind of a tagged table, the base's keys there go:
    they were the other kind's (momentum means nothing to AdamW)."""
    merged = dict(base)
    hints = get_type_hints(struct)
    for key, value in over.items():
        old = merged.get(key)
        if not (isinstance(value, Mapping) and isinstance(old, Mapping)):
            merged[key] = value
            continue
        inner = _pick(hints.get(key), {**old, **value})
        tag = _tag(inner) if inner else None
        if tag and tag[0] in value and value[tag[0]] != old.get(tag[0]):
            merged[key] = dict(value)
        else:
            merged[key] = merge(dict(old), dict(value), inner) if inner else {**old, **value}
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


# --- tree to struct, and back ------------------------------------------------------------------------------


def build(tree: Tree, struct: type[T], where: str) -> T:
    """Check `tree` against `struct`. The first mistake is a `UserError` with key, reason and near miss."""
    _check_keys(tree, struct, where, "")
    try:
        return msgspec.convert(tree, struct)
    except msgspec.ValidationError as error:
        raise UserError(f"{where}: {_explain(str(error), tree, struct)}") from None


def _check_keys(tree: Mapping[str, Any], struct: type[msgspec.Struct], where: str, prefix: str) -> None:
    hints = get_type_hints(struct, include_extras=True)
    tag = _tag(struct)
    known = list(struct.__struct_fields__) + ([tag[0]] if tag else [])
    for key, value in tree.items():
        if key not in known:
            kind = f" of {tag[1]}" if tag else ""
            raise UserError(f"{where}: unknown key {prefix}{key}{kind}{near_miss(key, known)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{where}: {prefix}{key} = {value}: expected a finite number")
        inner = _pick(hints.get(key), value)
        if inner and isinstance(value, Mapping):
            _check_tag(value, hints[key], where, f"{prefix}{key}")
            _check_keys(value, inner, where, f"{prefix}{key}.")


def _check_tag(value: Mapping[str, Any], annotation: Any, where: str, path: str) -> None:
    tags = sorted(tag for tag in map(_tag, _structs(annotation)) if tag)
    if not tags:
        return
    field, names = tags[0][0], [name for _, name in tags]
    if field not in value:
        raise UserError(f"{where}: {path}.{field} is missing: choose from {', '.join(names)}")
    if value[field] not in names:
        raise UserError(f"{where}: {path}.{field} = {value[field]!r}{near_miss(str(value[field]), names)}")


def near_miss(word: str, known: Iterable[str]) -> str:
    """`: did you mean x?`, or the choices where nothing is near."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    return f": did you mean {near[0]}?" if near else f": choose from {', '.join(known)}"


def _explain(message: str, tree: Tree, struct: type[msgspec.Struct]) -> str:
    """msgspec's message with the key in front: `train.epochs = -3: expected int >= 1`."""
    reason, _, path = message.partition(" - at `$")
    path = path.rstrip("`").lstrip(".")
    if reason.startswith("Expected"):
        for ours, theirs in _WORDS.items():
            reason = re.sub(rf"\b{ours}\b", theirs, reason).replace("`", "")
    value: Any = tree
    parts = re.findall(r"[^.\[\]]+", path)
    for part in parts:
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, ValueError, IndexError, TypeError):
            return f"{path}: {reason}"
    if isinstance(value, Mapping):
        return f"[{path}] {reason}" if path else reason
    if reason.startswith("Invalid enum value"):
        leaf = _leaf_type(struct, [part for part in parts if not part.isdigit()])
        return f"{path} = {value!r}{near_miss(str(value), _choices(leaf))}"
    return f"{path} = {value!r}: {reason}"


# msgspec's words to TOML's
_WORDS = {"Expected": "expected", "array": "list", "object": "table", "bool": "true or false", "null": "none"}


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in _choices(part)]


def to_tree(struct: msgspec.Struct) -> Tree:
    """Plain dicts, lists and scalars; `build(to_tree(x), type(x))` is `x`."""
    return msgspec.to_builtins(struct)


def to_toml(struct: msgspec.Struct) -> str:
    """TOML text of every key, defaults included; reads back to an equal struct.

    TOML has no null: a key that is None is left out, so None must be its default.
    """
    return tomli_w.dumps(_without_none(to_tree(struct)))


def _without_none(tree: Tree) -> Tree:
    return {key: _without_none(v) if isinstance(v, dict) else v for key, v in tree.items() if v is not None}


def fingerprint(struct: msgspec.Struct, *more: str) -> str:
    """16 hex digits over every key that can change the weights, and over `more` (the data's hash)."""
    payload = msgspec.json.encode([_weighty(struct), list(more)], order="sorted")
    return hashlib.sha256(payload).hexdigest()[:16]


def _weighty(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        cosmetic = getattr(value, "cosmetic", frozenset())
        fields = {key: _weighty(getattr(value, key)) for key in value.__struct_fields__ if key not in cosmetic}
        tag = _tag(type(value))
        return {**fields, **({tag[0]: tag[1]} if tag else {})}
    return value


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
