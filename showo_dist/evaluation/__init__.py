"""Evaluate checkpoints: generate images from prompts, answer questions about images, score both."""
