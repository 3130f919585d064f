"""weightclass: the strongest image classifier under a parameter budget, proven, and shipped to a small device.

import weightclass as wc
outcome = wc.train("quickstart", "train.epochs=10")
outcome = wc.train("", "train.epochs=fit", data="flowers", budget="1M", time_limit=1800)
weights = wc.weigh("paper-97")
networks = wc.design("1M", image_shape=(3, 64, 64), classes=5)
wc.samples("paper-97", path="samples.png")
answers = wc.load(outcome.folder).predict(["cat.jpg", "dog.jpg"])
answers = wc.load("300k").predict("cat.jpg")  # of wc.models(), which ship with the package
card = wc.evaluate(outcome.folder)
sheets, stopped = wc.run_studies(["table4"])
sheet, folder, stopped = wc.run_search("folder", "data.path=flowers", "budget.params=1M", time_limit=3600)
page = wc.write_report(outcome.folder)
files = wc.export(outcome.folder, ["onnx", "onnx-int8"])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["UserError", "design", "evaluate", "export", "load", "run_search", "run_studies", "samples", "train"]
__all__ += ["models", "teach", "weigh", "write_report"]

if TYPE_CHECKING:
    from weightclass.champions import models
    from weightclass.edge.export import export
    from weightclass.errors import UserError
    from weightclass.judge import evaluate
    from weightclass.model.design import design
    from weightclass.modelfile import load
    from weightclass.report import write_report
    from weightclass.run import samples, teach, train, weigh
    from weightclass.search.search import run_search
    from weightclass.study.grid import run_studies

_HOME = {"UserError": "errors", "load": "modelfile", "evaluate": "judge", "write_report": "report"}
_HOME |= {"run_studies": "study.grid", "run_search": "search.search", "export": "edge.export", "design": "model.design"}
_HOME["models"] = "champions"
_HOME |= dict.fromkeys(("train", "weigh", "samples", "teach"), "run")


def __getattr__(name: str) -> Any:
    # Imported at first use: `import weightclass` itself costs next to nothing.
    if name in _HOME:
        return getattr(import_module(f"weightclass.{_HOME[name]}"), name)
    raise AttributeError(f"module 'weightclass' has no attribute {name!r}")
