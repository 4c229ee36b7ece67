"""Trained models as graphs that other runtimes run, kept only if they give the same answers."""
