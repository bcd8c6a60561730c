"""What a run would take, predicted without starting it: memory, traffic, time."""
