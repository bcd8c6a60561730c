"""Show the results of runs: a report of a recipe's runs, and a gallery of their checkpoints."""
