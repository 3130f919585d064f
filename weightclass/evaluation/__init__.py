"""Judging: images to logits, logits to a scorecard, scorecards and runs to pictures."""
