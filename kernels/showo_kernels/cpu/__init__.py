"""CPU kernels in C++: their sources, compiling and loading them, and their autograd functions."""
