"""Which seeds serve for what: rules are tuned on one, and measured on others."""

TUNING_SEED = 0
FRESH_SEEDS = range(1001, 1_000_000)
"""Those that no tuning and no search has seen."""
