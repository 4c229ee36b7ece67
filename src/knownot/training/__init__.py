"""From a folder of photos to a calibrated model folder."""
