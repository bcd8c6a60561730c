"""Encode image shards once, ahead of training."""
