"""VOS behind scikit-learn's interface, for embeddings and tables of numbers."""

from knownot.sklearn.classifier import UnknownAwareClassifier as UnknownAwareClassifier

__all__ = ["UnknownAwareClassifier"]
