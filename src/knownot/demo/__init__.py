"""The whole idea in about a minute, offline: what changes when a network is trained with VOS."""

from knownot.demo.run import print_demo, run_demo

__all__ = ["print_demo", "run_demo"]
