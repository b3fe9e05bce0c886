"""Dashboards: pandas frames from a store, and the static site made of them. Imports no torch and no engine."""

from reports.frames import Frames, load

__all__ = ["Frames", "load"]
