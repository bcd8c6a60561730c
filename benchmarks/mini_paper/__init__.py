"""The parts of ``benchmarks/mini_paper.py``: arms, encoder, prompts, scores and tables."""
