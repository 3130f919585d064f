"""Checkpoints that survive anything: written atomically, named by their own hash, never executed.

A checkpoint is one safetensors file `STEP-HASH.safetensors`: the network, its averaged twin or slow weights,
the optimizer's state and the running sums of the epoch. HASH is the head of the SHA-256 of the file's bytes, so a
damaged file betrays itself and the one before it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from weightclass import ranks
from weightclass.errors import UserError
from weightclass.files import atomic_write

if TYPE_CHECKING:
    from weightclass.training.loop import State

_NAME = re.compile(r"(\d{9})-([0-9a-f]{16})\.safetensors")
_KEEP = 2
_CLOCK = ("seconds", "waited", "saved", "augmented")  # a new one goes to the end, for checkpoints that lack it


def pack(state: State) -> dict[str, Tensor]:
    """Every tensor that a run needs to go on, by name; contiguous and on the CPU."""
    tensors = {f"{part}/{name}": t for part, net in _networks(state).items() for name, t in net.state_dict().items()}
    for index, values in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": value for name, value in values.items() if value is not None}
    tensors["sums"] = state.sums
    tensors["clock"] = torch.tensor([getattr(state, name) for name in _CLOCK], dtype=torch.float64)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def unpack(state: State, step: int, tensors: dict[str, Tensor]) -> None:
    """Put the tensors of `pack` back into a freshly built `state`, bit for bit. KeyError, RuntimeError: not its own."""
    for part, network in _networks(state).items():
        network.load_state_dict({name: tensors[f"{part}/{name}"] for name in network.state_dict()})
    _load_optimizer(state.optimizer, tensors)
    state.sums.copy_(tensors["sums"])
    for name, seconds in zip(_CLOCK, tensors["clock"].tolist(), strict=False):
        setattr(state, name, seconds)
    state.step = step


def _networks(state: State) -> dict[str, nn.Module]:
    followers = {"average": state.average and state.average.twin, "slow": state.lookahead and state.lookahead.slow}
    return {"model": state.model} | {part: network for part, network in followers.items() if network}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            like = parameters[int(index)]
            if tensor.shape == like.shape:  # moments take the weight's memory layout, or every step would convert it
                tensor = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
            states.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})


class Keeper:
    """Writes and finds the checkpoints of one run folder; times itself, for `--time-limit` and the summary."""

    def __init__(self, folder: Path, every_seconds: float = 60.0) -> None:
        self.folder = folder
        self.every_seconds = every_seconds
        self.saved_at = time.monotonic()
        self.slowest = 0.0
        self.asked_at = self.saved_at
        self.damaged: list[str] = []

    def due(self) -> bool:
        """Whether the next save should come now: early enough that it ends within `every_seconds` of the last."""
        now = time.monotonic()
        until_asked_again, self.asked_at = now - self.asked_at, now
        return now - self.saved_at + until_asked_again + 2 * self.slowest >= self.every_seconds

    def save(self, state: State) -> Path:
        """Write the checkpoint of `state.step`; older ones go, except the one before."""
        from safetensors.torch import save

        start = time.monotonic()
        payload = save(pack(state))
        path = self.folder / f"{state.step:09d}-{hashlib.sha256(payload).hexdigest()[:16]}.safetensors"
        try:
            atomic_write(path, payload)
        except UserError as error:
            kept = self._files()
            raise type(error)(f"{error}; the last good checkpoint is {kept[0].name if kept else 'none'}") from None
        for old in self._files()[_KEEP:]:
            old.unlink(missing_ok=True)
        self.saved_at = time.monotonic()
        self.slowest = max(self.slowest, self.saved_at - start)
        state.saved += self.saved_at - start
        return path

    def load_latest(self, state: State) -> bool:
        """Restore the newest sound checkpoint into `state`, on every rank what rank 0 finds; False where there is none.

        Damaged files are named in `self.damaged` and set aside, so that they are never counted as "the one before".
        Raises UserError where a sound checkpoint is not this network's.
        """
        from safetensors.torch import load

        found = ranks.tell(self._newest)
        if not found:
            return False
        try:
            unpack(state, int(found[:9]), load(found[9:]))
        except (KeyError, RuntimeError) as error:
            cure = "another version wrote it; move the folder away to start anew"
            path = f"{self.folder / found[:9].decode()}-*"
            raise UserError(f"{path}: does not fit this network ({str(error)[:80]}): {cure}") from None
        return True

    def _newest(self) -> bytes:
        """The step, in nine digits, and the bytes of the newest sound checkpoint; empty where there is none."""
        for path in self._files():
            payload = path.read_bytes()
            step, digest = _NAME.fullmatch(path.name).groups()  # type: ignore[union-attr]
            if hashlib.sha256(payload).hexdigest()[:16] == digest:
                return step.encode() + payload
            self.damaged.append(path.name)
            path.replace(path.with_suffix(".damaged"))
        return b""

    def clear(self) -> None:
        """Remove all checkpoints: the run is finished."""
        for path in (*self._files(), *self.folder.glob(".*.tmp"), *self.folder.glob("*.damaged")):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not there, or something else is in it
            self.folder.rmdir()

    def _files(self) -> list[Path]:
        """Newest first."""
        found = [path for path in self.folder.glob("*.safetensors") if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: (path.name[:9], path.stat().st_mtime), reverse=True)
