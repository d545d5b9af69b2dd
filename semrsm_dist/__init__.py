"""Semantic representational similarity matrices of vision models, at any scale."""
