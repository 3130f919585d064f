"""What trained networks say to a batch, for a student to learn from: asked now, or read from where they said it before.
Augmentation is a function of (seed, step, slot), so an epoch's pictures are known before anybody trains on them."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightclass import modelfile
from weightclass.augment.ops import normalise
from weightclass.augment.pipeline import Pipeline
from weightclass.batching import Batch
from weightclass.data.dataset import Dataset
from weightclass.data.loader import Loader
from weightclass.errors import UserError
from weightclass.evaluation import predict
from weightclass.files import atomic_write
from weightclass.recipe import Recipe
from weightclass.runlog import Progress
from weightclass.stopping import Stopper
from weightclass.training import distill
from weightclass.training.distill import page


class Teachers:
    """A recipe's teachers, before the images of `loader`, which come from `train`. What they say is rounded as a cache
    rounds it, to the same bits; where a cache has all epochs, no teacher is loaded. Raises UserError."""

    def __init__(self, recipe: Recipe, train: Dataset, loader: Loader, pipeline: Pipeline, precision: str) -> None:
        named, settings, self.epochs = recipe.distill, recipe.train, recipe.train.length
        self.cache, self.loader, self.classes, self.precision = named.cache, loader, len(train.classes), precision
        self.wanted = {"data": train.digest(), "augmentation": [list(recipe.augment.ops), list(pipeline.mean)]}
        self.wanted |= {"seed": settings.seed, "batch_size": settings.batch_size, "drop_last": settings.drop_last}
        self.wanted |= {"teachers": named.digests()}
        if self.cache:
            self._check(self.cache)
        self.lacking = {each for each in range(self.epochs) if not (self.cache and page(self.cache, each).exists())}
        if (lacks := len(self.lacking)) and not named.teachers:
            raise UserError(f"{self.cache}: lacks {lacks:,} epochs: name the teachers, or `weightclass teach` on")
        self._networks = [_loaded(teacher, train, loader.device) for teacher in named.teachers if self.lacking]
        self._page = functools.lru_cache(1)(self._read)

    def _check(self, cache: str | Path) -> None:
        found = distill.read(cache)
        if differ := [key for key, value in self.wanted.items() if found.get(key) != value]:
            raise UserError(f"{cache}: its logits are of another {' and '.join(differ)}: name another folder")

    def __call__(self, batch: Batch, epoch: int, step: int) -> Tensor | None:
        """Mean logits, float16 [n, classes], of the batch of the training's `step`, augmented but not normalised; None
        after the last epoch."""
        if epoch >= self.epochs:
            return None
        if epoch in self.lacking:
            return self._asked(batch.images)
        return self._page(epoch)[(step - epoch * self.loader.steps) * self.loader.batch_size + batch.slots]

    def write(self, folder: Path, pipeline: Pipeline, stopper: Stopper, progress: Progress) -> str | None:
        """What they say, an epoch a file, where it is lacking; why it was stopped early."""
        if not (folder / distill.HEADER).exists():
            atomic_write(folder / distill.HEADER, json.dumps(self.wanted | {"precision": self.precision}))
        self._check(folder)
        self.precision = distill.read(folder).get("precision", self.precision)  # one for all sittings
        todo = [epoch for epoch in range(self.epochs) if not page(folder, epoch).exists()]
        for done, epoch in enumerate(todo):
            progress(done, len(todo))
            said = []
            for step, batch in enumerate(self.loader.epoch(epoch), epoch * self.loader.steps):
                if reason := stopper.reason(1.0):
                    if reason not in ("Ctrl-C", "SIGTERM") and not done:
                        raise UserError("the time limit ended before an epoch was written: give teach a longer one")
                    return reason
                said.append(self._asked(pipeline.augment(batch, epoch, step).images))
            np.save(file := io.BytesIO(), torch.cat(said).cpu().numpy())
            atomic_write(page(folder, epoch), file.getvalue())
        return None

    def _asked(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"):
            said = [predict.logits(network, images, prepare, len(images)) for network, prepare in self._networks]
        mean = torch.stack(said).mean(0)
        return (mean - mean.amax(1, keepdim=True)).half()  # no softmax changes, and likely classes are rounded least

    def _read(self, epoch: int) -> Tensor:
        images = min(self.loader.steps * self.loader.batch_size, len(self.loader.dataset))
        try:
            with (path := page(self.cache, epoch)).open("rb") as file:  # as np.load, which would try other formats too
                logits = torch.from_numpy(np.lib.format.read_array(file, allow_pickle=False)).half()
            return logits.view(images, self.classes).to(self.loader.device)
        except (OSError, EOFError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path}: damaged ({error}): remove it and `weightclass teach` anew") from None


def _loaded(teacher: str, train: Dataset, device: torch.device) -> tuple[Any, Any]:
    """Its network, and what makes its input of uint8 images."""
    model = modelfile.load(distill.model_file(teacher), device.type)
    if isinstance(model.network, modelfile.Exported):
        raise UserError(f"distill.teachers: {teacher} is an exported file: name the model that it was made of")
    if (model.image_shape, model.classes) != (train.image_shape, train.classes):
        raise UserError(f"distill.teachers: {teacher} knows images of another shape, or other classes: name another")
    mean, std = (torch.tensor(each, device=device) for each in (model.mean, model.std))
    return model.network, functools.partial(normalise, mean=mean, std=std)
