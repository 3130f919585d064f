"""Exported files run as they are run on a device: no torch, only numpy and the format's own runtime."""
