"""The Gemma 4 conformance harness; ARCHITECTURE.md is the map."""
