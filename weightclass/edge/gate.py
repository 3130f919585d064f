"""The gate: how far an exported file's answers are from the network's, and how far they may be."""

from __future__ import annotations

import math

import msgspec
from torch import Tensor

from weightclass.evaluation.metrics import Interval

Z = 1.959964  # of a 95 % interval


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """An exported file's answers beside the network's, on `n` labelled images."""

    n: int
    agreement: float  # share of images with the same top-1 class
    mean_difference: float  # of a logit, absolute; the network's own spread is the scale to read it on
    p99_difference: float
    spread: float  # standard deviation of the network's logits
    accuracy_change: float  # in 0..1, below 0 where the file is the worse
    interval: Interval  # 95 %, of the change: paired, for both saw the same images

    def __str__(self) -> str:
        lo, hi = (f"{100 * side:+.2f}" for side in self.interval)
        return (
            f"{self.agreement:.2%} the same class on {self.n:,} images, accuracy {100 * self.accuracy_change:+.2f} "
            f"points ({lo} to {hi}), logits off by {self.mean_difference:.4f} (p99 {self.p99_difference:.4f})"
        )


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """What a file must hold to be handed over."""

    agreement: float
    """The least share of images with the same top-1 class."""
    accuracy_loss: float
    """The largest loss of accuracy, as a share, that is let through; one that may be chance always is."""
    difference: float
    """The largest p99 logit difference, in standard deviations of the network's logits."""

    def refusal(self, measured: Agreement) -> str:
        """Why `measured` does not pass; empty where it does."""
        if not math.isfinite(measured.mean_difference):
            return "some logits are no numbers"
        if measured.agreement < self.agreement:
            return f"top-1 agreement {measured.agreement:.2%}, wanted {self.agreement:.2%}"
        if -measured.accuracy_change > self.accuracy_loss and measured.interval.hi < 0:
            return f"accuracy {100 * measured.accuracy_change:+.2f} points, {100 * self.accuracy_loss:.2f} may be lost"
        if measured.p99_difference > self.difference * measured.spread:
            return (
                f"p99 logit difference {measured.p99_difference:.3g}, at most {self.difference * measured.spread:.3g}"
            )
        return ""


GATES = {
    "float32": Gate(agreement=0.999, accuracy_loss=0.001, difference=0.01),
    "fp16": Gate(agreement=0.998, accuracy_loss=0.001, difference=0.02),
    "int8": Gate(agreement=0.98, accuracy_loss=0.005, difference=1.0),
}


def compare(reference: Tensor, said: Tensor, labels: Tensor) -> Agreement:
    """Logits float32 [n, classes] of the network (`reference`) and of a file, on images with these `labels` [n].

    The interval is Wald's for the difference of two paired shares (Newcombe 1998, method 10's simplest relative), made
    honest for few discordant pairs by adding half a pair to each side (Agresti and Min 2005).
    """
    n, off = len(labels), (said - reference).abs().flatten().double()
    right, right_before = said.argmax(1) == labels, reference.argmax(1) == labels
    gained, lost = int((right & ~right_before).sum()), int((~right & right_before).sum())
    centre = (gained - lost) / (n + 2)
    half = Z * math.sqrt(gained + lost + 1 - (gained - lost) ** 2 / (n + 2)) / (n + 2)
    return Agreement(
        n=n,
        agreement=float((said.argmax(1) == reference.argmax(1)).double().mean()),
        mean_difference=float(off.mean()),
        p99_difference=float(off.kthvalue(max(1, math.ceil(0.99 * len(off)))).values),
        spread=float(reference.double().std()),
        accuracy_change=(gained - lost) / n,
        interval=Interval(centre - half, centre + half),
    )
