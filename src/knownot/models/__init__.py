"""Models that say `unknown`: backbone, bottleneck, head, scores and calibration in one module."""
