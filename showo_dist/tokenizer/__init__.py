"""Trains an image tokenizer on image shards, and encodes shards with a trained one."""
