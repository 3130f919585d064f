"""The pictures of a run: charts, and grids of images."""

from weightclass.evaluation.charts import confusion, curves, reliability
from weightclass.evaluation.grids import confused, mistakes, samples

__all__ = ["confused", "confusion", "curves", "mistakes", "reliability", "samples"]
