"""weightclass: the strongest image classifier under a parameter budget, proven, and shipped to a small device.

import weightclass as wc
outcome = wc.train("quickstart", "train.epochs=10")
weights = wc.weigh("paper-97")
wc.samples("paper-97", path="samples.png")
answers = wc.load(outcome.folder).predict(["cat.jpg", "dog.jpg"])
card = wc.evaluate(outcome.folder)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["UserError", "evaluate", "load", "samples", "train", "weigh"]

if TYPE_CHECKING:
    from weightclass.errors import UserError
    from weightclass.judge import evaluate
    from weightclass.modelfile import load
    from weightclass.run import samples, train, weigh

_HOME = {"UserError": "errors", "load": "modelfile", "evaluate": "judge"}
_HOME |= dict.fromkeys(("train", "weigh", "samples"), "run")


def __getattr__(name: str) -> Any:
    # Imported at first use: `import weightclass` itself costs next to nothing.
    if name in _HOME:
        return getattr(import_module(f"weightclass.{_HOME[name]}"), name)
    raise AttributeError(f"module 'weightclass' has no attribute {name!r}")
