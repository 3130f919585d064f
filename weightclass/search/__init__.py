"""The search for the best recipe under a budget: trials of Optuna's, each an ordinary run."""
