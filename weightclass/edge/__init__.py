"""What leaves the lab: a trained network as a file for a small device, proven to agree with it."""
