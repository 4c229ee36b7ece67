"""Tiny real RT-DETRs of transformers with random weights; no network."""

from __future__ import annotations

import torch
from torch import nn
from transformers import (
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
)

from knownot.models.detector import UnknownAwareDetector
from knownot.models.hf_rt_detr import RTDetrRegions, RTDetrSettings
from knownot.models.unknown_aware import VosSettings
from tests.models.tiny_detr import CLASSES, calibrated

QUERIES = 7
DIM = 16
SIDE = 64
KINDS = {
    "RT-DETR": (RTDetrConfig, RTDetrForObjectDetection),
    "RT-DETRv2": (RTDetrV2Config, RTDetrV2ForObjectDetection),
}


def tiny_network(kind: str = "RT-DETR", seed: int = 0, **config) -> nn.Module:
    """Two decoder layers on a small residual network, random weights."""
    torch.manual_seed(seed)
    settings = {
        "backbone_config": RTDetrResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, DIM, DIM, DIM],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        ),
        "num_labels": len(CLASSES),
        "num_queries": QUERIES,
        "num_denoising": 4,
        "d_model": DIM,
        "encoder_hidden_dim": DIM,
        "encoder_in_channels": [DIM] * 3,
        "decoder_in_channels": [DIM] * 3,
        "decoder_layers": 2,
        "freeze_backbone_batch_norms": False,  # fixed ones of random weights leave nothing of a photo
    }
    for part in ("encoder", "decoder"):
        settings |= {f"{part}_ffn_dim": 32, f"{part}_attention_heads": 2}
    config_kind, model_kind = KINDS[kind]
    return model_kind(config_kind(**settings | config))


def tiny_regions(
    kind: str = "RT-DETR", seed: int = 0, score_threshold: float = 0.0, detections=100, **config
) -> RTDetrRegions:
    settings = RTDetrSettings(
        image_size=SIDE, score_threshold=score_threshold, detections=detections
    )
    return RTDetrRegions(tiny_network(kind, seed, **config), settings)


def tiny_detector(kind: str = "RT-DETR", seed: int = 0, **config) -> UnknownAwareDetector:
    vos = VosSettings(queue_size=20, draws_per_class=100.0)
    return UnknownAwareDetector(tiny_regions(kind, seed, **config), CLASSES, vos=vos)


def calibrated_detector(kind: str = "RT-DETR") -> UnknownAwareDetector:
    """One that predicts."""
    return calibrated(tiny_detector(kind), 0.0)
