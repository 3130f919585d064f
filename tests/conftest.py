"""One thread, deterministic kernels, the same hypothesis examples every time: a test that fails, fails again."""

from __future__ import annotations

import os

import hypothesis
import torch

os.environ.setdefault("MPLBACKEND", "Agg")  # pictures go to files, never to a screen
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)  # also fills uninitialised memory with NaN, so that its use shows

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")
