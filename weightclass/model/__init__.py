"""Networks, what they weigh, and how they look."""
