"""An exported model as an HTTP service."""
