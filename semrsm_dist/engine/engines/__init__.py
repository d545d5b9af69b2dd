"""The engines that ship, one module each; `semrsm_dist.engine.ENGINES` finds them."""
