"""What the kernels and the pipeline cost, and on which device it was measured."""
