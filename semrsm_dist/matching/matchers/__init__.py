"""The matchers, one file each."""

from semrsm_dist.matching.matcher import MATCHERS as MATCHERS
from semrsm_dist.matching.matcher import make_matcher as make_matcher
