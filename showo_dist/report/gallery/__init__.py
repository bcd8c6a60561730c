"""A web page of images of checkpoints side by side, the rounds of an image, and training curves."""
