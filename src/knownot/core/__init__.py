"""The method, on torch alone: Gaussians, virtual outliers, energy, loss, scores, calibration.

Read in this order: `gaussians`, `outliers`, `energy`, `phi`, `virtual_outlier_loss`; then `scores`,
`combination`, `calibration`, `metrics`.
"""
