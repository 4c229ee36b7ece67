"""A model against ID test photos and OOD folders: numbers, figures, an HTML report."""
