"""Hydra composition: the only place that imports Hydra and OmegaConf."""
