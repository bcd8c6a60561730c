"""CPU kernels in C++: sources, the compiler that loads them, and their torch wrappers."""
