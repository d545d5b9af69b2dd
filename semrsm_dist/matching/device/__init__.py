"""Matching on a GPU, with the certificates of the CPU: kernels, what they prove, and what launches them.

`kernels/` holds CUDA C++, which `compiling` compiles for the GPU at hand. `solver` launches it through a `Device`: that
of `cuda`, or a test's. `certificate` derives from the results what is proven, and `forms` has the table of how auctions
are laid out. The matcher `auction` uses them.
"""
