"""Representations of images: models and their layers (torch and timm live here only), or ready-made arrays."""
