"""Targets: loops become LLVM IR and object code for the CPU, or Metal shaders for the GPU."""
