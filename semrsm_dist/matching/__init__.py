"""Matchers: which token of one image goes with which token of another, and how good that is.

`semrsm_dist.matching.matchers` has the matchers by name, `semrsm_dist.matching.similarity` the functions for
arrays in memory.
"""
