"""Statistics of similarity matrices: retrieval, agreement, correlations, and their bootstrap intervals."""
