"""Reading photos: one file, and folders of labelled ones."""
