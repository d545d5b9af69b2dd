"""What a run will cost: trials, what they measured, and the plan that is scaled up from them."""
