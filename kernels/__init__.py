"""One file per operation: the function, its plain-PyTorch twin, later its Triton and C++ kernels."""
