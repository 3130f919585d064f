"""Images and labels: where they come from, how they are split, and in which order they are served."""
