"""Figures of runs and experiments, each drawn into matplotlib axes: `ax=None` means the current ones, as in pyplot.

>>> import semrsm_dist as srs
>>> run = srs.open_run("runs/digits")                              # doctest: +SKIP
>>> srs.plot.rsm(run.similarity("layer3"))                         # doctest: +SKIP
>>> srs.plot.matches(run.pair(0, 1, layer="layer3"))               # doctest: +SKIP
>>> srs.plot.retrieval(run)                                        # doctest: +SKIP
>>> srs.plot.translation(srs.evaluate("translation").table)        # doctest: +SKIP
"""

from semrsm_dist.plot.heatmap import rsm as rsm
from semrsm_dist.plot.patches import matches as matches
from semrsm_dist.plot.scores import retrieval as retrieval
from semrsm_dist.plot.shifts import translation as translation

__all__ = ["matches", "retrieval", "rsm", "translation"]
