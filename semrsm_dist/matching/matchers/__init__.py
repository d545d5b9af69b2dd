"""The matchers, one file each."""

from semrsm_dist.matching.matcher import MATCHERS as MATCHERS
from semrsm_dist.matching.matcher import load_matcher as load_matcher
from semrsm_dist.matching.matcher import make_matcher as make_matcher
from semrsm_dist.matching.matcher import usable_matchers as usable_matchers
