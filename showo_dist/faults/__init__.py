"""What can go wrong in a long run, and how all of its ranks deal with it together."""

import os

# For every connection that breaks torch's C++ side writes a page of its own stack; who is gone is said in one
# line here. It reads this when it is loaded.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
