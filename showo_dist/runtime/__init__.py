"""What every command that runs on ranks shares: the ranks, the number format, and how a run ends."""
