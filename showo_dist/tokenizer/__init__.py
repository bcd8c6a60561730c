"""Train an image tokenizer on image shards."""
