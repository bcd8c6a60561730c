"""Show-o and RecA, trained on any number of ranks with the same loss curve."""
