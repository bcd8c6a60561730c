"""Export checkpoints as model folders, import model folders as checkpoints, and inspect both."""
