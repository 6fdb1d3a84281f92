"""Where compiled kernels really are, what is in them, what a start added."""
