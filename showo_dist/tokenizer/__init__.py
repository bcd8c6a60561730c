"""Trains an image tokenizer on picture shards, and encodes shards with a trained one."""
