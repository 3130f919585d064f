"""Augmentation on the device: deterministic whole-batch operations, and the pipeline that draws their strengths."""
